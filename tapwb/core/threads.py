"""Keep OpenMP threads from burning the processor while they wait."""

import os


def wait_without_spinning() -> None:
    """Let idle OpenMP threads sleep; takes effect only before torch is imported.

    By default a waiting thread spins. On a machine that does anything else, two spinning threads take the cores from
    each other: decoding was measured 3 to 12 times slower that way with one other busy process on two cores, and
    not slower on an idle machine. An ``OMP_WAIT_POLICY`` that is already set is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
