"""A check of half a minute: is this model, at this setting, still what it is at 16 bits, on the user's own text?

Windows of the text are scored with the weights as loaded and with the setting, in random order, until the interval of
the perplexity ratio lies on one side of the limit or the time is up. Then a search over uniform bits (each step halves
the settings that are left) finds the lowest that is safe, and the setting that was asked for continues the text. The
verdict is about predictions on this text and this limit; it is no promise about other texts.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tapwb.core.activation_spec import parse_activations
from tapwb.core.errors import Cancelled, InvalidTensor, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import DEFAULT_LEVELS, PrecisionRequest, parse_precision
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Reading, Unavailable, value_or
from tapwb.engine import TAPEngine
from tapwb.engine.layer_sensitivity import known_layer_damage
from tapwb.evals.kv_bench import spread_windows
from tapwb.evals.quality_sample import SAMPLE_TOKENS, sample_check
from tapwb.evals.quality_verdict import (
    DEFAULT_LIMIT,
    LOOKS,
    QualityCheck,
    SampleCheck,
    SettingQuality,
    Verdict,
    describe,
    is_final,
    judge,
    mean_reading,
    ratio_reading,
)
from tapwb.evals.session import ComparisonSession
from tapwb.execution.activations import ActivationUse
from tapwb.metrics.few_windows import MeanInterval
from tapwb.metrics.quality import kl_nats, nll_nats

#: Uniform settings that are searched for the first safe one.
LADDER = (3, 4, 5, 6, 8)
WINDOW_TOKENS, SHORTEST_WINDOW = 64, 16
#: The fewest tokens there can be a verdict on: the first look's windows at their shortest.
FEWEST_TOKENS = LOOKS[0] * SHORTEST_WINDOW
#: Of a longer text only the start is read: more windows than the last look takes are never scored.
_MOST_CHARACTERS = 200_000
#: Share of the time that the search leaves for the sample.
_SAMPLE_SHARE = 0.2
_NOTE_KV = "The check reads the attention cache at 16 bits: `tapwb bench kv` measures its precision."


def check_quality(
    engine: TAPEngine,
    text: str,
    precision: PrecisionRequest | str,
    *,
    limit: float = DEFAULT_LIMIT,
    budget_s: float = 30.0,
    search: bool = True,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = NO_PROGRESS,
) -> QualityCheck:
    """Check one setting against the weights as loaded.

    Args:
        engine: With the model loaded and the levels of the setting stored.
        text: What the user works on: at least 64 tokens, better 500 and more.
        precision: The setting; a saved plan covers one text only and is refused.
        limit: Highest perplexity ratio that counts as safe, above 1.
        budget_s: Time for everything, the loading of the 16-bit weights included. A step under way is finished.
        search: Look for the first safe setting with the time that is left.
        seed: Seed of the order of windows and of the sample.
        clock: Tells seconds; for tests.
        progress: Told the seconds that passed; cancelling ends the check without a result.

    Raises:
        UsageError: If the limit or the time is out of range, or the setting cannot be checked.
        EmptyPrompt: If the text holds no token.
        UnsupportedBits: If the setting needs a level that is not stored.
    """
    request = parse_precision(precision) if isinstance(precision, str) else precision
    _check_arguments(request, limit, budget_s)
    box = _TimeBox(budget_s, clock, progress)
    progress.stage("check quality", total=max(1, round(budget_s)), unit="second")
    token_ids = engine.tokenize(text[:_MOST_CHARACTERS])
    pieces = _windows(token_ids, engine.anatomy.context_length, seed)
    guard = _Guard(engine, pieces, box, limit, seed, token_ids)
    asked = guard.try_setting(request, with_kl=True)
    tried = guard.search(asked, request) if search else ()
    sample = guard.sample(request)
    asked = _with_sample(asked, sample)
    if engine.config.memory_efficient_mode:
        engine.release_reference()
    loaded = engine.loaded
    return QualityCheck(
        asked=asked,
        first_safe=_first_safe(asked, tried),
        tried=tried,
        sample=sample,
        limit=limit,
        budget_s=budget_s,
        elapsed_s=box.elapsed_s,
        window_tokens=pieces[0].shape[1] if pieces else 0,
        n_text_tokens=token_ids.shape[1],
        notes=(_NOTE_KV,),
        provenance=Provenance.collect(
            seed=seed, model=loaded.info if loaded else None, device=loaded.device if loaded else "cpu"
        ),
    )


def _check_arguments(request: PrecisionRequest, limit: float, budget_s: float) -> None:
    if request.kind == "reference":
        raise UsageError("16 bits is what others are checked against. Check a precision of 8 bits or fewer.")
    if request.kind == "plan":
        raise UsageError("a saved plan covers one text, not its windows. Check the precision that made it.")
    if not 1 < limit < 100:
        raise UsageError(f"a limit of {limit:g} is not usable. Give the highest safe ratio, above 1: for example 1.05.")
    if not 0 < budget_s <= 3600:
        raise UsageError(f"a budget of {budget_s:g} s is not usable. Give up to 3600 seconds; 30 suffice mostly.")


def _windows(token_ids: Tensor, context: int | None, seed: int) -> list[Tensor]:
    """Windows from all over the text in random order, so that any first few are a fair sample; none if too short."""
    n_tokens = token_ids.shape[1]
    if n_tokens < FEWEST_TOKENS:
        return []
    size = min(WINDOW_TOKENS, n_tokens // LOOKS[0], context or WINDOW_TOKENS)
    pieces = spread_windows(token_ids, size, LOOKS[-1], context)
    random.Random(seed).shuffle(pieces)
    return pieces


def _with_sample(asked: SettingQuality, sample: SampleCheck | Unavailable) -> SettingQuality:
    """A text that goes in circles is gibberish, whatever the predictions on the user's text say."""
    if isinstance(sample, Unavailable) or not sample.is_degenerate or asked.verdict == "gibberish":
        return asked
    facts = {name: getattr(asked, name) for name in asked.__slots__}
    why = f"what it writes repeats itself ({sample.repeated:.0%} of its runs of four tokens); {asked.why}"
    return SettingQuality(**{**facts, "verdict": "gibberish", "why": why})


