"""Loaded models of one process, each once, with what its users may know of them without holding their weights."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tapwb.core.jobs import Progress
from tapwb.core.reading import Reading

if TYPE_CHECKING:
    from tapwb.engine.engine import TAPEngine
    from tapwb.engine.scored import Scored
    from tapwb.models.anatomy_records import ModelAnatomy
    from tapwb.models.info import ModelInfo
    from tapwb.plan.overrides import LayerSizes


@dataclass(frozen=True, slots=True, eq=False)
class ModelCard:
    """What there is to know about a loaded model without holding its weights.

    Attributes:
        info: Its identity.
        anatomy: Its shapes.
        tokenizer: Its tokenizer.
        device: Where it runs.
        dtype: Type of its activations.
        weights_bytes: Resident bytes of the nested weights, counted on the tensors.
        levels: Bit-widths its weights can be read at.
        sizes: The layer groups that a plan can tell apart.
        bytes_per_step_at_8: Weight bytes that a decode step reads with everything at 8 bits.
    """

    info: "ModelInfo"
    anatomy: "ModelAnatomy"
    tokenizer: Any
    device: str
    dtype: str
    weights_bytes: Reading
    levels: tuple[int, ...]
    sizes: "LayerSizes"
    bytes_per_step_at_8: int


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPrompt:
    """A prompt with the scores of every signal shown.

    Attributes:
        model_id: The model that scored it.
        prompt: The text.
        scored: Scores; the logits they came from are let go.
    """

    model_id: str
    prompt: str
    scored: "Scored"

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that were scored."""
        return tuple(self.scored.importance.parts)


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """One generated answer.

    Attributes:
        precision: Precision as it was asked for.
        prompt: The text it continues.
        text: The answer.
        metrics: Keys of ``TAPEngine.generate``.
        n_edits: How many things about its plan were set by hand.
    """

    precision: str
    prompt: str
    text: str
    metrics: dict[str, Any]
    n_edits: int = 0


class EngineShelf:
    """Loaded models of this process, each once, the least recently used given up first.

    Args:
        capacity: How many models stay loaded.
        keep: How many scored prompts and reference answers are remembered.
    """

    def __init__(self, capacity: int = 2, keep: int = 16) -> None:
        self._capacity, self._keep = capacity, keep
        self._engines: OrderedDict[str, TAPEngine] = OrderedDict()
        self._cards: dict[str, ModelCard] = {}
        self._memory: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        # Held while loading: a second caller of the same model waits and then finds it.
        self._loading = threading.RLock()
        self._lock = threading.Lock()

    def engine(self, model_id: str, progress: Progress) -> "TAPEngine":
        """The engine of a model, loaded if it is not; only called from a job."""
        from tapwb.engine.by_hand import group_sizes
        from tapwb.engine.config import TAPConfig
        from tapwb.engine.engine import TAPEngine
        from tapwb.models.resolve import resolve_model

        with self._loading:
            with self._lock:
                if model_id in self._engines:
                    self._engines.move_to_end(model_id)
                    return self._engines[model_id]
            if len(self._engines) >= self._capacity:
                # A name that leads nowhere must not cost a model that works.
                resolve_model(model_id, progress=progress)
            # Room is made before, not after: two models at once may be more than the machine holds.
            while len(self._engines) >= self._capacity:
                self._give_up_oldest()
            engine = TAPEngine(TAPConfig())
            handle = engine.load_model(model_id, progress=progress)
            weights = Reading(float(engine.weights_bytes()), "byte", "measured:tensor storage")
            card = ModelCard(
                handle.info,
                handle.anatomy,
                handle.tokenizer,
                handle.device,
                handle.dtype,
                weights,
                engine.nested.levels,
                group_sizes(engine.nested),
                engine.nested.bytes_read(8),
            )
            with self._lock:
                self._engines[model_id], self._cards[model_id] = engine, card
            return engine

    def card(self, model_id: str) -> ModelCard | None:
        """Card of a loaded model, without waiting."""
        with self._lock:
            return self._cards.get(model_id)

    def recall(self, *key: Any) -> Any:
        """A result remembered under ``key``, or ``None``."""
        with self._lock:
            return self._memory.get(key)

    def remember(self, value: Any, *key: Any) -> None:
        """Keep a result; the oldest is forgotten."""
        with self._lock:
            self._memory[key] = value
            while len(self._memory) > self._keep:
                self._memory.popitem(last=False)

    def loaded(self) -> list[str]:
        """Ids of the loaded models, least recently used first."""
        with self._lock:
            return list(self._engines)

    def clear(self) -> None:
        """Give up every model and result."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self._cards.clear()
            self._memory.clear()

    def _give_up_oldest(self) -> None:
        with self._lock:
            model_id, engine = self._engines.popitem(last=False)
            self._cards.pop(model_id, None)
        engine.close()
