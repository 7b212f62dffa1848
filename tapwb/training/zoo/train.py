"""Train one model of the zoo from nothing: next-token loss, AdamW, a warm-up and a straight line down to zero.

Everything random follows from the seed and the step, so two runs on one machine agree to the last bit, and so do one
that was stopped and one that was not. The last weights are kept whatever the held-out text says of them: nothing is
chosen on it.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tapwb.core.errors import Cancelled, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.models.tokenizer_bpe import train_bpe
from tapwb.models.zoo import CONTEXT, VOCAB_SIZE, ZooModel, untrained, zoo_config
from tapwb.training.zoo.checkpoint import load_checkpoint, save_checkpoint
from tapwb.training.zoo.text import Corpus

_BETAS = (0.9, 0.95)
_CLIP_NORM = 1.0
_ROWS = 8  # held-out windows scored at once


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train.

    Attributes:
        seed: Of weights and batches.
        steps: Optimizer steps.
        batch: Windows in a step.
        context: Tokens in a window.
        vocab_size: Tokens of the tokenizer, which is learnt from the training text.
        peak_rate: Learning rate after the warm-up; it falls in a straight line to zero.
        warmup: Steps of the warm-up.
        weight_decay: Of matrices; norms and biases have none.
        log_every: Steps between rows of the loss curve, and between checkpoints.
    """

    seed: int = 0
    steps: int = 1500
    batch: int = 2
    context: int = CONTEXT
    vocab_size: int = VOCAB_SIZE
    peak_rate: float = 3e-3
    warmup: int = 80
    weight_decay: float = 0.1
    log_every: int = 100


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One row of the loss curve.

    Attributes:
        step: Steps done.
        tokens: Tokens seen.
        learning_rate: Of the last of these steps.
        train_loss_nats: Mean over the steps since the row before, nats a token.
        held_out_loss_nats: Of the held-out text, nats a token.
        elapsed_s: Seconds of training, other runs before a resume included.
    """

    step: int
    tokens: int
    learning_rate: float
    train_loss_nats: float
    held_out_loss_nats: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training leaves.

    Attributes:
        row: Which model.
        model: In evaluation mode.
        tokenizer: Learnt from the training text.
        settings: How it was trained.
        corpus: On what.
        curve: The loss curve.
        n_training_tokens: Tokens of the training text.
        n_held_out: Held-out predictions behind every held-out loss.
    """

    row: ZooModel
    model: Any
    tokenizer: Any
    settings: TrainingSettings
    corpus: Corpus
    curve: tuple[CurveRow, ...]
    n_training_tokens: int
    n_held_out: int


def train_zoo_model(
    row: ZooModel,
    corpus: Corpus,
    folder: Path,
    settings: TrainingSettings = TrainingSettings(),
    *,
    progress: Progress = NO_PROGRESS,
    **overrides: Any,
) -> TrainedModel:
    """Train, or go on where a run into ``folder`` was stopped.

    Args:
        row: The model.
        corpus: Text to train on and to score.
        folder: Holds the checkpoint; made if it is missing.
        settings: How.
        progress: Told about every step; cancelling keeps what is done in the checkpoint.
        **overrides: Fields of the model's configuration to change.

    Raises:
        UsageError: If the text is too short, or the checkpoint is of another run.
        Cancelled: If the user stopped it.
    """
    progress.stage("learn the tokenizer")
    tokenizer = train_bpe(corpus.training, settings.vocab_size)
    stream, held_out = _streams(tokenizer, corpus, settings)
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": settings.context, **overrides}
    model = untrained(zoo_config(row, tokenizer.eos_token_id, **shape), settings.seed)
    # The same weights under the same names; transformers' own scan is a loop that takes half a minute a step.
    replace_mixers(model)
    run = _Run(model, stream, held_out, settings, {"model": row.id, "corpus": corpus.fingerprint, **overrides})
    run.go(folder, progress)
    return TrainedModel(
        row=row,
        model=model.eval(),
        tokenizer=tokenizer,
        settings=settings,
        corpus=corpus,
        curve=tuple(run.curve),
        n_training_tokens=len(stream),
        n_held_out=held_out.shape[0] * (held_out.shape[1] - 1),
    )


