"""Activation precisions side by side: same weights, same windows, controls; and what holds on the embedded model."""

import pydoc_data.topics

import pytest
import torch

from tapwb.core.errors import PrecisionSpecError, UsageError
from tapwb.core.precision import parse_precisions
from tapwb.core.reading import Unavailable
from tapwb.evals.activation_bench import evaluate_activations
from tapwb.evals.perplexity import evaluate_perplexity
from tapwb.execution.nest import nest_model
from tapwb.metrics.quality import nll_nats
from tapwb.models.load import load_model
from tapwb.quant.nested import NestedLayout

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(700))
TOPICS = " ".join(list(pydoc_data.topics.topics.values())[:3])


@pytest.fixture(scope="module")
def tiny():
    """A tiny model at two levels, 3 windows of 80 tokens."""
    kinds = ["int8", "adaptive:6", "random:6", "tensor"]
    return evaluate_activations("tiny-random-llama", TEXT, weights=[8, 4], activations=kinds, context=80, windows=3)


def test_rows_are_compared_with_the_same_weights_and_not_with_the_loaded_ones(tiny):
    """The first row of each level is the nested model itself, by hand."""
    model = load_model("tiny-random-llama", dtype="float32")
    ids = torch.tensor([list(TEXT.encode())])
    nested = nest_model(model.model, layout=NestedLayout.named("4+4"), group_size=64)
    for bits in (8, 4):
        nll = []
        for start in (0, 233, 466):
            window = ids[:, start : start + 80]
            with torch.inference_mode(), nested.context.use(bits):
                nll.append(nll_nats(nested.model(window).logits[0, :-1], window[0, 1:]))
        row = next(row for row in tiny.rows if (row.weights, row.activations) == (bits, "16"))
        assert row.perplexity == pytest.approx(float(torch.cat(nll).mean().exp()), rel=1e-4)
        assert (row.perplexity_ratio, row.kl_mean, row.top1_agreement) == (1.0, 0.0, 1.0)
        assert row.n_predictions == 3 * 79


def test_controls_stand_beside_every_level_with_their_kind_and_share(tiny):
    """The random control keeps as many rows wide as the adaptive choice; the others keep none."""
    rows = {(row.weights, row.activations): row for row in tiny.rows}
    assert len(rows) == 10
    for bits in (8, 4):
        adaptive, chance = rows[bits, "adaptive:6"], rows[bits, "random:6"]
        assert 0.01 < adaptive.wide_share.value < 0.99
        assert chance.wide_share.value == pytest.approx(adaptive.wide_share.value, rel=0.1)
        assert rows[bits, "int8"].wide_share.value == 0
        assert isinstance(rows[bits, "16"].wide_share, Unavailable)
        assert 0 < adaptive.kl_mean < rows[bits, "int8"].kl_mean
        assert (adaptive.kind, chance.kind, rows[bits, "tensor"].kind) == ("adaptive", "control", "control")
    assert [ratio["name"] for ratio in tiny.ratios if "weights 8" in ratio["name"]] == [
        f"kl adaptive:6 / {other}, weights 8" for other in ("int8", "random:6", "tensor")
    ]


def test_the_table_is_plain_json_with_its_shares_by_layer(tiny):
    """Nothing but numbers, texts, lists and reasons; layers are named where something was kept wide."""
    data = tiny.to_json()
    adaptive = next(row for row in data["rows"] if row["kind"] == "adaptive")
    assert set(adaptive["wide_share_by_layer"]) >= {"model.layers.0.self_attn.q_proj"}
    assert "wide_share_by_layer" not in next(row for row in data["rows"] if row["activations"] == "int8")
    assert data["rows"][0]["wide_share"].keys() == {"unavailable"}
    assert all(low <= high for low, high in (row["ci95"] for row in data["rows"]))


def test_perplexity_has_a_row_for_each_precision_of_the_activations():
    """Two for nested weights; one for the weights as loaded, which are no codes."""
    table = evaluate_perplexity(
        "tiny-random-llama", TEXT, parse_precisions("16,4"), context=60, windows=2, activations=["16", "int8"]
    )
    assert [(row.precision, row.activations) for row in table.rows] == [("16", "16"), ("4", "16"), ("4", "int8")]
    assert table.rows[2].kl_mean != table.rows[1].kl_mean
    assert table.rows[2].to_json()["wide_share"]["value"] == 0


def test_nothing_to_compare_and_unknown_words_are_refused():
    """Before any model is loaded."""
    with pytest.raises(UsageError, match="nothing to compare"):
        evaluate_activations("tiny-random-llama", TEXT, activations=["16"])
    with pytest.raises(PrecisionSpecError, match="int7"):
        evaluate_activations("tiny-random-llama", TEXT, activations=["int7"])


@pytest.mark.minutes
def test_on_the_embedded_model_wide_outlier_tokens_beat_chance_and_all_int8():
    """At 8-bit weights: a token's own scale beats one for all, the outlier choice beats random tokens at its share."""
    kinds = ["int8", "adaptive:64", "random:64", "tensor"]
    table = evaluate_activations("smollm2-135m", TOPICS, weights=[8], activations=kinds, context=192, windows=2)
    kl = {row.activations: row.kl_mean for row in table.rows}
    assert kl["adaptive:64"] < 0.85 * kl["random:64"]
    assert kl["random:64"] < kl["int8"]
    assert kl["int8"] < 0.2 * kl["tensor"]
    row = next(row for row in table.rows if row.activations == "adaptive:64")
    assert 0.05 < row.wide_share.value < 0.35
    # The massive activation of a first token: one row of each window in the layer before the last.
    assert row.wide_share_by_layer["model.layers.11.mlp.down_proj"] >= 1 / 192
