"""How an 8-bit nested code is cut into planes, and which cut serves which levels."""

from collections.abc import Sequence
from dataclasses import dataclass

from tapwb.core.errors import SettingsError, UnknownName, UnsupportedBits
from tapwb.quant.packing import CODE_BITS, check_plane_bits


@dataclass(frozen=True, slots=True)
class NestedLayout:
    """How an 8-bit code is cut into planes.

    Attributes:
        name: For people and files: ``"4+4"``, ``"fine"``, ``"wide"``, or the widths joined by plus signs.
        plane_bits: Widths, most significant first; each 1, 2, 4 or 8, together 8.
    """

    name: str
    plane_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            check_plane_bits(self.plane_bits)
        except ValueError as error:
            raise SettingsError(f"layout {self.name!r}: {error}") from None

    @property
    def levels(self) -> tuple[int, ...]:
        """Bit-widths that read whole planes, ascending. Others can be read too, at the bytes of the next level."""
        return tuple(sum(self.plane_bits[: i + 1]) for i in range(len(self.plane_bits)))

    @classmethod
    def named(cls, name: "str | NestedLayout") -> "NestedLayout":
        """The layout of a preset name or of widths like ``"2+2+4"``.

        Raises:
            UnknownName: If it is neither.
        """
        if isinstance(name, NestedLayout):
            return name
        if name in PRESETS:
            return PRESETS[name]
        if name.replace("+", "").isdigit():
            return cls(name, tuple(int(width) for width in name.split("+")))
        raise UnknownName(f"no nested layout {name!r}. Known: {', '.join(PRESETS)}, or widths such as 2+2+4.")


PRESETS: dict[str, NestedLayout] = {
    "4+4": NestedLayout("4+4", (4, 4)),
    "fine": NestedLayout("fine", (4, 1, 1, 2)),
    "wide": NestedLayout("wide", (2, 1, 1, 4)),
}


def layout_for_levels(levels: Sequence[int]) -> NestedLayout:
    """The preset with the fewest planes that has all ``levels``, or a layout cut to measure.

    Raises:
        UnsupportedBits: If a level is outside 1..8.
    """
    wanted = {int(level) for level in levels}
    if not wanted or any(not 1 <= level <= CODE_BITS for level in wanted):
        raise UnsupportedBits(
            f"levels {sorted(wanted)} cannot be nested: give one or more of 1 to 8. "
            f"16 and 32 bits are the unquantized model."
        )
    for layout in PRESETS.values():
        if wanted <= set(layout.levels):
            return layout
    widths: list[int] = []
    below = 0
    for level in sorted(wanted | {CODE_BITS}):
        gap = level - below
        widths += [width for width in (8, 4, 2, 1) if gap & width]
        below = level
    return NestedLayout("+".join(map(str, widths)), tuple(widths))
