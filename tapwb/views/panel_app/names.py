"""How choices are called on the screen: the registry's names stay in code and commands, people read words."""

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
    return {"model": _("Model"), "tokens": _("Tokens"), "run": _("Run")}


def job_name(name: str, _: Translate) -> str:
    """A job in the reader's language: ``"load smollm2-135m"`` keeps the model's name."""
    if name.startswith("load "):
        return _("load {model}").format(model=name.removeprefix("load "))
    known = {"score tokens": _("score tokens"), "plan bits": _("plan bits"), "generate": _("generate")}
    return known.get(name, name)


def stage_name(name: str, _: Translate) -> str:
    """A stage in the reader's language; stages that name a file or a server keep their own words."""
    known = {
        "load weights": _("load weights"),
        "quantize weights": _("quantize weights"),
        "score tokens": _("score tokens"),
        "read the prompt": _("read the prompt"),
        "generate": _("generate"),
        "convert weights": _("convert weights"),
        "write weights": _("write weights"),
        "build the tokenizer": _("build the tokenizer"),
        "take the weights out of the package": _("take the weights out of the package"),
    }
    for start, words in (("checksum of ", _("checksum of {what}")), ("download ", _("download {what}"))):
        if name.startswith(start):
            return words.format(what=name.removeprefix(start))
    return known.get(name, name)


def unit_name(unit: str, _: Translate) -> str:
    """The word for a step of a stage."""
    known = {"token": _("tokens"), "matrix": _("matrices"), "pass": _("passes"), "tensor": _("tensors")}
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
