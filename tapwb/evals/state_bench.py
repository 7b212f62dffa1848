"""What storing a recurrent state at few bits costs: drift over thousands of steps, slow signals, bits of updates.

Random sequences with known decays, so that every cost has an exact answer in fp64 beside it; each batch row is another
seed, which gives the intervals. Codecs that are known to fail (8 bits to the nearest at every step, bf16) run beside
the default, and so do the controls of the update bits: the same mean spent on random tokens, and on the wrong ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.execution.state import float_codecs as _float_codecs  # noqa: F401 - registers
from tapwb.execution.state import int8_codecs as _int8_codecs  # noqa: F401 - registers
from tapwb.execution.state.codec import codecs
from tapwb.execution.state.default import DEFAULT_CODEC, WRITE_EVERY
from tapwb.execution.state.memory import TapMemory
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.execution.state.update_bits import round_updates
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.models.cache_rules import cache_arguments
from tapwb.models.recurrent.form import RecurrentForm, TokenInputs
from tapwb.models.recurrent.memory import PlainMemory, RecurrentCache
from tapwb.models.recurrent.ssd import SSD, SSDInputs

HEADS, CHANNELS, STATE = 4, 32, 32
#: Lengths at which drift is read.
CHECKPOINTS = (32, 128, 512, 2048)
#: Increments of the slow signal: with fewer, each is larger than half a step of 8 bits, and nothing is forgotten.
SIGNAL_STEPS = 2048
DECAYS = ("mamba2", "retnet", "none")
#: Codec and tokens between writes, in the order of the table.
POLICIES: tuple[tuple[str, int], ...] = (
    ("fp16", 1),
    ("bf16", 1),
    ("int8", 1),
    ("int8-random", 1),
    ("int8", WRITE_EVERY),
    ("int8+4", 1),
    (DEFAULT_CODEC, WRITE_EVERY),
)
_MEAN_BITS, _LOW, _HIGH = 5, 4, 8


@dataclass(frozen=True, slots=True)
class StateLimits:
    """What the default must hold, and what the control must fail.

    Attributes:
        drift: Largest relative output error after the last checkpoint, with decays as in Mamba-2.
        recovered: Least share of a slow coherent signal that is kept.
        gain: Least factor by which update bits by write strength beat equal ones.
    """

    drift: float = 0.003
    recovered: float = 0.95
    gain: float = 1.5


@dataclass(frozen=True, slots=True)
class StateTable:
    """One run of the bench.

    Attributes:
        rows: Every policy with every decay, and every choice of update bits.
        ratios: Errors over the default's, or over the best choice's.
        gate: Whether the default holds its limits and the control fails them.
        steps: Tokens of each sequence.
        seeds: Sequences.
        provenance: Versions, machine, date.
    """

    rows: tuple[dict[str, Any], ...]
    ratios: tuple[dict[str, Any], ...]
    gate: dict[str, Any]
    steps: int
    seeds: int
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "rows": list(self.rows),
            "ratios": list(self.ratios),
            "gate": self.gate,
            "steps": self.steps,
            "seeds": self.seeds,
            "provenance": self.provenance.to_json(),
        }


def measure_state(
    *,
    steps: int = CHECKPOINTS[-1],
    seeds: int = 5,
    model_id: str | None = None,
    text: str | None = None,
    limits: StateLimits | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> StateTable:
    """Run every policy on every decay.

    Args:
        steps: Tokens of each sequence.
        seeds: Sequences, for the intervals.
        model_id: A model with selective scans, whose updates on a real text are rounded as well.
        text: That text; by default a text of the project.
        limits: Of the gate.
        seed: Of the sequences.
        progress: Told about every policy.

    Raises:
        UsageError: If there are fewer than two seeds or fewer steps than a ring holds.
    """
    if steps < 2 * WRITE_EVERY or seeds < 2:
        raise UsageError(
            f"{steps} steps of {seeds} seeds tell nothing. Give at least {2 * WRITE_EVERY} steps, 2 seeds."
        )
    limits = limits or StateLimits()
    progress.stage("store states", total=len(POLICIES) * (len(DECAYS) + 1) + 1, unit="run")
    rows: list[dict[str, Any]] = []
    for decay in DECAYS:
        form, inputs = sequences(decay, steps, seeds, seed)
        exact = _outputs(form, inputs.to(torch.float64))
        for codec, every in POLICIES:
            rows.append(_drift_row(decay, codec, every, form, inputs, exact))
            progress.advance()
    for codec, every in POLICIES:
        rows.append(_signal_row(codec, every))
        progress.advance()
    update_rows = _update_rows(steps, seeds, seed)
    progress.advance()
    rows += update_rows
    if model_id is not None:
        rows += model_update_rows(model_id, text, seed=seed, progress=progress)
    return StateTable(
        rows=tuple(rows),
        ratios=_ratios(rows, update_rows),
        gate=_gate(rows, update_rows, limits),
        steps=steps,
        seeds=seeds,
        provenance=Provenance.collect(seed=seed, device="cpu"),
    )


def sequences(decay: str, steps: int, seeds: int, seed: int) -> tuple[SSD, SSDInputs]:
    """Random inputs of a Mamba-2-like layer, one sequence for each seed.

    Args:
        decay: ``"mamba2"`` (step sizes from 0.001 to 0.1, rates from 1 to 16), ``"retnet"`` (gamma of 1 - 2^-5 to 1 -
            2^-8) or ``"none"``.
        steps: Tokens.
        seeds: Sequences.
        seed: Of the random numbers.

    Raises:
        UsageError: If the decay is none of these.
    """
    if decay not in DECAYS:
        raise UsageError(f"{decay!r} is no decay of this bench. Choose from {', '.join(DECAYS)}.")
    generator = torch.Generator().manual_seed(seed)
    shape = (seeds, steps, HEADS)
    x = torch.randn(*shape, CHANNELS, generator=generator)
    b, c = (torch.randn(seeds, steps, HEADS, STATE, generator=generator) for _ in range(2))
    if decay == "mamba2":
        low, high = math.log(0.001), math.log(0.1)
        dt = torch.exp(low + (high - low) * torch.rand(*shape, generator=generator))
        rates = -torch.linspace(1, 16, HEADS)
    else:
        dt = torch.ones(shape)
        gammas = 1 - torch.exp2(-5.0 - torch.arange(HEADS))
        rates = torch.log(gammas) if decay == "retnet" else torch.zeros(HEADS)
    return SSD(HEADS, CHANNELS, STATE), SSDInputs(x, dt, rates, b, c)


def recovered_signal(codec: str, write_every: int, steps: int) -> float:
    """What is left of a sum of equal small increments that should end at 1.

    Args:
        codec: Name of the codec.
        write_every: Tokens between writes.
        steps: Increments of ``1 / steps`` each, without decay.
    """
    ones = torch.zeros(1, steps, 1, 8)
    ones[..., 0] = 1
    inputs = SSDInputs(ones / steps, torch.ones(1, steps, 1), torch.zeros(1), ones, ones)
    memory = TapMemory(codecs[codec], write_every)
    return float(memory.advance(SSD(1, 8, 8), inputs)[0, -1, 0, 0])


def update_errors(
    form: RecurrentForm[Any], inputs: TokenInputs, choices: Mapping[str, int | Tensor]
) -> dict[str, list[float]]:
    """Relative output errors of updates rounded to bits, against the same recurrence with exact updates.

    Args:
        form: The recurrence.
        inputs: Of several sequences.
        choices: Levels by name: one for all, or shape (batch * token,).

    Returns:
        One error for each sequence.
    """
    exact = _outputs(form, inputs.to(torch.float64))
    found = {}
    for name, bits in choices.items():
        rounded = _outputs(form, round_updates(inputs, bits).to(torch.float64))
        found[name] = _errors(rounded, exact).tolist()
    return found


def bits_by_rank(strength: Tensor, low: int = _LOW, high: int = _HIGH, mean: float = _MEAN_BITS) -> Tensor:
    """Two levels that meet a mean: the tokens that write most get the higher one.

    Args:
        strength: Shape (batch, token).
        low: Level of most tokens.
        high: Level of the others.
        mean: Of all.

    Returns:
        Shape (batch * token,).
    """
    n_high = round((mean - low) / (high - low) * strength.shape[1])
    ranks = strength.argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where(ranks < n_high, high, low).flatten()


def _outputs(form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
    """The exact recurrence, in the type of the inputs; by steps, so that no form's shortcuts come in."""
    first: Tensor = getattr(inputs, inputs.PER_TOKEN[0])
    state = {name: tensor.to(first.dtype) for name, tensor in form.init_state(first.shape[0]).items()}
    pieces = []
    for token in range(inputs.n_tokens):
        y, state = form.step(inputs.tokens(token, token + 1), state)
        pieces.append(y)
    return torch.cat(pieces, dim=1)


