"""The ledger's hardware figures are the ones that `tapwb fit` shows: one table, told in two places, never differing.

Seed features: S1.32
"""

import pytest

from tapwb.core.reading import Unavailable
from tapwb.evals.seed_ledger import load_ledger
from tapwb.plan.hardware_claims import HardwareClaim, seed_hardware_tables

CELLS = seed_hardware_tables()
CLAIMS = {claim.id: claim for claim in load_ledger()["S1.32"].claims}


def ledger_id(cell: HardwareClaim) -> str:
    """Id under which the ledger keeps a cell: `C1.32-a100-40gb-tap`."""
    card = cell.gpu.lower().replace("a100 ", "a100-").replace(" ", "")
    return f"C1.32-{card}-{cell.mode}"


def test_every_cell_of_the_three_tables_is_in_the_ledger():
    """Fifteen cards, each normal and with TAP, and nothing else but the three stated memory needs."""
    kept = {name for name in CLAIMS if "-need-" not in name}
    assert kept == {ledger_id(cell) for cell in CELLS}
    assert len(CELLS) == 30


@pytest.mark.parametrize("cell", CELLS, ids=ledger_id)
def test_a_cell_says_the_same_in_both_places(cell):
    """Claimed and computed model and the verdict agree; where the ledger lags, run `tapwb fit` and copy its answer."""
    claim = CLAIMS[ledger_id(cell)]
    computed = "none of the seed's sizes" if isinstance(cell.computed, Unavailable) else cell.computed
    verdict = "holds" if cell.verdict == "agree" else "differs"
    assert (claim.claimed, claim.measured, claim.verdict) == (cell.claimed, computed, verdict)
