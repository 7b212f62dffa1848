"""What a model is made of, as plain records: matrices, caches, states, and the bytes they take at any precision.

A :class:`ModelAnatomy` holds shapes only, never a weight, so that it can be made from a configuration alone, sent to
the capacity planner and saved as JSON. Every byte count here is arithmetic over those shapes; tests hold it against
tensors that were really allocated.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tapwb.core.errors import UnsupportedBits

GROUP_METADATA_BYTES = 4  # fp16 minimum and fp16 step, shared by all levels of a nested group
KEY_PAGE_TOKENS = 64  # keys of a quantized cache share one scale per channel within such a page
TABLE_BITS = 8.0  # the embedding table and the head of a nested model are one 8-bit table


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """Matrices of one role and one shape.

    Attributes:
        role: What the matrix does: ``"attention.query"``, ``"mlp.down"``, ``"expert.gate_up"``, ``"head"``.
        in_features: Width of its input.
        out_features: Width of its output.
        count: How many such matrices the whole model holds; every expert of a fused block counts as one.
        layers: Indices of the layers that hold them; empty for matrices outside the layers.
        bias: Whether a bias is added (its numbers are counted in ``ModelAnatomy.other_parameters``).
    """

    role: str
    in_features: int
    out_features: int
    count: int = 1
    layers: tuple[int, ...] = ()
    bias: bool = False

    @property
    def n_parameters(self) -> int:
        """Weights of all ``count`` matrices, biases left out."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What one attention layer keeps of every past token.

    Attributes:
        layer: Index of the layer.
        kind: ``"full"``, ``"sliding"`` (only recent tokens are kept) or ``"mla"`` (a compressed latent is kept).
        kv_heads: Key-value heads that are stored; 1 for a latent.
        key_dim: Numbers a key holds per head; for ``"mla"`` the rank of the latent.
        value_dim: Numbers a value holds per head; for ``"mla"`` the shared rotary part of the key.
        window: Tokens that a query may see, itself included; ``None`` where it sees all.
        expanded_dim: For ``"mla"``, numbers a token takes in this layer when the latent is expanded to keys and values
            of all heads, as transformers does while it computes the layer (older releases cached that); else 0.
    """

    layer: int
    kind: str
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    expanded_dim: int = 0

    def kept_tokens(self, n_tokens: int) -> int:
        """Tokens in the cache after ``n_tokens``: a query sees itself too, so a window of ``w`` keeps ``w - 1``."""
        return n_tokens if self.window is None else min(n_tokens, self.window - 1)


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A recurrent state: memory of fixed size, whatever the number of tokens.

    Attributes:
        layer: Index of the layer.
        kind: ``"mamba"``, ``"mamba2"``, ``"retention"``, ``"rwkv"``, ``"rwkv_shift"``, ``"gated_delta"``, ``"rg_lru"``,
            ``"short_conv"`` (the last inputs of a short convolution), or ``"recurrent"`` where only its shape is known.
        shape: Shape for one sequence, without the batch axis.
        dtype_bytes: Bytes of one number: 4 for carried states (kept in fp32), 2 for convolution inputs of a bf16 model.
    """

    layer: int
    kind: str
    shape: tuple[int, ...]
    dtype_bytes: int = 4

    @property
    def nbytes(self) -> int:
        """Bytes for one sequence."""
        return math.prod(self.shape) * self.dtype_bytes


