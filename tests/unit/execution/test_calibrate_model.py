"""A whole model calibrated: less divergence at every level, resumed after a stop, saved and loaded with its biases."""

import copy

import pytest
import torch

from tapwb.core.errors import Cancelled, CorruptWeights, InvalidTensor, SettingsError
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution import dispatch
from tapwb.execution.calibrate import calibrate_model, gather_statistics, text_windows
from tapwb.execution.level_correction import LevelCorrection
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.execution.nest import nest_model, nestable
from tapwb.models.attention_probe import choose_probe_rows
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
        ours = torch.log_softmax(nested.model(ids, use_cache=False).logits.float(), -1)
        theirs = torch.log_softmax(reference(ids, use_cache=False).logits.float(), -1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_every_level_diverges_less_than_plain_cells_do(llama, tmp_path):
    """On windows that calibration has not seen, after a text that says something about every input."""
    model, _ = llama
    made = torch.Generator().manual_seed(1)
    seen = list(torch.randint(0, model.config.vocab_size, (24, 1, 64), generator=made))
    unseen = torch.randint(0, model.config.vocab_size, (4, 64), generator=made)
    plain = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16)
    cells = calibrate_model(model, seen, tmp_path, group_size=16)
    better = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16, cells=cells)
    for bits, share in ((3, 0.85), (4, 0.75), (5, 0.75), (6, 0.75)):
        assert divergence(model, better, unseen, bits) < share * divergence(model, plain, unseen, bits), bits


def test_rows_of_different_levels_get_their_own_correction(llama, folder):
    """A mixed batch equals each row alone; a level without a correction gets none."""
    model, windows = llama
    cells = calibrate_model(model, windows[:5], folder, group_size=16)
    nested = nest_model(copy.deepcopy(model), layout=NestedLayout.named("4+4"), group_size=16, cells=cells)
    layer = next(m for m in nested.model.modules() if isinstance(m, TokenAdaptiveLinear) and m.correction is not None)
    assert layer.correction.levels == (4, 8)
    x = torch.randn(5, layer.in_features, generator=torch.manual_seed(1))
    bits = torch.tensor([4, 8, 6, 4, 16])
    # One kernel throughout: this machine may have chosen different ones for one row and for two.
    with dispatch.force("grouped"):
        with nested.context.use(bits):
            mixed = layer(x)
        for row, level in enumerate(bits.tolist()):
            with nested.context.use(level):
                assert torch.allclose(mixed[row], layer(x[row : row + 1])[0], atol=1e-5)
    assert layer.correction.at(6) is None
    factor, addend = layer.correction.at(torch.tensor([6]))
    assert torch.equal(factor, torch.ones(1, layer.out_features))
    assert torch.equal(addend, torch.zeros(1, layer.out_features))
    y = torch.randn(2, layer.out_features, generator=torch.manual_seed(2))
    assert torch.equal(layer.correction(y, 16), layer.correction(y, 8))


def test_a_cancelled_calibration_goes_on_where_it_stopped(llama, folder, tmp_path):
    """What is done stays done, and the end result is the same."""
    model, windows = llama
    with pytest.raises(Cancelled):
        calibrate_model(model, windows[:5], tmp_path, group_size=16, progress=Stops(after=4))
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(done) == 4
    saved = calibrate_model(model, windows[:5], tmp_path, group_size=16)
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    whole = calibrate_model(model, windows[:5], folder, group_size=16)
    assert set(saved) == set(whole)
    for name in whole:
        assert torch.equal(saved[name].codes, whole[name].codes)
        assert torch.equal(saved[name].level_gain, whole[name].level_gain)
        assert torch.equal(saved[name].level_bias, whole[name].level_bias)


def test_statistics_in_small_parts_are_the_same(llama, folder, tmp_path):
    """A limit of one layer at a time changes passes, not results."""
    model, windows = llama
    whole = calibrate_model(model, windows[:5], folder, group_size=16)
    parts = calibrate_model(model, windows[:5], tmp_path, group_size=16, statistics_bytes=1)
    assert all(torch.equal(parts[name].codes, whole[name].codes) for name in whole)


def test_layers_fed_the_same_tensor_share_statistics(llama):
    """Key and value; gate and up: one sum each. The query sees the same tensor, but tokens count alike there."""
    model, windows = llama
    linears = dict(nestable(model))
    found = gather_statistics(model, linears, windows[:1])
    assert set(found) == set(linears)
    first = "model.layers.0."
    assert found[f"{first}self_attn.k_proj"] is found[f"{first}self_attn.v_proj"]
    assert found[f"{first}mlp.gate_proj"] is found[f"{first}mlp.up_proj"]
    assert len({id(statistics) for statistics in found.values()}) == 5 * model.config.num_hidden_layers


