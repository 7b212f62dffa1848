"""Which card holds which model: five parts, each shown, then one sum.

    needed = weights + attention cache + recurrent state + activations + reserve

*weights*      every parameter at the format's width, scales included (:meth:`ModelAnatomy.weights_bytes`). Choosing
               bits by token does not shrink them: all tokens share one copy. What shrinks them is which bit planes of
               the nested copy are stored.
*cache, state* per sequence, times the batch.
*activations*  the widest moment of one layer, for a prompt processed ``PREFILL_CHUNK_TOKENS`` tokens at a time.
*reserve*      what the driver and the allocator take: ``CONTEXT_BYTES`` plus ``FRAGMENTATION`` of the card's memory.

The first three are exact; activations and reserve are documented estimates.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.core.registry import Registry
from tapwb.models.anatomy_records import ModelAnatomy
from tapwb.models.published_shapes import PUBLISHED_SHAPES, PublishedShape
from tapwb.plan.cards import Card, find_card, load_cards

PREFILL_CHUNK_TOKENS = 512
CONTEXT_BYTES = 512 * 2**20  # device context, libraries and their workspaces
FRAGMENTATION = 0.05  # share of the card that an allocator cannot hand out
FULL_PRECISION_CACHE_TOKENS = 132  # four sinks and the last 128 tokens of a quantized cache stay at 16 bits
CONTEXT_SEARCH_LIMIT = 2**26  # tokens; beyond any model


@dataclass(frozen=True, slots=True)
class MemoryFormat:
    """How weights and cache are stored.

    Attributes:
        weight_bits: Bits of the matrices that are resident.
        kv_bits: Bits of the attention cache.
    """

    weight_bits: float
    kv_bits: float = 16

    @property
    def is_nested(self) -> bool:
        """Whether weights are nested planes, which the reference path widens one matrix at a time."""
        return self.weight_bits < 16


memory_formats: Registry[MemoryFormat] = Registry("memory format")
memory_formats.add("fp32", MemoryFormat(32, 32), "32-bit weights and cache: no more information than 16 bits hold")
memory_formats.add("bf16", MemoryFormat(16), "16-bit weights and cache: the normal case")
memory_formats.add("tap8", MemoryFormat(8), "nested weights, all planes: levels up to 8 bits, near lossless")
memory_formats.add("tap6", MemoryFormat(6), "nested weights, planes up to 6 bits")
memory_formats.add("tap5", MemoryFormat(5), "nested weights, planes up to 5 bits")
memory_formats.add("tap4", MemoryFormat(4), "nested weights, only the 4-bit plane: nothing left to adapt upwards")
memory_formats.add("tap8-kv8", MemoryFormat(8, 8), "all planes, 8-bit cache")
memory_formats.add("tap4-kv4", MemoryFormat(4, 4), "only the 4-bit plane, 4-bit cache")


@dataclass(frozen=True, slots=True)
class FitRow:
    """Whether one card holds one model in one format.

    Attributes:
        gpu: Name of the card.
        vram_bytes: Its memory.
        format: Name of the format.
        weights_bytes: Weights.
        kv_bytes: Attention cache of the whole batch at the asked context.
        state_bytes: Recurrent states of the whole batch.
        activation_bytes: Widest moment of a layer (estimate).
        reserve_bytes: Driver and allocator (estimate).
        needed_bytes: Sum of the five.
        fits: Whether the sum is within the card's memory.
        max_context_tokens: Tokens per sequence that would still fit (no more than the model was made for), or why
            there is no such number.
        context_limited_by: ``"memory"``, ``"model"`` or ``"weights"`` (they alone do not fit), or ``"nothing"``.
    """

    gpu: str
    vram_bytes: int
    format: str
    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    activation_bytes: int
    reserve_bytes: int
    needed_bytes: int
    fits: bool
    max_context_tokens: int | Unavailable
    context_limited_by: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as ``tapwb fit --json`` prints it; ``max_context`` repeats ``max_context_tokens``."""
        limit = self.max_context_tokens
        shown = limit.to_json() if isinstance(limit, Unavailable) else limit
        return asdict(self) | {"max_context_tokens": shown, "max_context": shown}


def fit_rows(
    anatomy: ModelAnatomy,
    *,
    context_tokens: int,
    batch: int = 1,
    cards: Sequence[Card | str] | None = None,
    formats: Sequence[str] = ("bf16", "tap8", "tap4"),
) -> list[FitRow]:
    """One row per card and format.

    Args:
        anatomy: The model.
        context_tokens: Tokens per sequence, prompt and answer together.
        batch: Sequences at once.
        cards: Cards or their names; all known ones by default.
        formats: Names in :data:`memory_formats`.

    Raises:
        UsageError: If ``context_tokens`` or ``batch`` is below 1.
        UnknownName: For a card or format that is not known.
    """
    _check_load(context_tokens, batch)
    chosen = load_cards() if cards is None else [find_card(c) if isinstance(c, str) else c for c in cards]
    return [fit_row(anatomy, card, name, context_tokens=context_tokens, batch=batch)
            for card in chosen for name in formats]  # fmt: skip


