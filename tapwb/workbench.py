"""The headless controller: the state that the dashboard, notebooks and scripts share, and the jobs that change it.

It never imports a screen. A :class:`Workbench` belongs to one user; the models do not: one :class:`EngineShelf` per
process holds every loaded model once, and one :class:`~tapwb.core.jobs.JobRunner` worker per process runs the jobs, so
that two users never load the same weights twice nor compute at the same time. Values reach watchers through ``param``;
jobs run on the worker's thread, hence watchers do too.
"""

import dataclasses
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import param

from tapwb.core.errors import EmptyPrompt
from tapwb.core.jobs import Job, JobRunner, JobState, Progress
from tapwb.core.precision import DEFAULT_SIGNAL, PrecisionRequest, parse_precision
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.engine.presets import presets

if TYPE_CHECKING:
    from tapwb.engine import Scored, TAPEngine
    from tapwb.execution.trace import TokenEvent
    from tapwb.models.anatomy_records import ModelAnatomy
    from tapwb.models.info import ModelInfo
    from tapwb.plan.precision_plan import PrecisionPlan

DEFAULT_MODEL = "smollm2-135m"
SAMPLE_PROMPT = (
    "Every model answers one token at a time. Some tokens decide what comes next, and others only fill the space "
    "between them. Spending the same number of bits on all of them is like"
)
#: Planners of the sidebar, in the words of the precision grammar.
PLANNERS = ("adaptive", "uniform", "threshold", "random", "shuffled", "oracle")
UNIFORM_BITS = (4, 5, 6, 8)
#: Signals shown side by side; each is cheap once the pass for entropy has run.
ATTENTION_SIGNALS = ("entropy", "entropy_prev", "surprisal", "attention", "hidden_norm", "position", "token_id")
RECURRENT_SIGNALS = ("entropy", "entropy_prev", "surprisal", "state_write", "hidden_norm", "position", "token_id")
_DEVICE = "device"


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
    """

    info: "ModelInfo"
    anatomy: "ModelAnatomy"
    tokenizer: Any
    device: str
    dtype: str
    weights_bytes: Reading
    levels: tuple[int, ...]


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
    """

    precision: str
    prompt: str
    text: str
    metrics: dict[str, Any]


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
        from tapwb.engine import TAPConfig, TAPEngine

        with self._loading:
            with self._lock:
                if model_id in self._engines:
                    self._engines.move_to_end(model_id)
                    return self._engines[model_id]
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


#: The one shelf and the one runner of this process.
SHELF = EngineShelf()
_owners: "weakref.WeakKeyDictionary[Job, weakref.ReferenceType[Workbench]]" = weakref.WeakKeyDictionary()


def _tell_owner(job: Job) -> None:
    owner = _owners.get(job)
    workbench = owner() if owner else None
    if workbench is not None:
        workbench.on_job_change(job)


RUNNER = JobRunner(on_change=_tell_owner)


