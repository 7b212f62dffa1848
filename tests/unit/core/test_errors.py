"""Deliberate errors: one line each, an exit status per branch, and a drawn tree that tells the truth."""

import inspect
import re

from tapwb.core import errors


def test_an_error_message_is_always_one_line():
    """Line breaks and indentation of long literals never reach the user."""
    error = errors.PlanError("a budget of 3 bits\n      is too low.  Raise it.")
    assert str(error) == "a budget of 3 bits is too low. Raise it."


def test_usage_errors_exit_with_two_and_cancelling_with_130():
    """The command line's exit status follows the branch of the tree."""
    assert errors.UnknownName("x").exit_code == 2
    assert errors.ModelNotFound("x").exit_code == 1
    assert errors.Cancelled().exit_code == 130


def test_the_drawn_tree_shows_every_class_under_its_parent():
    """The picture in the module docstring is checked against the code."""
    drawn: list[tuple[str, str]] = []
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)(\w+)\s{2,}", line)
        if not match or not hasattr(errors, match.group(2)):
            continue
        depth, name = len(match.group(1)), match.group(2)
        while stack and stack[-1][0] >= depth:
            stack.pop()
        drawn.append((name, stack[-1][1] if stack else "Exception"))
        stack.append((depth, name))
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]
    assert sorted(drawn) == sorted((c.__name__, c.__bases__[0].__name__) for c in classes)
