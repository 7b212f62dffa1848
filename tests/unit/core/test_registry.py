"""Registries: names with manners, lazy entries, no silent replacement."""

import pytest

from tapwb.core.errors import UnknownName
from tapwb.core.registry import Registry


def test_a_misspelt_name_is_answered_with_the_right_one():
    """The error says what came, what it may have meant and what there is."""
    registry: Registry[int] = Registry("quantizer")
    registry.add("nested", 1)
    registry.add("dynamic", 2)
    with pytest.raises(UnknownName, match=r"no quantizer 'nestd'\. Did you mean 'nested'\? Known: dynamic, nested\."):
        registry["nestd"]


def test_a_lazy_entry_is_imported_only_when_asked_for():
    """Listing names costs no import; a wrong path fails on use, not on registration."""
    registry: Registry[object] = Registry("part")
    registry.add("join", "posixpath:join")
    registry.add("broken", "no_such_module_at_all:thing")
    assert registry.names() == ["broken", "join"]
    assert registry["join"]("a", "b") == "a/b"
    with pytest.raises(ModuleNotFoundError):
        registry["broken"]


def test_a_name_cannot_change_hands():
    """Registering the same thing again is harmless (reloads); another thing is a programming error."""
    registry: Registry[str] = Registry("signal")
    registry.add("entropy", "here:a")
    registry.add("entropy", "here:a")
    with pytest.raises(ValueError, match="registered twice"):
        registry.add("entropy", "there:b")


def test_the_decorator_keeps_summary_and_metadata():
    """What lists print is available without running the entry."""
    registry: Registry[object] = Registry("signal")

    @registry.register("rank", summary="by rank", causal=True)
    def rank() -> None: ...

    assert registry["rank"] is rank
    assert registry.entry("rank").summary == "by rank"
    assert registry.entry("rank").metadata == {"causal": True}
    assert "rank" in registry
    assert list(registry) == ["rank"]
