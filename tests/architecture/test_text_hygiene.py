"""Habits that a reader of any library file can rely on."""

import ast
import re

import pytest

PRINTING_ALLOWED = ("tapwb/views/cli/",)
VAGUE_NAMES = {"common", "helper", "helpers", "info", "manager", "misc", "util", "utils"}
# The seed's class name PrecisionManager gives its module this name; a model's description is what `info` says.
VAGUE_NAMES_ALLOWED = {"tapwb/quant/manager.py", "tapwb/models/info.py"}


@pytest.fixture(scope="module")
def parsed(repository, library_files):
    """Every library file with its text and its syntax tree, by its path in the repository."""
    found = {}
    for file in library_files:
        text = file.read_text(encoding="utf-8")
        found[file.relative_to(repository).as_posix()] = (text, ast.parse(text))
    return found


def test_the_library_never_prints(parsed):
    """Only the command line writes to standard output; everything else returns or raises."""
    calls = [
        f"{name}:{node.lineno}"
        for name, (_, tree) in parsed.items()
        if not name.startswith(PRINTING_ALLOWED)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "pprint"}
    ]
    assert calls == [], "\n".join(calls)


def test_no_error_is_caught_without_saying_which(parsed):
    """No bare `except:`, and a broad one only with its reason on the line."""
    found = []
    for name, (text, tree) in parsed.items():
        lines = text.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "" if node.type is None else ast.unparse(node.type)
            broad = re.search(r"\b(Base)?Exception\b", caught)
            if not caught or (broad and not re.search(r"# noqa: BLE001 - \w+", lines[node.lineno - 1])):
                found.append(f"{name}:{node.lineno}")
    assert found == [], "\n".join(found)


def test_every_silenced_rule_is_named_and_has_its_reason(parsed):
    """`noqa` names the rule and says why after a dash; `type: ignore` names the rule."""
    noqa = re.compile(r"#\s*noqa(?!: [A-Z]+\d+(, ?[A-Z]+\d+)* - \w)")
    ignore = re.compile(r"#\s*type:\s*ignore(?!\[[a-z-]+(, ?[a-z-]+)*\])")
    found = [
        f"{name}:{number}"
        for name, (text, _) in parsed.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if noqa.search(line) or ignore.search(line)
    ]
    assert found == [], "\n".join(found)


def test_annotations_stay_visible_at_run_time(parsed):
    """`from __future__ import annotations` would blind the run-time checks of tensor shapes."""
    found = [
        name
        for name, (_, tree) in parsed.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert found == [], "\n".join(found)


def test_modules_are_named_after_what_they_hold(parsed):
    """No `utils`, `helpers`, `common`: such a module has no subject and collects strangers."""
    vague = [name for name in parsed if set(name.removesuffix(".py").split("/")) & VAGUE_NAMES]
    assert sorted(set(vague) - VAGUE_NAMES_ALLOWED) == []
