"""Modules and functions stay small enough to be read in one go.

The code lines of a function are counted without its docstring: explaining more must never be the reason to split.
"""

import ast
import statistics

MODULE_CEILING = 500
MODULE_MEDIAN = 150
FUNCTION_CEILING = 60

# Path, or path::function, and the reason it may be longer. An entry that is no longer needed fails the test.
ALLOWED: dict[str, str] = {}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, less the docstring."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return total
    return total - ((first.end_lineno or first.lineno) - first.lineno + 1)


def too_long(repository, library_files):
    """Names of modules and functions over their ceiling, with their length."""
    found = {}
    for file in library_files:
        name = file.relative_to(repository).as_posix()
        text = file.read_text(encoding="utf-8")
        if len(text.splitlines()) > MODULE_CEILING:
            found[name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > FUNCTION_CEILING:
                found[f"{name}::{node.name}"] = code_lines(node)
    return found


def test_no_module_or_function_is_over_its_ceiling(repository, library_files):
    """At most 500 lines a module and 60 a function, but for listed exceptions."""
    found = too_long(repository, library_files)
    assert {name: lines for name, lines in found.items() if name not in ALLOWED} == {}


def test_every_exception_to_the_ceilings_is_still_needed(repository, library_files):
    """The list of exceptions holds no entry that has become small enough, and each has its reason."""
    assert set(ALLOWED) <= set(too_long(repository, library_files))
    assert all(len(reason.split()) >= 5 for reason in ALLOWED.values())


def test_the_median_module_is_short(library_files):
    """Half of all modules that hold code have at most 150 lines."""
    lengths = [len(file.read_text(encoding="utf-8").splitlines()) for file in library_files]
    assert statistics.median(n for n in lengths if n > 5) <= MODULE_MEDIAN
