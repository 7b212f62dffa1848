"""The seed's hardware tables, reproduced: what it claims beside what the anatomy of such a model says.

The seed gives no context, no format and no model names. The answer here takes the published model of each size, 2048
tokens (what the models of those sizes have in common) and batch 1; "normal" is bf16 and "TAP" is the whole nested copy
(``tap8``), the one that keeps the promise of under 1 % loss. What the 4-bit plane alone would give stands beside it.
Every verdict is the same without the reserve, so none hangs on the estimated part of the sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tapwb.core.errors import PlanFileError
from tapwb.core.reading import Unavailable
from tapwb.core.settings import data_dir
from tapwb.models.published_shapes import PublishedShape, published_shape
from tapwb.plan.capacity import FitRow, fit_row, largest_model
from tapwb.plan.cards import Card, find_card, load_cards, read_yaml

CONTEXT_TOKENS = 2048
SEED_SIZES = ("7B", "13B", "20B", "33B", "40B", "65B", "70B", "100B", "120B")
FORMATS: Mapping[str, str] = {"normal": "bf16", "tap": "tap8"}
FORMATS_BY_WIDTH = ("bf16", "tap8", "tap6", "tap5", "tap4", "tap4-kv4")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class HardwareClaim:
    """One cell of the seed's tables: a card, with or without token-adaptive precision.

    Attributes:
        table: Which of the three tables.
        gpu: The card.
        vram_bytes: Its memory.
        mode: ``"normal"`` or ``"tap"``.
        claimed: Largest model according to the seed.
        computed: Largest of the seed's model sizes that fits, or why none does.
        computed_four_bit: The same with only the 4-bit plane stored (for ``"tap"``; for ``"normal"`` it says why not).
        claimed_needs_bytes: What the claimed model needs in this mode.
        claimed_fits_in: The widest format in which the claimed model would fit, or why there is none.
        verdict: ``"agree"`` or ``"differs"``.
        why: The reason in one line, with the numbers.
    """

    table: str
    gpu: str
    vram_bytes: int
    mode: str
    claimed: str
    computed: str | Unavailable
    computed_four_bit: str | Unavailable
    claimed_needs_bytes: int
    claimed_fits_in: str | Unavailable
    verdict: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        shown = {
            name: value.to_json() if isinstance(value, Unavailable) else value
            for name, value in (
                ("computed", self.computed),
                ("computed_four_bit", self.computed_four_bit),
                ("claimed_fits_in", self.claimed_fits_in),
            )
        }
        return asdict(self) | shown


def seed_hardware_tables(*, context_tokens: int = CONTEXT_TOKENS) -> list[HardwareClaim]:
    """Every cell of the seed's three hardware tables, claimed beside computed, in the seed's order.

    Args:
        context_tokens: Tokens per sequence for the computed answer.

    Raises:
        PlanFileError: If a data file is missing or malformed.
        UnknownName: If a table names a card that the card file lacks.
    """
    path = data_dir() / "devices" / "seed_hardware.yml"
    cards = load_cards()
    claims = []
    try:
        for table in read_yaml(path, SCHEMA_VERSION)["tables"]:
            for row in table["rows"]:
                card = find_card(row["card"], cards)
                for mode in FORMATS:
                    claims.append(_claim(table["title"], card, mode, row[mode], context_tokens))
    except (KeyError, TypeError) as error:
        raise PlanFileError(f"{path.name} lacks {error}. Restore it from the repository.") from error
    return claims


def _claim(table: str, card: Card, mode: str, claimed: str, context_tokens: int) -> HardwareClaim:
    shapes = _seed_shapes()
    computed = _size(largest_model(card, FORMATS[mode], context_tokens, shapes))
    four_bit: str | Unavailable = Unavailable("a model that is not quantized has no 4-bit plane")
    if mode == "tap":
        four_bit = _size(largest_model(card, "tap4", context_tokens, shapes))
    shape = published_shape(claimed)
    if shape is None:
        raise PlanFileError(f"the hardware table claims a {claimed} model; no published shape has that size.")
    row = fit_row(shape.anatomy(), card, FORMATS[mode], context_tokens=context_tokens)
    fits_in = _widest_fit(shape, card, context_tokens)
    return HardwareClaim(
        table=table,
        gpu=card.name,
        vram_bytes=card.vram_bytes,
        mode=mode,
        claimed=claimed,
        computed=computed,
        computed_four_bit=four_bit,
        claimed_needs_bytes=row.needed_bytes,
        claimed_fits_in=fits_in,
        verdict="agree" if computed == claimed else "differs",
        why=_why(row, shape, computed, fits_in, context_tokens),
    )


def _widest_fit(shape: PublishedShape, card: Card, context_tokens: int) -> str | Unavailable:
    for name in FORMATS_BY_WIDTH:
        if fit_row(shape.anatomy(), card, name, context_tokens=context_tokens).fits:
            return name
    return Unavailable(f"{shape.model} does not fit {card.name} even with 4-bit weights and cache")


def _why(
    row: FitRow,
    shape: PublishedShape,
    computed: str | Unavailable,
    fits_in: str | Unavailable,
    context_tokens: int,
) -> str:
    parts = (
        f"{shape.model} in {row.format} takes {_gib(row.weights_bytes)} weights + "
        f"{_gib(row.kv_bytes)} cache at {context_tokens} tokens + {_gib(row.activation_bytes)} activations + "
        f"{_gib(row.reserve_bytes)} reserve = {_gib(row.needed_bytes)} GiB of {_gib(row.vram_bytes)}"
    )
    if not row.fits:
        rescue = "not even 4-bit weights and cache fit" if isinstance(fits_in, Unavailable) else f"it fits in {fits_in}"
        return f"{parts}: too large; {rescue}"
    return f"{parts}: fits" if computed == shape.size else f"{parts}: fits, and so does {computed}"


def _seed_shapes() -> Sequence[PublishedShape]:
    return [shape for shape in map(published_shape, SEED_SIZES) if shape is not None]


def _size(shape: PublishedShape | Unavailable) -> str | Unavailable:
    return shape if isinstance(shape, Unavailable) else shape.size


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f}"