def fit_row(anatomy: ModelAnatomy, card: Card, format_name: str, *, context_tokens: int, batch: int = 1) -> FitRow:
    """Whether ``card`` holds the model; arguments and errors as in :func:`fit_rows`."""
    _check_load(context_tokens, batch)
    stored = memory_formats[format_name]
    weights = anatomy.weights_bytes(stored.weight_bits)
    kv = batch * _kv_bytes(anatomy, stored, context_tokens)
    state = batch * anatomy.state_bytes()
    activations = activation_bytes(anatomy, stored, context_tokens=context_tokens, batch=batch)
    reserve = reserve_bytes(card)
    needed = weights + kv + state + activations + reserve
    limit, limited_by = _max_context(anatomy, stored, card, batch)
    return FitRow(
        gpu=card.name,
        vram_bytes=card.vram_bytes,
        format=format_name,
        weights_bytes=weights,
        kv_bytes=kv,
        state_bytes=state,
        activation_bytes=activations,
        reserve_bytes=reserve,
        needed_bytes=needed,
        fits=needed <= card.vram_bytes,
        max_context_tokens=limit,
        context_limited_by=limited_by,
    )


def activation_bytes(anatomy: ModelAnatomy, stored: MemoryFormat, *, context_tokens: int, batch: int = 1) -> int:
    """Bytes of the widest moment of a forward pass, at 16 bits (estimate).

    Per token of a prompt chunk: four copies of the residual stream and two outputs of the widest matrix. Per sequence:
    one row of logits in bf16 and fp32. For latent attention, keys and values of all heads of one layer over the whole
    context. For nested weights, the largest matrix once in bf16, as the reference path widens it. Attention scores are
    not counted: fused attention never stores them.
    """
    chunk = batch * min(context_tokens, PREFILL_CHUNK_TOKENS)
    inner = [spec for spec in anatomy.linears if spec.role != "head"]
    widest = max((spec.out_features for spec in inner), default=anatomy.hidden_size)
    stream = chunk * 2 * (4 * anatomy.hidden_size + 2 * widest)
    logits = batch * anatomy.vocab_size * 6
    expanded = 2 * batch * max((c.expanded_dim * c.kept_tokens(context_tokens) for c in anatomy.caches), default=0)
    largest = max((s.in_features * s.out_features for s in inner), default=0)
    return stream + logits + expanded + (2 * largest if stored.is_nested else 0)


def reserve_bytes(card: Card) -> int:
    """Bytes that driver and allocator keep from the model (estimate)."""
    return CONTEXT_BYTES + round(FRAGMENTATION * card.vram_bytes)


def largest_model(
    card: Card, format_name: str, context_tokens: int, candidates: Sequence[PublishedShape] = PUBLISHED_SHAPES
) -> PublishedShape | Unavailable:
    """The largest of ``candidates`` that fits, by parameter count; batch 1.

    Returns:
        Its shape, or why none of them fits.
    """
    anatomies = sorted(((shape.anatomy().n_parameters, shape) for shape in candidates), key=lambda pair: -pair[0])
    for _, shape in anatomies:
        if fit_row(shape.anatomy(), card, format_name, context_tokens=context_tokens).fits:
            return shape
    smallest = anatomies[-1][1].size if anatomies else "none"
    return Unavailable(f"not even {smallest} fits {card.name} in {format_name} with {context_tokens} tokens")


def _kv_bytes(anatomy: ModelAnatomy, stored: MemoryFormat, n_tokens: int) -> int:
    return anatomy.kv_bytes(n_tokens, stored.kv_bits, full_precision_tokens=FULL_PRECISION_CACHE_TOKENS)


def _max_context(anatomy: ModelAnatomy, stored: MemoryFormat, card: Card, batch: int) -> tuple[int | Unavailable, str]:
    """The longest context that fits, by bisection over a sum that never falls with the number of tokens."""
    fixed = anatomy.weights_bytes(stored.weight_bits) + batch * anatomy.state_bytes() + reserve_bytes(card)

    def fits(n_tokens: int) -> bool:
        moving = activation_bytes(anatomy, stored, context_tokens=n_tokens, batch=batch)
        return fixed + batch * _kv_bytes(anatomy, stored, n_tokens) + moving <= card.vram_bytes

    if not fits(1):
        return Unavailable("the weights alone, with activations and reserve, exceed the card"), "weights"
    made_for = anatomy.context_length
    ceiling = made_for if isinstance(made_for, int) else CONTEXT_SEARCH_LIMIT
    if fits(ceiling):
        if isinstance(made_for, int):
            return made_for, "model"
        return Unavailable("memory sets no limit: what the model keeps does not grow with the text"), "nothing"
    low, high = 1, ceiling
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, "memory"


def _check_load(context_tokens: int, batch: int) -> None:
    if context_tokens < 1 or batch < 1:
        raise UsageError(
            f"context {context_tokens} and batch {batch} must both be at least 1. Give for example 4096 and 1."
        )
