"""The depth follows what its own clock says, and guessing ends where it does not pay.

Seed features: S3.16
"""

import random
import re

import pytest

from tapwb.core.errors import UsageError
from tapwb.execution.speculative.depth import Costs, DepthController, FixedDepth


def drive(controller, *, share, draft, rows, n_rounds=400, noise=0.1, seed=0):
    """Rounds of a machine whose costs and acceptance are known; depths that were chosen, and tokens over seconds."""
    rng = random.Random(seed)
    depths, tokens, seconds = [], 0, 0.0
    for index in range(n_rounds):
        depth = controller.next_depth()
        now = share(index) if callable(share) else share
        accepted = 0
        while accepted < depth and rng.random() < now:
            accepted += 1
        jitter = [1 + noise * rng.random() for _ in range(2)]
        draft_s, verify_s = depth * draft * jitter[0], rows(depth + 1) * jitter[1]
        controller.observe(depth, accepted, draft_s, verify_s)
        depths.append(depth)
        tokens, seconds = tokens + 1 + accepted, seconds + draft_s + verify_s
    return depths, tokens / seconds


def best_rate(share, draft, rows, depths=range(7)):
    """What the best fixed depth writes, tokens a second."""
    return max(
        sum(share**j for j in range(depth + 1)) / (depth * draft + rows(depth + 1)) / 1.05 for depth in depths
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "draft", "rows"),
    [
        (0.7, 0.58, lambda m: 1 + 0.04 * (m - 1)),
        (0.9, 0.3, lambda m: 1 + 0.05 * (m - 1)),
        (0.95, 0.01, lambda m: 1 + 0.3 * (m - 1)),
        (0.6, 0.01, lambda m: 1.0),
    ],
    ids=["cpu", "cheap draft", "steep rows", "free rows"],
)
def test_it_comes_near_the_best_fixed_depth(share, draft, rows):
    """Within 8 % of what nobody can know beforehand, on four kinds of machine."""
    _, rate = drive(DepthController(), share=share, draft=draft, rows=rows, n_rounds=800)
    assert rate > 0.92 * best_rate(share, draft, rows)


def test_bad_guesses_turn_it_off_and_the_note_says_so():
    """Nothing stands: after the first rounds hardly anything is guessed, and little time is lost."""
    controller = DepthController()
    depths, rate = drive(controller, share=0.05, draft=0.6, rows=lambda m: 1 + 0.2 * (m - 1))
    assert controller.is_off
    assert sum(depth > 0 for depth in depths[10:]) <= 8
    assert rate > 0.93 / 1.05
    (note,) = controller.notes()
    assert note.startswith("Speculation was turned off for ")
    assert "of 400 steps, because it does not pay here" in note
    promised = re.search(r"would write ([\d.]+) times", note)
    assert float(promised[1]) < 1  # the numbers of the decision, not those of the end


def test_dear_verification_turns_it_off_even_when_guesses_stand():
    """Two rows at twice the cost of one: nine of ten guesses right are no help."""
    controller = DepthController()
    drive(controller, share=0.9, draft=0.3, rows=lambda m: float(m))
    assert controller.is_off


def test_it_turns_on_again_when_the_text_begins_to_repeat():
    """Guesses that fall for 150 rounds and then all stand."""
    controller = DepthController()
    depths, _ = drive(
        controller, share=lambda i: 0.0 if i < 150 else 1.0, draft=0.05, rows=lambda m: 1 + 0.03 * m, n_rounds=600
    )
    assert sum(depths[100:150]) < 10
    assert sum(depths[-50:]) > 4 * 45
    assert not controller.is_off


def test_plain_steps_stay_in_between():
    """What speculation is compared with is measured all the time."""
    depths, _ = drive(DepthController(), share=0.9, draft=0.2, rows=lambda m: 1 + 0.05 * m, n_rounds=320)
    assert sum(depth == 0 for depth in depths) >= 20
    assert max(depths) == 6


def test_the_next_answer_need_not_try_depths_again():
    """Times of the first answer are known to the second; how many guesses stand is not."""
    costs = Costs()
    machine = {"draft": 0.3, "rows": lambda m: 1 + 0.05 * m}
    first, second = DepthController(costs=costs), None
    drive(first, share=0.9, n_rounds=60, **machine)
    second = DepthController(costs=costs)
    depths, _ = drive(second, share=0.9, n_rounds=20, **machine)
    assert (first.n_first_rounds, second.n_first_rounds) == (6, 0)
    assert sum(depth > 0 for depth in depths) >= 17
    bad, _ = drive(DepthController(costs=costs), share=0.0, n_rounds=60, **machine)
    assert sum(depth > 0 for depth in bad) < 15


def test_bounds_are_kept():
    """From 2 to 4 guesses, never off when it may not be."""
    controller = DepthController(2, 4, can_stop=False)
    depths, _ = drive(controller, share=0.0, draft=1.0, rows=lambda m: float(m))
    assert set(depths) <= {0, 2, 3, 4}
    assert not controller.is_off
    assert controller.notes() == ()


def test_the_outlook_is_the_sum_of_chances_over_measured_times():
    """Two of two guesses stood, once: shares start from a prior, times are what was seen."""
    controller = DepthController()
    controller.observe(0, 0, 0.0, 2.0)
    controller.observe(2, 2, 1.0, 3.0)
    outlook = controller.outlook(2)
    # 2 of 2 with a prior of 1.4 of 2 is 0.85 for all; each position: (1 + 2 * 0.85) / 3.
    assert outlook.tokens == pytest.approx(1 + 0.9 + 0.9**2)
    assert outlook.seconds == pytest.approx(2 * 0.5 + 3.0)
    assert controller.outlook(1).seconds == pytest.approx(0.5 + 2.5)  # two rows lie between one and three
    assert controller.outlook(6).seconds == pytest.approx(3.0 + 3.0)  # beyond three: level until it is tried


@pytest.mark.parametrize("depths", [(-1, 2), (3, 2), (0, 7)], ids=str)
def test_depths_out_of_order_are_refused(depths):
    """With what is allowed."""
    with pytest.raises(UsageError, match=r"Give 0 \(off\) to 6"):
        DepthController(*depths)
    with pytest.raises(UsageError, match=r"Give 0 \(off\) to 6"):
        FixedDepth(7)
