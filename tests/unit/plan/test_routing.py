"""Cuts of a per-layer router: the same water-filling as a plan, with the price of a bit known before the text."""

import itertools

import pytest
import torch

from tapwb.core.errors import BudgetError, PlanError
from tapwb.plan.budget import water_fill
from tapwb.plan.controller import BudgetKeeper
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.routing import choose_levels, level_cuts, levels_at_mean

LEVELS = (3, 4, 5, 6, 8)


@pytest.fixture
def layers() -> LayerDamage:
    """Four groups of different size and damage."""
    nats = torch.tensor([[0.5], [0.02], [0.004], [0.1]], dtype=torch.float64)
    return LayerDamage(("a", "b", "c", "d"), (100, 400, 400, 100), (4,), nats, {4: 0.7, 5: 0.2, 6: 0.05, 8: 0.002})


@pytest.fixture
def factors() -> torch.Tensor:
    """Log-damage of 301 tokens in each group, mean damage 1."""
    raw = 1.2 * torch.randn(4, 301, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return raw - raw.exp().mean(dim=1, keepdim=True).log()


def chosen(factors, cuts):
    """Levels of every group's tokens by the cuts."""
    levels = torch.tensor(cuts.levels)
    return torch.stack([choose_levels(row, cuts.cuts[group], levels) for group, row in enumerate(factors)])


def mean_of(bits, layers) -> float:
    """Mean over tokens and weights."""
    sizes = torch.tensor(layers.n_weights, dtype=torch.float64)
    return float(sizes @ bits.double().mean(dim=1) / sizes.sum())


@pytest.mark.parametrize("mean", [3.0, 3.7, 4.5, 5.5, 7.2, 8.0])
def test_the_mean_holds_on_the_samples_and_is_not_exceeded(layers, factors, mean):
    """One price for all groups and tokens; off by less than one row of the largest group."""
    cuts = level_cuts(layers, factors, LEVELS, mean)
    assert mean - 2 * 400 / 1000 / 301 <= cuts.mean_bits <= mean + 1e-9
    assert mean_of(chosen(factors, cuts), layers) == pytest.approx(cuts.mean_bits, abs=1e-9)


def test_cuts_buy_what_the_budget_planner_buys(layers, factors):
    """Decided alone by the price, the cells get what water-filling over the whole text gives them."""
    cuts = level_cuts(layers, factors, LEVELS, 5.0)
    damage = layers.at(LEVELS)[:, None, :] * factors.exp()[:, :, None]
    sizes = torch.tensor(layers.n_weights)
    spare = int(cuts.mean_bits * 1000 * 301 + 1e-6) - 3 * 1000 * 301
    index = water_fill(damage, factors[0], LEVELS, torch.zeros(4, 301, dtype=torch.long), sizes, spare)
    assert torch.equal(torch.tensor(LEVELS)[index], chosen(factors, cuts))


def test_more_damage_never_means_fewer_bits(layers, factors):
    """Within a group levels follow the gate; a group that suffers more gets more at the same say."""
    bits = chosen(factors, level_cuts(layers, factors, LEVELS, 4.5))
    for row, say in zip(bits, factors, strict=True):
        ordered = row[say.argsort()].tolist()
        assert ordered == sorted(ordered)
    assert float(bits[0].double().mean()) > float(bits[3].double().mean()) > 3.0


def test_a_prompt_keeps_its_mean_where_cuts_alone_would_not(layers, factors):
    """All gates say two nats more than on calibration text: the cuts move along, by about that."""
    cuts = level_cuts(layers, factors, LEVELS, 4.5)
    stored = torch.tensor(LEVELS)
    for group in range(4):
        want = float(cuts.group_mean_bits[group])
        bits, moved = levels_at_mean(factors[group][None] + 2.0, cuts.cuts[group], stored, want)
        assert want - 2 / 301 <= float(bits.double().mean()) <= want + 1e-6
        if 3.05 < want < 7.95:  # elsewhere nearly all rows are on one level, whatever the cut
            assert float(moved) == pytest.approx(2.0, abs=0.15)
    alone = chosen(factors + 2.0, cuts)
    assert mean_of(alone, layers) > 5.0


def test_each_sequence_of_a_batch_keeps_its_own_mean(layers, factors):
    """A hard text beside an easy one takes nothing from it."""
    cuts, stored = level_cuts(layers, factors, LEVELS, 4.5), torch.tensor(LEVELS)
    both = torch.stack([factors[3], factors[3] - 3.0])
    bits, _ = levels_at_mean(both, cuts.cuts[3], stored, 4.5)
    single, _ = levels_at_mean(both[:1], cuts.cuts[3], stored, 4.5)
    assert bits.double().mean(dim=1).tolist() == pytest.approx([4.5, 4.5], abs=2 / 301)
    assert torch.equal(bits[0], single[0])
    assert torch.equal(bits[0], bits[1]), "the order of the tokens is the same"


def test_what_cannot_be_met_or_read_is_refused(layers, factors):
    """A mean outside the levels, samples of other groups, samples that are no numbers."""
    with pytest.raises(BudgetError, match="3 to 8"):
        level_cuts(layers, factors, LEVELS, 8.5)
    with pytest.raises(PlanError, match="4 layer groups"):
        level_cuts(layers, factors[:3], LEVELS, 5.0)
    with pytest.raises(PlanError, match="not finite"):
        level_cuts(layers, factors.log(), LEVELS, 5.0)
    nothing = choose_levels(torch.tensor([torch.nan]), torch.tensor([-1.0, 0.0]), torch.tensor([4, 5, 6]))
    assert nothing.tolist() == [4]


@pytest.mark.parametrize("drift", [-3.0, 0.0, 3.0])
def test_a_keeper_holds_the_running_mean_whatever_the_gates_say(layers, factors, drift):
    """Token by token on a text that is e^3 harder or easier than calibration: within 2 % after 200 tokens."""
    cuts = level_cuts(layers, factors, LEVELS, 4.5)
    keeper = BudgetKeeper(4.5)
    stored = torch.tensor(LEVELS)
    sizes = torch.tensor(layers.n_weights, dtype=torch.float64) / 1000
    for token in range(200):
        say = factors[:, token] + drift - keeper.shift_nats()
        bits = torch.cat([choose_levels(say[g : g + 1], cuts.cuts[g], stored) for g in range(4)])
        keeper.account(float(sizes @ bits.double()))
    assert keeper.mean_bits == pytest.approx(4.5, rel=0.02)
    assert keeper.n_tokens == 200


def test_outside_its_band_a_keeper_leaves_only_the_ends():
    """Hard correction in both directions, and none at the start."""
    keeper = BudgetKeeper(5.0)
    assert keeper.shift_nats() == 0.0
    signs = []
    for bits in (8.0, 3.0):
        keeper = BudgetKeeper(5.0)
        for _ in itertools.repeat(None, 20):
            keeper.account(bits)
        signs.append(keeper.shift_nats())
    assert signs == [torch.inf, -torch.inf]
    with pytest.raises(BudgetError, match="positive"):
        BudgetKeeper(0.0)
