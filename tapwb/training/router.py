"""Train the gates of a per-layer router: which tokens suffer in which layer, read off that layer's own input.

The target is an estimate of what rounding one group's weights costs at one token: the squared error that few bits put
on the group's output there, times the squared gradient of the loss with respect to that output. With labels drawn from
the model's own predictions the expected product is, to second order, twice the KL divergence the error causes (the
Fisher information, as in Kim et al. 2024, SqueezeLLM, arXiv:2306.07629, who weigh weights by it, not tokens). Error and
gradient are taken to lie at random to each other, which halves the noise and keeps the mean.

Ridge regression on the logarithm, in closed form, one gate at a time. Sums over windows are all that is kept, so a run
that is cancelled goes on where it stopped. Every fifth window is not fitted: it is scored, and the cuts are set on it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tapwb.core import settings
from tapwb.core.errors import Cancelled, ExecutionError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable
from tapwb.engine import TAPEngine
from tapwb.engine.layer_sensitivity import cells_fingerprint, layer_damage_of
from tapwb.execution.calibrate import text_windows
from tapwb.execution.linear import TokenAdaptiveExperts, TokenAdaptiveLinear
from tapwb.execution.router import LayerRouter
from tapwb.execution.router_file import router_path, save_router
from tapwb.importance.analyzer import rank_correlation
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import text_fingerprint
from tapwb.plan.routing import choose_levels
from tapwb.plan.targets import layer_plan
from tapwb.training.router_statistics import GateSums

_LEAST_WINDOWS = 5
#: Every so manyth window is held out.
_HELD_OUT_EVERY = 5
#: Added to a damage before its logarithm is taken, as a share of the group's mean.
_FLOOR = 1e-3
_QUANTILES = 256
#: Means at which the held-out windows say what the router would have saved against a static choice of layers.
_SCORED_MEANS = (4.5, 5.5)
#: Levels that gates are trained and scored for; others can be used.
LEVELS = (3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """How to train.

    Attributes:
        context: Tokens per window.
        windows: Largest number of windows.
        low_bits: Level whose error is weighed.
        working_bits: Mean of the static layer plan that the windows run under, so that gates see inputs as in use.
        ridge: Strength of the regression's penalty, on standardised features. Its optimum is flat from 0.3 to 3.
        statistics_bytes: Memory that sums may take at a time; above it the windows are run several times.
        seed: Seed of the drawn labels.
    """

    context: int = 256
    windows: int = 40
    low_bits: int = 4
    working_bits: float = 5.0
    ridge: float = 1.0
    statistics_bytes: int = 2 << 30
    seed: int = 0


def train_router(
    engine: TAPEngine,
    text: str,
    options: RouterSettings = RouterSettings(),
    *,
    keep: bool = True,
    progress: Progress = NO_PROGRESS,
) -> LayerRouter:
    """Train the gates of the engine's model on a text.

    Args:
        engine: With the model loaded, in the cells the router will work on.
        text: A text like those to come; at least five windows.
        options: How to train.
        keep: Whether to save it as the router of this model.
        progress: Told about every window; what was summed before a cancel is not summed again.

    Raises:
        UsageError: If the text is too short.
        ExecutionError: If no model is loaded.
    """
    if (handle := engine.loaded) is None:
        raise ExecutionError("no model is loaded. Call load_model first.")
    windows = _windows(engine, text, options)
    layers = layer_damage_of(engine, progress=progress)
    bench = _Bench(engine, layers, options)
    fitted = [window for index, window in enumerate(windows) if not _is_held_out(index)]
    scored = [window for index, window in enumerate(windows) if _is_held_out(index)]
    cells = cells_fingerprint(engine.nested)
    identity = f"{handle.info.checksum_sha256}|{cells}|{options}|{text_fingerprint(torch.cat(windows, dim=1))}"
    unfinished = settings.cache_dir() / "routers" / f"unfinished-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    gates: dict[int, _Gate] = {}
    seen: dict[int, _Seen] = {}
    parts = bench.parts()
    for number, part in enumerate(parts):
        of = f" ({number + 1} of {len(parts)})" if len(parts) > 1 else ""
        sums = _sum_windows(bench, part, fitted, Path(f"{unfinished}-{number}.safetensors"), of, progress)
        # Experts that no token was routed to have no sums, and get no gate.
        gates |= {group: _Gate(*sums.solve(group, options.ridge)) for group in part if group in sums}
        progress.stage(f"score the router{of}", total=len(scored), unit="window")
        for index, window in enumerate(scored):
            found = bench.observe(window, [group for group in part if group in gates], options.seed + 1000 + index)
            for group, (x, damage) in found.items():
                seen.setdefault(group, _Seen([], [])).add(gates[group](x), damage)
            progress.advance()
    report = {
        "model_checksum_sha256": handle.info.checksum_sha256,
        "model_id": handle.info.id,
        "cells": cells,
        "group_size": engine.nested.group_size,
        "text_id": text_fingerprint(torch.cat(windows, dim=1)),
        "windows_fitted": len(fitted),
        "windows_scored": len(scored),
        **{name: getattr(options, name) for name in ("context", "low_bits", "working_bits", "ridge", "seed")},
    }
    router = _assemble(layers, gates, seen, report)
    for number in range(len(parts)):
        Path(f"{unfinished}-{number}.safetensors").unlink(missing_ok=True)
    if keep:
        save_router(router, router_path(handle.info.checksum_sha256, cells))
    return router


@dataclass(frozen=True, slots=True)
class _Gate:
    """A solved gate: weights of the features and the constant that makes their mean zero."""

    weights: Tensor
    constant: float

    def __call__(self, x: Tensor) -> Tensor:
        return gate_features(x) @ self.weights.half().float() + self.constant


@dataclass(frozen=True, slots=True)
class _Seen:
    """Held-out rows of one group, by window: what its gate said, and the damage."""

    said: list[Tensor]
    damage: list[Tensor]

    def add(self, said: Tensor, damage: Tensor) -> None:
        self.said.append(said.cpu())
        self.damage.append(damage.cpu())


class _Bench:
    """Runs windows and reads inputs and damages off the layers."""

    def __init__(self, engine: TAPEngine, layers: LayerDamage, options: RouterSettings) -> None:
        self._nested, self._options, self._layers = engine.nested, options, layers
        self._members: dict[int, list[nn.Module]] = {}
        for module in engine.nested.model.modules():
            is_linear = isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is None
            if is_linear or isinstance(module, TokenAdaptiveExperts):
                group = int(module.layer_fraction * layers.n_groups + 1e-6)  # type: ignore[operator]
                self._members.setdefault(group, []).append(module)
        levels = [level for level in LEVELS if level <= engine.nested.levels[-1]]
        self._working = layer_plan(layers, levels, options.working_bits).bits.long()

    def parts(self) -> list[list[int]]:
        """Runs of groups whose sums fit into memory. Groups of matrices of several widths get no gate."""
        parts: list[list[int]] = []
        held = self._options.statistics_bytes
        for group, modules in sorted(self._members.items()):
            widths = {_width(module) for module in modules}
            if len(widths) > 1:
                continue
            needed = GateSums.bytes_of(widths.pop() + 1)
            if not parts or held + needed > self._options.statistics_bytes:
                parts.append([])
                held = 0
            parts[-1].append(group)
            held += needed
        return parts

    def observe(self, token_ids: Tensor, groups: Sequence[int], seed: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Inputs of shape (row, in) and estimated damages of shape (row,) of some groups on one window."""
        calls: list[_Call] = []
        model, context = self._nested.model, self._nested.context
        with ExitStack() as stack:
            stack.enter_context(_leaf_embeddings(model))
            for group in groups:
                for module in self._members[group]:
                    hook = self._watch(group, calls)
                    stack.callback(module.register_forward_hook(hook).remove)
            stack.enter_context(torch.enable_grad())
            with context.use(self._working.expand(-1, token_ids.shape[1])):
                logits = model(token_ids, use_cache=False).logits[0].float()
            generator = torch.Generator().manual_seed(seed)
            labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum").backward()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for group in groups:
            mine = [call for call in calls if call.group == group]
            if mine:  # an expert that no token was routed to was not called
                found[group] = torch.cat([c.x for c in mine]), torch.cat([c.error * c.gradient for c in mine])
        return found

    def _watch(self, group: int, calls: list["_Call"]) -> Any:
        """Keep input and squared error of a call; its squared gradient comes with the backward pass."""
        low, top = self._options.low_bits, self._nested.levels[-1]
        busy: list[bool] = []

        def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if busy:  # the two calls below
                return
            busy.append(True)
            with torch.no_grad():
                arguments = [part.detach() for part in inputs]
                with self._nested.context.use(low):
                    error = module(*arguments)
                with self._nested.context.use(top):
                    error = error - module(*arguments)
            busy.clear()
            x = arguments[0].reshape(-1, arguments[0].shape[-1]).float()
            squared = error.float().reshape(-1, error.shape[-1]).pow(2).mean(-1)
            call = _Call(group, x, squared, torch.zeros_like(squared))
            calls.append(call)
            output.register_hook(lambda gradient: _keep_gradient(call, gradient))

        return watch


