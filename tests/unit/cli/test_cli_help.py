"""Help answers at once and ends with an example that really parses."""

import shlex
import subprocess
import sys

import pytest
import typer

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
from tapwb.views.cli.main import app

MODULES = {
    ("app",): dashboard,
    ("lab",): lab,
    ("models", "list"): models_list,
    ("models", "show"): models_show,
    ("models", "pull"): models_pull,
    ("run",): run,
    ("tokens",): tokens,
    ("eval", "perplexity"): perplexity,
    ("eval", "choices"): choices,
    ("eval", "tasks"): tasks,
    ("bench", "kv"): bench_kv,
    ("bench", "longdoc"): bench_longdoc,
    ("bench", "activations"): bench_activations,
    ("bench", "kernels"): bench_kernels,
    ("bench", "speculation"): bench_speculation,
    ("bench", "state"): bench_state,
    ("bench", "decode"): bench_decode,
    ("bench", "prefill"): bench_prefill,
    ("check",): check,
    ("layers",): layers,
    ("pareto",): pareto,
    ("train-head",): train_head,
    ("train-router",): train_router,
    ("train-tiny",): train_tiny,
    ("fit",): fit,
    ("report",): report,
    ("claims",): claims,
}


def parse(command, words, parent=None):
    """Parse words down to the last command, as a call would, without running it."""
    context = command.make_context(words[0], list(words[1:]), parent=parent)
    if hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, child, left = command.resolve_command(context, rest)
        return parse(child, [name, *left], context)
    return context


def commands(group, prefix=()):
    """Every command below a group, by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


def test_every_command_is_known_here():
    """A command added later is tested too."""
    assert set(commands(typer.main.get_command(app))) == set(MODULES)


@pytest.mark.parametrize("words", MODULES, ids=" ".join)
def test_help_ends_with_an_example_that_parses(words, capsys):
    """`--help` prints the example, and every option and value in it is one the command takes."""
    command = typer.main.get_command(app)
    with pytest.raises(SystemExit):
        command.main([*words, "--help"], prog_name="tapwb")
    shown = " ".join(capsys.readouterr().out.split())
    example = MODULES[words].EXAMPLE
    assert example in shown
    assert parse(command, shlex.split(example)).command.name == words[-1]


def test_an_unknown_option_is_wrong_usage():
    """Status 2, as every command-line tool has it."""
    with pytest.raises(SystemExit) as stop:
        typer.main.get_command(app).main(["run", "--colour", "blue"], prog_name="tapwb")
    assert stop.value.code == 2


def test_help_loads_nothing_heavy():
    """Putting the command line together imports no torch, transformers, panel, plotly or numpy."""
    code = (
        "import sys, tapwb.views.cli.main; heavy = {'torch', 'transformers', 'panel', 'plotly', 'numpy', 'nbconvert'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
