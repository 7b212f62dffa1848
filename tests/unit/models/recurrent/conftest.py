"""One case per family: its form, its specification, and inputs with decays near zero, near one and in between."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tapwb.models.recurrent.form import State, TokenInputs
from tapwb.models.recurrent.gated_delta import GatedDelta, GatedDeltaInputs
from tapwb.models.recurrent.reference import REFERENCES
from tapwb.models.recurrent.retention import Retention, RetentionInputs
from tapwb.models.recurrent.rwkv4 import RWKV4, RWKV4Inputs
from tapwb.models.recurrent.rwkv5 import RWKV5, RWKV5Inputs
from tapwb.models.recurrent.rwkv6 import RWKV6, RWKV6Inputs
from tapwb.models.recurrent.rwkv7 import RWKV7, RWKV7Inputs
from tapwb.models.recurrent.selective_scan import MambaInputs, SelectiveScan
from tapwb.models.recurrent.ssd import SSD, SSDInputs

BATCH = 2
# Odd on purpose: no size is a multiple of another.
HEADS, GROUPS, KEY, VALUE = 6, 3, 5, 7
#: Rates of forgetting, as powers of ten of minus a log-decay: from 1e-6 (nothing is lost) to 100 (nothing is kept).
RATES = {"near 1": (-6.0, -3.0), "near 0": (1.0, 2.0), "mixed": (-5.0, 2.0)}

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One family under test."""

    name: str
    form: Any
    make: Callable[[Draw, Callable[..., Tensor], int], TokenInputs]

    def inputs(self, n_tokens: int, rates: str = "mixed", seed: int = 0) -> Any:
        """Random inputs of so many tokens, fp32."""
        generator = torch.Generator().manual_seed(1000 * seed + n_tokens)
        low, high = RATES[rates]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def rate(*shape: int) -> Tensor:
            return 10 ** (low + (high - low) * torch.rand(*shape, generator=generator))

        return self.make(normal, rate, n_tokens)

    def state(self, seed: int = 0) -> State:
        """A random state, fp32; a denominator is positive."""
        generator = torch.Generator().manual_seed(seed)
        state = {s.name: torch.randn(BATCH, *s.shape, generator=generator) for s in self.form.state_spec()}
        if "denominator" in state:
            state["denominator"] = state["denominator"].abs() + 0.1
        return state

    def reference(self, inputs: Any, state: State) -> tuple[Tensor, State]:
        """Outputs and state of the fp64 specification."""
        return REFERENCES[self.name](inputs, state)

    def sample(self, n_tokens: int, rates: str = "mixed") -> tuple[Any, State, tuple[Tensor, State]]:
        """Inputs, a random state, and what the specification makes of them; computed once for all tests."""
        return _sample(self.name, n_tokens, rates)

    def by_steps(self, inputs: Any, state: State) -> tuple[Tensor, State]:
        """Outputs and state, token by token."""
        outputs = []
        for token in range(inputs.n_tokens):
            out, state = self.form.step(inputs.tokens(token, token + 1), state)
            outputs.append(out)
        return torch.cat(outputs, dim=1), state


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def _mamba(normal: Draw, rate: Draw, n: int) -> MambaInputs:
    dt = torch.nn.functional.softplus(normal(BATCH, n, 11))
    reads = (normal(BATCH, n, KEY), normal(BATCH, n, KEY))
    return MambaInputs(normal(BATCH, n, 11), dt, -rate(11, KEY), *reads, normal(11))


def _ssd(normal: Draw, rate: Draw, n: int) -> SSDInputs:
    dt = torch.nn.functional.softplus(normal(BATCH, n, HEADS))
    reads = (normal(BATCH, n, GROUPS, KEY), normal(BATCH, n, GROUPS, KEY))
    return SSDInputs(normal(BATCH, n, HEADS, VALUE), dt, -rate(HEADS), *reads, normal(HEADS))


def _qkv(normal: Draw, n: int) -> tuple[Tensor, Tensor, Tensor]:
    return normal(BATCH, n, HEADS, KEY), normal(BATCH, n, HEADS, KEY), normal(BATCH, n, HEADS, VALUE)


