"""Poisoned memory: what a kernel forgets to write must not look like a result."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """Fill every fresh uninitialised tensor with NaN (floats) or 0xA5 (bytes)."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(
                float("nan") if tensor.is_floating_point() else 0xA5 if tensor.dtype == torch.uint8 else 77
            )

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(scope="session")
def native_folder(tmp_path_factory):
    """Where native libraries are built, once for all tests of a run."""
    return tmp_path_factory.mktemp("native")
