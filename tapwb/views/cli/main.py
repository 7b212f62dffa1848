"""``tapwb``: where commands are put together and errors become one line and an exit status.

Commands import what they compute with inside their functions, so that ``tapwb --help`` answers at once.
"""

import importlib.metadata
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tapwb.core import settings
from tapwb.core.errors import Cancelled, SettingsError, TapError
from tapwb.core.threads import wait_without_spinning
from tapwb.views.cli import (
    bench_activations,
    bench_decode,
    bench_kernels,
    bench_kv,
    bench_longdoc,
    bench_prefill,
    bench_speculation,
    bench_state,
    check,
    choices,
    claims,
    dashboard,
    fit,
    lab,
    layers,
    models_list,
    models_pull,
    models_show,
    pareto,
    perplexity,
    report,
    run,
    tasks,
    tokens,
    train_head,
    train_router,
    train_tiny,
)
from tapwb.views.cli.options import add_command
from tapwb.views.cli.output import warn

app = typer.Typer(
    name="tapwb",
    help="See which tokens matter to a language model, choose their bits, run it, and read what that saved and cost.",
    epilog="Example: tapwb run --model smollm2-135m --prompt 'The capital of France is'",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_models = typer.Typer(
    help="Models: what can be loaded, what is in it, fetch it.",
    epilog="Example: tapwb models list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_eval = typer.Typer(
    help="Quality at each precision, with controls and intervals.",
    epilog="Example: tapwb eval perplexity --help",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_bench = typer.Typer(
    help="Side by side in one run, with ratios and intervals.",
    epilog="Example: tapwb bench kv --help",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(_models, name="models")
app.add_typer(_eval, name="eval")
app.add_typer(_bench, name="bench")
for _parent, _name, _module in (
    (app, "app", dashboard),
    (app, "lab", lab),
    (_models, "list", models_list),
    (_models, "show", models_show),
    (_models, "pull", models_pull),
    (app, "run", run),
    (app, "tokens", tokens),
    (app, "check", check),
    (_eval, "perplexity", perplexity),
    (_eval, "choices", choices),
    (_eval, "tasks", tasks),
    (_bench, "kv", bench_kv),
    (_bench, "longdoc", bench_longdoc),
    (_bench, "activations", bench_activations),
    (_bench, "kernels", bench_kernels),
    (_bench, "speculation", bench_speculation),
    (_bench, "state", bench_state),
    (_bench, "decode", bench_decode),
    (_bench, "prefill", bench_prefill),
    (app, "layers", layers),
    (app, "pareto", pareto),
    (app, "train-head", train_head),
    (app, "train-router", train_router),
    (app, "train-tiny", train_tiny),
    (app, "fit", fit),
    (app, "report", report),
    (app, "claims", claims),
):
    add_command(_parent, _name, _module)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tapwb {importlib.metadata.version('tapwb')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """See which tokens matter to a language model, choose their bits, run it, and read what that saved and cost."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status: 0 done, 1 failed, 2 wrong usage, 130 cancelled.

    Args:
        arguments: Words after ``tapwb``; the process's own when ``None``.

    Raises:
        SystemExit: Always.
    """
    wait_without_spinning()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="tapwb")
    except TapError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(_fail(str(Cancelled()), Cancelled.exit_code))
    except MemoryError:
        sys.exit(_fail("out of memory. Close other programs, or choose a smaller model, fewer windows or tokens.", 1))
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user gets one line, a developer the traceback
        sys.exit(_fail(f"unexpected {type(error).__name__}: {error}. Set TAPWB_DEBUG=1 for the traceback.", 1))


def _fail(reason: str, status: int) -> int:
    if _wants_traceback():
        traceback.print_exc()
    warn(reason)
    return status


def _wants_traceback() -> bool:
    try:
        return settings.get("TAPWB_DEBUG") == "1"
    except SettingsError as error:  # a bad value must not hide the failure that is being reported
        warn(str(error))
        return False
