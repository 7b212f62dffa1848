"""Training a small model from nothing: it learns, repeats itself by seed, and goes on exactly where it was stopped."""

import dataclasses
import json
import math

import pytest
import torch

from tapwb.core.errors import Cancelled, UsageError
from tapwb.execution.state.mixers import replace_mixers
from tapwb.models import load_model
from tapwb.models.zoo import ZOO, untrained, zoo_config, zoo_model
from tapwb.training.zoo import text as zoo_text
from tapwb.training.zoo.checkpoint import FILE
from tapwb.training.zoo.folder import model_card, write_model_folder
from tapwb.training.zoo.text import Corpus, held_out_text, python_corpus, write_texts
from tapwb.training.zoo.train import TrainingSettings, _loss, train_zoo_model

SETTINGS = TrainingSettings(steps=12, context=32, vocab_size=300, peak_rate=1e-2, warmup=3, log_every=4)
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1}
# Where other sizes follow from those, or from each other.
FITTING = {
    "tiny-mamba2": {"num_heads": 2},
    "tiny-rwkv": {"num_hidden_layers": 2, "attention_hidden_size": 64},
    "tiny-hybrid": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
}


class StopAfter:
    """Progress that cancels at the n-th step of training, as a user would."""

    def __init__(self, steps):
        self.left = steps

    def stage(self, name, total=None, unit=""):
        """Nothing to draw."""

    def advance(self, steps=1):
        """Count down."""
        self.left -= steps
        if self.left <= 0:
            raise Cancelled

    def check_cancelled(self):
        """Only `advance` cancels here."""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two chapters to learn from and one to score."""
    topics = zoo_text._manual()
    return Corpus((topics["strings"], topics["import"]), topics["calls"], {"manual": 0}, "test")


def train(corpus, folder, settings=SETTINGS, model_id="tiny-llama", **options):
    """A short run of a narrow model."""
    return train_zoo_model(
        zoo_model(model_id), corpus, folder, settings, **SMALL | FITTING.get(model_id, {}), **options
    )


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """One uninterrupted run."""
    return train(corpus, tmp_path_factory.mktemp("run"))


def weights(trained):
    """Every parameter by name."""
    return dict(trained.model.named_parameters())


def without_times(trained):
    """The curve but for the clock."""
    return [dataclasses.replace(row, elapsed_s=0.0) for row in trained.curve]


@pytest.mark.parametrize("model_id", ZOO)
def test_a_few_steps_lower_the_loss_on_both_texts(corpus, tmp_path, model_id):
    """Every model of the zoo learns, from the guess that all tokens are equally likely or worse."""
    curve = train(corpus, tmp_path, model_id=model_id).curve
    assert [row.step for row in curve] == [4, 8, 12]
    assert curve[-1].train_loss_nats < curve[0].train_loss_nats - 0.3
    assert curve[-1].held_out_loss_nats < curve[0].held_out_loss_nats - 0.3
    assert curve[-1].held_out_loss_nats < math.log(300)


def test_the_same_seed_gives_the_same_model_and_another_does_not(corpus, trained, tmp_path):
    """To the last bit: weights, curve and tokenizer."""
    again = train(corpus, tmp_path / "again")
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(trained).items())
    assert without_times(again) == without_times(trained)
    assert again.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
    other = train(corpus, tmp_path / "other", dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(weights(other)["model.norm.weight"], weights(trained)["model.norm.weight"])


@pytest.mark.parametrize("stopped_at", [1, 6, 8, 12])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(corpus, trained, tmp_path, stopped_at):
    """Between rows of the curve, on one, and after the last step."""
    with pytest.raises(Cancelled):
        train(corpus, tmp_path, progress=StopAfter(stopped_at))
    resumed = train(corpus, tmp_path)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(trained).items())
    assert without_times(resumed) == without_times(trained)


def test_the_learning_rate_rises_then_falls_in_a_straight_line(corpus, tmp_path):
    """Up to the peak within the warm-up, down to almost nothing at the last step."""
    curve = train(corpus, tmp_path, dataclasses.replace(SETTINGS, log_every=1)).curve
    rates = [row.learning_rate / SETTINGS.peak_rate for row in curve]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == pytest.approx([left / 9 for left in range(9, 0, -1)])


def test_a_checkpoint_of_another_run_is_refused(corpus, tmp_path):
    """With the names of what differs; nothing is overwritten."""
    with pytest.raises(Cancelled):
        train(corpus, tmp_path, progress=StopAfter(2))
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(UsageError, match=r"another run .*seed"):
        train(corpus, tmp_path, dataclasses.replace(SETTINGS, seed=5))
    assert (tmp_path / FILE).read_bytes() == before


def test_a_damaged_checkpoint_says_what_to_do(corpus, tmp_path):
    """Instead of beginning again over hours of work."""
    with pytest.raises(Cancelled):
        train(corpus, tmp_path, progress=StopAfter(2))
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="Delete it to begin again"):
        train(corpus, tmp_path)


def test_a_text_shorter_than_a_window_is_refused(corpus, tmp_path):
    """With both lengths and what is needed."""
    with pytest.raises(UsageError, match="held out; both need more than one window of 32"):
        train(dataclasses.replace(corpus, held_out="Too short."), tmp_path)


def test_the_folder_loads_as_the_model_that_was_trained(corpus, trained, tmp_path):
    """Weights in fp32 to the bit, the same token ids, no checkpoint left, and a card that is the record's."""
    (tmp_path / FILE).write_bytes(b"left by training")
    record = write_model_folder(trained, tmp_path)
    loaded = load_model(tmp_path, dtype="float32")
    stored = dict(loaded.model.named_parameters())
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights(trained).items())
    sample = "Strings, über alles: ภาษาไทย\n    indented"
    ids = loaded.tokenizer(sample)["input_ids"]
    assert ids == trained.tokenizer(sample)["input_ids"]
    assert loaded.tokenizer.decode(ids) == sample
    assert not (tmp_path / FILE).exists()
    assert json.loads((tmp_path / "training.json").read_text(encoding="utf-8")) == record
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == model_card(record)
    assert record["held_out"]["perplexity"] == math.exp(trained.curve[-1].held_out_loss_nats)