class Workbench(param.Parameterized):
    """Everything one user has chosen and got so far.

    Inputs are set directly; :meth:`load`, :meth:`score`, :meth:`make_plan` and :meth:`run` start jobs that fill the
    results. ``job_tick`` rises whenever the current job changes; ``error`` stays until :meth:`dismiss_error`.
    """

    model_id = param.String(DEFAULT_MODEL, doc="Catalog name, folder, GGUF file or Hugging Face id.")
    prompt = param.String(SAMPLE_PROMPT, doc="The text to score and to continue.")
    signal = param.String(DEFAULT_SIGNAL, doc="Importance signal that decides the bits.")
    planner: Any = param.Selector(default="adaptive", objects=list(PLANNERS), doc="How bits are handed out.")
    mean_bits = param.Number(5.5, bounds=(4, 8), doc="Mean bits of the plan.")
    max_new_tokens = param.Integer(48, bounds=(1, 2048), doc="Largest length of the answer, tokens.")
    kv: Any = param.Selector(default="16", objects=["16", "8", "4", "3", "2"], doc="Bits of the attention cache.")
    temperature = param.Number(0.0, bounds=(0, 2), doc="0 always takes the likeliest token.")
    seed = param.Integer(0, bounds=(0, None), doc="Seed of sampling and of random controls.")
    with_reference = param.Boolean(True, doc="Whether a run is followed by the same at 16 bits.")
    lang: Any = param.Selector(default="en", objects=["en", "th"], doc="Language of the screen.")
    theme: Any = param.Selector(default="light", objects=["light", "dark"], doc="Colours of the screen.")
    page: Any = param.Selector(default="model", objects=["model", "tokens", "run"], doc="Page on the screen.")

    card = param.Parameter(None, doc="ModelCard of the loaded model, or None.")
    scored = param.Parameter(None, doc="ScoredPrompt, or None.")
    plan = param.Parameter(None, doc="PrecisionPlan of the scored prompt, or None.")
    run_text = param.String("", doc="The answer as far as it is written.")
    run_result = param.Parameter(None, doc="RunResult at the chosen precision, or None.")
    reference_text = param.String("", doc="The 16-bit answer as far as it is written.")
    reference_result = param.Parameter(None, doc="RunResult at 16 bits, or None.")
    writing: Any = param.Selector(default="", objects=["", "candidate", "baseline"], doc="Which answer grows.")

    job = param.Parameter(None, doc="The last job of this workbench, or None.")
    job_tick = param.Integer(0, doc="Rises whenever the job changes.")
    error = param.String("", doc="Why the last job failed, until dismissed.")

    def __init__(self, *, shelf: EngineShelf = SHELF, runner: JobRunner = RUNNER, **params: Any) -> None:
        super().__init__(**params)
        self._shelf, self._runner = shelf, runner
        self._tick_lock = threading.Lock()

    # --- what was asked for ---

    @property
    def precision(self) -> str:
        """The chosen precision in the grammar of the command line."""
        if self.planner == "uniform":
            return str(min(UNIFORM_BITS, key=lambda bits: abs(bits - self.mean_bits)))
        if self.planner == "threshold":
            return f"threshold:{self.signal}"
        tail = f":{self.signal}" if self.planner in ("adaptive", "shuffled") else ""
        return f"{self.planner}:{self.mean_bits:g}{tail}"

    def request(self) -> PrecisionRequest:
        """The chosen precision, parsed.

        Raises:
            PrecisionSpecError: If the inputs make none.
        """
        return parse_precision(self.precision)

    @property
    def is_stale(self) -> bool:
        """Whether the prompt or the model has changed since the tokens were scored."""
        return self.scored is not None and (self.scored.prompt, self.scored.model_id) != (self.prompt, self.model_id)

    @property
    def is_busy(self) -> bool:
        """Whether a job of this workbench is queued or running."""
        return self.job is not None and self.job.is_active

    def apply_preset(self, name: str) -> None:
        """Start from a use case: takes over its planner, mean, cache bits and whether the 16-bit answer is written.

        Raises:
            UnknownName: If there is no such preset.
        """
        config = presets[name].config
        self.param.update(
            planner=config.precision_mode.value,
            mean_bits=config.mean_bits,
            kv=str(config.kv_bits or 16),
            with_reference=not config.memory_efficient_mode,
        )

    # --- jobs ---

    def load(self) -> Job:
        """Load the chosen model, then score and plan the prompt."""
        model_id = self.model_id
        if self.card is not None and self.card.info.id != model_id:
            self.param.update(card=None, scored=None, plan=None)
        return self._submit(f"load {model_id}", lambda job: self._load_and_score(model_id, job))

    def adopt(self) -> bool:
        """Take over what the process already has for these inputs, without a job; whether there was something."""
        card = self._shelf.card(self.model_id)
        if card is None:
            return False
        # Asked again while a preload scores: the card comes first, the scores some seconds later.
        scored = self._shelf.recall("scored", self.model_id, self.prompt, self._signals(card))
        if scored is None or scored is self.scored:
            is_news = card is not self.card
            self.card = card
            return is_news
        self.param.update(card=card, scored=scored, plan=self._plan_of(scored))
        return True

    def score(self) -> Job:
        """Score the prompt with every shown signal, and plan it."""
        return self._submit("score tokens", lambda job: self._score(self.model_id, job))

    def make_plan(self) -> Job | None:
        """Plan the scored prompt again; scores first if the planner needs a signal that has none yet."""
        if self.scored is None:
            return None
        needed = {"oracle": "oracle"}.get(self.planner, self.signal)
        if self.is_stale or needed not in self.scored.signals:
            return self.score()
        return self._submit("plan bits", lambda job: self.param.update(plan=self._plan_of(self.scored)))

    def run(self) -> Job:
        """Generate at the chosen precision and, if asked for, at 16 bits."""
        self.param.update(run_text="", run_result=None, reference_text="", reference_result=None)
        return self._submit("generate", self._run)

    def cancel(self) -> None:
        """Stop the current job at its next step."""
        if self.job is not None:
            self.job.cancel()

    def dismiss_error(self) -> None:
        """Forget the error after it was read."""
        if self.job is not None:
            self.job.dismiss_error()
        self.error = ""

    def queue_position(self) -> int:
        """How many jobs of this process come before the current one."""
        active = self._runner.active()
        return active.index(self.job) if self.job in active else 0

    def busy_job(self) -> Job | None:
        """What the process works on: this user's job while it is active, else somebody's."""
        if self.is_busy:
            return self.job
        active = self._runner.active()
        return active[0] if active else None

    def close(self) -> None:
        """Stop this user's job; called when the user has left."""
        self.cancel()
        self.job = None

    def on_job_change(self, job: Job) -> None:
        """Publish a change of the current job; called on the worker's thread."""
        if job.state is JobState.ERROR and job.error is not None:
            self.error = job.describe_error()
        with self._tick_lock:
            self.job_tick += 1

    # --- what the jobs do, on the worker's thread ---

    def _submit(self, name: str, function: Callable[[Job], Any]) -> Job:
        def work(job: Job) -> None:
            _owners[job] = weakref.ref(self)
            function(job)

        self.error = ""
        job = self._runner.submit(name, work, device=_DEVICE)
        _owners[job] = weakref.ref(self)
        self.job = job
        self.on_job_change(job)
        return job

    def _load_and_score(self, model_id: str, job: Job) -> None:
        self._shelf.engine(model_id, job)
        self.card = self._shelf.card(model_id)
        if self.prompt.strip():
            self._score(model_id, job)

    def _score(self, model_id: str, job: Job) -> None:
        engine = self._shelf.engine(model_id, job)
        card = self._shelf.card(model_id)
        if not self.prompt.strip():
            raise EmptyPrompt("the prompt is empty. Write at least one word.")
        signals = self._signals(card)
        scored = self._shelf.recall("scored", model_id, self.prompt, signals)
        if scored is None:
            found = engine.score(self.prompt, list(signals), seed=self.seed, progress=job)
            # Logits of a long text outweigh the model's own layers; nobody needs them after the scores.
            facts = dataclasses.replace(found.facts, logits=None, low_logits=None)
            scored = ScoredPrompt(model_id, self.prompt, dataclasses.replace(found, facts=facts))
            self._shelf.remember(scored, "scored", model_id, self.prompt, signals)
        self.param.update(card=card, scored=scored, plan=self._plan_of(scored))

    def _plan_of(self, scored: ScoredPrompt) -> "PrecisionPlan":
        from tapwb.plan.request import make_plan

        return make_plan(self.request(), scored.scored.importance, facts=scored.scored.facts, seed=self.seed)

    def _signals(self, card: ModelCard | None) -> tuple[str, ...]:
        shown = RECURRENT_SIGNALS if card is not None and card.anatomy.states else ATTENTION_SIGNALS
        extra = "oracle" if self.planner == "oracle" else self.signal
        return shown if extra in shown else (*shown, extra)

    def _run(self, job: Job) -> None:
        engine = self._shelf.engine(self.model_id, job)
        self.card = self._shelf.card(self.model_id)
        try:
            self.run_result = self._generate(engine, self.precision, "candidate", job)
            if self.with_reference:
                settings = ("reference", self.model_id, self.prompt, self.max_new_tokens, self.temperature, self.seed)
                known = self._shelf.recall(*settings)
                if known is None:
                    known = self._generate(engine, "16", "baseline", job)
                    self._shelf.remember(known, *settings)
                self.param.update(reference_text=known.text, reference_result=known)
        finally:
            self.writing = ""

    def _generate(self, engine: "TAPEngine", precision: str, side: str, job: Job) -> RunResult:
        prompt, pieces = self.prompt, list[str]()
        field = {"candidate": "run_text", "baseline": "reference_text"}[side]
        stream = _Throttle(lambda: setattr(self, field, "".join(pieces)))

        def on_token(event: "TokenEvent") -> None:
            pieces.append(event.text)
            stream()

        self.writing = side
        text, metrics = engine.generate(
            prompt,
            self.max_new_tokens,
            precision=precision,
            kv=self.kv if side == "candidate" else "16",
            temperature=self.temperature,
            seed=self.seed,
            on_token=on_token,
            progress=job,
        )
        self.param.update(**{field: text})
        return RunResult(precision, prompt, text, metrics)


class _Throttle:
    """Calls ``function`` at most ten times a second; a screen cannot show more."""

    def __init__(self, function: Callable[[], None], interval_s: float = 0.1) -> None:
        self._function, self._interval_s, self._last_s = function, interval_s, 0.0

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= self._interval_s:
            self._last_s = now_s
            self._function()


def tokens_per_s(result: RunResult | None) -> Measured:
    """Decode speed of a run, or why there is none."""
    if result is None:
        return Unavailable("nothing was generated yet")
    rate: Measured = result.metrics["speed"]["decode_tok_per_s"]
    return rate


def start_preload(model_id: str = DEFAULT_MODEL) -> Workbench:
    """Load a model and score the sample prompt in the background; every later visitor finds both."""
    workbench = Workbench(model_id=model_id)
    workbench.load()
    return workbench


__all__ = [
    "DEFAULT_MODEL",
    "EngineShelf",
    "ModelCard",
    "PLANNERS",
    "RUNNER",
    "RunResult",
    "SAMPLE_PROMPT",
    "SHELF",
    "ScoredPrompt",
    "Workbench",
    "start_preload",
    "tokens_per_s",
]