@dataclass(frozen=True, slots=True)
class ModelAnatomy:
    """Shapes of a language model: enough to say what it weighs, without its weights.

    Attributes:
        model_type: The family, as its configuration names it.
        n_layers: Number of layers.
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the embedding table.
        context_length: Tokens it was made for; ``None`` where the architecture sets no limit (Mamba, ALiBi).
        linears: Every matrix of a linear operation, the head included even where it shares the embedding's numbers.
        caches: Attention caches, one per layer that keeps one.
        states: Recurrent states.
        tied_embedding: Whether head and embedding are one tensor.
        embedding_parameters: Numbers in the token embedding.
        other_parameters: Everything else: norms, biases, convolutions, positions, routers.
        source: ``"config"``, or ``"estimated:<rule>"`` for a shape that belongs to no particular checkpoint.
    """

    model_type: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int | None
    linears: tuple[LinearSpec, ...]
    caches: tuple[CacheSpec, ...]
    states: tuple[StateSpec, ...]
    tied_embedding: bool
    embedding_parameters: int
    other_parameters: int
    source: str = field(default="config")

    @property
    def linear_parameters(self) -> int:
        """Numbers in the matrices, a tied head not counted again."""
        return sum(s.n_parameters for s in self.linears if not self.shares_embedding(s))

    @property
    def n_parameters(self) -> int:
        """Numbers in the model; what is shared counts once, as in ``sum(p.numel() for p in model.parameters())``."""
        return self.linear_parameters + self.embedding_parameters + self.other_parameters

    def weights_bytes(
        self,
        bits: float = 16,
        *,
        group_size: int = 64,
        embedding_bits: float | None = None,
        head_bits: float | None = None,
    ) -> int:
        """Bytes of the weights when every matrix is stored at ``bits``.

        A stored nested tensor of ``b`` bits takes ``out * ceil(in / G) * (G * b / 8 + 4)`` bytes: groups of G along the
        input, the last one padded, and fp16 minimum and step per group. Norms, biases and the like stay at 16 bits.
        All tokens share the weights, so only the planes that are *stored* count: the mean bits of a plan change how
        many of these bytes are read, not how many there are.

        Args:
            bits: 1 to 8 (nested planes), 16 or 32. A fraction is a mixture of layers at different widths.
            group_size: Group length G along the input.
            embedding_bits: Width of the embedding table; by default 8 for nested formats, else ``bits``.
            head_bits: Width of an untied head, with the same default; a tied head is the embedding table.

        Raises:
            UnsupportedBits: For a width that no format stores.
        """
        table = max(TABLE_BITS, bits) if bits < 16 else bits
        embedding_bits = table if embedding_bits is None else embedding_bits
        head_bits = table if head_bits is None else head_bits
        total = self.other_parameters * max(2, math.ceil(bits / 8))
        if self.embedding_parameters:
            width = self.embedding_parameters // self.vocab_size
            total += _matrix_bytes(self.vocab_size, width, embedding_bits, group_size)
        for spec in self.linears:
            if not self.shares_embedding(spec):
                width_bits = head_bits if spec.role == "head" else bits
                total += spec.count * _matrix_bytes(spec.out_features, spec.in_features, width_bits, group_size)
        return total

    def kv_bytes(
        self, n_tokens: int, bits: float = 16, *, expanded: bool = False, full_precision_tokens: int = 0
    ) -> int:
        """Bytes of the attention caches of one sequence after ``n_tokens``.

        Below 16 bits, keys carry 4 bytes per channel and page of 64 tokens and values 4 bytes per token and head.

        Args:
            n_tokens: Tokens seen so far.
            bits: 1 to 8, 16 or 32.
            expanded: For multi-head latent attention, count keys and values of all heads instead of the latent. The
                latent is what current transformers and the serving engines store.
            full_precision_tokens: Tokens that stay at 16 bits in a quantized cache (sinks and the recent window).

        Raises:
            UnsupportedBits: For a width that no format stores.
        """
        _check_bits(bits)
        return sum(_cache_bytes(c, n_tokens, bits, expanded, full_precision_tokens) for c in self.caches)

    @property
    def carried_states(self) -> tuple[StateSpec, ...]:
        """States that every token adds to; the last inputs of a convolution or a token shift are none."""
        return tuple(state for state in self.states if state.kind not in ("short_conv", "rwkv_shift"))

    def state_bytes(self) -> int:
        """Bytes of the recurrent states of one sequence; they do not grow with the text."""
        return sum(state.nbytes for state in self.states)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the derived parameter count beside the fields."""
        return asdict(self) | {"n_parameters": self.n_parameters}

    @classmethod
    def from_json(cls, document: str | Mapping[str, Any]) -> "ModelAnatomy":
        """The anatomy that :meth:`to_json` wrote, from the text or the parsed object."""
        data = dict(json.loads(document) if isinstance(document, str) else document)
        data.pop("n_parameters", None)
        data["linears"] = tuple(LinearSpec(**s | {"layers": tuple(s["layers"])}) for s in data["linears"])
        data["caches"] = tuple(CacheSpec(**c) for c in data["caches"])
        data["states"] = tuple(StateSpec(**s | {"shape": tuple(s["shape"])}) for s in data["states"])
        return cls(**data)

    def shares_embedding(self, spec: LinearSpec) -> bool:
        """Whether a matrix is the embedding's own tensor."""
        return self.tied_embedding and spec.role == "head"


def _check_bits(bits: float) -> None:
    if not (1 <= bits <= 8 or bits in (16, 32)):
        raise UnsupportedBits(f"{bits:g} bits is not stored by any format. Use 1 to 8 (nested planes), 16 or 32.")


def _matrix_bytes(rows: int, columns: int, bits: float, group_size: int) -> int:
    _check_bits(bits)
    if bits >= 16:
        return math.ceil(rows * columns * bits / 8)
    groups = rows * math.ceil(columns / group_size)
    return math.ceil(groups * group_size * bits / 8) + groups * GROUP_METADATA_BYTES


def _cache_bytes(cache: CacheSpec, n_tokens: int, bits: float, expanded: bool, full_precision_tokens: int) -> int:
    kept = cache.kept_tokens(n_tokens)
    per_token = cache.kv_heads * (cache.key_dim + cache.value_dim)
    if expanded and cache.expanded_dim:
        per_token = cache.expanded_dim
    if bits >= 16:
        return math.ceil(kept * per_token * bits / 8)
    exact = min(kept, full_precision_tokens)
    quantized = kept - exact
    pages = math.ceil(quantized / KEY_PAGE_TOKENS)
    metadata = GROUP_METADATA_BYTES * cache.kv_heads * (pages * cache.key_dim + quantized)
    return exact * per_token * 2 + math.ceil(quantized * per_token * bits / 8) + metadata
