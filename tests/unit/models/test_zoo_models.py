"""The models that were trained here: they load by name, are what their cards say, and were never quantized."""

import json
import math
import subprocess
import sys

import pytest
import torch

from tapwb.core.errors import ChecksumMismatch, ModelNotFound
from tapwb.core.settings import data_dir
from tapwb.importance.analyzer import ATTENTION_DEFAULT, TokenImportanceAnalyzer
from tapwb.models import list_models, load_model, resolve_model
from tapwb.models.anatomy import linear_sites
from tapwb.models.catalog import catalog
from tapwb.models.zoo import ZOO, zoo_config, zoo_model
from tapwb.training.zoo.folder import model_card
from tapwb.training.zoo.text import held_out_text, text_sha256

SIX_MEGABYTES = 6_000_000


@pytest.fixture(scope="module", params=sorted(ZOO))
def name(request) -> str:
    """Every model of the zoo."""
    return request.param


@pytest.fixture(scope="module")
def loaded(name):
    """The model as it was trained, in fp32."""
    return load_model(name, dtype="float32")


@pytest.fixture(scope="module")
def record(name) -> dict:
    """The record of its training."""
    return json.loads((data_dir() / "models" / name / "training.json").read_text(encoding="utf-8"))


def test_the_held_out_perplexity_is_the_one_on_the_card(loaded, record):
    """Measured again on the same windows; another Python has other words here and there, which moves it by 1 %."""
    text = held_out_text()
    ids = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    context = record["held_out"]["context"]
    windows = torch.tensor(ids[: len(ids) // context * context]).view(-1, context)
    with torch.inference_mode():
        losses = [loaded.model(input_ids=part, labels=part).loss for part in windows.split(1)]
    perplexity = math.exp(float(torch.stack(losses).mean()))
    same_text = text_sha256(text)[:16] == record["corpus"]["held_out_fingerprint"]
    assert perplexity == pytest.approx(record["held_out"]["perplexity"], rel=1e-3 if same_text else 0.05)
    if same_text:
        assert windows.shape[0] * (context - 1) == record["held_out"]["n_predictions"]


def test_the_card_says_what_the_record_says(name, record):
    """Word for word: it is written from it. Its perplexity is that of the last row of the curve."""
    card = (data_dir() / "models" / name / "README.md").read_text(encoding="utf-8")
    last = record["curve"][-1]
    assert card == model_card(record)
    assert record["held_out"]["loss_nats"] == last["held_out_loss_nats"]
    assert record["held_out"]["perplexity"] == pytest.approx(math.exp(last["held_out_loss_nats"]))
    assert last["step"] == record["settings"]["steps"]
    assert f"**{math.exp(last['held_out_loss_nats']):.2f}**" in card
    assert f"| {last['step']} | {last['tokens']:,} | {last['train_loss_nats']:.3f} |" in card


def test_training_had_not_begun_to_learn_by_heart(record):
    """The held-out loss fell far below a uniform guess and ends within 2 % of its lowest."""
    held_out = [row["held_out_loss_nats"] for row in record["curve"]]
    assert held_out[-1] < 0.6 * math.log(record["settings"]["vocab_size"])
    assert held_out[-1] <= 1.02 * min(held_out)


def test_the_catalog_row_is_what_lies_on_disk(name, loaded, record):
    """Parameters and checksum exactly; bytes within 2 %; at most six megabytes a model."""
    stored = {p.data_ptr(): p.numel() for p in loaded.model.parameters()}
    on_disk = sum(file.stat().st_size for file in loaded.info.path.iterdir())
    entry = catalog[name]
    assert entry.n_parameters == sum(stored.values()) == record["weights"]["n_parameters"]
    assert entry.size_bytes == pytest.approx(on_disk, rel=0.02)
    assert entry.weights_sha256 == loaded.info.checksum_sha256 == record["weights"]["sha256"]
    assert on_disk <= SIX_MEGABYTES
    row = next(row for row in list_models() if row.id == name)
    assert (row.cached, row.source, row.licence) == (True, "data", "apache-2.0")


def test_the_shape_is_that_of_its_row(name, loaded):
    """The folder was not made by an older row."""
    wanted = zoo_config(zoo_model(name), loaded.tokenizer.eos_token_id)
    assert loaded.model.config.model_type == zoo_model(name).model_type
    assert {key: getattr(loaded.model.config, key) for key in zoo_model(name).shape} == dict(zoo_model(name).shape)
    assert loaded.model.config.vocab_size == wanted.vocab_size == len(loaded.tokenizer)


def test_the_weights_lie_on_no_grid(loaded):
    """Never quantized: in every group of 64 nearly all values differ, where a 4-bit grid has at most 16."""
    assert loaded.info.quantized_before is None
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    for site in linear_sites(loaded.model):
        # Mamba's map of rank 12 for the step sizes is the only one that cannot fill a group.
        assert site.in_features % 64 == 0 or site.role == "state.step"
        matrix = site.weight
        for group in matrix.detach().reshape(-1, 64)[:: max(1, matrix.numel() // 64 // 50)]:
            assert len(group.unique()) >= 60


def test_an_installation_without_the_data_folder_says_where_to_get_it(monkeypatch, tmp_path):
    """Such as a wheel: the list says so, and loading names both ways out."""
    (tmp_path / "seeds").mkdir()
    monkeypatch.setenv("TAPWB_DATA_DIR", str(tmp_path))
    assert not any(row.cached for row in list_models() if row.source == "data")
    with pytest.raises(ModelNotFound, match=r"Set TAPWB_DATA_DIR.*tapwb train-tiny tiny-llama --folder"):
        resolve_model("tiny-llama")


def test_weights_that_were_changed_are_not_taken_for_the_trained_ones(monkeypatch, tmp_path):
    """Other bytes under the same name would make every recorded figure a lie."""
    import shutil

    shutil.copytree(data_dir() / "models" / "tiny-llama", tmp_path / "models" / "tiny-llama")
    (tmp_path / "seeds").mkdir()
    weights = tmp_path / "models" / "tiny-llama" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setenv("TAPWB_DATA_DIR", str(tmp_path))
    with pytest.raises(ChecksumMismatch, match="Restore them from version control"):
        resolve_model("tiny-llama")


def test_a_model_that_is_no_row_is_refused():
    """With the known names."""
    from tapwb.core.errors import UnknownName

    with pytest.raises(UnknownName, match="tiny-llama, tiny-qwen2"):
        zoo_model("tiny-lama")


@pytest.mark.parametrize("model_id", ["tiny-retnet", "tiny-rwkv7"])
def test_shapes_of_models_of_our_own_are_told_before_any_is_loaded(model_id):
    """In a process where transformers has not heard of them yet."""
    asked = f"from tapwb.models.shapes import shapes_of; print(shapes_of({model_id!r})[0].n_parameters)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == zoo_model(model_id).n_parameters


def test_a_model_with_short_convolutions_beside_attention_is_scored_as_one_that_attends():
    """The last inputs of a convolution are no state that tokens write into: nothing could be captured of it."""
    handle = load_model("tiny-hybrid", dtype="float32")
    assert handle.anatomy.states
    assert not handle.anatomy.carried_states
    weights = dict(TokenImportanceAnalyzer.default_for(handle.anatomy).weights)
    assert weights == pytest.approx(dict(ATTENTION_DEFAULT))  # normalised, so equal up to rounding
    assert load_model("tiny-rwkv", dtype="float32").anatomy.carried_states
