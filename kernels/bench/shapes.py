"""The operations and shapes worth measuring: linears of the embedded model, and one the size of a 7B model's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement.

    Attributes:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        plane_bits: How its code is cut.
        bits: Level it is read at.
    """

    out_features: int
    in_features: int
    plane_bits: tuple[int, ...]
    bits: int


SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (4096, 4096))
LEVELS = (((4, 4), 4), ((4, 1, 1, 2), 5), ((4, 1, 1, 2), 6), ((4, 4), 8), ((4, 1, 1, 2), 8))
CASES = tuple(Case(*shape, planes, bits) for shape in SHAPES for planes, bits in LEVELS)
N_ROWS = (1, 8)