@dataclass(slots=True)
class _Call:
    """One call of a layer: input (row, in), mean squared error and squared gradient of each row's output, (row,)."""

    group: int
    x: Tensor
    error: Tensor
    gradient: Tensor


def _keep_gradient(call: _Call, gradient: Tensor) -> None:
    call.gradient = gradient.detach().float().reshape(len(call.error), -1).pow(2).sum(-1)


def gate_features(x: Tensor) -> Tensor:
    """Features of a gate: the input at root mean square 1, and the logarithm of its root mean square, (row, in + 1)."""
    size = x.float().pow(2).mean(-1, keepdim=True).add(1e-12).sqrt()
    return torch.cat([x.float() / size, size.log()], dim=1)


def _sum_windows(
    bench: _Bench, part: Sequence[int], windows: Sequence[Tensor], unfinished: Path, of: str, progress: Progress
) -> GateSums:
    """Sums over the fitted windows; goes on from what an earlier, cancelled call left in the file."""
    sums = GateSums.load(unfinished, windows[0].device) or GateSums()
    progress.stage(f"train the router{of}", total=len(windows), unit="window")
    try:
        progress.advance(sums.n_windows)
        for index in range(sums.n_windows, len(windows)):
            rows = bench.observe(windows[index], part, bench._options.seed + index)
            for group, (x, damage) in rows.items():
                floor = sums.floor_of(group, _FLOOR * float(damage.mean()))
                sums.add(group, gate_features(x), (damage + floor).log())
            sums.n_windows += 1
            progress.advance()
    except (Cancelled, KeyboardInterrupt):
        sums.save(unfinished)
        raise
    return sums


