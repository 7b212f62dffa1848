"""Every Triton kernel against exact arithmetic in the interpreter: the same gates that stand before speed on a card.

Seed features: S1.15
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the triton package exists for Linux on x86-64 only")

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
OPERATIONS = ("nested_linear", "nested_linear_mixed", "nested_pack", "paged_attention", "norm_quantize")


@pytest.fixture(scope="module")
def gates():
    """All gates, run once in a process of its own: Triton reads its settings on import."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", BENCH / "gates.py"],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_within_its_bounds(gates, operation):
    """Odd shapes, all levels, every number of rows, poisoned outputs; each with its own bound."""
    own = [gate for gate in gates[0] if gate["name"].split(" ")[0].rstrip(":") == operation]
    assert len(own) >= 4
    assert [gate for gate in own if not gate["is_green"]] == []


def test_all_levels_shapes_and_dtypes_are_among_the_gates(gates):
    """Coverage is what the acceptance asks for: N of 17, 576, 1536 and 4097, eight levels, three dtypes, splits."""
    names = " | ".join(gate["name"] for gate in gates[0])
    for wanted in [*(f" by {out}," for out in (17, 576, 1536, 4097)), *(f" at {bits}, g" for bits in range(1, 9))]:
        assert wanted in names
    for wanted in ("bfloat16", "float16", "float32", "1 splits", "2 splits", "3 splits", "x4097 by", "x1536 by"):
        assert wanted in names


def test_the_exit_status_is_that_of_the_worst_gate(gates):
    """Green everywhere is zero."""
    assert gates[1] == 0


def test_a_wrong_result_turns_a_gate_red(monkeypatch):
    """An error above the bound, and one that is not a number, are both red."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gates as suite
    import torch

    expected = torch.ones(8)
    assert suite.Gate("right", suite.relative(expected, expected), 1e-5).is_green
    assert not suite.Gate("off", suite.relative(expected + 1e-3, expected), 1e-5).is_green
    assert not suite.Gate("unwritten", suite.relative(expected * float("nan"), expected), 1e-5).is_green
    with suite.poisoned():
        assert bool(torch.empty(3).isnan().all())
    assert torch.empty is not None


@pytest.mark.gpu
def test_every_operation_is_within_its_bounds_on_this_card(monkeypatch):
    """The same gates where the kernels are meant to run."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA card is visible to torch")
    monkeypatch.syspath_prepend(str(BENCH))
    import gates as suite

    assert [gate for gate in suite.run_gates("cuda") if not gate.is_green] == []
