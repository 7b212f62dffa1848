"""Everything public says what it is, and says when it raises."""

import ast
from collections.abc import Iterator
from pathlib import Path

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Function = ast.FunctionDef | ast.AsyncFunctionDef
# Decorators whose function repeats an object documented elsewhere.
REPEATS = {"overload", "setter", "deleter"}


def public_objects(file: Path, name: str) -> Iterator[tuple[str, Documented]]:
    """The module, its public classes and functions, and the public methods of the public classes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    yield name, tree
    yield from _inside(tree, name)


def _inside(parent: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, Documented]]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if not {_last_word(decorator) for decorator in node.decorator_list} & REPEATS:
            yield f"{name}:{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _inside(node, f"{name}:{node.name}")


def _last_word(decorator: ast.expr) -> str:
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2]


def own_statements(function: Function) -> Iterator[ast.AST]:
    """Nodes of a function, without those of the functions and classes defined inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def raises_by_name(function: Function) -> bool:
    """Whether the function itself raises a named error that a caller can meet."""
    for node in own_statements(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            raised = ast.unparse(node.exc.func)
            if raised not in {"NotImplementedError", "AssertionError", "AttributeError", "typer.Exit", "SystemExit"}:
                return True
    return False


def test_every_public_object_has_a_docstring(repository, library_files):
    """Modules, classes, functions and methods without an underscore all carry a docstring; there is no exception."""
    bare = [
        name
        for file in library_files
        for name, node in public_objects(file, file.relative_to(repository).as_posix())
        if not (ast.get_docstring(node) or "").strip()
    ]
    assert bare == [], "\n".join(bare)


def test_public_functions_say_what_they_raise(repository, library_files):
    """A public function that raises on purpose has a `Raises:` part; a command's docstring is its help text instead."""
    silent = [
        name
        for file in library_files
        for name, node in public_objects(file, file.relative_to(repository).as_posix())
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and raises_by_name(node)
        and not (name.startswith("tapwb/views/cli/") and node.name == "command")
        and "Raises:" not in (ast.get_docstring(node) or "")
    ]
    assert silent == [], "\n".join(silent)


def test_a_bare_object_would_be_found(tmp_path):
    """The walk sees methods of public classes and passes over private ones."""
    file = tmp_path / "m.py"
    file.write_text(
        '"""M."""\nclass A:\n  """A."""\n  def f(self): ...\n  def _g(self): ...\nclass _B:\n  def h(self): ...\n'
    )
    bare = [name for name, node in public_objects(file, "m") if not ast.get_docstring(node)]
    assert bare == ["m:A:f"]