def _rwkv7(normal: Draw, rate: Draw, n: int) -> RWKV7Inputs:
    r, k, v = _qkv(normal, n)
    removal = _unit(normal(BATCH, n, HEADS, KEY))
    learning_rate = normal(BATCH, n, HEADS, KEY).sigmoid()
    return RWKV7Inputs(r, k, v, -rate(BATCH, n, HEADS, KEY), -removal, removal * learning_rate)


def _gated_delta(normal: Draw, rate: Draw, n: int) -> GatedDeltaInputs:
    q, k = _unit(normal(BATCH, n, GROUPS, KEY)), _unit(normal(BATCH, n, GROUPS, KEY))
    beta = normal(BATCH, n, HEADS).sigmoid()
    return GatedDeltaInputs(q, k, normal(BATCH, n, HEADS, VALUE), -rate(BATCH, n, HEADS), beta)


CASES = (
    Case("selective_scan", SelectiveScan(11, KEY), _mamba),
    Case("ssd", SSD(HEADS, VALUE, KEY), _ssd),
    Case("retention", Retention(HEADS, KEY, VALUE), lambda m, w, n: RetentionInputs(*_qkv(m, n), -w(HEADS))),
    Case("rwkv4", RWKV4(11), lambda m, w, n: RWKV4Inputs(3 * m(BATCH, n, 11), m(BATCH, n, 11), -w(11), m(11))),
    Case("rwkv5", RWKV5(HEADS, KEY, VALUE), lambda m, w, n: RWKV5Inputs(*_qkv(m, n), -w(HEADS, KEY), m(HEADS, KEY))),
    Case(
        "rwkv6",
        RWKV6(HEADS, KEY, VALUE),
        lambda m, w, n: RWKV6Inputs(*_qkv(m, n), -w(BATCH, n, HEADS, KEY), m(HEADS, KEY)),
    ),
    Case("rwkv7", RWKV7(HEADS, KEY, VALUE), _rwkv7),
    Case("gated_delta", GatedDelta(HEADS, KEY, VALUE), _gated_delta),
)


@functools.cache
def _sample(name: str, n_tokens: int, rates: str) -> tuple[Any, State, tuple[Tensor, State]]:
    case = next(case for case in CASES if case.name == name)
    inputs, state = case.inputs(n_tokens, rates), case.state(n_tokens)
    return inputs, state, case.reference(inputs, state)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def family(request: pytest.FixtureRequest) -> Case:
    """Each family in turn."""
    return request.param


@pytest.fixture
def cases() -> dict[str, Case]:
    """All families by name."""
    return {case.name: case for case in CASES}


@pytest.fixture
def assert_near() -> Callable[..., None]:
    """Compare a tensor, or a state of tensors, with what is expected, by relative root mean square error."""

    def one(name: str, expected: Tensor, found: Tensor, limit: float) -> None:
        assert found.shape == expected.shape, name
        expected = expected.double()
        error = (found.double() - expected).square().mean().sqrt()
        ratio = float(error / expected.square().mean().sqrt())
        assert ratio < limit, f"{name}: relative error {ratio:.2e}"

    def check(expected: Any, found: Any, limit: float = 1e-5) -> None:
        if isinstance(expected, tuple):
            one("outputs", expected[0], found[0], limit)
            check(expected[1], found[1], limit)
        elif not isinstance(expected, dict):
            one("outputs", expected, found, limit)
        else:
            assert found.keys() == expected.keys()
            # Sums relative to a maximum mean the same under another one, so they are compared under the same. It is
            # rounded at every token, by 6e-8 at most, and the sums make up for that.
            turn = torch.exp(found["maximum"].double() - expected["maximum"].double()) if "maximum" in found else 1.0
            for name in expected:
                if name == "maximum":
                    one(name, expected[name], found[name], 1e-4)
                else:
                    one(name, expected[name], found[name] * turn, limit)

    return check