def _streams(
    tokenizer: Any, corpus: Corpus, settings: TrainingSettings
) -> tuple[Int[Tensor, " token"], Int[Tensor, "window token"]]:
    """All training documents, each ended by the end token; and windows of the held-out text that do not overlap."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    stream = torch.tensor([token for text in corpus.training for token in [*ids(text), tokenizer.eos_token_id]])
    held_out = torch.tensor(ids(corpus.held_out))
    n_windows = len(held_out) // settings.context
    if len(stream) <= settings.context or n_windows == 0:
        raise UsageError(
            f"the corpus has {len(stream)} tokens to train on and {len(held_out)} held out; both need more than one "
            f"window of {settings.context}. Give more text or a shorter context."
        )
    return stream, held_out[: n_windows * settings.context].view(n_windows, settings.context)


class _Run:
    """The loop and its state."""

    def __init__(
        self, model: Any, stream: Tensor, held_out: Tensor, settings: TrainingSettings, identity: dict[str, Any]
    ) -> None:
        self._model, self._stream, self._held_out, self._settings = model, stream, held_out, settings
        self._identity = identity | dataclasses.asdict(settings)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=settings.peak_rate, betas=_BETAS)
        self._step = 0
        self._elapsed_s = 0.0
        self._losses: list[float] = []
        self.curve: list[CurveRow] = []

    def go(self, folder: Path, progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._resume(folder)
        progress.stage(f"train {self._identity['model']}", total=self._settings.steps, unit="step")
        progress.advance(self._step)
        began_s = time.monotonic() - self._elapsed_s
        try:
            while self._step < self._settings.steps:
                self._losses.append(self._one_step())
                self._elapsed_s = time.monotonic() - began_s
                if self._step % self._settings.log_every == 0 or self._step == self._settings.steps:
                    self._log()
                    self._save(folder)
                progress.advance()
        except (Cancelled, KeyboardInterrupt):
            self._save(folder)
            raise

    def _one_step(self) -> float:
        settings = self._settings
        self._step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self._step)
        starts = torch.randint(len(self._stream) - settings.context + 1, (settings.batch, 1), generator=generator)
        ids = self._stream[starts + torch.arange(settings.context)]
        loss = _loss(self._model, ids)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        return float(loss.detach())

    def _rate(self) -> float:
        settings = self._settings
        left = (settings.steps - self._step + 1) / max(1, settings.steps - settings.warmup)
        return settings.peak_rate * min(1.0, self._step / settings.warmup if settings.warmup else 1.0, left)

    @torch.no_grad()
    def _log(self) -> None:
        self._model.eval()
        losses = [float(_loss(self._model, part)) * len(part) for part in self._held_out.split(_ROWS)]
        self._model.train()
        row = CurveRow(
            step=self._step,
            tokens=self._step * self._settings.batch * self._settings.context,
            learning_rate=self._rate(),
            train_loss_nats=float(np.mean(self._losses)),
            held_out_loss_nats=sum(losses) / len(self._held_out),
            elapsed_s=round(self._elapsed_s, 1),
        )
        self.curve.append(row)
        self._losses = []

    def _save(self, folder: Path) -> None:
        record = {
            "identity": self._identity,
            "step": self._step,
            "elapsed_s": self._elapsed_s,
            "losses": self._losses,
            "curve": [dataclasses.asdict(row) for row in self.curve],
        }
        save_checkpoint(folder, self._model, self._optimizer, record)

    def _resume(self, folder: Path) -> None:
        record = load_checkpoint(folder, self._model, self._optimizer)
        if record is None:
            return
        if record["identity"] != self._identity:
            names = sorted(set(record["identity"]) | set(self._identity))
            other = [name for name in names if record["identity"].get(name) != self._identity.get(name)]
            raise UsageError(
                f"{folder} holds the checkpoint of another run ({', '.join(other)} differ). Train with the same "
                "settings to go on, or choose another folder to begin again."
            )
        self._step, self._losses = record["step"], record["losses"]
        self._elapsed_s = record["elapsed_s"]
        self.curve = [CurveRow(**row) for row in record["curve"]]


def _loss(model: Any, ids: Int[Tensor, "window token"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the next tokens, nats."""
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
