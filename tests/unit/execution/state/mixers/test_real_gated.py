"""The recurrence of RecurrentGemma against a loop in fp64."""

import pytest
import torch

from tapwb.core.errors import ExecutionError
from tapwb.execution.state.mixers.real_gated import RealGated, RealGatedInputs


def _case(n_tokens: int, seed: int = 0) -> tuple[RealGatedInputs, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x, decay = torch.randn(2, n_tokens, 7, generator=generator), torch.rand(2, n_tokens, 7, generator=generator)
    return RealGatedInputs(x, decay), {"h": torch.randn(2, 7, generator=generator)}


def _loop(inputs: RealGatedInputs, h: torch.Tensor) -> torch.Tensor:
    h, out = h.double(), []
    for x, decay in zip(inputs.x.double().unbind(1), inputs.decay.double().unbind(1), strict=True):
        h = decay * h + x
        out.append(h)
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 16, 17, 63, 100])
def test_chunks_and_steps_are_the_loop(n_tokens):
    """From a random state, at lengths that fill their chunks and at others."""
    form, (inputs, state) = RealGated(7), _case(n_tokens)
    expected = _loop(inputs, state["h"])
    out, last = form.chunk(inputs, state)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last["h"].double(), expected[:, -1], rtol=1e-5, atol=1e-5)
    for index in range(n_tokens):
        one, state = form.step(inputs.tokens(index, index + 1), state)
        torch.testing.assert_close(one[:, 0].double(), expected[:, index], rtol=1e-5, atol=1e-5)


def test_a_factor_of_zero_forgets_everything():
    """What came before has no influence on the tokens from there on."""
    form, (inputs, state) = RealGated(7), _case(20)
    inputs.decay[:, 11] = 0
    with_state, _ = form.chunk(inputs, state)
    alone, _ = form.chunk(inputs.tokens(11, 20), form.init_state(2))
    torch.testing.assert_close(with_state[:, 11:], alone)


def test_no_token_and_two_tokens_for_a_step_are_refused():
    """As every form does."""
    form, (inputs, state) = RealGated(7), _case(2)
    with pytest.raises(ExecutionError, match="exactly one token"):
        form.step(inputs, state)
    with pytest.raises(ExecutionError, match="at least one token"):
        form.chunk(inputs.tokens(0, 0), state)
