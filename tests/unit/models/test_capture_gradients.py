"""Gradient x input, against finite differences."""

import pytest
import torch

from tapwb.models import tiny_model
from tapwb.models.capture import capture
from tapwb.models.catalog import TINY_FAMILIES


def summed_nll(model, token_ids, embedding):
    """Summed negative log-likelihood when the embedding layer's output is ``embedding``."""
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: embedding)
    try:
        with torch.no_grad():
            scores = model(token_ids).logits[:, :-1].double()
    finally:
        hook.remove()
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), token_ids[:, 1:].flatten(), reduction="sum").item()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_gradient_x_input_equals_finite_differences(family):
    """Central differences along every hidden dimension of three tokens; the step is what float32 norms allow."""
    model = tiny_model(family).model
    token_ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(4))
    captured = capture(model, token_ids, logits=False, gradients=True).gradient_x_input
    with torch.no_grad():
        embedding = model.get_input_embeddings()(token_ids)
    step = 5e-3
    for sequence, position in ((0, 0), (1, 4), (0, 7)):
        products = []
        for dim in range(embedding.shape[-1]):
            shift = torch.zeros_like(embedding)
            shift[sequence, position, dim] = step
            up, down = (summed_nll(model, token_ids, embedding + sign * shift) for sign in (1, -1))
            products.append((up - down) / (2 * step) * embedding[sequence, position, dim].item())
        expected = torch.tensor(products).norm().item()
        assert captured[sequence, position].item() == pytest.approx(expected, rel=5e-3)


def test_the_last_token_of_a_text_has_no_gradient():
    """Nothing is predicted after it, so its embedding cannot change the likelihood."""
    token_ids = torch.arange(11)[None]
    gradients = capture(tiny_model("llama").model, token_ids, gradients=True).gradient_x_input
    assert gradients[0, -1] == 0
    assert (gradients[0, :-1] > 0).all()


def test_padding_does_not_change_the_gradients_of_the_text():
    """Right-padded text gives the values of the text alone, and padding 0."""
    model = tiny_model("mistral").model
    text = torch.randint(0, 256, (1, 23), generator=torch.Generator().manual_seed(5))
    alone = capture(model, text, logits=False, gradients=True).gradient_x_input
    padded = torch.cat([text, torch.full((1, 6), 256)], dim=1)
    mask = (torch.arange(29) < 23).long()[None]
    both = capture(model, padded, logits=False, gradients=True, attention_mask=mask).gradient_x_input
    torch.testing.assert_close(both[:, :23], alone, rtol=1e-4, atol=1e-5)
    assert (both[:, 23:] == 0).all()


def test_gradients_work_inside_no_grad_and_with_frozen_weights():
    """Callers often switch gradients off around everything."""
    model = tiny_model("qwen2").model.requires_grad_(False)
    token_ids = torch.arange(17)[None]
    expected = capture(tiny_model("qwen2").model, token_ids, gradients=True).gradient_x_input
    with torch.no_grad():
        assert torch.equal(capture(model, token_ids, gradients=True).gradient_x_input, expected)