def test_inputs_of_values_count_by_the_attention_they_receive(llama):
    """By hand, from full attention matrices: one mean input for every key/value head."""
    model, windows = llama
    name, window = "model.layers.1.self_attn.v_proj", windows[0]
    linears = {name: model.get_submodule(name)}
    found = gather_statistics(model, linears, [window])[name]
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    seen = []
    eager.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
    with torch.inference_mode():
        attention = eager(window, output_attentions=True, use_cache=False).attentions[1][0]
    heads = model.config.num_key_value_heads
    paid = attention[:, choose_probe_rows(window.shape[1])].mean(1).unflatten(0, (heads, -1)).mean(1)
    by_hand = paid @ seen[0]
    rows = linears[name].out_features
    blocks = found.row_sums(torch.eye(seen[0].shape[1])[:1].expand(rows, -1)).unflatten(0, (heads, -1))
    assert torch.allclose(blocks, by_hand[:, :1].expand(-1, rows // heads), atol=0.02)
    assert torch.allclose(found.mean, by_hand.mean(0), atol=0.02)
    assert not torch.allclose(found.mean, seen[0].mean(0), atol=0.02)


def test_without_a_visible_attention_all_tokens_count_alike(llama):
    """An attention of the model's own, which calls none that can be watched: plain sums, nothing lost."""
    model, windows = llama
    name = "model.layers.0.self_attn.v_proj"
    own = copy.deepcopy(model)
    own.set_attn_implementation("eager")
    found = gather_statistics(own, {name: own.get_submodule(name)}, windows[:2])[name]
    seen = []
    own.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].float()))
    with torch.inference_mode():
        for window in windows[:2]:
            own(window, use_cache=False)
    assert torch.allclose(found.mean, torch.cat(seen).mean(0), atol=0.02)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_one_table_becomes_a_better_head_and_stays_one_copy(family, tmp_path):
    """Logits of unseen inputs are nearer at 8 bits, embeddings hardly move, no byte but corrections is added."""
    model = tiny_model(family).model
    model.config.tie_word_embeddings = True
    model.tie_weights()
    made = torch.Generator().manual_seed(0)
    windows = list(torch.randint(0, model.config.vocab_size, (6, 1, 64), generator=made))
    cells = calibrate_model(model, windows[:5], tmp_path, group_size=16)
    assert "embedding" in cells
    only_table = {"embedding": cells["embedding"]}
    plain = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16)
    better = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16, cells=only_table)
    heads = [holder.get_output_embeddings() for holder in (model, plain.model, better.model)]
    seen = []
    heads[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].detach()))
    with torch.inference_mode():
        model(windows[5], use_cache=False)
        exact, rounded, fitted = (head(seen[0]) for head in heads)
    assert (fitted - exact).square().mean() < (rounded - exact).square().mean()
    weight = model.get_input_embeddings().weight.detach()
    errors = [
        (weight - nested.model.get_output_embeddings().table().dequantize(8)).square().mean()
        for nested in (plain, better)
    ]
    assert errors[1] < 2 * errors[0]
    extra = better.weights_bytes() - plain.weights_bytes()
    assert extra == sum(m.gain.nbytes + m.bias.nbytes for m in better.model.modules() if isinstance(m, LevelCorrection))


def test_a_head_of_its_own_is_calibrated_too(tmp_path):
    """Without a shared table the embedding stays plain."""
    model = tiny_model("llama").model
    untied = copy.deepcopy(model)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    windows = list(torch.randint(0, model.config.vocab_size, (2, 1, 64), generator=torch.manual_seed(0)))
    cells = calibrate_model(untied, windows, tmp_path, group_size=16)
    assert "head" in cells
    assert "embedding" not in cells
    nested = nest_model(copy.deepcopy(untied), layout=LAYOUT, group_size=16, cells=cells)
    head = nested.model.get_output_embeddings()
    assert torch.equal(
        head.packed().dequantize(8), cells["head"].pack(untied.lm_head.weight, head.packed.layout).dequantize(8)
    )
    assert head.correction is not None


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma3", "mixtral"])
def test_other_families_are_calibrated_without_special_code(family, tmp_path):
    """Transposed weights, biases, other norms; fused experts keep plain cells."""
    model = tiny_model(family).model
    made = torch.Generator().manual_seed(0)
    windows = list(torch.randint(0, model.config.vocab_size, (3, 1, 48), generator=made))
    cells = calibrate_model(model, windows[:2], tmp_path, group_size=16)
    head = "embedding" if model.config.get_text_config().tie_word_embeddings else "head"
    assert set(cells) == {name for name, module in nestable(model) if not name.endswith("experts")} | {head}
    nested = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16, cells=cells)
    plain = nest_model(copy.deepcopy(model), layout=LAYOUT, group_size=16)
    if family == "mixtral":  # a router that tips over outweighs any rounding of the experts
        assert divergence(model, nested, windows[2], 8) < 0.01
    else:
        assert divergence(model, nested, windows[2], 4) < divergence(model, plain, windows[2], 4)


def test_a_saved_model_comes_back_with_its_corrections(llama, folder, tmp_path):
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
    assert any(m.correction is not None for m in again.nested.model.modules() if isinstance(m, TokenAdaptiveLinear))
    own.write_text("short", encoding="utf-8")
    with pytest.raises(SettingsError, match="at least a page"):
        TAPEngine(TAPConfig(cells=str(own))).load_model("tiny-random-llama")
    with pytest.raises(SettingsError, match="neither 'plain', 'calibrated' nor a text file"):
        TAPEngine(TAPConfig(cells=str(tmp_path / "no.txt"))).load_model("tiny-random-llama")