@pytest.mark.parametrize("model_id", ["tiny-mamba", "tiny-mamba2", "tiny-rwkv", "tiny-hybrid"])
def test_layers_of_ours_are_trained_with_the_gradients_of_transformers_own(model_id):
    """Of every parameter; only the time that a step takes differs."""
    config = zoo_config(zoo_model(model_id), 0, **SMALL | FITTING.get(model_id, {}))
    theirs, ours = untrained(config, seed=3), untrained(config, seed=3)
    assert replace_mixers(ours) > 0
    ids = torch.randint(0, 300, (2, 50), generator=torch.Generator().manual_seed(1))
    losses = [_loss(model, ids) for model in (theirs, ours)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("model_id", [name for name in ZOO if name not in ("tiny-llama", "tiny-qwen2")])
def test_recurrent_models_come_back_from_their_folder(corpus, tmp_path, model_id):
    """Trained through layers of ours, stored under the names of their family, loaded by the family's own class."""
    trained = train(corpus, tmp_path, dataclasses.replace(SETTINGS, steps=1), model_id)
    write_model_folder(trained, tmp_path)
    loaded, ids = load_model(tmp_path, dtype="float32").model, torch.arange(3, 40)[None]
    assert loaded.config.model_type == zoo_model(model_id).model_type
    with torch.no_grad():
        expected, found = (model(ids, use_cache=False).logits for model in (trained.model, loaded))
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_card_names_the_steps_where_they_are_not_the_usual_ones(trained):
    """So that its command trains the same model."""
    record = {**_record_like(trained), "samples": []}
    assert "--folder F --steps 12` with seed 0" in model_card(record)
    record["settings"] = dataclasses.asdict(TrainingSettings())
    assert "--folder F` with seed 0" in model_card(record)


def test_text_that_a_model_wrote_cannot_become_markdown(corpus, trained):
    """It stands in an indented block, and control characters are replaced."""
    record = {**_record_like(trained), "samples": [{"prompt": "a", "text": "\x1b[31m\n# heading\n<script>"}]}
    shown = model_card(record).split("the first words given:")[1]
    assert "\x1b" not in shown
    assert all(line.startswith("    ") for line in shown.splitlines() if line)


def _record_like(trained):
    """A record without writing a folder."""
    return {
        "model": "tiny-llama",
        "title": "T",
        "licence": "apache-2.0",
        "model_type": "llama",
        "weights": {"dtype": "float32", "n_parameters": 1},
        "corpus": {"python": "3", "characters": {}, "n_training_tokens": 1, "held_out_topics": ["calls"]},
        "settings": dataclasses.asdict(trained.settings),
        "held_out": {"perplexity": 1.0, "loss_nats": 0.0, "bits_per_byte": 0.0, "n_predictions": 1, "context": 1},
        "curve": [dataclasses.asdict(row) for row in trained.curve],
        "provenance": {"threads": 1, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Corpus:
    """The corpus of this Python with three modules of its library, which is quick to read."""
    own = tmp_path_factory.mktemp("own")
    manual = zoo_text._manual()
    (own / "a.txt").write_text("A paragraph of ours.\n\n" + manual["calls"], encoding="utf-8")
    files = [file for file in zoo_text._library_files() if file.name in {"ast.py", "json.py", "argparse.py"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo_text, "_library_files", lambda: files)
        return python_corpus(own)


def paragraphs(text):
    """Words of every paragraph."""
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def test_no_held_out_paragraph_is_trained_on(whole):
    """Although the manual prints whole chapters twice, and one of our files held a held-out chapter."""
    trained_on = [part for document in whole.training for part in paragraphs(document)]
    assert set(paragraphs(whole.held_out)) & set(trained_on) == set()
    assert "A paragraph of ours." in trained_on
    assert len(trained_on) == len(set(trained_on))
    assert all(whole.characters[name] > 0 for name in ("manual", "own texts", "docstrings"))
    assert whole.held_out == held_out_text()


def test_the_library_is_read_in_one_order_without_its_tests():
    """So that two machines with one Python agree."""
    files = [file.as_posix() for file in zoo_text._library_files()]
    assert len(files) > 300
    assert files == [file.as_posix() for file in zoo_text._library_files()]
    assert not any("/test/" in name or "site-packages" in name for name in files)


def test_both_texts_can_be_written_for_other_commands(whole, tmp_path):
    """One file to calibrate on, one to score on."""
    training, held_out = write_texts(whole, tmp_path / "texts")
    assert held_out.read_text(encoding="utf-8") == whole.held_out
    assert whole.training[0] in training.read_text(encoding="utf-8")


def test_a_folder_without_texts_is_refused(tmp_path):
    """With what to give instead."""
    with pytest.raises(UsageError, match="holds no"):
        python_corpus(tmp_path)
