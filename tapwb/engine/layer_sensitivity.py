"""Measure what each group of layers costs at few bits, once per model, and remember it.

One pass per group and level over a short calibration text, with that group at the level and everything else at the top
one; what is measured is the KL divergence from the weights as loaded, less that of the pass with everything at the top.
Layers before the group are not computed again: their output is that of the top pass.

The result is kept in the cache by what it depends on: the cells of the nested weights (so a better quantizer is
measured anew), the planes, the group size, the text and the levels.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from tapwb.core import settings
from tapwb.core.errors import PlanFileError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution.layer_groups import LayerGroup, assign_layer_groups
from tapwb.execution.level_correction import LevelCorrection
from tapwb.execution.nest import NestedModel
from tapwb.execution.packed import PackedWeight
from tapwb.importance.signal import kl_nats
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import text_fingerprint

if TYPE_CHECKING:
    from tapwb.models.info import LoadedModel


class Subject(Protocol):
    """What a measurement needs of an engine."""

    @property
    def nested(self) -> NestedModel:
        """The nested weights."""

    @property
    def loaded(self) -> "LoadedModel | None":
        """The loaded model."""

    def tokenize(self, text: str) -> Tensor:
        """Token ids, shape (1, token)."""

    def reference(self, progress: Progress | None = None, *, dtype: str | None = None) -> "LoadedModel":
        """The weights as loaded."""


#: Level at which groups are measured; the curve of all groups together says how damage goes on from there. Measuring 3
#: or 5 bits as well changed plans little and their quality not at all, and takes a pass per group each.
MEASURED_LEVELS = (4,)
#: Tokens of calibration text. Groups are compared on the same tokens, so few are enough to rank them.
CALIBRATION_TOKENS = 256
#: Into the calibration text: its start is often a heading or a licence.
_SKIPPED_CHARACTERS = 6000


def calibration_text() -> str:
    """The documentation of Python that comes with every installation: some 700,000 characters of technical English."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values())


def layer_damage_of(
    engine: Subject,
    text: str | None = None,
    *,
    levels: Sequence[int] = MEASURED_LEVELS,
    n_tokens: int = CALIBRATION_TOKENS,
    progress: Progress = NO_PROGRESS,
) -> LayerDamage:
    """The measured damage of the engine's layer groups: from the cache, or measured now.

    Args:
        engine: With a model loaded.
        text: Calibration text; the documentation of Python by default. Must not be what results are reported on.
        levels: Levels at which each group is measured, out of the stored ones.
        n_tokens: Tokens of the text to use.
        progress: Told about every pass; cancelling leaves no half result.

    Raises:
        UsageError: If the text is too short, or a level is not stored.
        ExecutionError: If no model is loaded.
    """
    nested = engine.nested
    missing = sorted(level for level in set(levels) - set(nested.levels) if level <= 2)  # from 3 up, all can be read
    if missing:
        raise UsageError(f"levels {missing} are not stored, only {list(nested.levels)}. Load the model with them.")
    token_ids = _calibration_ids(engine, text, n_tokens)
    if token_ids.shape[1] < 2:
        raise UsageError("the calibration text has fewer than 2 tokens. Give at least a paragraph.")
    file = _cache_file(engine, nested, token_ids, levels)
    known = _read(file) or _shipped(engine, token_ids, levels)
    if known is not None and set(nested.levels) <= set(known.uniform_nats):
        assign_layer_groups(nested)
        return known
    reference = engine.reference(progress, dtype="float32")
    if known is None:
        known = measure_layer_damage(nested, reference.model, token_ids, levels=levels, progress=progress)
    else:
        known = _with_uniform_levels(known, nested, reference.model, token_ids, progress)
    _write(file, known)
    return known


def known_layer_damage(engine: Subject) -> LayerDamage | None:
    """The damage that plans of the engine's layers are made with, if it costs no pass: it was measured, or came along.

    Args:
        engine: With a model loaded.
    """
    token_ids = _calibration_ids(engine, None, CALIBRATION_TOKENS)
    file = _cache_file(engine, engine.nested, token_ids, MEASURED_LEVELS)
    return _read(file) or _shipped(engine, token_ids, MEASURED_LEVELS)


def measure_layer_damage(
    nested: NestedModel,
    reference: Any,
    token_ids: Tensor,
    *,
    levels: Sequence[int] = MEASURED_LEVELS,
    progress: Progress = NO_PROGRESS,
) -> LayerDamage:
    """Measure each layer group at each level; see the module's docstring.

    Args:
        nested: The nested model.
        reference: The model with its weights as loaded.
        token_ids: Calibration text, shape (1, token).
        levels: Levels of the groups, ascending.
        progress: Told about every pass.
    """
    groups = assign_layer_groups(nested)
    top = nested.levels[-1]
    uniform = sorted({*levels, *nested.levels})
    progress.stage("measure layers", total=len(groups) * len(levels) + len(uniform) + 1, unit="pass")
    nats = torch.zeros(len(groups), len(levels), dtype=torch.float64)
    with torch.inference_mode():
        target = reference(token_ids, use_cache=False).logits
        progress.advance()
        uniform_nats = {}
        for level in uniform:
            with nested.context.use(level):
                uniform_nats[level] = _divergence(nested, token_ids, target)
            progress.advance()
        with _recorded(nested.model) as outputs, nested.context.use(top):
            nested.model(token_ids, use_cache=False)
        for g, group in enumerate(groups):
            with _without_layers_before(nested.model, group, outputs):
                for index, level in enumerate(levels):
                    bits = torch.full((len(groups), token_ids.shape[1]), top, device=token_ids.device)
                    bits[g] = level
                    with nested.context.use(bits):
                        nats[g, index] = _divergence(nested, token_ids, target) - uniform_nats[top]
                    progress.advance()
    return LayerDamage(
        names=tuple(group.name for group in groups),
        n_weights=tuple(group.n_weights for group in groups),
        levels=tuple(levels),
        nats=nats,
        uniform_nats=uniform_nats,
        rest_bits=top,
        source={
            "method": "measured:kl-to-loaded-weights",
            "text_id": text_fingerprint(token_ids),
            "n_tokens": int(token_ids.shape[1]),
            "group_size": nested.group_size,
            "cells": cells_fingerprint(nested),
        },
    )


