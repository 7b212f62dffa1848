"""Activations at 8 bits: codes and digits, which tokens are kept wide, what is recorded, what a model makes of it."""

import dataclasses

import pytest
import torch

from tapwb.core.activation_spec import parse_activations
from tapwb.core.errors import PrecisionSpecError
from tapwb.core.reading import Reading, Unavailable
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution import dispatch
from tapwb.execution.activations import ActivationUse, outlier_ratio, quantize_rows
from tapwb.execution.nest import nest_model
from tapwb.metrics.quality import kl_nats
from tapwb.models.tiny import tiny_model
from tapwb.quant.nested import NestedLayout, quantize_nested


def spiky(n_rows: int = 40, n_cols: int = 96) -> torch.Tensor:
    """Normal rows, three of them with one value thousands of times larger, as first tokens have it."""
    x = torch.randn(n_rows, n_cols, generator=torch.manual_seed(0))
    for row, size in ((0, 3000.0), (7, -1500.0), (21, 8000.0)):
        x[row, row] = size
    return x


def rows(n_rows: int, *wide: int) -> torch.Tensor:
    """A mask of the wide rows."""
    mask = torch.zeros(n_rows, dtype=torch.bool)
    mask[list(wide)] = True
    return mask


def test_a_code_errs_by_half_a_step_and_a_second_digit_by_half_a_step_of_its_own():
    """254 times less, for the rows that have one."""
    x = spiky()
    codes = quantize_rows(x, rows(40, 0, 21))
    error = (codes.dequantize() - x).abs().amax(1)
    step = x.abs().amax(1) / 127
    wide = rows(40, 0, 21)
    rounding = 1e-6 * x.abs().amax(1)  # of fp32 itself, which large rows feel in the second digit
    assert bool((error[~wide] <= 0.5 * step[~wide] + rounding[~wide]).all())
    assert bool((error[wide] <= 0.5 * step[wide] / 254 + rounding[wide]).all())
    assert bool((error[~wide] > 0.05 * step[~wide]).all())


def test_codes_are_symmetric_and_reach_the_ends_of_their_range():
    """The largest value of a row is 127 or -127 in every row, so -128 is never made."""
    codes = quantize_rows(spiky(), rows(40))
    assert codes.high.dtype == torch.int8
    assert bool((codes.high.abs().amax(1) == 127).all())
    assert int(codes.high.min()) >= -127


def test_rows_of_zeros_stay_zero_and_what_is_not_finite_shows():
    """A scale of zero divides nothing; NaN and infinity come out as NaN rather than as a number."""
    weight = quantize_nested(torch.randn(5, 16), group_size=16)
    x = torch.randn(4, 16)
    x[0], x[1, 3], x[2, 3] = 0, float("nan"), float("inf")
    y = ActivationUse(parse_activations("int8")).linear(x, weight, 8, "site")
    assert torch.equal(y[0], torch.zeros(5))
    assert bool(y[1:3].isnan().all())
    assert bool(y[3].isfinite().all())


def test_outlier_tokens_are_found_by_their_largest_over_median_magnitude():
    """Normal rows of 96 stay below 8; the three with a spike are thousands; a row of zeros is none."""
    ratio = outlier_ratio(spiky())
    assert sorted(ratio.topk(3).indices.tolist()) == [0, 7, 21]
    assert float(ratio.sort().values[-4]) < 8
    assert outlier_ratio(torch.zeros(1, 8)).tolist() == [1.0]
    assert bool(outlier_ratio(torch.tensor([[0.0, 0.0, 0.0, 5.0]])).isinf())


def test_adaptive_rows_are_exact_where_it_matters_and_the_choice_is_recorded():
    """On spiked rows plain 8 bits lose everything but the spike; two digits give it back for three rows in forty."""
    x, weight = spiky(), quantize_nested(torch.randn(33, 96, generator=torch.manual_seed(1)), group_size=32)
    x[:, 50:] *= 1.5
    truth = x @ weight.dequantize(8).T
    flat = x.clone()
    flat[[0, 7, 21], [0, 7, 21]] = 0  # what a row says beside its spike
    body = flat @ weight.dequantize(8).T
    size = body[[0, 7, 21]].norm()
    errors = {}
    for spec in ("int8", "adaptive:64"):
        use = ActivationUse(parse_activations(spec))
        errors[spec] = float((use.linear(x, weight, 8, "layer") - truth)[[0, 7, 21]].norm() / size)
    assert errors["int8"] > 0.5
    # Steps of 3000, 1500 and 8000 over 127 * 254 err by 0.045 (root mean square); the rest of a row spreads by 1.3.
    assert errors["adaptive:64"] < 0.05
    assert (use.sites["layer"].rows, use.sites["layer"].wide) == (40, 3)
    assert use.wide_share == Reading(3 / 40, "1", "measured:rows of this run")
    assert use.products_ratio == Reading(43 / 40, "1", "measured:rows of this run")
    assert use.bytes_ratio == Reading((43 * 96 + 4 * 40) / (2 * 40 * 96), "1", "measured:rows of this run")


