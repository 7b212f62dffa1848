"""The arrow as separate verbs, for people who want the parts: score, run, measure (loading and planning are elsewhere).

::

    model  = tapwb.load_model("smollm2-135m")
    scored = tapwb.score_importance(model, "The capital of France is")
    plan   = tapwb.make_plan(tapwb.parse_precision("adaptive:5.5"), scored.importance, facts=scored.facts)
    trace  = tapwb.run(model, "The capital of France is", "adaptive:5.5", max_new_tokens=20)
    report = tapwb.measure(model, trace)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tapwb.core.precision import PrecisionRequest
from tapwb.engine.config import TAPConfig
from tapwb.engine.engine import TAPEngine
from tapwb.engine.machine import held_bytes
from tapwb.engine.scored import Scored

if TYPE_CHECKING:
    from tapwb.execution.trace import Trace
    from tapwb.models.info import LoadedModel


def score_importance(
    model: "LoadedModel", text: str, signals: Sequence[str] | dict[str, float] | str | None = None
) -> Scored:
    """Score the tokens of a text. The model's weights become nested on first use, in place.

    Args:
        model: From :func:`tapwb.load_model`.
        text: The text.
        signals: Names, or weights by name; ``entropy`` by default.

    Returns:
        Token ids, texts, importance of shape (1, token), and the facts behind it.
    """
    return _engine_of(model).score(text, signals)


def run(
    model: "LoadedModel",
    prompt: str,
    precision: PrecisionRequest | str = "adaptive:5.5",
    *,
    max_new_tokens: int = 100,
    **options: Any,
) -> "Trace":
    """Generate under a precision and return what happened, token by token.

    Args:
        model: From :func:`tapwb.load_model`.
        prompt: The text to continue.
        precision: Grammar of :mod:`tapwb.core.precision`; a plan is ``plan:FILE``.
        max_new_tokens: Largest length of the answer.
        **options: ``kv``, ``temperature``, ``top_p``, ``seed``, ``on_token``, ``progress`` of the engine's ``trace``.
    """
    _, trace, _ = _engine_of(model).trace(prompt, max_new_tokens, precision=precision, **options)
    return trace


def measure(model: "LoadedModel", trace: "Trace") -> dict[str, Any]:
    """Bits, bytes and speed of a run, each with its source.

    Args:
        model: The model that ran.
        trace: From :func:`run`.
    """
    from tapwb.metrics.run_metrics import run_metrics

    return run_metrics(
        trace,
        anatomy=model.anatomy,
        weights_bytes=held_bytes(model),
        energy=None,
        pace=None,
        scoring_s=0.0,
        device=model.device,
        request=f"mean {trace.mean_bits:g} bits",
    )


def _engine_of(model: "LoadedModel") -> TAPEngine:
    """The engine that belongs to a loaded model; made once, kept on the model itself."""
    engine = getattr(model.model, "tap_engine", None)
    if engine is None:
        engine = TAPEngine(TAPConfig(time_reference=False))
        engine.adopt(model)
        model.model.tap_engine = engine
    return engine  # type: ignore[no-any-return]
