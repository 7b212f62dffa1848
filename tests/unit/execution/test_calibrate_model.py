"""A whole model calibrated: less divergence at every level, resumed after a stop, saved and loaded with its biases."""

import copy

import pytest
import torch

from tapwb.core.errors import Cancelled, CorruptWeights, InvalidTensor, SettingsError
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution.calibrate import calibrate_model, gather_statistics, text_windows
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.execution.nest import nest_model, nestable
from tapwb.models.tiny import tiny_model
from tapwb.quant import NestedLayout
from tapwb.quant.calibration import LEVELS

LAYOUT = NestedLayout.named("2+1+1+1+1+2")


@pytest.fixture(scope="module")
def llama():
    """A tiny random model and windows of random tokens."""
    model = tiny_model("llama").model
    made = torch.Generator().manual_seed(0)
    return model, list(torch.randint(0, model.config.vocab_size, (6, 1, 64), generator=made))


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    """Where its calibrated cells were saved."""
    saved = calibrate_model(llama[0], llama[1][:5], tmp_path_factory.mktemp("cells"), group_size=16)
    return saved.folder


class Stops:
    """Progress that cancels at the n-th question."""

    def __init__(self, after):
        self.left = after

    def stage(self, name, total=None, unit=""):
        """Nothing to show."""

    def advance(self, steps=1):
        """Nothing to show."""

    def check_cancelled(self):
        """Cancel when the time has come."""
        self.left -= 1
        if self.left < 0:
            raise Cancelled("stopped by the test")


def divergence(reference, nested, ids, bits):
    """Mean KL divergence of a nested model from the reference, nats."""
    with torch.inference_mode(), nested.context.use(bits):
        ours = torch.log_softmax(nested.model(ids, use_cache=False).logits[0].float(), -1)
        theirs = torch.log_softmax(reference(ids, use_cache=False).logits[0].float(), -1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_every_level_diverges_less_than_plain_cells_do(llama, folder):
    """On a window that calibration has not seen."""
    model, windows = llama
    plain = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16)
    cells = calibrate_model(model, windows[:5], folder, group_size=16)
    better = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16, cells=cells)
    for bits, share in ((3, 0.9), (4, 0.8), (5, 0.8), (6, 0.8)):
        assert divergence(model, better, windows[5], bits) < share * divergence(model, plain, windows[5], bits), bits


def test_rows_of_different_levels_get_their_own_bias(llama, folder):
    """A mixed batch equals each row alone; a level without a bias gets none."""
    model, windows = llama
    cells = calibrate_model(model, windows[:5], folder, group_size=16)
    nested = nest_model(copy.deepcopy(model), layout=NestedLayout.named("4+4"), group_size=16, cells=cells)
    layer = next(m for m in nested.model.modules() if isinstance(m, TokenAdaptiveLinear) and m.level_bias is not None)
    assert layer.level_bias.levels == (4, 8)
    x = torch.randn(5, layer.in_features, generator=torch.manual_seed(1))
    bits = torch.tensor([4, 8, 6, 4, 16])
    with nested.context.use(bits):
        mixed = layer(x)
    for row, level in enumerate(bits.tolist()):
        with nested.context.use(level):
            assert torch.allclose(mixed[row], layer(x[row : row + 1])[0], atol=1e-5)
    assert layer.level_bias(6) is None
    assert torch.equal(layer.level_bias(torch.tensor([6]))[0], torch.zeros(layer.out_features))
    assert torch.equal(layer.level_bias(16), layer.level_bias(8))


def test_a_cancelled_calibration_goes_on_where_it_stopped(llama, folder, tmp_path):
    """What is done stays done, and the end result is the same."""
    model, windows = llama
    with pytest.raises(Cancelled):
        calibrate_model(model, windows[:5], tmp_path, group_size=16, progress=Stops(after=4))
    done = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(done) == 4
    saved = calibrate_model(model, windows[:5], tmp_path, group_size=16)
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    whole = calibrate_model(model, windows[:5], folder, group_size=16)
    assert set(saved) == set(whole)
    for name in whole:
        assert torch.equal(saved[name].codes, whole[name].codes)
        assert torch.equal(saved[name].level_bias, whole[name].level_bias)


def test_statistics_in_small_parts_are_the_same(llama, folder, tmp_path):
    """A limit of one layer at a time changes passes, not results."""
    model, windows = llama
    whole = calibrate_model(model, windows[:5], folder, group_size=16)
    parts = calibrate_model(model, windows[:5], tmp_path, group_size=16, statistics_bytes=1)
    assert all(torch.equal(parts[name].codes, whole[name].codes) for name in whole)