def _errors(actual: Tensor, exact: Tensor, stop: int | None = None) -> Tensor:
    """Relative error of the newest quarter of the outputs up to ``stop``, for each sequence."""
    stop = exact.shape[1] if stop is None else stop
    part = slice(stop - max(1, stop // 4), stop)
    difference = (actual[:, part].double() - exact[:, part].double()).flatten(1).norm(dim=1)
    return difference / exact[:, part].double().flatten(1).norm(dim=1)


def _drift_row(decay: str, codec: str, every: int, form: SSD, inputs: SSDInputs, exact: Tensor) -> dict[str, Any]:
    memory = TapMemory(codecs[codec], every)
    outputs = memory.advance(form, inputs)
    n_numbers = inputs.x.shape[0] * HEADS * CHANNELS * STATE
    curve = {str(n): _errors(outputs, exact, n).tolist() for n in CHECKPOINTS if n <= inputs.n_tokens}
    return {
        "name": f"{_policy(codec, every)}, decay {decay}",
        "kind": "drift",
        "codec": codec,
        "write_every_tokens": every,
        "decay": decay,
        "bits_per_number": 8 * memory.state_bytes() / n_numbers,
        "relative_error_at_tokens": {n: _with_interval(values) for n, values in curve.items()},
        "relative_error": _with_interval(_errors(outputs, exact).tolist()),
        "source": "measured: against the fp64 recurrence",
    }


def _signal_row(codec: str, every: int) -> dict[str, Any]:
    return {
        "name": f"{_policy(codec, every)}, slow signal",
        "kind": "signal",
        "codec": codec,
        "write_every_tokens": every,
        "recovered_share": recovered_signal(codec, every, SIGNAL_STEPS),
        "increments": SIGNAL_STEPS,
        "source": "measured: a sum of equal increments that is 1",
    }


def _update_rows(steps: int, seeds: int, seed: int) -> list[dict[str, Any]]:
    """Update bits at one mean: equal, by write strength, on random tokens, on the wrong ones; log-normal step sizes."""
    form, inputs = log_normal_sequences(steps, seeds, seed)
    strength = inputs.dt.mean(dim=2)
    shuffled = torch.rand(strength.shape, generator=torch.Generator().manual_seed(seed + 1))
    choices = _choices(strength, shuffled)
    return [
        {
            "name": f"updates at a mean of {_MEAN_BITS} bits, {name}",
            "kind": "updates",
            "choice": name,
            "mean_bits": float(bits) if isinstance(bits, int) else float(bits.double().mean()),
            "relative_error": _with_interval(errors),
            "errors": errors,
            "source": "measured: against the fp64 recurrence with exact updates",
        }
        for (name, bits), errors in zip(choices.items(), update_errors(form, inputs, choices).values(), strict=True)
    ]


def model_update_rows(
    model_id: str, text: str | None = None, *, tokens: int = 512, seed: int = 0, progress: Progress = NO_PROGRESS
) -> list[dict[str, Any]]:
    """Update bits on what the layers of a real model write while it reads a text; one error for each layer.

    Args:
        model_id: Catalog name or folder of a model whose layers have step sizes (Mamba and its like).
        text: The text; by default a text of the project.
        tokens: Of the text, at most.
        seed: Of the random control.
        progress: Told while the model loads.

    Raises:
        UsageError: If no layer of the model has step sizes.
    """
    from tapwb.engine.layer_sensitivity import calibration_text
    from tapwb.execution.scoring import tokenize
    from tapwb.models.load import load_model

    handle = load_model(model_id, dtype="float32", progress=progress)
    ids = tokenize(handle, calibration_text() if text is None else text)[:, :tokens]
    layers = [(form, inputs) for form, inputs in written_by(handle.model, ids) if hasattr(inputs, "dt")]
    if not layers:
        raise UsageError(f"no layer of {model_id!r} has step sizes. Choose a Mamba model, for example tiny-mamba.")
    generator = torch.Generator().manual_seed(seed)
    errors: dict[str, list[float]] = {}
    for form, inputs in layers:
        strength = inputs.dt.mean(dim=2)
        shuffled = torch.rand(strength.shape, generator=generator)
        choices = _choices(strength, shuffled)
        for name, found in update_errors(form, inputs, choices).items():
            errors.setdefault(name, []).extend(found)
    return [
        {
            "name": f"updates of {model_id} at a mean of {_MEAN_BITS} bits, {name}",
            "kind": "model updates",
            "choice": name,
            "mean_bits": float(_MEAN_BITS),
            "n_tokens": int(ids.shape[1]),
            "relative_error": _with_interval(found),
            "errors": found,
            "source": "measured: outputs of each recurrent layer, against exact updates",
        }
        for name, found in errors.items()
    ]


@torch.inference_mode()
def written_by(model: Any, ids: Tensor) -> list[tuple[RecurrentForm[Any], TokenInputs]]:
    """What the recurrent layers of a model are fed while it reads a text.

    Args:
        model: A transformers model; its recurrent layers are replaced by ours.
        ids: The text, shape (1, token).

    Returns:
        Form and inputs of each recurrent layer, in order.
    """
    replace_mixers(model)
    seen: list[tuple[RecurrentForm[Any], TokenInputs]] = []
    cache = RecurrentCache(model.config.num_hidden_layers)
    cache.layers = [_Recorder(seen) for _ in cache.layers]
    model(ids, **cache_arguments(model, cache, ids.shape[1]))
    return seen


class _Recorder(PlainMemory):
    """Notes what a layer is fed."""

    def __init__(self, seen: list[tuple[RecurrentForm[Any], TokenInputs]]) -> None:
        super().__init__()
        self._seen = seen

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        self._seen.append((form, inputs))
        return super().advance(form, inputs)


def _choices(strength: Tensor, shuffled: Tensor) -> dict[str, int | Tensor]:
    return {
        "uniform": _MEAN_BITS,
        "by write strength": bits_by_rank(strength),
        "random": bits_by_rank(shuffled),
        "inverted": bits_by_rank(-strength),
    }


def log_normal_sequences(steps: int, seeds: int, seed: int) -> tuple[SSD, SSDInputs]:
    """Sequences whose step sizes are log-normal and the same for all heads of a token, as a token's strength is.

    Args:
        steps: Tokens.
        seeds: Sequences.
        seed: Of the random numbers.
    """
    form, inputs = sequences("mamba2", steps, seeds, seed)
    generator = torch.Generator().manual_seed(seed + 2)
    dt = torch.exp(1.5 * torch.randn(seeds, steps, 1, generator=generator) + math.log(0.01)).expand(-1, -1, HEADS)
    return form, SSDInputs(inputs.x, dt.contiguous(), inputs.A, inputs.B, inputs.C)


def _policy(codec: str, every: int) -> str:
    return codec if every == 1 else f"{codec}, written every {every}"


def _with_interval(values: Sequence[float]) -> dict[str, Any]:
    found = bootstrap_ci(values)
    ci95 = [found.low, found.high] if isinstance(found, Interval) else found.to_json()
    return {"value": sum(values) / len(values), "unit": "relative RMSE", "n": len(values), "ci95": ci95}


def _ratios(rows: Sequence[dict[str, Any]], updates: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    found = []
    default = {
        row["decay"]: row["relative_error"]["value"]
        for row in rows
        if row["kind"] == "drift" and (row["codec"], row["write_every_tokens"]) == (DEFAULT_CODEC, WRITE_EVERY)
    }
    for row in rows:
        if row["kind"] == "drift":
            ratio = row["relative_error"]["value"] / default[row["decay"]]
            found.append({"name": f"error of {row['name']} / default", "ratio": ratio, "n": row["relative_error"]["n"]})
    best = next(row for row in updates if row["choice"] == "by write strength")
    for row in updates:
        pairs = [own / other for own, other in zip(row["errors"], best["errors"], strict=True)]
        interval = bootstrap_ci(pairs)
        found.append(
            {
                "name": f"error of {row['name']} / by write strength",
                "ratio": sum(pairs) / len(pairs),
                "ci95": interval.to_json() if isinstance(interval, Unavailable) else [interval.low, interval.high],
                "n": len(pairs),
            }
        )
    return tuple(found)


def _gate(rows: Sequence[dict[str, Any]], updates: Sequence[dict[str, Any]], limits: StateLimits) -> dict[str, Any]:
    def of(kind: str, codec: str, every: int, **more: Any) -> dict[str, Any]:
        wanted = {"kind": kind, "codec": codec, "write_every_tokens": every, **more}
        return next(row for row in rows if all(row.get(name) == value for name, value in wanted.items()))

    def check(name: str, value: float, limit: float, *, is_most: bool) -> dict[str, Any]:
        return {"name": name, "value": value, "limit": limit, "met": value <= limit if is_most else value >= limit}

    errors = {row["choice"]: row["relative_error"]["value"] for row in updates}
    default = (DEFAULT_CODEC, WRITE_EVERY)
    drift = of("drift", *default, decay="mamba2")["relative_error"]["value"]
    fails = of("drift", "int8", 1, decay="mamba2")["relative_error"]["value"]
    checks = [
        check("drift of the default", drift, limits.drift, is_most=True),
        check("signal kept by the default", of("signal", *default)["recovered_share"], limits.recovered, is_most=False),
        check("drift of int8 to the nearest, which must fail", fails, limits.drift, is_most=False),
        check(
            "signal kept by int8 to the nearest, which must fail",
            of("signal", "int8", 1)["recovered_share"], limits.recovered, is_most=True,
        ),
        check(
            "equal update bits / by write strength", errors["uniform"] / errors["by write strength"], limits.gain,
            is_most=False,
        ),
        check("random update bits / equal ones", errors["random"] / errors["uniform"], 1.0, is_most=False),
    ]  # fmt: skip
    return {"met": all(one["met"] for one in checks), "checks": checks}
