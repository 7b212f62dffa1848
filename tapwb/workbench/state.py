"""Inputs, results and the present job of one user."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import param

from tapwb.core.errors import TapError
from tapwb.core.jobs import Job, JobRunner, JobState
from tapwb.core.precision import DEFAULT_SIGNAL, NO_SIGNAL, PrecisionRequest, parse_precision
from tapwb.engine.presets import presets
from tapwb.engine.shelf import EngineShelf

DEFAULT_MODEL = "smollm2-135m"
SAMPLE_PROMPT = (
    "Every model answers one token at a time. Some tokens decide what comes next, and others only fill the space "
    "between them. Spending the same number of bits on all of them is like"
)
#: Planners of the sidebar, in the words of the precision grammar.
PLANNERS = (
    "adaptive", "layers", "layers+tokens", "floors", "uniform", "threshold", "random", "shuffled", "oracle",
)  # fmt: skip
UNIFORM_BITS = (4, 5, 6, 8)
#: Signals shown side by side; each is cheap once the pass for entropy has run.
ATTENTION_SIGNALS = ("entropy", "entropy_prev", "surprisal", "attention", "hidden_norm", "position", "token_id")
RECURRENT_SIGNALS = ("entropy", "entropy_prev", "surprisal", "state_write", "hidden_norm", "position", "token_id")
_DEVICE = "device"


#: The one shelf and the one runner of this process.
SHELF = EngineShelf()
_owners: "weakref.WeakKeyDictionary[Job, weakref.ReferenceType[WorkbenchState]]" = weakref.WeakKeyDictionary()


def _tell_owner(job: Job) -> None:
    owner = _owners.get(job)
    workbench = owner() if owner else None
    if workbench is not None:
        workbench.on_job_change(job)


RUNNER = JobRunner(on_change=_tell_owner)


class WorkbenchState(param.Parameterized):
    """Everything one user has chosen and got so far, and the job that works on it."""

    model_id = param.String(DEFAULT_MODEL, doc="Catalog name, folder, GGUF file or Hugging Face id.")
    prompt = param.String(SAMPLE_PROMPT, doc="The text to score and to continue.")
    signal = param.String(DEFAULT_SIGNAL, doc="Importance signal that decides the bits.")
    planner: Any = param.Selector(default="adaptive", objects=list(PLANNERS), doc="How bits are handed out.")
    mean_bits = param.Number(5.5, bounds=(4, 8), doc="Mean bits of the plan.")
    max_new_tokens = param.Integer(16, bounds=(1, 2048), doc="Largest length of the answer, tokens.")
    kv: Any = param.Selector(default="16", objects=["16", "8", "4", "3", "2"], doc="Bits of the attention cache.")
    speculate: Any = param.Selector(
        default="off", objects=["off", "self", "ngram"], doc="Who guesses tokens that one pass verifies."
    )
    temperature = param.Number(0.0, bounds=(0, 2), doc="0 always takes the likeliest token.")
    seed = param.Integer(0, bounds=(0, None), doc="Seed of sampling and of random controls.")
    with_reference = param.Boolean(True, doc="Whether a run is followed by the same at 16 bits.")
    lang: Any = param.Selector(default="en", objects=["en", "th"], doc="Language of the screen.")
    theme: Any = param.Selector(default="light", objects=["light", "dark"], doc="Colours of the screen.")
    page: Any = param.Selector(default="model", objects=["model", "tokens", "plan", "run"], doc="Page on the screen.")

    card = param.Parameter(None, doc="ModelCard of the loaded model, or None.")
    scored = param.Parameter(None, doc="ScoredPrompt, or None.")
    planned = param.Parameter(None, doc="The planner's PrecisionPlan of the scored prompt, or None.")
    edited = param.Parameter(None, doc="EditedPlan, where something was set by hand or read from a file, or None.")
    plan = param.Parameter(None, doc="The PrecisionPlan that a run uses: the planner's with what was set by hand.")
    history = param.Parameter(None, doc="EditHistory: what was set by hand, and what was undone; None before that.")
    keep_mean = param.Boolean(True, doc="Whether everything else pays for what is set by hand.")
    imported = param.Parameter(None, doc="(name, PrecisionPlan) read from a file in place of the planner's, or None.")
    levels = param.Parameter((), doc="Bit-widths to choose from; empty: those of the planner.")
    measurement = param.Parameter(None, doc="Pareto Measurement on the screen, or None.")
    measure_settings = param.Parameter(None, doc="ParetoSettings of the next measurement; None: the defaults.")
    measure_text = param.String("", doc="The text to measure on; empty: the prompt.")
    measure_name = param.String("", doc="What that text is called.")
    point = param.String("", doc="The point of the measurement that is looked at.")
    run_text = param.String("", doc="The answer as far as it is written.")
    run_result = param.Parameter(None, doc="RunResult at the chosen precision, or None.")
    guesses = param.Parameter(None, doc="SpeculationRecord of the answer as far as it is written, or None.")
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
        # A job and the screen may both plan; what is shown must come from one of them.
        self._planning = threading.RLock()
        self.param.watch(self._forget, ["planner", "signal", "mean_bits"])

    @property
    def precision(self) -> str:
        """The chosen precision in the grammar of the command line."""
        if self.planner == "uniform":
            return str(min(self.levels or UNIFORM_BITS, key=lambda bits: abs(bits - self.mean_bits)))
        if self.planner == "threshold":
            return f"threshold:{self.signal}"
        if self.planner == "floors":
            return f"adaptive:{self.mean_bits:g}:{NO_SIGNAL}"
        if self.planner == "layers+tokens":
            return f"layers:{self.mean_bits:g}:{self.signal}"
        tail = f":{self.signal}" if self.planner in ("adaptive", "shuffled") else ""
        return f"{self.planner}:{self.mean_bits:g}{tail}"

    def request(self) -> PrecisionRequest:
        """The chosen precision, parsed.

        Raises:
            PrecisionSpecError: If the inputs make none.
        """
        return parse_precision(self.precision, levels=self.levels or None)

    @property
    def is_stale(self) -> bool:
        """Whether the prompt or the model has changed since the tokens were scored."""
        return self.scored is not None and (self.scored.prompt, self.scored.model_id) != (self.prompt, self.model_id)

    @property
    def names_another(self) -> bool:
        """Whether another model is named than the one that is loaded and shown."""
        return self.card is not None and self.card.info.id != self.model_id

    @property
    def has_prompt(self) -> bool:
        """Whether there is anything to score and to continue."""
        return bool(self.prompt.strip())

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

    def _guarded(self, work: Callable[[], object]) -> bool:
        """Do what may be refused; the reason stays on the screen like that of a job."""
        try:
            work()
        except TapError as error:
            self.error = str(error)
            return False
        return True

    def _forget(self, *events: Any) -> None:
        """A new input ends what was taken over from a file or from a point."""
        self.imported = None
        if self.planner == "uniform" or any(event.name == "planner" for event in events):
            self.levels = ()