def _with_uniform_levels(
    known: LayerDamage, nested: NestedModel, reference: Any, token_ids: Tensor, progress: Progress
) -> LayerDamage:
    """The same record with the uniform levels that are stored now and were not when it was measured.

    Without them the damage of a group at such a level would follow an assumed curve, where 3 bits look too cheap.
    """
    assign_layer_groups(nested)
    missing = [level for level in nested.levels if level not in known.uniform_nats]
    progress.stage("measure levels", total=len(missing) + 1, unit="pass")
    added = {}
    with torch.inference_mode():
        target = reference(token_ids, use_cache=False).logits
        progress.advance()
        for level in missing:
            with nested.context.use(level):
                added[level] = _divergence(nested, token_ids, target)
            progress.advance()
    return dataclasses.replace(known, uniform_nats=dict(known.uniform_nats) | added)


def cells_fingerprint(nested: NestedModel) -> str:
    """Short fingerprint of the nested weights, whatever planes they are cut into and whatever levels are stored.

    Plain cells follow from the weights, so where they start tells them apart, on every machine alike. Of calibrated
    cells it takes the codes, and the correction of the measured level: two calibrations may choose the same codes and
    differ in what they put back. Some rows of every matrix are enough.
    """
    digest = hashlib.sha256()
    corrections = [module for module in nested.model.modules() if isinstance(module, LevelCorrection)]
    for module in nested.model.modules():
        if isinstance(module, PackedWeight):
            weight = module()
            rows = torch.linspace(0, module.rows - 1, min(8, module.rows), device=weight.group_min.device).long()
            picked = weight.rows(rows)
            digest.update((picked.dequantize(8) if corrections else picked.group_min).float().cpu().numpy().tobytes())
    for correction in corrections:
        for table in correction.at(MEASURED_LEVELS[0]) or ():
            digest.update(table.cpu().numpy().tobytes())
    return digest.hexdigest()[:16] if corrections else f"plain-g{nested.group_size}-{digest.hexdigest()[:8]}"


def _calibration_ids(engine: Subject, text: str | None, n_tokens: int) -> Tensor:
    content = calibration_text()[_SKIPPED_CHARACTERS:] if text is None else text
    # No more of a long text is tokenized than a generous 12 characters a token.
    return engine.tokenize(content[: 12 * n_tokens])[:, :n_tokens]


def _divergence(nested: NestedModel, token_ids: Tensor, target: Tensor) -> float:
    return float(kl_nats(target, nested.model(token_ids, use_cache=False).logits).double().mean())


def _decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The longest list of modules: the layers of a decoder."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=None)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[Any]]:
    """The outputs of all decoder layers of the next pass, in order."""
    layers, outputs = _decoder_layers(model), []
    with ExitStack() as stack:
        for layer in layers or ():
            hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
            stack.callback(hook.remove)
        yield outputs


@contextmanager
def _without_layers_before(model: nn.Module, group: LayerGroup, outputs: Sequence[Any]) -> Iterator[None]:
    """Answer for the layers before the group with their recorded outputs."""
    layers = _decoder_layers(model)
    with ExitStack() as stack:
        for layer, output in zip(list(layers or ())[: group.layer], outputs, strict=False):
            layer.forward = _answer(output)
            stack.callback(delattr, layer, "forward")
        yield


def _answer(output: Any) -> Any:
    return lambda *_args, **_kwargs: output


def _cache_file(engine: Subject, nested: NestedModel, token_ids: Tensor, levels: Sequence[int]) -> Path:
    loaded = engine.loaded
    info = loaded.info if loaded else None
    parts = [
        info.checksum_sha256 if info else "",
        cells_fingerprint(nested),
        str(nested.group_size),
        text_fingerprint(token_ids),
        ",".join(map(str, levels)),
    ]
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    return settings.cache_dir() / "layer_damage" / f"{key}.json"


def _shipped(engine: Subject, token_ids: Tensor, levels: Sequence[int]) -> LayerDamage | None:
    """The record among those that come with the program that was made on this text, these weights and these cells."""
    checksum = engine.loaded.info.checksum_sha256 if engine.loaded else None
    of_these = (list(levels), text_fingerprint(token_ids), cells_fingerprint(engine.nested), checksum)
    for file in sorted((settings.data_dir() / "results").glob("layer-damage-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            source, model = record["source"], record["provenance"]["model_checksum_sha256"]
            if (record["levels"], source["text_id"], source["cells"], model) == of_these:
                return LayerDamage.from_json(record)
    return None


def _read(file: Path) -> LayerDamage | None:
    try:
        return LayerDamage.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, PlanFileError):  # absent or damaged: measure again
        return None


def _write(file: Path, damage: LayerDamage) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(damage.to_json()), encoding="utf-8")
    scratch.replace(file)
