"""The layer rules hold for the program, and each rule is shown to bite on a planted violation."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SKELETON = {
    "tapwb": "",
    "tapwb.core": "",
    "tapwb.core.errors": "",
    "tapwb.models": "import tapwb.core.errors\nimport transformers",
    "tapwb.quant": "",
    "tapwb.quant.packing": "import tapwb_kernels",
    "tapwb.plan": "from tapwb.core import errors",
    "tapwb.execution": "",
    "tapwb.execution.dispatch": "import tapwb_kernels.layout",
    "tapwb.execution.native_compare": "import tapwb_kernels",
    "tapwb.execution.native_program": "import tapwb_kernels",
    "tapwb.execution.native_step": "import tapwb_kernels",
    "tapwb.monitors": "",
    "tapwb.metrics": "import tapwb.execution.dispatch",
    "tapwb.workbench": "import param\nimport tapwb.metrics",
    "tapwb.views": "import tapwb.workbench",
    "tapwb.views.page": "import panel\nimport tapwb_widgets.strip",
    "tapwb_kernels": "",
    "tapwb_kernels.layout": "import triton",
    "tapwb_widgets": "",
    "tapwb_widgets.strip": "import anywidget",
}
LAYERS = ("views", "workbench", "compare", "evals", "edge", "training", "engine", "remote", "roi", "store", "metrics")
LAYERS += ("execution", "monitors", "plan", "importance", "models", "quant", "core")
SKELETON = {f"tapwb.{layer}": "" for layer in LAYERS} | SKELETON
PARENTS = {name.rpartition(".")[0] for name in SKELETON}

PLANTED = {
    "a stage imports a later stage": ("tapwb.plan", "import tapwb.metrics", "A stage imports only"),
    "siblings import each other": ("tapwb.models", "import tapwb.quant", "A stage imports only"),
    "the vocabulary imports a stage": ("tapwb.core.errors", "from tapwb import plan", "A stage imports only"),
    "a folder nobody placed": ("tapwb.misplaced", "", "A stage imports only"),
    "kernels import the workbench": ("tapwb_kernels.layout", "import tapwb.core", "never import the workbench"),
    "widgets import kernels": ("tapwb_widgets.strip", "import tapwb_kernels", "never import each other"),
    "a number calls a kernel": ("tapwb.metrics", "from tapwb_kernels import layout", "touch the kernels"),
    "the workbench draws": ("tapwb.workbench", "import panel", "Only views draw"),
    "a plan draws": ("tapwb.plan", "def f():\n    import rich", "Only views draw"),
    "a plan holds widgets": ("tapwb.plan", "import tapwb_widgets.strip", "Only views draw"),
    "a plan uses param": ("tapwb.plan", "import param", "use param"),
    "a plan knows transformers": ("tapwb.plan", "from transformers import AutoConfig", "know transformers"),
    "a metric calls an API": ("tapwb.metrics", "import openai", "speaks to an API"),
    "a format knows Triton": ("tapwb.quant", "import triton.language", "know Triton"),
    "two siblings import in a ring": ("tapwb.core.errors", "import tapwb.core.ring", "No cycles"),
}


def lint(repository: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the project's contracts over the packages found in `folder`."""
    program = "import sys; from importlinter.cli import lint_imports_command as run; run(prog_name='lint-imports')"
    config = str(repository / "pyproject.toml")
    paths = os.pathsep.join((str(folder), str(folder / "kernels"), str(folder / "widgets")))
    return subprocess.run(
        [sys.executable, "-c", program, "--config", config, "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def write_packages(folder: Path, modules: dict[str, str]) -> None:
    """Write modules given by dotted name; those that have children become packages."""
    parents = PARENTS | {name.rpartition(".")[0] for name in modules}
    for name, code in modules.items():
        place = folder.joinpath(*name.split("."))
        file = place / "__init__.py" if name in parents or "." not in name else place.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def layers(repository) -> dict:
    """The contract that orders the stages."""
    tools = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return next(contract for contract in tools["importlinter"]["contracts"] if contract["type"] == "layers")


def test_the_layers_are_the_agreed_ones_in_order(layers):
    """The contract lists every layer of the architecture, top to bottom, and tolerates no other folder."""
    assert tuple(re.findall(r"\w+", " ".join(layers["layers"]))) == LAYERS
    assert layers["exhaustive"] is True


def test_only_layers_not_written_yet_may_be_absent(repository, layers):
    """A layer is in parentheses exactly while it does not exist, so that none can vanish unnoticed."""
    optional = set(re.findall(r"\((\w+)\)", " ".join(layers["layers"])))
    package = repository / "tapwb"
    written = {
        name for name in LAYERS if (package / name / "__init__.py").is_file() or (package / f"{name}.py").is_file()
    }
    assert optional == set(LAYERS) - written


def test_the_program_keeps_every_layer_rule(repository):
    """No package imports what it may not."""
    run = lint(repository, repository)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_clean_skeleton_keeps_every_rule(repository, tmp_path):
    """The control of the tests below: without a planted violation nothing is reported."""
    write_packages(tmp_path, SKELETON)
    run = lint(repository, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_caught(repository, tmp_path, planted):
    """Each rule reports the violation it exists for."""
    module, line, rule = PLANTED[planted]
    modules = {**SKELETON, module: f"{SKELETON.get(module, '')}\n{line}"}
    if "ring" in line:
        modules["tapwb.core.ring"] = "import tapwb.core.errors"
    write_packages(tmp_path, modules)
    run = lint(repository, tmp_path)
    broken = [text for text in run.stdout.splitlines() if " BROKEN" in text]
    assert run.returncode == 1, run.stdout + run.stderr
    assert any(rule in text for text in broken), run.stdout
