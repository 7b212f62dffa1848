"""Why a token got its bits, in words."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import PlanError
from tapwb.importance.analyzer import TokenImportance
from tapwb.importance.normalize import average_ranks
from tapwb.plan.damage import REFERENCE_BITS, damage_at
from tapwb.plan.precision_plan import PrecisionPlan


@dataclass(frozen=True, slots=True)
class NextLevel:
    """What moving one token to a neighbouring level would change.

    Attributes:
        bits: The neighbouring level.
        mean_bits_change: Change of the plan's mean.
        damage_factor: Expected damage of the token relative to now, by the model of 3.5x a bit.
    """

    bits: int
    mean_bits_change: float
    damage_factor: float


@dataclass(frozen=True, slots=True)
class TokenExplanation:
    """The reasons behind one token's bits, as values; ``str()`` is the sentence.

    Attributes:
        index: The token.
        text: Its text.
        bits: Its bits in each layer group.
        planner: What decided.
        signal: What scored it, if anything did.
        score: Its importance in [0, 1], if it was scored.
        rank: 1 for the most important token of the text.
        n_tokens: Tokens in the text.
        floor: Why it is protected, and at how many bits.
        overridden: Whether it was set by hand.
        piece: The piece of [0, 1] that the threshold rule put it in, ends included as ``low <= score < high``.
        up: The next level above.
        down: The next level below.
    """

    index: int
    text: str
    bits: tuple[int, ...]
    planner: str
    signal: str
    score: float | None
    rank: int | None
    n_tokens: int
    floor: tuple[str, int] | None
    overridden: bool
    piece: tuple[float, float] | None
    up: NextLevel | None
    down: NextLevel | None

    def __str__(self) -> str:
        name = f"Token {self.index}" + (f" {self.text!r}" if self.text else "")
        bits = " / ".join(map(str, self.bits))
        return f"{name} got {bits} bits{self._because()}.{self._alternative()}"

    def _because(self) -> str:
        if self.overridden:
            return ", set by hand"
        if self.planner == "uniform":
            return ", like every token"
        if self.score is None:
            return f" from a {self.planner} plan on {self.signal} scores, which are not at hand"
        reason = f" because its {self.signal} score is {self.score:.2f} (rank {self.rank} of {self.n_tokens})"
        if self.piece is not None:
            reason += f", between the thresholds {self.piece[0]:g} and {self.piece[1]:g}"
        if self.floor is not None:
            why, least = self.floor
            beyond = ", which it exceeds" if max(self.bits) > least else ""
            reason += f", and it is protected ({why}) by a floor of {least} bits{beyond}"
        return reason

    def _alternative(self) -> str:
        if self.up is not None and self.up.damage_factor == 1:
            return f" {self.up.bits} bits would change nothing: both are executed as the reference."
        if self.up is not None:
            return (
                f" {self.up.bits} bits would cost {self.up.mean_bits_change:+.3f} mean bits and cut its expected "
                f"damage to {_percent(self.up.damage_factor)}."
            )
        if self.down is not None:
            return (
                f" That is the top level; {self.down.bits} bits would free {-self.down.mean_bits_change:.3f} mean bits "
                f"and multiply its expected damage by {self.down.damage_factor:.3g}."
            )
        return " There is no other level in this plan."


def explain(
    plan: PrecisionPlan, importance: TokenImportance | None, index: int, text: str = "", *, row: int = 0
) -> TokenExplanation:
    """The reasons behind one token's bits.

    Args:
        plan: The plan.
        importance: The scores it was made from, if any. Scores of another signal are no reason and are not used; for
            the controls get theirs from :func:`tapwb.plan.request.importance_for`.
        index: The token.
        text: Its text.
        row: Row of the batch in ``importance``.

    Raises:
        PlanError: If there is no such token, or the scores belong to another text.
    """
    if not 0 <= index < plan.n_tokens:
        raise PlanError(f"token {index} does not exist; this plan has tokens 0 to {plan.n_tokens - 1}.")
    score, rank = None, None
    scored = _same_scores(plan, importance)
    if scored is not None:
        scores = scored[row]
        if scores.numel() != plan.n_tokens:
            raise PlanError(
                f"the plan has {plan.n_tokens} tokens, the scores {scores.numel()}. "
                "Explain with the scores it was made from."
            )
        score = float(scores[index])
        rank = int(average_ranks(-scores.double())[index])
    bits = tuple(plan.bits[:, index].tolist())
    return TokenExplanation(
        index=index,
        text=text,
        bits=bits,
        planner=plan.planner,
        signal=plan.signal,
        score=score,
        rank=rank,
        n_tokens=plan.n_tokens,
        floor=next(((f.reason, f.bits) for f in plan.floors if index in f.tokens), None),
        overridden=index in plan.overrides,
        piece=None if index in plan.overrides else _piece(plan, score, max(bits)),
        up=_neighbour(plan, max(bits), +1),
        down=_neighbour(plan, max(bits), -1),
    )


def explain_token(
    plan: PrecisionPlan, importance: TokenImportance | None, index: int, text: str = "", *, row: int = 0
) -> str:
    """Why token ``index`` got its bits, in one or two sentences; see :func:`explain` for the values behind them.

    Raises:
        PlanError: If there is no such token, or the scores belong to another text.
    """
    return str(explain(plan, importance, index, text, row=row))


def _same_scores(plan: PrecisionPlan, importance: TokenImportance | None) -> Float[Tensor, "batch token"] | None:
    if importance is None:
        return None
    if importance.signal == plan.signal:
        return importance.scores
    return importance.parts.get(plan.signal)


def _percent(share: float) -> str:
    return "under 0.1%" if share < 0.001 else f"{100 * share:.2g}%"


def _piece(plan: PrecisionPlan, score: float | None, bits: int) -> tuple[float, float] | None:
    if plan.thresholds is None or score is None:
        return None
    # From the bits, not from the score: fp32 0.7 is below 0.7, and the rule has already decided that tie.
    edges, index = (0.0, *plan.thresholds, 1.0), plan.levels.index(bits)
    return edges[index], edges[index + 1]


def _neighbour(plan: PrecisionPlan, bits: int, direction: int) -> NextLevel | None:
    index = plan.levels.index(bits) + direction
    if not 0 <= index < len(plan.levels):
        return None
    other = plan.levels[index]
    # Explained for all layer groups together, from the highest of them.
    return NextLevel(
        other,
        (other - bits) / plan.n_tokens,
        damage_at(min(other, REFERENCE_BITS)) / damage_at(min(bits, REFERENCE_BITS)),
    )