def test_layers_fed_the_same_tensor_share_statistics(llama):
    """Query, key and value; gate and up: one sum each, not three and two."""
    model, windows = llama
    linears = dict(nestable(model))
    found = gather_statistics(model, linears, windows[:1])
    assert set(found) == set(linears)
    first = "model.layers.0."
    assert found[f"{first}self_attn.q_proj"] is found[f"{first}self_attn.v_proj"]
    assert found[f"{first}mlp.gate_proj"] is found[f"{first}mlp.up_proj"]
    assert len({id(statistics) for statistics in found.values()}) == 4 * model.config.num_hidden_layers


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma3", "mixtral"])
def test_other_families_are_calibrated_without_special_code(family, tmp_path):
    """Transposed weights, biases, other norms; fused experts keep plain cells."""
    model = tiny_model(family).model
    made = torch.Generator().manual_seed(0)
    windows = list(torch.randint(0, model.config.vocab_size, (3, 1, 48), generator=made))
    cells = calibrate_model(model, windows[:2], tmp_path, group_size=16)
    assert set(cells) == {name for name, module in nestable(model) if not name.endswith("experts")}
    nested = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16, cells=cells)
    plain = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16)
    if family == "mixtral":  # a router that tips over outweighs any rounding of the experts
        assert divergence(model, nested, windows[2], 8) < 0.01
    else:
        assert divergence(model, nested, windows[2], 4) < divergence(model, plain, windows[2], 4)


def test_a_saved_model_comes_back_with_its_biases(llama, folder, tmp_path):
    """``save_pretrained`` and ``from_pretrained``, bit by bit."""
    from transformers import AutoModelForCausalLM

    from tapwb.execution import hf_quantizer  # noqa: F401 - registers the method

    model, windows = llama
    cells = calibrate_model(model, windows[:5], folder, group_size=16)
    nested = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16, cells=cells)
    nested.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for bits in LEVELS:
        with torch.inference_mode(), nested.context.use(bits), again.tap.context.use(bits):
            ours, theirs = nested.model(windows[5]).logits, again(windows[5]).logits
        assert torch.equal(ours, theirs), bits


def test_damaged_cells_are_named(folder, llama, tmp_path):
    """A half-written file of another program: which folder to delete."""
    model, windows = llama
    saved = calibrate_model(model, windows[:1], tmp_path, group_size=16)
    name = next(iter(saved))
    (tmp_path / f"{name}.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptWeights, match="calibrate again"):
        saved[name]


def test_windows_are_spread_over_the_text():
    """Evenly, without overlap; a short text gives one short window, no text none."""
    ids = torch.arange(1000)[None]
    starts = [int(window[0, 0]) for window in text_windows(ids, 3, 100)]
    assert starts == [0, 300, 600]
    assert [window.shape for window in text_windows(ids[:, :7], 3, 100)] == [(1, 7)]
    assert text_windows(ids[:, :0], 3, 100) == []
    with pytest.raises(InvalidTensor, match="calibration text is empty"):
        calibrate_model(tiny_model("llama").model, [], folder=None)


def test_the_engine_calibrates_once_and_keeps_it(tmp_path, monkeypatch):
    """The second load reads the cache; a text of one's own is another entry; a missing or short one is refused."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path))
    own = tmp_path / "own.txt"
    own.write_text("A sentence of my own, about nothing in particular. " * 60, encoding="utf-8")
    engine = TAPEngine(TAPConfig(cells=str(own), time_reference=False))
    engine.load_model("tiny-random-llama")
    (entry,) = (tmp_path / "calibrated").iterdir()
    made = {path: path.stat().st_mtime_ns for path in entry.iterdir()}
    again = TAPEngine(TAPConfig(cells=str(own), time_reference=False))
    again.load_model("tiny-random-llama")
    assert {path: path.stat().st_mtime_ns for path in entry.iterdir()} == made
    assert any(m.level_bias is not None for m in again.nested.model.modules() if isinstance(m, TokenAdaptiveLinear))
    own.write_text("short", encoding="utf-8")
    with pytest.raises(SettingsError, match="at least a page"):
        TAPEngine(TAPConfig(cells=str(own))).load_model("tiny-random-llama")
    with pytest.raises(SettingsError, match="neither 'plain', 'calibrated' nor a text file"):
        TAPEngine(TAPConfig(cells=str(tmp_path / "no.txt"))).load_model("tiny-random-llama")
