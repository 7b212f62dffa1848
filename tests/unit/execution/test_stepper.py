"""A stepper gives the logits of one whole pass, however the tokens are cut, and forgets what it is told to forget."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from tapwb.core.errors import ExecutionError
from tapwb.execution.stepper import TorchStepper
from tapwb.models.tiny import tiny_model

TOKENS = torch.tensor([5, 9, 2, 7, 7, 1, 3])


@pytest.fixture
def made():
    """A tiny model with its weights as loaded, and a function for steppers."""
    model = tiny_model("llama").model
    return model, lambda: TorchStepper(model, DynamicCache(config=model.config))


def test_pieces_give_the_logits_of_the_whole(made):
    """Two tokens, then four, then one; a wrong guess in between is forgotten."""
    model, new = made
    whole = model(TOKENS[None]).logits[0]
    stepper = new()
    first = stepper.advance(TOKENS[:2], 16)
    stepper.advance(torch.tensor([0, 0, 0]), 16)
    assert stepper.length == 5
    stepper.crop(2)
    rest = torch.cat([stepper.advance(TOKENS[2:6], 16), stepper.advance(TOKENS[6:], 16)])
    assert stepper.length == 7
    torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=1e-4, atol=1e-5)


def test_more_tokens_than_there_are_cannot_be_kept(made):
    """With both numbers."""
    stepper = made[1]()
    stepper.advance(TOKENS[:3], 16)
    with pytest.raises(ExecutionError, match="cannot keep 4 of 3 tokens"):
        stepper.crop(4)
