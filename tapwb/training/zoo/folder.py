"""A trained model as a folder: weights, tokenizer, the record of its training, and the card that people read.

The card is written from the record and from nothing else, so the two cannot disagree.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tapwb.core.provenance import Provenance
from tapwb.models.checksum import file_sha256
from tapwb.training.zoo.checkpoint import remove_checkpoint
from tapwb.training.zoo.text import HELD_OUT_TOPICS
from tapwb.training.zoo.train import TrainedModel, TrainingSettings

RECORD, CARD = "training.json", "README.md"
_PROMPTS = ("If a class defines", "The function returns", "In the morning the children")
_SAMPLE_TOKENS = 60


def write_model_folder(trained: TrainedModel, folder: Path) -> dict[str, Any]:
    """Write the folder and remove the checkpoint of its training.

    Args:
        trained: The model.
        folder: Where; files of the same names are replaced.

    Returns:
        The record, as it is in ``training.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # says nothing that config.json does not
    record = _record(trained, folder / "model.safetensors")
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(record), encoding="utf-8")
    remove_checkpoint(folder)
    return record


def _record(trained: TrainedModel, weights: Path) -> dict[str, Any]:
    corpus, last = trained.corpus, trained.curve[-1]
    parameters = {p.data_ptr(): p.numel() for p in trained.model.parameters()}
    n_tokens = len(trained.tokenizer(corpus.held_out, add_special_tokens=False, verbose=False)["input_ids"])
    tokens_a_byte = n_tokens / len(corpus.held_out.encode("utf-8"))
    return {
        "model": trained.row.id,
        "title": trained.row.title,
        "licence": "apache-2.0",
        "model_type": trained.row.model_type,
        "weights": {
            "dtype": "float32",
            "quantized_before": None,
            "n_parameters": sum(parameters.values()),
            "sha256": file_sha256(weights),
        },
        "corpus": {
            "python": corpus.python,
            "characters": dict(corpus.characters),
            "n_training_tokens": trained.n_training_tokens,
            "fingerprint": corpus.fingerprint,
            "held_out_topics": list(HELD_OUT_TOPICS),
            "held_out_fingerprint": corpus.held_out_fingerprint,
        },
        "settings": dataclasses.asdict(trained.settings),
        "held_out": {
            "loss_nats": last.held_out_loss_nats,
            "perplexity": math.exp(last.held_out_loss_nats),
            "bits_per_byte": last.held_out_loss_nats / math.log(2) * tokens_a_byte,
            "n_predictions": trained.n_held_out,
            "context": trained.settings.context,
        },
        "curve": [dataclasses.asdict(row) for row in trained.curve],
        "samples": _samples(trained),
        "provenance": Provenance.collect(seed=trained.settings.seed).to_json(),
    }


def _samples(trained: TrainedModel) -> list[dict[str, str]]:
    """What it writes after a few words; a look at it, not a measurement."""
    found = []
    for prompt in _PROMPTS:
        ids = trained.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        length = min(_SAMPLE_TOKENS, trained.settings.context - ids.shape[1])
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(trained.settings.seed)
            out = trained.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length,
                do_sample=True,
                temperature=0.7,
                top_k=40,
                pad_token_id=trained.tokenizer.eos_token_id,
            )
        found.append({"prompt": prompt, "text": trained.tokenizer.decode(out[0, ids.shape[1] :])})
    return found


def model_card(record: Mapping[str, Any]) -> str:
    """The card of a record, in Markdown."""
    corpus, settings, held_out = record["corpus"], record["settings"], record["held_out"]
    sources = ", ".join(f"{name} {count:,}" for name, count in corpus["characters"].items())
    topics = ", ".join(f"`{name}`" for name in corpus["held_out_topics"])
    curve = "\n".join(
        f"| {row['step']} | {row['tokens']:,} | {row['train_loss_nats']:.3f} | {row['held_out_loss_nats']:.3f} |"
        for row in record["curve"]
    )
    steps = f" --steps {settings['steps']}" if settings["steps"] != TrainingSettings().steps else ""
    samples = "\n\n".join(_quoted(sample["prompt"] + sample["text"]) for sample in record["samples"])
    return f"""---
license: {record["licence"]}
language: en
---

# {record["title"]}

Architecture `{record["model_type"]}`, {record["weights"]["n_parameters"]:,} parameters. Trained from nothing for this
project, so that there is a model whose weights were **never quantized**: they were trained in fp32 and are stored as
{record["weights"]["dtype"]}. It is a measuring object: it writes recognisable English about Python, with many invented
words, knows nothing, and answers no question.

Made by `tapwb train-tiny {record["model"]} --folder F{steps}` with seed {settings["seed"]}.
Licence: Apache-2.0, like the project.

## Text

- The language's manual (`pydoc_data.topics`) and the docstrings of the standard library, of Python {corpus["python"]}
  (PSF licence; the text is not part of this repository), and our own texts in `data/calibration`.
- Characters, after paragraphs that repeat were left out: {sources}.
- {corpus["n_training_tokens"]:,} tokens of a byte-level BPE tokenizer with {settings["vocab_size"]} entries,
  learnt from the same text.
- Held out: the topics {topics} of the manual. No paragraph of them is in the training text.

## Training

- AdamW, {settings["steps"]} steps of {settings["batch"]} windows of {settings["context"]} tokens.
- Learning rate up to {settings["peak_rate"]:g} in {settings["warmup"]} steps, then in a straight line to zero; weight
  decay {settings["weight_decay"]:g} on matrices.
- {record["curve"][-1]["elapsed_s"] / 60:.0f} minutes of wall time, {record["provenance"]["threads"]} thread(s) of
  {record["provenance"]["device"]}.
- The last weights were kept; nothing was chosen on the held-out text.

Held-out perplexity **{held_out["perplexity"]:.2f}** a token ({held_out["loss_nats"]:.4f} nats,
{held_out["bits_per_byte"]:.3f} bits a byte) over {held_out["n_predictions"]:,} predictions, in windows of
{held_out["context"]} tokens that do not overlap, without a begin token.

| step | tokens seen | training loss (nats) | held-out loss (nats) |
|---|---|---|---|
{curve}

`training.json` holds the same with learning rates, times, fingerprints of the texts and the machine.

## What it writes

Sampled at temperature 0.7 from the 40 likeliest tokens, one try each, the first words given:

{samples}
"""


def _quoted(text: str) -> str:
    """Model output as an indented block: nothing in it is read as Markdown."""
    clean = "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return "\n".join(f"    {line}".rstrip() for line in clean.splitlines())
