"""Run a model once and keep the facts that importance signals are made of.

One forward pass gives logits, hidden-state norms, received attention and state writes; a second one with gradients
gives gradient x input. Nothing of the model is changed: hooks live for the call, and its attention is only watched
(:mod:`tapwb.models.attention_probe`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import EmptyPrompt, PromptTooLong, UnsupportedModel, UsageError
from tapwb.models.attention_probe import AttentionProbe, choose_probe_rows
from tapwb.models.cache_rules import cache_arguments
from tapwb.models.state_write import watching_states
from tapwb.models.watch import watch_layers, watch_probabilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Captured:
    """Facts of one batch of texts, on the CPU in float32; ``None`` is what was not asked for.

    Attributes:
        logits: Prediction of the next token at every position.
        hidden_norms: L2 norm of the residual stream after every layer (the last one before the final norm).
        attention_received: Mean over layers and heads of the probability that a probe row which can see the token
            pays to it. Also ``None`` if the model has no attention. Padding received 0, and pads do not pay.
        gradient_x_input: L2 norm over the hidden size of (gradient of the summed negative log-likelihood with
            respect to the token's embedding) * (its embedding), in nats.
        state_write: How much a token writes into the recurrent states, relative to the mean of the text, mean over
            layers (:mod:`tapwb.models.state_write`). Also ``None`` if the model has no recurrent state.
    """

    logits: Float[Tensor, "batch token vocab"] | None = None
    hidden_norms: Float[Tensor, "layer batch token"] | None = None
    attention_received: Float[Tensor, "batch token"] | None = None
    gradient_x_input: Float[Tensor, "batch token"] | None = None
    state_write: Float[Tensor, "batch token"] | None = None


def capture(
    model: "PreTrainedModel",
    token_ids: Int[Tensor, "batch token"],
    *,
    logits: bool = True,
    hidden_norms: bool = False,
    attention: bool = False,
    probe_rows: int | None = None,
    gradients: bool = False,
    state_write: bool = False,
    attention_mask: Int[Tensor, "batch token"] | None = None,
) -> Captured:
    """Run ``model`` on ``token_ids`` and keep what is asked for.

    Args:
        model: A causal language model, original or with replaced linears.
        token_ids: Texts of equal length; pad and mask shorter ones.
        logits: Keep the logits (4 bytes * vocabulary per token).
        hidden_norms: Keep the norm of every layer's output.
        attention: Measure the attention every token receives from probe rows.
        probe_rows: Number of probe rows; ``None`` is a tenth of the text, at least 8; see
            :func:`tapwb.models.attention_probe.choose_probe_rows`.
        gradients: Run a second pass for gradient x input (about three times the cost of the first).
        state_write: Measure what every token writes into recurrent states.
        attention_mask: 1 for real tokens, 0 for padding.

    Raises:
        EmptyPrompt: If there is no token.
        PromptTooLong: If there are more tokens than the model has positions.
        UnsupportedModel: If gradients are wanted of 4-bit weights that bitsandbytes has repacked, or state writes of
            recurrent layers that are transformers' own.
        UsageError: If ``token_ids`` is not (batch, token), or ``probe_rows`` is not positive.
    """
    _check_input(model, token_ids, probe_rows)
    token_ids = token_ids.to(_input_device(model))
    mask = None if attention_mask is None else attention_mask.to(token_ids.device)
    kept: dict[str, Tensor | None] = {}
    if logits or hidden_norms or attention or state_write:
        with torch.no_grad():
            kept |= _one_pass(model, token_ids, mask, logits, hidden_norms, attention, probe_rows, state_write)
    if gradients:
        kept["gradient_x_input"] = _gradient_x_input(model, token_ids, mask)
    return Captured(**kept)


def _one_pass(
    model: "PreTrainedModel",
    token_ids: Int[Tensor, "batch token"],
    mask: Int[Tensor, "batch token"] | None,
    logits: bool,
    hidden_norms: bool,
    attention: bool,
    probe_rows: int | None,
    state_write: bool,
) -> dict[str, Tensor | None]:
    norms: list[Tensor] = []
    probe = writes = None
    memory: dict[str, Any] = {"use_cache": False}
    with ExitStack() as stack:
        stack.enter_context(_not_repacked(model))
        if hidden_norms:
            stack.enter_context(watch_layers(model, lambda hidden: norms.append(_norm(hidden))))
        if attention:
            rows = choose_probe_rows(token_ids.shape[1], probe_rows, narrowest_window=_narrowest_window(model))
            probe = AttentionProbe(rows, None if mask is None else mask.bool())
            stack.enter_context(_watchable_attention(model))
            stack.enter_context(watch_probabilities(model, probe.add_probabilities))
            stack.enter_context(probe)
        if state_write:
            cache, writes = stack.enter_context(watching_states(model))
            memory = cache_arguments(model, cache, token_ids.shape[1])
        # Without logits one position is enough, and saves the largest matrix of the pass.
        only_last = {} if logits else {"logits_to_keep": 1}
        output = model(input_ids=token_ids, attention_mask=mask, **memory, **only_last)
    return {
        "logits": output.logits.float().cpu() if logits else None,
        "hidden_norms": torch.stack(norms) if hidden_norms else None,
        "attention_received": probe.received() if probe is not None else None,
        "state_write": None if writes is None else writes.mean(),
    }


def _norm(hidden: Float[Tensor, "batch token hidden"]) -> Float[Tensor, "batch token"]:
    return torch.linalg.vector_norm(hidden.float(), dim=-1).cpu()


def _gradient_x_input(
    model: "PreTrainedModel", token_ids: Int[Tensor, "batch token"], mask: Int[Tensor, "batch token"] | None
) -> Float[Tensor, "batch token"]:
    """L2 norm of gradient * embedding (Shrikumar 2016, "gradient x input"), of the summed NLL of the text."""
    _refuse_repacked(model)
    caught: list[Tensor] = []

    def make_leaf(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    # A hook instead of `inputs_embeds`: some families need the token ids beside the embeddings.
    hook = model.get_input_embeddings().register_forward_hook(make_leaf)
    try:
        with torch.enable_grad():
            scores = model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            nll = torch.nn.functional.cross_entropy(scores.transpose(1, 2), token_ids[:, 1:], reduction="none")
            if mask is not None:
                nll = nll * mask[:, 1:] * mask[:, :-1]
            (gradient,) = torch.autograd.grad(nll.sum(), caught[0])
    finally:
        hook.remove()
    return torch.linalg.vector_norm(gradient.float() * caught[0].detach().float(), dim=-1).cpu()


@contextmanager
def _not_repacked(model: "PreTrainedModel") -> Iterator[None]:
    """Keep bitsandbytes from reordering its 4-bit codes for AVX-512 in a pass without gradients.

    It has no way back that restores them (0.50), and passes through reordered codes have wrong gradients.
    """
    layers: list[Any] = [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    try:
        yield
    finally:
        for layer in layers:
            layer.support_avx512bf16_for_cpu = True


def _refuse_repacked(model: "PreTrainedModel") -> None:
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise UnsupportedModel(
                f"{name}: bitsandbytes repacked its 4-bit weights when the model ran, and they have no gradient since. "
                "Load the model again and capture gradients first, or choose a signal without gradients."
            )


@contextmanager
def _watchable_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Torch's fused attention and the plain one can be watched; run any other as torch's, and set it back."""
    before = model.config._attn_implementation
    if before in ("sdpa", "eager"):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _narrowest_window(model: "PreTrainedModel") -> int | None:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and "sliding_attention" not in kinds else window


def _input_device(model: "PreTrainedModel") -> torch.device:
    """Where the embedding runs; offloaded weights are on the meta device and say so in their hook instead."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(embedding.parameters(), torch.empty(0)).device


def _check_input(model: "PreTrainedModel", token_ids: Tensor, probe_rows: int | None) -> None:
    if token_ids.ndim != 2:
        raise UsageError(f"token_ids has shape {tuple(token_ids.shape)}; it must be (batch, token). Add a batch axis.")
    if token_ids.numel() == 0:
        raise EmptyPrompt("the text holds no token; at least one is needed. Give a longer text.")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and token_ids.shape[1] > limit:
        raise PromptTooLong(
            f"the text has {token_ids.shape[1]} tokens, the model has {limit} positions. Shorten it or split it."
        )
    if probe_rows is not None and probe_rows < 1:
        raise UsageError(f"probe_rows={probe_rows} is not positive. Leave it out or give at least 1.")