def _first_safe(asked: SettingQuality, tried: Sequence[SettingQuality]) -> str | Unavailable:
    """The setting of the lowest mean among the safe ones."""
    safe = [one for one in (asked, *tried) if one.verdict == "safe"]
    if safe:
        return min(safe, key=lambda one: value_or(one.mean_bits, 16.0)).precision
    bits = ", ".join(one.precision for one in (asked, *tried))
    return Unavailable(
        f"none of the tried settings ({bits}) is known to be safe. Keep 16 bits, or give more time or text"
    )


def _narrow(index: int, verdict: Verdict, unsafe: int, safe: int) -> tuple[int, int]:
    """What is left of the ladder. A setting that could not be shown to be safe counts as unsafe."""
    return (unsafe, index) if verdict == "safe" else (index, safe)


class _TimeBox:
    """Time that is left, and whether one more step fits into it; also a progress that ends a sample in time."""

    def __init__(self, budget_s: float, clock: Callable[[], float], progress: Progress) -> None:
        self._clock, self._progress = clock, progress
        self._started_s, self.budget_s = clock(), budget_s
        self._reported_s, self._step_s = 0, 0.0

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def left_s(self) -> float:
        return self.budget_s - self.elapsed_s

    def step_done(self, took_s: float) -> None:
        """Note how long a step took, and tell the watcher about the seconds that passed."""
        self._step_s = took_s
        self.tell()

    def tell(self) -> None:
        """Report whole seconds; raises ``Cancelled`` once the user cancelled."""
        passed = min(int(self.elapsed_s), round(self.budget_s))
        self._progress.advance(passed - self._reported_s)
        self._reported_s = passed

    def has_room(self, until_s: float) -> bool:
        """Whether a step like the last one ends before ``until_s`` of the whole time."""
        return self.elapsed_s + self._step_s <= until_s


