"""Whether a feature that says it works has the module and the tests to show for it.

Nothing is imported or run: files are read and parsed, so that the check is quick and works on any checkout. A test
counts as evidence only when it names the feature, because a path alone goes stale without anyone noticing.
"""

import ast
import re
from pathlib import Path

from tapwb.evals.seed_ledger import SeedFeature

_PACKAGE_FOLDERS = {
    "tapwb": "tapwb",
    "tapwb_kernels": "kernels/tapwb_kernels",
    "tapwb_widgets": "widgets/tapwb_widgets",
}
_MENTION = re.compile(r"^[#\s]*Seed features:\s*(?P<ids>.+?)\s*$", re.MULTILINE)


def missing_evidence(feature: SeedFeature, root: Path) -> tuple[str, ...]:
    """What a feature that says ``works`` still lacks in the repository; empty when nothing.

    A test file is evidence when it holds a test and names the feature on a ``Seed features:`` line of its module
    docstring; a notebook when its text holds such a line.

    Args:
        feature: The feature; one that is only planned lacks nothing.
        root: Top folder of the repository.
    """
    if feature.status != "works":
        return ()
    gaps = []
    if feature.module is None:
        gaps.append("it names no module")
    elif not module_exists(feature.module, root):
        gaps.append(f"module {feature.module} does not exist")
    if not feature.tests:
        gaps.append("it names no test")
    for test in feature.tests:
        file = root / test
        if not file.is_file():
            gaps.append(f"{test} does not exist")
        elif not _holds_a_test(file):
            gaps.append(f"{test} holds no test")
        elif feature.id not in mentioned_features(file):
            gaps.append(f"{test} has no line `Seed features: {feature.id}`")
    return tuple(gaps)


def module_exists(dotted: str, root: Path) -> bool:
    """Whether a dotted path is a module of this repository, or a name defined at the top of one.

    Args:
        dotted: For example ``tapwb.quant.nested`` or ``tapwb.engine.TAPEngine``.
        root: Top folder of the repository. Nothing is imported.
    """
    package, *parts = dotted.split(".")
    if package not in _PACKAGE_FOLDERS:
        return False
    base = root / _PACKAGE_FOLDERS[package]
    if _module_file(base, parts) is not None:
        return True
    holder = _module_file(base, parts[:-1]) if parts else None
    return holder is not None and parts[-1] in _top_names(holder)


def mentioned_features(file: Path) -> frozenset[str]:
    """Feature ids on the ``Seed features:`` lines of a test's module docstring or of a notebook's text.

    Args:
        file: A Python test file, or a notebook in ``.py:percent`` form.
    """
    text = file.read_text(encoding="utf-8")
    if file.name.startswith("test_"):
        text = ast.get_docstring(ast.parse(text)) or ""
    lines = " ".join(match["ids"] for match in _MENTION.finditer(text))
    return frozenset(re.findall(r"\bS\d\.\d+\b", lines))


def _holds_a_test(file: Path) -> bool:
    if not file.name.startswith("test_"):
        return True  # a notebook is run as a whole by tests/notebooks
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    )


def _module_file(base: Path, parts: list[str]) -> Path | None:
    place = base.joinpath(*parts)
    for candidate in (place / "__init__.py", place.with_suffix(".py") if parts else place / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _top_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
