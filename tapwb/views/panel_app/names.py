"""How choices are called on the screen: the registry's names stay in code and commands, people read words."""

from typing import Any

from tapwb.views.i18n import Translate


def signal_names(_: Translate) -> dict[str, str]:
    """Words for each importance signal."""
    return {
        "entropy": _("entropy of the next token"),
        "entropy_prev": _("entropy one token before"),
        "surprisal": _("surprise"),
        "learned": _("learned from a text"),
        "attention": _("attention received"),
        "hidden_norm": _("size of the hidden state"),
        "position": _("position"),
        "token_id": _("rarity of the token"),
        "gradient": _("gradient"),
        "state_write": _("write into the state"),
        "oracle": _("oracle (true damage)"),
        "random": _("random"),
        "uniform": _("uniform"),
    }


def signal_short_names(_: Translate) -> dict[str, str]:
    """The same in one or two words, for narrow headings."""
    return {
        "entropy": _("entropy"),
        "entropy_prev": _("entropy before"),
        "surprisal": _("surprise"),
        "learned": _("learned"),
        "attention": _("attention"),
        "hidden_norm": _("hidden size"),
        "position": _("position"),
        "token_id": _("rarity"),
        "gradient": _("gradient"),
        "state_write": _("state write"),
        "oracle": _("oracle"),
        "random": _("random"),
        "uniform": _("uniform"),
    }


def planner_names(_: Translate) -> dict[str, str]:
    """Words for each planner, controls marked as such."""
    return {
        "adaptive": _("adaptive: bits by importance"),
        "layers": _("layers: bits by measured damage"),
        "layers+tokens": _("layers and tokens together"),
        "floors": _("only the first tokens protected"),
        "uniform": _("uniform: the same bits for all"),
        "threshold": _("thresholds: fixed cuts of the score"),
        "random": _("control: random tokens"),
        "shuffled": _("control: scores on the wrong tokens"),
        "oracle": _("control: the true damage"),
    }


def preset_names(_: Translate) -> dict[str, str]:
    """Words for each use case to start from."""
    return {"datacenter": _("data centre"), "research": _("research"), "edge": _("edge and mobile")}


def page_names(_: Translate) -> dict[str, str]:
    """Words for each page."""
    return {"model": _("Model"), "tokens": _("Tokens"), "plan": _("Plan"), "run": _("Run")}


def family_names(_: Translate) -> dict[str, str]:
    """Words for each family of a quality measurement."""
    return {
        "uniform": _("uniform"),
        "floors": _("first tokens protected"),
        "adaptive": _("tokens by"),
        "layers": _("layers"),
        "layers+tokens": _("layers and tokens by"),
        "shuffled": _("control: shuffled"),
        "random": _("control: random"),
        "oracle": _("control: oracle"),
        "router": _("router in each layer"),
        "shuffled router": _("control: shuffled router"),
    }


def curve_name(family: str, signal: str | None, _: Translate) -> str:
    """A curve of a quality measurement: its family and, where there is one, its signal."""
    words = family_names(_).get(family, family)
    return f"{words} {signal_short_names(_).get(signal, signal)}" if signal else words


def rule_names(_: Translate) -> dict[str, str]:
    """Words for how bits are set by hand."""
    return {"exactly": _("exactly"), "at most": _("at most"), "at least": _("at least")}


def job_name(name: str, _: Translate) -> str:
    """A job in the reader's language: ``"load smollm2-135m"`` keeps the model's name."""
    if name.startswith("load "):
        return _("load {model}").format(model=name.removeprefix("load "))
    known = {
        "score tokens": _("score tokens"),
        "plan bits": _("plan bits"),
        "generate": _("generate"),
        "measure quality": _("measure quality"),
        "check quality": _("check quality"),
    }
    return known.get(name, name)


def stage_name(name: str, _: Translate) -> str:
    """A stage in the reader's language; stages that name a file or a server keep their own words."""
    known = {
        "load weights": _("load weights"),
        "quantize weights": _("quantize weights"),
        "score tokens": _("score tokens"),
        "read the prompt": _("read the prompt"),
        "generate": _("generate"),
        "check quality": _("check quality"),
        "convert weights": _("convert weights"),
        "write weights": _("write weights"),
        "measure layers": _("measure layers"),
        "measure tokens": _("measure tokens"),
        "trust signals": _("see how far each signal can be trusted"),
        "measure": _("measure"),
        "build the tokenizer": _("build the tokenizer"),
        "take the weights out of the package": _("take the weights out of the package"),
    }
    for start, words in (("checksum of ", _("checksum of {what}")), ("download ", _("download {what}"))):
        if name.startswith(start):
            return words.format(what=name.removeprefix(start))
    return known.get(name, name)


def unit_name(unit: str, _: Translate) -> str:
    """The word for a step of a stage."""
    known = {
        "second": _("seconds"),
        "token": _("tokens"),
        "matrix": _("matrices"),
        "pass": _("passes"),
        "tensor": _("tensors"),
        "window": _("windows"),
    }
    return known.get(unit, unit)


def floor_name(reason: str, _: Translate) -> str:
    """Why a token is protected."""
    known = {
        "first token": _("first token"),
        "first tokens": _("first tokens"),
        "special token": _("special token"),
        "first answer tokens": _("first answer tokens"),
    }
    return known.get(reason, reason)


def kept_reasons(plan: Any, _: Translate) -> list[str]:
    """For each token of a plan why its bits do not follow its importance; empty where they do.

    A floor below what a token got anyway keeps nothing, so it is no reason.
    """
    bits, reasons = plan.rounded_token_bits(), [""] * plan.n_tokens
    words = _("kept at {bits} bits: {reason}")
    for floor in plan.floors:
        for token in floor.tokens:
            if bits[token] == floor.bits:
                reasons[token] = words.format(bits=floor.bits, reason=floor_name(floor.reason, _))
    for token in plan.overrides:
        reasons[token] = words.format(bits=bits[token], reason=_("set by hand"))
    return reasons