class _Until:
    """A progress that ends what reports to it when a time is reached."""

    def __init__(self, box: _TimeBox, until_s: float) -> None:
        self._box, self._until_s = box, until_s

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Only look whether to stop: the check's own stage stays on the screen."""
        self.check_cancelled()

    def advance(self, steps: int = 1) -> None:
        """Look whether to stop."""
        self.check_cancelled()

    def check_cancelled(self) -> None:
        """Raise when the time is reached or the user cancelled.

        Raises:
            Cancelled: If so.
        """
        self._box.tell()
        if self._box.elapsed_s > self._until_s:
            raise Cancelled("the time of the sample is up")


@dataclass(slots=True)
class _Scores:
    """One setting while it is scored, by window."""

    excess_nats: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    mean_bits: list[float] = field(default_factory=list)
    broken: str = ""


class _Guard:
    """Scores settings on the same windows; what the 16-bit weights say of a window is kept."""

    def __init__(
        self, engine: TAPEngine, pieces: list[Tensor], box: _TimeBox, limit: float, seed: int, token_ids: Tensor
    ) -> None:
        self._engine, self._pieces, self._box, self._limit, self._seed = engine, pieces, box, limit, seed
        self._token_ids = token_ids
        self._nll: list[float] = []
        self._top1: list[Tensor] = []
        self._session: ComparisonSession | None = None

    def try_setting(
        self, request: PrecisionRequest, *, with_kl: bool = False, until_s: float | None = None
    ) -> SettingQuality:
        """Score windows until the verdict is clear, the text ends, or the time is up."""
        scores, until_s = _Scores(), self._box.budget_s if until_s is None else until_s
        if self._pieces:
            self._ready()
        stopped = "the text has no more windows"
        for index, ids in enumerate(self._pieces):
            if index and not self._box.has_room(until_s):
                stopped = "the time was up"
                break
            before_s = self._box.elapsed_s
            self._score(ids, index, request, scores, with_kl)
            self._box.step_done(self._box.elapsed_s - before_s)
            if scores.broken or (index + 1 in LOOKS and is_final(*judge(scores.excess_nats, self._limit))):
                break
        # No more looks than the interval allows for: where the time ends between two of them, this one is the next.
        return self._quality(request, scores, *judge(scores.excess_nats, self._limit), stopped)

    def search(self, asked: SettingQuality, request: PrecisionRequest) -> tuple[SettingQuality, ...]:
        """Try uniform bits, each time halving what is left; then layers planned apart. Leaves time for the sample."""
        if not self._pieces:
            return ()
        unsafe, safe, tried = -1, len(LADDER), list[SettingQuality]()
        if request.kind == "uniform" and request.bits in LADDER:
            unsafe, safe = _narrow(LADDER.index(request.bits), asked.verdict, unsafe, safe)
        elif request.kind == "uniform" and asked.verdict == "safe":
            return ()  # below the ladder already
        end_s = (1 - _SAMPLE_SHARE) * self._box.budget_s
        while safe - unsafe > 1 and self._box.has_room(end_s):
            middle = (unsafe + safe) // 2
            # Half of what is left for each try, so that one near the limit cannot take it all.
            until_s = (self._box.elapsed_s + end_s) / 2
            tried.append(self.try_setting(parse_precision(LADDER[middle]), until_s=until_s))
            unsafe, safe = _narrow(middle, tried[-1].verdict, unsafe, safe)
        lower = self._below(safe, end_s)
        return (*tried, *([] if lower is None else [lower]))

    def _below(self, safe: int, end_s: float) -> SettingQuality | None:
        """Between the lowest safe level and the one below it: layers planned apart, where their damage is known."""
        if not 0 < safe < len(LADDER) or LADDER[safe] <= DEFAULT_LEVELS[0]:
            return None
        if not self._box.has_room(end_s) or known_layer_damage(self._engine) is None:
            return None
        mean = (LADDER[safe - 1] + LADDER[safe]) / 2
        return self.try_setting(parse_precision(f"layers:{mean:g}"), until_s=end_s)

    def sample(self, request: PrecisionRequest) -> SampleCheck | Unavailable:
        """What the setting writes in the time that is left."""
        if not self._pieces:
            return Unavailable(self._too_short())
        if self._session is None or self._box.left_s <= 0:
            return Unavailable("the time was up before a sample could be written")
        until = _Until(self._box, self._box.budget_s)
        try:
            sample = sample_check(
                self._engine,
                self._session.reference_model,
                request,
                self._token_ids,
                activations=self._activations(),
                seed=self._seed,
                progress=until,
            )
        except Cancelled:
            self._box.tell()  # raises if it was the user who cancelled
            return Unavailable(f"writing {SAMPLE_TOKENS} tokens takes longer than this check may")
        except InvalidTensor as error:
            return Unavailable(f"its predictions are no numbers: {error}")
        self._box.tell()
        return sample

    def _score(self, ids: Tensor, index: int, request: PrecisionRequest, scores: _Scores, with_kl: bool) -> None:
        session = self._ready()
        reference = None
        if with_kl or index >= len(self._nll):
            reference = session.reference(ids)[:-1]
        if index >= len(self._nll) and reference is not None:
            self._nll.append(float(nll_nats(reference, ids[0, 1:]).mean()))
            self._top1.append(reference.argmax(-1))
        result = session.run(ids, request, activations=self._activations())
        logits = result.logits[:-1]
        try:
            excess = float(nll_nats(logits, ids[0, 1:]).mean()) - self._nll[index]
            if with_kl and reference is not None:
                scores.kl.append(float(kl_nats(reference, logits).mean()))
        except InvalidTensor as error:
            scores.broken = str(error)
            return
        scores.excess_nats.append(excess)
        scores.agree.append(float((logits.argmax(-1) == self._top1[index]).double().mean()))
        scores.mean_bits.append(result.mean_bits)

    def _quality(
        self,
        request: PrecisionRequest,
        scores: _Scores,
        verdict: Verdict,
        interval: MeanInterval | Unavailable,
        stopped: str,
    ) -> SettingQuality:
        why = describe(verdict, interval, self._limit, stopped) if self._pieces else self._too_short()
        if scores.broken:
            verdict, why = "gibberish", f"its predictions are no numbers: {scores.broken}"
        none = Unavailable(why)
        bits = scores.mean_bits
        return SettingQuality(
            precision=str(request),
            verdict=verdict,
            why=why,
            mean_bits=Reading(sum(bits) / len(bits), "bit", "measured:plan", n=len(bits)) if bits else none,
            perplexity_ratio=ratio_reading(interval) if self._pieces else none,
            top1_agreement=mean_reading(scores.agree, "1", 1.0) if scores.agree else none,
            kl_nats=mean_reading(scores.kl, "nat") if scores.kl else Unavailable("only taken of the checked setting"),
            n_windows=len(scores.excess_nats),
            n_predictions=sum(ids.shape[1] - 1 for ids in self._pieces[: len(scores.excess_nats)]),
        )

    def _too_short(self) -> str:
        n_tokens = self._token_ids.shape[1]
        return f"the text has {n_tokens} tokens, and a verdict needs {FEWEST_TOKENS} or more. Give a longer text"

    def _ready(self) -> ComparisonSession:
        """The 16-bit weights beside the nested ones; read once, and counted in the time."""
        if self._session is None:
            loaded = self._engine.loaded
            # In the type of the nested model's activations, so that what is compared is the weights.
            reference = self._engine.reference(dtype=loaded.dtype if loaded else None)
            self._session = ComparisonSession.around(self._engine, reference, seed=self._seed)
        return self._session

    def _activations(self) -> ActivationUse:
        return ActivationUse(parse_activations(self._engine.config.activations), self._seed)
