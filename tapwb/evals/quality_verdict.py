"""What a quality check says: verdicts, the numbers behind them, and the limits they are drawn at."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any, Literal

from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.metrics.few_windows import MeanInterval, mean_interval

Verdict = Literal["safe", "degraded", "gibberish", "undecided"]

#: Highest perplexity, as a multiple of that of 16 bits, that counts as safe when the user names none.
DEFAULT_LIMIT = 1.05
#: From here on text is gibberish: the model spreads its belief ten times as wide. Reported collapses lie far above,
#: at perplexities of hundreds and thousands (a 2-bit Mistral-7B at 356 in llama.cpp's pull request 4897, a 3-bit model
#: of 120B weights at 2745 in exllamav2's issue 246); plain 3-bit cells of SmolLM2-135M, bad as they are, at 5 to 7.
GIBBERISH_RATIO = 10.0
#: Share of repeated runs of four tokens from which a text drawn at temperature 1 is a loop, provided that the 16-bit
#: weights, given the same start and the same draws, repeat less than half of that.
DEGENERATE_SHARE = 0.5
#: Windows after which the numbers are looked at.
LOOKS = (4, 8, 16, 32)
SOURCE = "measured:windows of the text, against the 16-bit weights"


@dataclass(frozen=True, slots=True)
class SettingQuality:
    """Quality of one setting against 16 bits.

    Attributes:
        precision: In the grammar of :mod:`tapwb.core.precision`.
        verdict: What its interval says.
        why: The verdict in one sentence, or the reason why there is none.
        mean_bits: Mean level of the weights.
        perplexity_ratio: To the weights as loaded; ``ci95`` holds at every look together.
        top1_agreement: Share of predictions whose most likely token is the same.
        kl_nats: Mean KL divergence from the weights as loaded; not taken of settings that are only searched.
        n_windows: Windows scored.
        n_predictions: Predictions scored.
    """

    precision: str
    verdict: Verdict
    why: str
    mean_bits: Measured
    perplexity_ratio: Measured
    top1_agreement: Measured
    kl_nats: Measured
    n_windows: int
    n_predictions: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        out = {name: getattr(self, name) for name in self.__slots__}
        readings = ("mean_bits", "perplexity_ratio", "top1_agreement", "kl_nats")
        return out | {name: getattr(self, name).to_json() for name in readings}


@dataclass(frozen=True, slots=True)
class SampleCheck:
    """A short text that the checked setting wrote.

    Attributes:
        text: The text: untrusted, whatever its verdict.
        n_tokens: Its length.
        repeated: Share of repeated runs of four tokens.
        repeated_at_16: The same of a text by the 16-bit weights; only taken where the first one is suspicious.
        entropy_nats: Mean entropy of the distributions it was drawn from.
    """

    text: str
    n_tokens: int
    repeated: Measured
    repeated_at_16: Measured
    entropy_nats: Measured

    @property
    def is_degenerate(self) -> bool:
        """Whether the setting, and not the prompt, makes it a loop."""
        mine, at_16 = self.repeated, self.repeated_at_16
        if not isinstance(mine, Reading) or mine.value < DEGENERATE_SHARE:
            return False
        return isinstance(at_16, Reading) and at_16.value < DEGENERATE_SHARE / 2

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        out = {name: getattr(self, name) for name in self.__slots__}
        return out | {name: getattr(self, name).to_json() for name in ("repeated", "repeated_at_16", "entropy_nats")}


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """One check and where it comes from.

    Attributes:
        asked: The setting that was checked.
        first_safe: The lowest tried setting that is safe, or why none is known.
        tried: Other settings that were tried, in order.
        sample: What the checked setting wrote, or why there is no sample.
        limit: Highest perplexity ratio that counts as safe.
        budget_s: Time that the check was given.
        elapsed_s: Time that it took, loading of the 16-bit weights included.
        window_tokens: Tokens of a window.
        n_text_tokens: Tokens of the text that windows were taken from.
        notes: What a reader must know.
        provenance: Versions, machine, model.
    """

    asked: SettingQuality
    first_safe: str | Unavailable
    tried: tuple[SettingQuality, ...]
    sample: SampleCheck | Unavailable
    limit: float
    budget_s: float
    elapsed_s: float
    window_tokens: int
    n_text_tokens: int
    notes: tuple[str, ...]
    provenance: Provenance

    @property
    def verdict(self) -> Verdict:
        """Of the setting that was checked."""
        return self.asked.verdict

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        plain = ("limit", "budget_s", "elapsed_s", "window_tokens", "n_text_tokens")
        first = self.first_safe
        return {
            "verdict": self.verdict,
            "asked": self.asked.to_json(),
            "first_safe": first.to_json() if isinstance(first, Unavailable) else first,
            "tried": [one.to_json() for one in self.tried],
            "sample": self.sample.to_json(),
            **{name: getattr(self, name) for name in plain},
            "notes": list(self.notes),
            "provenance": self.provenance.to_json(),
        }


def judge(excess_nats: Sequence[float], limit: float) -> tuple[Verdict, MeanInterval | Unavailable]:
    """The verdict that the losses of some windows allow, and the interval behind it.

    Args:
        excess_nats: Mean loss of the setting less that of 16 bits, by window, nats per token.
        limit: Highest perplexity ratio that counts as safe.
    """
    interval = mean_interval(excess_nats, looks=len(LOOKS))
    if isinstance(interval, Unavailable):
        return "undecided", interval
    if interval.low > log(GIBBERISH_RATIO):
        return "gibberish", interval
    if interval.high < log(limit):
        return "safe", interval
    return ("degraded" if interval.low > log(limit) else "undecided"), interval


def is_final(verdict: Verdict, interval: MeanInterval | Unavailable) -> bool:
    """Whether more windows could not say more: a degraded setting may still turn out to be gibberish."""
    if isinstance(interval, Unavailable) or verdict == "undecided":
        return False
    return verdict != "degraded" or interval.high < log(GIBBERISH_RATIO)


def ratio_reading(interval: MeanInterval | Unavailable) -> Measured:
    """An interval of mean losses as a perplexity ratio."""
    if isinstance(interval, Unavailable):
        return interval
    return Reading(exp(interval.mean), "1", SOURCE, n=interval.n, ci95=(exp(interval.low), exp(interval.high)))


def mean_reading(values: Sequence[float], unit: str, most: float = inf) -> Measured:
    """A mean over windows of a number between 0 and ``most``, with its interval."""
    interval = mean_interval(values, looks=len(LOOKS))
    if isinstance(interval, Unavailable):
        return interval
    ends = (max(0.0, interval.low), min(most, interval.high))  # Student's t knows no ends of the scale
    return Reading(interval.mean, unit, SOURCE, n=interval.n, ci95=ends)


def describe(verdict: Verdict, interval: MeanInterval | Unavailable, limit: float, stopped: str) -> str:
    """The verdict in one sentence."""
    if isinstance(interval, Unavailable):
        return f"{interval.reason}; {stopped}"
    ratio = f"perplexity is {exp(interval.mean):.3g} times that of 16 bits ({exp(interval.low):.3g} to "
    ratio += f"{exp(interval.high):.3g}, {interval.n} windows)"
    limits = {
        "safe": f"below the limit of {limit:g}",
        "degraded": f"above the limit of {limit:g}",
        "gibberish": f"beyond {GIBBERISH_RATIO:g}, where models write gibberish",
        "undecided": f"which includes the limit of {limit:g}; {stopped}",
    }
    return f"{ratio}, {limits[verdict]}"