def _assemble(
    layers: LayerDamage, gates: dict[int, _Gate], seen: dict[int, _Seen], report: dict[str, Any]
) -> LayerRouter:
    """The router, with quantiles and scores of windows that no gate was fitted on."""
    n = layers.n_groups
    directions = [torch.empty(0, dtype=torch.float16)] * n
    slopes, offsets, quantiles = torch.zeros(n), torch.zeros(n), torch.zeros(n, _QUANTILES)
    at = (torch.arange(_QUANTILES) + 0.5) / _QUANTILES
    for group, rows in seen.items():
        said = torch.cat(rows.said).double()
        shift = float(said.exp().mean().log())
        gate = gates[group]
        directions[group] = gate.weights[:-1].half().cpu()
        slopes[group] = gate.weights[-1].half().float()
        offsets[group] = gate.constant - shift
        quantiles[group] = torch.quantile(said - shift, at.double()).float()
    router = LayerRouter(tuple(directions), slopes, offsets, quantiles, layers, report)
    return LayerRouter(
        router.directions, slopes, offsets, quantiles, layers, {**report, **_score(router, seen), **router.cost()}
    )


def _score(router: LayerRouter, seen: dict[int, _Seen]) -> dict[str, Any]:
    """Rank correlation of gates with damage within their group, and the damage saved, on held-out windows."""
    found = []
    for rows in seen.values():
        value = rank_correlation(torch.cat(rows.said), torch.cat(rows.damage))
        found.append(0.0 if isinstance(value, Unavailable) else float(value))
    interval = bootstrap_ci(found, n_resamples=2000) if found else None
    cuts = {f"{mean:g}": _damage_cut(router, seen, mean) for mean in _SCORED_MEANS}
    return {
        "rank_correlation": float(np.mean(found)) if found else 0.0,
        "rank_correlation_ci95": [interval.low, interval.high] if isinstance(interval, Interval) else None,
        "groups_with_a_gate": len(seen),
        "expected_damage_cut": cuts,
    }


def _damage_cut(router: LayerRouter, seen: dict[int, _Seen], mean_bits: float) -> dict[str, float]:
    """Share of the expected damage of a static layer plan, at the mean really used, that routing would remove."""
    layers, sizes = router.layers, router.layers.n_weights
    cuts, levels = router.cuts(LEVELS, mean_bits), torch.tensor(LEVELS)
    curve = layers.at(LEVELS)
    routed, spent, weighed = 0.0, 0.0, 0
    for group, rows in seen.items():
        said = torch.cat(rows.said).double()
        shifted = said - float(said.exp().mean().log())
        damage = torch.cat(rows.damage).double()
        bits = choose_levels(shifted, cuts.cuts[group], levels)
        share = damage / damage.mean().clamp_min(1e-300)
        routed += float((curve[group][torch.searchsorted(levels, bits)] * share).mean())
        spent += sizes[group] * float(bits.double().mean())
        weighed += sizes[group]
    used = spent / weighed
    plan = layer_plan(layers, LEVELS, used)
    static = sum(float(curve[g][LEVELS.index(int(plan.bits[g, 0]))]) for g in seen)
    return {"mean_bits": used, "cut": 1 - routed / static}


def _windows(engine: TAPEngine, text: str, options: RouterSettings) -> list[Tensor]:
    """Windows spread over the text, so that its parts are seen alike."""
    token_ids = engine.tokenize(text)
    if token_ids.shape[1] < _LEAST_WINDOWS * options.context:
        raise UsageError(
            f"the text has {token_ids.shape[1]} tokens; training needs {_LEAST_WINDOWS * options.context}. "
            "Give a longer text or a shorter context."
        )
    return text_windows(token_ids, options.windows, options.context)


def _is_held_out(index: int) -> bool:
    return index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


def _width(module: nn.Module) -> int:
    if isinstance(module, TokenAdaptiveLinear):
        return module.in_features
    gate_up: Any = module.gate_up
    return int(gate_up[0].cols)


@contextmanager
def _leaf_embeddings(model: Any) -> Iterator[None]:
    """Begin gradients at the embeddings: integer codes have none."""

    def leaf(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    hook = model.get_input_embeddings().register_forward_hook(leaf)
    try:
        yield
    finally:
        hook.remove()
