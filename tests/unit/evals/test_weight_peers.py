"""HQQ beside nested weights in one evaluation: the same matrices, the same windows, bytes counted the same way.

Seed features: S1.8
"""

import copy
import json

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.core.precision import parse_precisions
from tapwb.core.reading import Reading, Unavailable
from tapwb.evals.perplexity import evaluate_perplexity
from tapwb.execution import peer_weights
from tapwb.execution.nest import nestable
from tapwb.execution.peer_weights import PeerModel, peer_model
from tapwb.models.tiny import tiny_model
from tapwb.quant.peers import WeightPeer, quantize_by_peer
from tapwb.views.cli.perplexity import perplexity_tables

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(300))
HQQ = WeightPeer("hqq", 4)


def test_a_peer_stands_in_the_same_table_at_the_same_bits():
    """4 bits in groups of 16 are 6 bits with either method; embedding and head are in neither count."""
    pytest.importorskip("hqq", reason="hqq is not installed: pip install hqq")
    table = evaluate_perplexity(
        "tiny-random-llama",
        TEXT,
        parse_precisions("8,4"),
        context=64,
        windows=2,
        group_size=16,
        peers=["hqq:4", "hqq:8"],
    )
    assert [(row.precision, row.cells) for row in table.rows] == [
        ("8", "plain"),
        ("4", "plain"),
        ("hqq:4", "peer"),
        ("hqq:8", "peer"),
    ]
    eight, four, peer, fine = table.rows
    assert isinstance(four.bits_per_weight, Reading)
    assert four.bits_per_weight.value == pytest.approx(6, abs=1e-6)
    assert float(peer.bits_per_weight) == pytest.approx(6, abs=1e-6)
    assert float(fine.bits_per_weight) == float(eight.bits_per_weight) == pytest.approx(10, abs=1e-6)
    assert (peer.mean_bits, peer.n_predictions) == (4.0, four.n_predictions)
    assert 0 < fine.kl_mean < peer.kl_mean
    assert peer.kl_mean < 3 * four.kl_mean, "a peer that is not of this world would be a mistake in the comparison"


def test_an_absent_peer_is_a_row_with_a_reason(monkeypatch):
    """In the table, in its JSON and on the screen; the other rows are there."""
    monkeypatch.setattr("tapwb.quant.peers.importlib.util.find_spec", lambda name: None)
    table = evaluate_perplexity(
        "tiny-random-llama", TEXT, parse_precisions("8"), context=64, windows=1, peers=["hqq:4"]
    )
    assert [row.precision for row in table.rows] == ["8"]
    (missing,) = table.missing
    assert missing.reason == Unavailable("hqq is not installed: pip install hqq")
    results = json.loads(json.dumps(table.to_json()))["results"]
    assert results[1]["precision"] == "hqq:4"
    assert results[1]["kl_mean"] == {"unavailable": "hqq is not installed: pip install hqq"}
    assert set(results[0]) <= set(results[1])
    rows, absent = perplexity_tables("title", results)
    assert rows.row_count == 1
    assert absent.row_count == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [({"peers": ["gptq"]}, "no peer for weights"), ({"peers": ["hqq"], "kv": 4}, "cache of 16 bits")],
)
def test_what_cannot_be_compared_is_refused(options, match):
    """Before a model is loaded."""
    with pytest.raises(UsageError, match=match):
        evaluate_perplexity("no-such-model", TEXT, parse_precisions("8"), **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_every_matrix_of_the_layers_is_replaced_and_nothing_else(family):
    """Transposed ones and experts too; the model that was given stays as it was."""
    pytest.importorskip("hqq", reason="hqq is not installed: pip install hqq")
    model = tiny_model(family).model
    before = copy.deepcopy(model.state_dict())
    made = peer_model(model, HQQ, 16)
    assert isinstance(made, PeerModel)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    layers = {name for name, _ in nestable(model)}
    for name, tensor in made.model.state_dict().items():
        inside = any(name.startswith(f"{layer}.") for layer in layers) and not name.endswith("bias")
        assert torch.equal(tensor, before[name]) != inside, name
    assert made.bits_per_weight == pytest.approx(4 + 32 / 16)


def test_a_transposed_weight_is_grouped_along_its_inputs():
    """GPT-2 stores (in, out): a group is of one output's weights, as everywhere else."""
    pytest.importorskip("hqq", reason="hqq is not installed: pip install hqq")
    model = tiny_model("gpt2").model
    made = peer_model(model, HQQ, 16)
    assert isinstance(made, PeerModel)
    name = next(name for name, _ in nestable(model))
    expected = quantize_by_peer(model.get_submodule(name).weight.detach().T, HQQ, 16)
    assert torch.equal(made.model.get_submodule(name).weight.T, expected.weight)


def test_the_layer_that_cannot_be_grouped_is_named(monkeypatch):
    """The row says which one."""
    monkeypatch.setattr(peer_weights, "why_absent", lambda peer: None)
    monkeypatch.setattr(peer_weights, "quantize_by_peer", lambda *_: Unavailable("a reason"))
    found = peer_model(tiny_model("llama").model, HQQ, 64)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("model.layers.0.")
