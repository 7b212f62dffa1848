"""A quality check in a sentence or two: the command line, notebooks and the dashboard say the same."""

from tapwb.core.reading import Reading, Unavailable
from tapwb.evals.quality_verdict import QualityCheck
from tapwb.views.i18n import Translate


def verdict_words(check: QualityCheck, _: Translate) -> str:
    """The verdict, the interval behind it and the first safe setting.

    Args:
        check: From :func:`tapwb.evals.quality_guard.check_quality`.
        _: Language.
    """
    asked = check.asked
    words = {
        "safe": _("Quality check: {setting} is safe on this text."),
        "degraded": _("Quality check: {setting} is worse than 16 bits on this text."),
        "gibberish": _("Quality check: at {setting} the model writes gibberish."),
        "undecided": _("Quality check: undecided for {setting}."),
    }
    parts = [words[check.verdict].format(setting=asked.precision)]
    ratio = asked.perplexity_ratio
    if isinstance(ratio, Reading) and ratio.ci95 is not None:
        low, high = (f"{end:.3g}" for end in ratio.ci95)
        found = _("Its perplexity is {ratio} times that of 16 bits (95 %: {low} to {high}; the limit is {limit}).")
        parts.append(found.format(ratio=f"{ratio.value:.3g}", low=low, high=high, limit=f"{check.limit:g}"))
    elif not check.window_tokens:
        parts.append(_("The text of {n} tokens is too short for a verdict.").format(n=check.n_text_tokens))
    if isinstance(check.first_safe, Unavailable):
        parts.append(_("No tried setting is known to be safe."))
    elif check.first_safe != asked.precision:
        parts.append(_("First safe setting: {setting}.").format(setting=check.first_safe))
    return " ".join(parts)
