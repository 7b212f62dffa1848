"""The estimand and its standard error: pairs, repeats, clusters, what is missing.

Seed features: S0.17
"""

import math

import numpy as np
import pytest

from tapwb.compare.clustering import describe_clustering, design_effect
from tapwb.compare.paired import paired_differences
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable


def test_the_effect_is_b_minus_a_over_complete_pairs():
    """What was never measured is left out on both sides, counted and listed."""
    paired = paired_differences([1, 2, np.nan, 4], [2, 2, 9, np.nan])
    assert paired.values.tolist() == [1.0, 0.0]
    assert (paired.n, paired.n_missing, paired.missing) == (2, 2, (2, 3))
    assert paired.missing_share == 0.5


def test_repeats_are_averaged_within_their_item():
    """And the systems may have answered unequally often."""
    paired = paired_differences([[0, 1], [1, 1]], [[1, 1, 1], [0, 1, 0.5]])
    assert paired.values.tolist() == [0.5, -0.5]


def test_clusters_are_numbered_in_the_order_they_came_in():
    """A sequential comparison reads them in that order, whatever they are called."""
    paired = paired_differences(np.zeros(5), [5, 1, 5, 2, 1], ["z", "a", "z", "m", "a"])
    assert paired.labels.tolist() == [0, 1, 0, 2, 1]
    assert paired.cluster_means.tolist() == [5, 1, 2]
    assert paired.mean == pytest.approx(14 / 5)
    assert paired.cluster_weighted_mean == pytest.approx(8 / 3)


def test_the_standard_error_is_that_of_a_cluster_robust_regression():
    """On a constant, with the small-sample correction (statsmodels)."""
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    for clusters in (np.arange(37), rng.integers(0, 9, 37), np.repeat(np.arange(5), [1, 2, 4, 10, 20])):
        values = rng.normal(0.3, 1, 37) + rng.normal(size=37)[clusters]
        fit = api.OLS(values, np.ones(37)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
        paired = paired_differences(np.zeros(37), values, clusters)
        assert paired.standard_error == pytest.approx(fit.bse[0], rel=1e-9)
        assert paired.mean == pytest.approx(fit.params[0], rel=1e-9)


def test_one_cluster_has_no_standard_error():
    """It is unknown, not zero."""
    assert math.isnan(paired_differences([0, 0], [1, 2], ["x", "x"]).standard_error)


@pytest.mark.parametrize(
    ("a", "b", "clusters", "says"),
    [
        ([1, 2], [1], None, "not pairs"),
        ([1, 2], [1, 2], ["x"], "one label per item"),
        ([1, np.inf], [1, 2], None, "infinite"),
        ([np.nan], [1], None, "none of 1 pairs"),
        (np.zeros((1, 1, 1)), [1], None, "shape"),
    ],
)
def test_what_is_not_pairs_is_refused(a, b, clusters, says):
    """With what came and what is allowed."""
    with pytest.raises(UsageError, match=says):
        paired_differences(a, b, clusters)


def test_the_intraclass_correlation_of_known_data_comes_back():
    """Half of the variance lies between clusters of ten."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(2000), 10)
    values = np.repeat(rng.normal(size=2000), 10) + rng.normal(size=20_000)
    found = describe_clustering(paired_differences(np.zeros(20_000), values, labels))
    assert found.icc == pytest.approx(0.5, abs=0.03)
    assert found.design_effect == pytest.approx(5.5, abs=0.3)
    assert found.effective_n == pytest.approx(20_000 / 5.5, rel=0.06)


def test_the_design_effect_tells_how_much_the_clusters_cost():
    """The cluster-robust variance is about that many times the naive one, with unequal clusters too."""
    rng = np.random.default_rng(2)
    sizes = np.tile([1, 5, 12], 400)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.normal(size=len(sizes))[labels] + rng.normal(size=len(labels))
    paired = paired_differences(np.zeros(len(labels)), values, labels)
    naive = values.std(ddof=1) / math.sqrt(len(values))
    assert describe_clustering(paired).design_effect == pytest.approx((paired.standard_error / naive) ** 2, rel=0.15)


def test_items_of_their_own_are_worth_themselves():
    """No clusters: no resemblance, no price."""
    found = describe_clustering(paired_differences(np.zeros(4), [1, 2, 3, 5]))
    assert (found.icc, found.design_effect, found.effective_n) == (0.0, 1.0, 4.0)


def test_resemblance_that_cannot_be_seen_is_unavailable():
    """One cluster, or differences that never vary."""
    assert isinstance(describe_clustering(paired_differences([0, 0], [1, 2], ["x", "x"])), Unavailable)
    assert isinstance(describe_clustering(paired_differences([0] * 4, [1] * 4, [0, 0, 1, 1])), Unavailable)
    with pytest.raises(UsageError, match="0 to 1"):
        design_effect(5, 1.5)
