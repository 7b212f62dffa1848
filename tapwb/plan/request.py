"""From what was asked for (``adaptive:5.5:entropy``) to a plan.

The controls go through the same planner with the same spread as the signal they stand against, so that they hand out
the same bits and differ only in who gets them.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from tapwb.core.errors import PlanError, PlanFileError
from tapwb.core.precision import DEFAULT_SIGNAL, PrecisionRequest
from tapwb.importance.analyzer import TokenImportance, shuffle
from tapwb.importance.facts import TokenFacts
from tapwb.importance.normalize import rank_in_sequence
from tapwb.importance.signal import SHUFFLED, is_causal, signals, spread_of
from tapwb.plan.cell_damage import TokenDamage
from tapwb.plan.floors import DEFAULT_FLOORS, FloorRules
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.planner import PlannerSettings, planners
from tapwb.plan.precision_plan import PrecisionPlan, text_fingerprint, uniform_plan


def signals_for(request: PrecisionRequest) -> dict[str, float]:
    """Signals that must be scored before the request can be planned, with weights; empty if none.

    A ``shuffled`` request needs the scores of the signal it shuffles; a ``random`` one makes its own.
    """
    if request.kind == "oracle":
        return {"oracle": 1.0}
    if request.kind in ("adaptive", "layers", "shuffled", "threshold"):
        return {request.signal or DEFAULT_SIGNAL: 1.0}
    return {}


def make_plan(
    request: PrecisionRequest,
    importance: TokenImportance | None = None,
    *,
    n_tokens: int | None = None,
    facts: TokenFacts | None = None,
    token_ids: Int[Tensor, " token"] | None = None,
    special_ids: Iterable[int] = (),
    n_prompt_tokens: int | None = None,
    floors: FloorRules = DEFAULT_FLOORS,
    sensitivity: Sequence[float] = (1.0,),
    layers: LayerDamage | None = None,
    token_damage: TokenDamage | None = None,
    seed: int = 0,
    row: int = 0,
) -> PrecisionPlan:
    """The plan that was asked for.

    Args:
        request: Parsed precision.
        importance: Scores of the text; needed by ``adaptive``, ``threshold``, ``shuffled`` and ``oracle``. If it has
            several parts and the request names one of them, that part decides.
        n_tokens: Length of the text, if neither scores, facts nor ids tell it.
        facts: The text's facts: floors for control tokens and for the start of the answer come from here.
        token_ids: The text, if there are no facts: ties the plan to the text and checks a plan file against it.
        special_ids: Ids of control tokens, if there are no facts.
        n_prompt_tokens: Where the answer starts in the text, if it holds one and there are no facts.
        floors: Which tokens to protect (budget planner).
        sensitivity: Damage factor of each group of layers; one group by default.
        layers: Measured damage of each group of layers; needed by ``layers``, and not used by other kinds.
        token_damage: True damage of each token at each level, for ``oracle``; without it the oracle knows ranks only.
        seed: Seed of the random and shuffled controls.
        row: Row of the batch to plan.

    Raises:
        PlanError: If scores are missing or of another signal, or nothing tells the length.
        BudgetError: If the mean lies outside the levels.
        PlanFileError: If a plan file cannot be used for this text.
        UnknownName: If the request names an unknown signal.
    """
    if facts is not None:
        token_ids, special_ids, n_prompt_tokens = facts.token_ids[row], facts.special_ids, facts.n_prompt_tokens
    length = _length(importance, token_ids, n_tokens, row)
    text_id = None if token_ids is None else text_fingerprint(token_ids)
    if request.kind == "best":
        raise PlanError(f"{str(request)!r} stands for another request on each model. Ask engine.plan, which knows it.")
    if request.is_routed:
        raise PlanError(
            f"{str(request)!r} is decided by what each layer is fed, so there is no plan before the pass. Run it "
            "(generate, eval perplexity), or plan with adaptive:MEAN or layers:MEAN."
        )
    if request.kind == "plan":
        return _from_file(request, length, text_id)
    if request.kind in ("uniform", "reference"):
        plan = uniform_plan(length, request.bits or 16, n_layer_groups=len(sensitivity))
        return dataclasses.replace(plan, text_id=text_id)
    chosen = importance_for(request, importance, length, seed)
    settings = PlannerSettings(
        levels=request.levels,
        mean_bits=request.mean_bits,
        thresholds=request.thresholds,
        spread=chosen.spread,
        floors=floors.requests(
            length,
            token_ids=() if token_ids is None else token_ids.tolist(),
            special_ids=special_ids,
            n_prompt_tokens=n_prompt_tokens,
        ),
        sensitivity=tuple(sensitivity),
        layers=_measured(request, layers),
        token_damage=token_damage if request.kind == "oracle" else None,
        signal=chosen.signal,
        seed=seed if request.kind in ("random", "shuffled") else None,
    )
    planner = planners["threshold" if request.kind == "threshold" else "budget"]
    plan = planner(chosen.scores[0 if request.kind == "random" else row], settings)
    return dataclasses.replace(plan, text_id=text_id)


def _measured(request: PrecisionRequest, layers: LayerDamage | None) -> LayerDamage | None:
    if request.kind != "layers":
        return None
    if layers is None:
        raise PlanError(
            f"{str(request)!r} needs the measured damage of the layers, none was given. Measure it first "
            "(layer_damage_of(engine)), or ask for adaptive:MEAN."
        )
    return layers


def _length(importance: TokenImportance | None, token_ids: Tensor | None, n_tokens: int | None, row: int) -> int:
    known = {
        name: length
        for name, length in (
            ("the scores", None if importance is None else int(importance.scores[row].numel())),
            ("the text", None if token_ids is None else int(token_ids.numel())),
            ("n_tokens", n_tokens),
        )
        if length is not None
    }
    if not known:
        raise PlanError("nothing tells how many tokens to plan. Pass importance, facts, token_ids or n_tokens.")
    if len(set(known.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in known.items())
        raise PlanError(f"the lengths disagree: {said} tokens. Score and plan the same text.")
    return next(iter(known.values()))


def importance_for(
    request: PrecisionRequest, importance: TokenImportance | None, n_tokens: int, seed: int = 0
) -> TokenImportance:
    """The scores that the request is planned with: the signal's own, shuffled, or random.

    Args:
        request: One of the kinds that use scores.
        importance: Scores of the text; not needed for ``random``.
        n_tokens: Length of the text.
        seed: Seed of the random and shuffled controls.

    Raises:
        PlanError: If scores are missing or of another signal.
    """
    if request.kind == "random":
        return _random_importance(n_tokens, seed)
    wanted = next(iter(signals_for(request)), None)
    if wanted is None:
        raise PlanError(f"{str(request)!r} is planned without scores. Call make_plan directly.")
    if importance is None:
        raise PlanError(
            f"{str(request)!r} needs scores of {wanted!r}, none were given. Score the text first "
            f"(TokenImportanceAnalyzer({wanted!r}).analyze(facts))."
        )
    if request.kind == "shuffled" and importance.signal == f"{SHUFFLED}{wanted}":
        return importance
    takes_any = request.signal is None and request.kind in ("adaptive", "threshold")
    if takes_any or importance.signal == wanted:
        found = importance
    elif wanted in importance.parts:
        found = importance.part(wanted)
    else:
        raise PlanError(
            f"{str(request)!r} needs scores of {wanted!r}, these are of {importance.signal!r}. "
            f"Score the text with {wanted!r}, or ask for what was scored."
        )
    if request.kind != "shuffled":
        return found
    scores = shuffle(found.scores, seed)
    signal = f"{SHUFFLED}{found.signal}"
    return TokenImportance(scores, signal, found.causal, {signal: scores}, found.spread)


def _random_importance(n_tokens: int, seed: int) -> TokenImportance:
    # Through the signal itself, so that the scores a table shows are the ones the plan used.
    facts = TokenFacts(token_ids=torch.zeros(1, n_tokens, dtype=torch.long), vocab_size=1, seed=seed)
    scores = rank_in_sequence(signals["random"](facts))
    return TokenImportance(scores, "random", is_causal("random"), {"random": scores}, spread_of("random"))


def _from_file(request: PrecisionRequest, n_tokens: int, text_id: str | None) -> PrecisionPlan:
    path = Path(request.path or "")
    plan = PrecisionPlan.load(path)
    if plan.n_tokens != n_tokens:
        raise PlanFileError(
            f"plan file {str(path)!r} is for a text of {plan.n_tokens} tokens, this one has {n_tokens}. "
            "Use it with its own text, or make a new plan."
        )
    if text_id is not None and plan.text_id is not None and plan.text_id != text_id:
        raise PlanFileError(
            f"plan file {str(path)!r} was made for another text of the same length. "
            "Use it with its own text, or make a new plan."
        )
    return plan