def test_the_random_control_keeps_as_many_rows_wide_but_not_the_same():
    """In every layer the same share; repeatable by seed."""
    x, weight = spiky(400), quantize_nested(torch.randn(8, 96), group_size=32)
    x[torch.arange(0, 400, 10), 5] = 500.0
    chosen = []
    for seed in (0, 0, 1):
        use = ActivationUse(parse_activations("random:64"), seed)
        chosen.append(use._codes(x).wide.tolist())
        use.linear(x, weight, 4, "layer")
    adaptive = ActivationUse(parse_activations("adaptive:64"))
    by_ratio = adaptive._codes(x).wide.tolist()
    assert len(chosen[0]) == len(by_ratio) == 42
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0]) & set(by_ratio)) < 20


def test_one_scale_for_all_tokens_starves_the_others():
    """The spike of one token leaves one code for every other one."""
    use = ActivationUse(parse_activations("tensor"))
    codes = use._codes(spiky())
    assert int(codes.high[1].abs().max()) == 0
    assert torch.equal(codes.scale, torch.full((40,), 8000 / 127))


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_the_integer_path_of_a_model_equals_its_reference_and_stays_near_the_16_bit_one(family):
    """Through attention, feed-forward and experts, at mixed levels; and every layer but the head is recorded."""
    tiny = tiny_model(family)
    nested = nest_model(tiny.model, layout=NestedLayout.named("fine"))
    ids = torch.randint(0, 200, (1, 13), generator=torch.manual_seed(0))
    bits = torch.tensor([8, 8, 4, 5, 6, 8, 4, 4, 5, 8, 6, 6, 8])
    logits = {}
    with torch.inference_mode(), nested.context.use(bits):
        logits["16"] = nested.model(ids).logits
        for spec in ("int8", "adaptive:6", "tensor"):
            use = ActivationUse(parse_activations(spec))
            with nested.context.activations(_beside_the_reference(use)):
                logits[spec] = nested.model(ids).logits
            assert not any("head" in site for site in use.sites)
            assert len(use.sites) >= 8
        after = nested.model(ids).logits
    assert torch.equal(after, logits["16"])
    damage = {spec: float(kl_nats(logits["16"], logits[spec]).mean()) for spec in logits}
    assert 0 < damage["adaptive:6"] < damage["int8"] < damage["tensor"] < 0.05


def _beside_the_reference(use: ActivationUse):
    """The product of each layer, checked there: a code that rounds the other way moves all later layers."""

    def product(x, weight, bits, site):
        y = use.linear(x, weight, bits, site)
        with dispatch.force("reference"):
            expected = use.linear(x, weight, bits, site)
        assert float((y - expected).norm()) <= 1e-5 * float(expected.norm()), site
        return y

    return product


def test_an_engine_runs_with_8_bit_activations_and_says_what_it_chose():
    """The metrics name the share of wide tokens by layer; the reference weights keep their activations."""
    engine = TAPEngine(TAPConfig(activations="adaptive:5", time_reference=False))
    engine.load_model("tiny-random-llama")
    _, metrics = engine.generate("Light bends around stars", 4, precision="6")
    chosen = metrics["activations"]
    assert chosen["activations"] == "adaptive:5"
    assert isinstance(chosen["wide_share"], Reading)
    assert 0 < chosen["wide_share"].value < 1
    assert set(chosen["wide_share_by_layer"]) >= {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"}
    assert any("no faster" in note for note in metrics["notes"])
    assert engine.nested.context.product is None
    _, at_16 = engine.generate("Light bends around stars", 2, precision="16")
    assert at_16["activations"]["activations"] == "16"
    assert isinstance(at_16["activations"]["wide_share"], Unavailable)


def test_a_configuration_with_unknown_activations_is_refused():
    """Before any model is loaded."""
    with pytest.raises(PrecisionSpecError, match="'int4' is not an activation precision"):
        dataclasses.replace(TAPConfig(), activations="int4")
