"""The native kernel is used where its self-test says so, and nowhere else.

Seed features: S1.15
"""

import json
from pathlib import Path

import pytest
import torch

from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.nested_linear import choice, grouped
from tapwb_kernels.nested_linear.choice import NativeChoice, Verdict, random_weight

WEIGHT = random_weight(40, 300, (4, 4), 64)


@pytest.fixture
def native(native_folder):
    """The kernel of this machine without verdicts."""
    made = NativeChoice(lambda: native_folder)
    if made.kernel() is None:
        pytest.skip(made.why_none())
    made.forget()
    return made


def product(native, x, bits, **options):
    """Of rows with WEIGHT, or None."""
    return choice.nested_linear(native, x, *WEIGHT.stored, bits, refit=WEIGHT.refit, **options)


def test_of_several_levels_only_those_that_gain_are_native(native, monkeypatch):
    """The other rows are computed by the grouped path, in the same call."""
    monkeypatch.setattr(
        NativeChoice, "verdict", lambda self, planes, size, bits, n, **_: Verdict(bits == 4, 0.0, 1e-4, 1.0, 2.0)
    )
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    y = product(native, x, torch.tensor([8, 4, 8, 4]))
    assert torch.equal(y[[0, 2]], grouped.nested_linear(x[[0, 2]], *WEIGHT.stored, 8))
    assert torch.equal(y[[1, 3]], native.kernel().nested_linear(x[[1, 3]], *WEIGHT.stored, 4))


def all_verdicts(monkeypatch, is_used):
    """Decide for the self-test."""
    monkeypatch.setattr(NativeChoice, "verdict", lambda *_, **__: Verdict(is_used, 0.0, 1e-4, 1.0, 2.0))


def test_rows_of_several_levels_are_computed_at_their_own(native):
    """Forced or not, the product is that of the grouped path."""
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([8, 4, 8, 3, 4])
    expected = grouped.nested_linear(x, *WEIGHT.stored, bits)
    actual = product(native, x, bits, is_forced=True)
    assert float((actual - expected).norm()) <= 1e-4 * float(expected.norm())
    for row in range(5):
        assert torch.equal(product(native, x[row : row + 1], int(bits[row]), is_forced=True)[0], actual[row])


def test_the_verdict_decides(native, monkeypatch):
    """A kernel that is slower or wrong on this machine is left out; what it does not take, too."""
    x = torch.randn(2, 300)
    all_verdicts(monkeypatch, is_used=True)
    assert product(native, x, 8) is not None
    assert product(native, x, torch.tensor([4, 8])) is not None
    assert product(native, torch.randn(9, 300), 8) is None  # a small matrix
    assert (product(native, torch.randn(9, 300), 8, is_forced=True) is not None) == native.kernel().takes(9, 64)
    assert product(native, torch.randn(0, 300), 8) is None
    assert product(native, x.clone().requires_grad_(), 8) is None
    all_verdicts(monkeypatch, is_used=False)
    assert product(native, x, 8) is None
    assert product(native, x, 8, is_forced=True) is not None


def test_a_planted_fault_is_found_by_the_self_test(native, monkeypatch):
    """A kernel that is off by a thousandth is not used, however fast it is."""
    kernel = native.kernel()
    real = kernel.multiply
    monkeypatch.setattr(kernel, "multiply", lambda *args: real(*args) * 1.001)
    verdict = native.verdict((4, 4), 64, 8, 1)
    assert not verdict.is_used
    assert "wrong on this machine: relative error 1.0e-03" in verdict.reason
    assert product(native, torch.randn(1, 300), 8) is None


def test_a_kernel_that_answers_nan_is_found_by_the_self_test(native, monkeypatch):
    """NaN compares as nothing, and still is an error."""
    kernel = native.kernel()
    real = kernel.multiply
    monkeypatch.setattr(kernel, "multiply", lambda *args: real(*args) * float("nan"))
    assert not native.verdict((4, 4), 64, 8, 8).is_used


def test_a_slow_kernel_is_found_by_the_self_test(native, monkeypatch):
    """Right, but slower than PyTorch."""
    monkeypatch.setattr(choice, "_times_us", lambda *_, **__: (30.0, 20.0))
    verdict = native.verdict((4, 4), 64, 8, 1)
    assert not verdict.is_used
    assert "slower here: 30 against 20 microseconds" in verdict.reason


def test_verdicts_are_kept_for_the_next_process(native, native_folder, monkeypatch):
    """The test is made once for a layout and a machine; a damaged file of verdicts is made again."""
    first = native.verdict((4, 1, 1, 2), 64, 5, 1)
    native.n_threads(1)
    monkeypatch.setattr(choice, "judge_layout", lambda *_: pytest.fail("tested again"))
    assert NativeChoice(lambda: native_folder).verdict((4, 1, 1, 2), 64, 5, 1) == first
    (kept,) = native_folder.glob("*.json")
    kinds = 2 + bool(native.kernel().panel_group) + native.kernel().rounds(65, 64)
    assert len(json.loads(kept.read_text())["verdicts"]) == 8 * kinds
    kept.write_text('{"verdicts": [[1, 2')
    with pytest.raises(pytest.fail.Exception, match="tested again"):
        NativeChoice(lambda: native_folder).verdict((4, 1, 1, 2), 64, 5, 1)


def test_threads_are_used_from_the_bytes_on_that_were_measured(native, monkeypatch):
    """One of torch's threads is one thread; of several, all or one."""
    asked = []
    monkeypatch.setattr(choice, "bytes_worth_threads", lambda kernel, n: asked.append(n) or 1 << 19)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert native.n_threads(1 << 30) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert [native.n_threads(n) for n in ((1 << 19) - 1, 1 << 19, 1 << 30)] == [1, 3, 3]
    assert asked == [3]


def test_threads_that_do_not_help_are_not_used(native, monkeypatch):
    """The measurement itself: where several threads take as long as one, the answer is never."""
    monkeypatch.setattr(choice, "_seconds", lambda call: 1.0)
    assert choice.bytes_worth_threads(native.kernel(), 2) == float("inf")
    times = iter([1.0, 0.5] * choice._THREAD_REPEATS + [1.0, 1.0] * choice._THREAD_REPEATS)
    monkeypatch.setattr(choice, "_seconds", lambda call: next(times))
    assert choice.bytes_worth_threads(native.kernel(), 2) == choice._THREAD_BYTES[-1]


def test_without_a_kernel_everything_is_left_to_pytorch():
    """The reason is told once and kept."""
    asked = []

    def fails(folder):
        asked.append(folder)
        raise NativeUnavailable("no C++ compiler on the path")

    native = NativeChoice(lambda: Path("/nowhere"), fails)
    assert product(native, torch.randn(1, 300), 8) is None
    assert product(native, torch.randn(1, 300), 8) is None
    assert native.why_none() == "no C++ compiler on the path"
    assert asked == [Path("/nowhere")]
    with pytest.raises(NativeUnavailable, match="no C"):
        native.verdict((4, 4), 64, 8, 1)
