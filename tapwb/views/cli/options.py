"""Options that several commands share, so that one name means one thing, and how a command is hooked in."""

from types import ModuleType
from typing import Annotated

import typer

from tapwb.core.precision import PrecisionRequest, parse_precision

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A catalog name, a folder, a GGUF file, or a Hugging Face id.")
]
_PRECISION = typer.Option(
    "--precision",
    "-p",
    help="16, 8, 6, 5, 4, 3, 2, 1, best:MEAN, adaptive:MEAN[:SIGNAL], layers:MEAN[:SIGNAL], router:MEAN[:FILE], "
    "threshold, plan:FILE, random:MEAN, shuffled:MEAN:SIGNAL, shuffled:MEAN:router or oracle:MEAN.",
)
Precision = Annotated[str, _PRECISION]
OptionalPrecision = Annotated[str | None, _PRECISION]
Preset = Annotated[str | None, typer.Option("--preset", help="Use case to start from: datacenter, research or edge.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
Precisions = Annotated[
    str, typer.Option("--precision", "-p", help="Precisions, joined by commas: 16,8,5,adaptive:5.5:entropy,random:5.5.")
]
Kv = Annotated[
    str | None, typer.Option("--kv", help="Cache precision: 16, 8, 4, 3, 2, adaptive:MEAN or adaptive:3.5:received.")
]
Levels = Annotated[str | None, typer.Option("--levels", help="Bit-widths that plans may use: 4,5,6,8.")]
Thresholds = Annotated[
    str | None, typer.Option("--thresholds", help="Cuts of the threshold rule, one fewer than levels: 0.25,0.5,0.75.")
]
GroupSize = Annotated[int, typer.Option("--group-size", help="Weights that share a scale.", min=8)]
Cells = Annotated[
    str, typer.Option("--cells", help="plain (at once), calibrated (minutes, once), or a text file to calibrate on.")
]
Activations = Annotated[
    str, typer.Option("--activations", help="Bits of the layers' inputs: 16, int8, adaptive:64, random:64 or tensor.")
]
Guard = Annotated[
    bool, typer.Option("--guard", help="Then check the precision against 16 bits on the prompt, in half a minute.")
]
SafeRatio = Annotated[float, typer.Option("--limit", help="Highest perplexity ratio to 16 bits that counts as safe.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]
Save = Annotated[bool, typer.Option("--save", help="Keep the result as a run; `tapwb report --run ID` prints it.")]

DEFAULT_MODEL = "smollm2-135m"


def add_command(parent: typer.Typer, name: str, module: ModuleType) -> None:
    """Hook ``module.command`` in under ``name``; ``module.EXAMPLE`` ends its help."""
    # Options stand before positional words in our examples and after them in people's typing: both work.
    parent.command(name, epilog=f"Example: {module.EXAMPLE}")(module.command)


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """The numbers of a comma-separated option.

    Args:
        text: ``"4,5,6,8"`` or ``None``.
        option: The option's name, for the message.

    Raises:
        typer.BadParameter: If a part is not a number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 4,5,6,8", param_hint=option) from None


def request(precision: str, levels: str | None, thresholds: str | None) -> PrecisionRequest:
    """What ``--precision``, ``--levels`` and ``--thresholds`` ask for together.

    Raises:
        typer.BadParameter: If a list holds something else than numbers.
        PrecisionSpecError: If the precision is not in the grammar.
    """
    chosen = numbers(levels, "--levels")
    return parse_precision(
        precision,
        levels=None if chosen is None else tuple(map(int, chosen)),
        thresholds=numbers(thresholds, "--thresholds"),
    )
