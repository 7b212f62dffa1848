"""The adaptive cache beside uniform bits, its controls and transformers' own caches: bytes and perplexity in one run.

Every window is fed page by page, to all caches in turn, so that later tokens really read what was sealed. The
reference is the same model on the same pages with a cache of 16 bits; the weights are as loaded, in fp32, so that what
is compared is the cache alone. Bytes are those of the tensors that each cache holds at the end of the window, metadata
included.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.evals.kv_table import KvLimits, KvRow, KvTable, Tally
from tapwb.execution.kv_attention import reading_pages
from tapwb.execution.kv_cache import PAGE_TOKENS, cache_bytes
from tapwb.execution.kv_controls import even_order, permuted_everywhere, permuted_in_layers
from tapwb.execution.kv_peers import peer_bytes, peer_cache
from tapwb.execution.kv_plan import adaptive_cache, cache_notes, make_cache
from tapwb.execution.kv_received import AdaptiveKv
from tapwb.execution.scoring import tokenize
from tapwb.metrics.quality import kl_nats, nll_nats
from tapwb.models.cache_rules import cache_arguments
from tapwb.models.load import load_model

REFERENCE = "16"


@dataclass(frozen=True, slots=True)
class _Contender:
    """A way to make an empty cache, and to count it."""

    name: str
    kind: str
    make: Callable[[], Any]
    count: Callable[[Any], int] = cache_bytes


def evaluate_kv(
    model_id: str,
    text: str,
    *,
    mean_bits: float = 3.5,
    context: int = 4096,
    windows: int = 4,
    uniform: Sequence[int] = (4,),
    peers: Sequence[str] = (),
    limits: KvLimits | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> KvTable:
    """Compare caches on several windows of a text.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text to predict.
        mean_bits: Mean of the adaptive cache and of its controls.
        context: Tokens per window.
        windows: Windows, spread evenly over the text; a short text gives fewer.
        uniform: Caches of one level to run beside it.
        peers: Names of transformers' caches, from ``PEERS``.
        limits: What the gate asks for.
        seed: Seed of the controls and of the bootstrap.
        progress: Told about every page of every cache.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text or the window is too short, the window does not fit the model, or a name is unknown.
    """
    handle = load_model(model_id, dtype="float32", progress=progress, **options)
    pieces = spread_windows(tokenize(handle, text), context, windows, handle.anatomy.context_length)
    contenders, missing = _contenders(handle.model.config, mean_bits, uniform, peers, seed)
    tallies = {contender.name: Tally(contender.name, contender.kind) for contender in contenders}
    pages = sum(math.ceil(ids.shape[1] / PAGE_TOKENS) for ids in pieces)
    progress.stage("evaluate", total=pages * len(contenders), unit="page")
    with torch.inference_mode(), reading_pages(handle.model):
        for ids in pieces:
            _run_window(handle.model, ids, contenders, tallies, progress)
    return KvTable.of(
        list(tallies.values()),
        missing,
        context=pieces[0].shape[1],
        windows=len(pieces),
        mean_bits=mean_bits,
        limits=limits or KvLimits(),
        notes=cache_notes(make_cache(handle.model.config, 8)),
        provenance=Provenance.collect(seed=seed, model=handle.info, device=handle.device),
        seed=seed,
    )


def spread_windows(token_ids: Tensor, context: int, windows: int, limit: int | None) -> list[Tensor]:
    """Windows that do not overlap, spread evenly over a text.

    Args:
        token_ids: Shape (1, token).
        context: Tokens per window.
        windows: Largest number of windows.
        limit: The model's context.

    Returns:
        Tensors of shape (1, context).

    Raises:
        UsageError: If not one window fits the text, or a window does not fit the model.
    """
    n_tokens = token_ids.shape[1]
    if context < 2 or (limit is not None and context > limit):
        raise UsageError(f"a window of {context} tokens is not usable. Give 2 to {limit or 'any number of'} tokens.")
    if windows < 1:
        raise UsageError(f"{windows} windows were asked for. Ask for at least 1.")
    if n_tokens < context:
        raise UsageError(f"the text has {n_tokens} tokens, fewer than a window of {context}. Give a longer text.")
    stride = n_tokens // min(windows, n_tokens // context)
    return [token_ids[:, start : start + context] for start in range(0, n_tokens - context + 1, stride)][:windows]


def _contenders(
    config: Any, mean_bits: float, uniform: Sequence[int], peers: Sequence[str], seed: int
) -> tuple[list[_Contender], list[KvRow]]:
    """Caches in the order of the table, and a row for each peer that cannot run."""

    def adaptive(name: str, kind: str, reorder: Callable[[Tensor], Tensor] | None) -> _Contender:
        return _Contender(name, kind, lambda: adaptive_cache(config, AdaptiveKv(mean_bits, reorder=reorder)))

    out = [
        _Contender(REFERENCE, "reference", lambda: make_cache(config, 16)),
        adaptive(f"adaptive:{mean_bits:g}:received", "adaptive", None),
        adaptive(f"even:{mean_bits:g}", "control", even_order),
        adaptive(f"random:{mean_bits:g}", "control", permuted_everywhere(seed)),
        adaptive(f"shuffled:{mean_bits:g}", "control", permuted_in_layers(seed)),
    ]
    out += [_Contender(str(bits), "uniform", partial(make_cache, config, bits)) for bits in uniform]
    missing = []
    for peer in peers:
        name, found = f"{peer}:4", peer_cache(config, peer)
        if isinstance(found, Unavailable):
            missing.append(KvRow.missing(name, "peer", found))
        else:
            out.append(_Contender(name, "peer", partial(peer_cache, config, peer), peer_bytes))
    return out, missing


def _run_window(
    model: Any, ids: Tensor, contenders: Sequence[_Contender], tallies: dict[str, Tally], progress: Progress
) -> None:
    """Feed one window page by page to every cache in turn."""
    caches = [contender.make() for contender in contenders]
    lines = [_Line() for _ in contenders]
    for start in range(0, ids.shape[1], PAGE_TOKENS):
        page = ids[:, start : start + PAGE_TOKENS]
        targets = ids[0, start + 1 : start + PAGE_TOKENS + 1]
        reference = None
        for cache, line in zip(caches, lines, strict=True):
            logits = model(page, **cache_arguments(model, cache, page.shape[1])).logits[0, : len(targets)].float()
            reference = logits if reference is None else reference
            line.nll.append(nll_nats(logits, targets).double().cpu().numpy())
            line.kl.append(kl_nats(reference, logits).double().cpu().numpy())
            progress.advance()
    for contender, cache, line in zip(contenders, caches, lines, strict=True):
        tallies[contender.name].add(np.concatenate(line.nll), np.concatenate(line.kl), contender.count(cache))


@dataclass(slots=True)
class _Line:
    """Numbers of one cache along one window."""

    nll: list[Any] = field(default_factory=list)
    kl: list[Any] = field(default_factory=list)
