"""Several models read the same long document chunk by chunk, in turns, and the clock and their caches are watched.

In every turn each model reads the same next chunk, so that what else the machine does falls on all alike. The time at a
length is the sum of its chunks. Before a chunk is read, what the cache will need is compared with what is allowed: a
model that would not fit stops there, with the numbers, instead of taking the machine down.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable
from tapwb.core.units import format_bytes
from tapwb.execution.kv_cache import cache_bytes
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.models.anatomy_records import ModelAnatomy
from tapwb.models.cache_rules import cache_arguments

CHUNK_TOKENS = 512


@dataclass(slots=True)
class Reader:
    """One model that reads.

    Attributes:
        name: As it was asked for.
        model: A transformers model; recurrent layers are ours.
        anatomy: Its shapes.
        ids: The document in its own tokens, shape (1, token).
        seconds: Time to each checkpoint, one number for each repetition.
        cache_bytes: Bytes of cache and states at each checkpoint, measured on the tensors.
        stopped: Why it read no further, and how far it came.
    """

    name: str
    model: Any
    anatomy: ModelAnatomy
    ids: Tensor
    seconds: dict[int, list[float]] = field(default_factory=dict)
    cache_bytes: dict[int, int] = field(default_factory=dict)
    stopped: tuple[int, Unavailable] | None = None

    def __post_init__(self) -> None:
        replace_mixers(self.model)

    @property
    def kind(self) -> str:
        """``"attention"``, ``"state"`` or ``"hybrid"``: what it keeps of a text."""
        if not self.anatomy.caches:
            return "state"
        return "hybrid" if self.anatomy.states else "attention"

    def needed_bytes(self, n_tokens: int) -> int:
        """What cache and states will take, by the shapes alone; keys and values at 16 bits.

        Args:
            n_tokens: Tokens of the document.
        """
        return self.anatomy.kv_bytes(n_tokens, 16) + self.anatomy.state_bytes()


def read_in_turns(
    readers: Sequence[Reader],
    checkpoints: Sequence[int],
    *,
    repeats: int = 3,
    memory_limit_bytes: int,
    budget_s: float,
    progress: Progress = NO_PROGRESS,
) -> None:
    """Fill in times and bytes.

    Args:
        readers: The models; each has at least as many tokens as the last checkpoint.
        checkpoints: Lengths at which to look, multiples of ``CHUNK_TOKENS``, rising.
        repeats: Readings of each model.
        memory_limit_bytes: What cache and states of one model may take.
        budget_s: Seconds that one reading of one model may take; what lies beyond is left to the fitted curve.
        progress: Told about every chunk.

    Raises:
        UsageError: If a checkpoint does not fall on the end of a chunk, or a document is too short.
    """
    for length in checkpoints:
        if length % CHUNK_TOKENS or length <= 0:
            raise UsageError(f"a length of {length} tokens is not a multiple of {CHUNK_TOKENS}. Give multiples of it.")
    last = max(checkpoints)
    for reader in readers:
        if reader.ids.shape[1] < last:
            raise UsageError(
                f"the document has {reader.ids.shape[1]} tokens for {reader.name}, fewer than {last}. Give a longer "
                "text or shorter lengths."
            )
    progress.stage("read", total=repeats * len(readers) * (last // CHUNK_TOKENS), unit="chunk")
    for _ in range(repeats):
        going = [_Reading(reader, make_cache(reader.model.config, "16")) for reader in readers]
        for stop in range(CHUNK_TOKENS, last + 1, CHUNK_TOKENS):
            for one in going:
                if one.is_over(stop, memory_limit_bytes, budget_s):
                    continue
                one.read(stop, stop in checkpoints)
                progress.advance()


@dataclass(slots=True)
class _Reading:
    """One reading of one model."""

    reader: Reader
    cache: Any
    elapsed_s: float = 0.0
    is_done: bool = False

    def is_over(self, stop: int, memory_limit_bytes: int, budget_s: float) -> bool:
        """Whether the next chunk is not read any more; notes why."""
        if not self.is_done:
            needed = self.reader.needed_bytes(stop)
            if needed > memory_limit_bytes:
                self._end(
                    stop,
                    f"out of memory predicted: {stop} tokens need {format_bytes(needed)} of cache, and "
                    f"{format_bytes(memory_limit_bytes)} are allowed",
                )
            elif self.elapsed_s > budget_s:
                self._end(stop, f"the {budget_s:g} s for one reading were over after {stop - CHUNK_TOKENS} tokens")
        return self.is_done

    def read(self, stop: int, is_checkpoint: bool) -> None:
        """Read one chunk."""
        chunk = self.reader.ids[:, stop - CHUNK_TOKENS : stop]
        arguments = cache_arguments(self.reader.model, self.cache, CHUNK_TOKENS)
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                self.reader.model(chunk, **arguments, logits_to_keep=1)
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self._end(stop, f"out of memory after {stop - CHUNK_TOKENS} tokens: {str(error).splitlines()[0]}")
            return
        self.elapsed_s += time.perf_counter() - started
        if is_checkpoint:
            self.reader.seconds.setdefault(stop, []).append(self.elapsed_s)
            self.reader.cache_bytes[stop] = cache_bytes(self.cache)

    def _end(self, stop: int, reason: str) -> None:
        self.is_done, self.cache = True, None
        self.reader.stopped = (stop - CHUNK_TOKENS, Unavailable(reason))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
