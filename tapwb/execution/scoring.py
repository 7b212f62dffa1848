"""Run the passes that importance signals need, and hand them over as plain facts."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tapwb.core.errors import EmptyPrompt, PromptTooLong
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution.head_file import find_head, load_head
from tapwb.execution.nest import NestedModel
from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import kl_nats
from tapwb.models.capture import capture
from tapwb.plan.cell_damage import TokenDamage

if TYPE_CHECKING:
    from tapwb.models.info import LoadedModel


def tokenize(handle: "LoadedModel", text: str) -> Tensor:
    """Token ids of a text, without special tokens added.

    Returns:
        Shape (1, token).

    Raises:
        EmptyPrompt: If the text holds no token.
    """
    ids = handle.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(torch.long)
    if ids.shape[1] == 0:
        raise EmptyPrompt("the text holds no token. Write at least one word.")
    return ids.to(handle.device)


def collect_facts(
    handle: "LoadedModel",
    nested: NestedModel,
    token_ids: Tensor,
    needs: Collection[str],
    *,
    low_bits: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> TokenFacts:
    """Everything about a text that the asked signals look at.

    The high pass reads all planes (8 bits, near lossless), so the reference weights are not needed.

    Args:
        handle: The loaded model.
        nested: Its nested weights.
        token_ids: Shape (1, token).
        needs: Names of :class:`~tapwb.importance.facts.TokenFacts` fields.
        low_bits: Level of the low pass; by default the lowest stored one.
        progress: Told about each pass.

    Raises:
        PromptTooLong: If the text exceeds the model's context.
        UsageError: If the learned head is needed and none was trained.
    """
    limit = handle.anatomy.context_length
    if limit is not None and token_ids.shape[1] > limit:
        raise PromptTooLong(
            f"the text has {token_ids.shape[1]} tokens but the model's context is {limit}. Use a shorter text."
        )
    wanted = set(needs)
    high = wanted & {"logits", "hidden_norms", "attention_received", "gradient_x_input", "state_write"}
    progress.stage("score tokens", total=bool(high) + ("low_logits" in wanted), unit="pass")
    captured, low_logits = None, None
    if high:
        captured = capture(
            handle.model,
            token_ids,
            logits="logits" in high,
            hidden_norms="hidden_norms" in high,
            attention="attention_received" in high,
            gradients="gradient_x_input" in high,
            state_write="state_write" in high,
        )
        progress.advance()
    if "low_logits" in wanted:
        with nested.context.use(low_bits or nested.levels[0]):
            low_logits = capture(handle.model, token_ids).logits
        progress.advance()
    return TokenFacts(
        token_ids=token_ids,
        vocab_size=handle.anatomy.vocab_size,
        special_ids=frozenset(handle.tokenizer.all_special_ids),
        token_texts=(tuple(handle.tokenizer.convert_ids_to_tokens(token_ids[0].tolist())),),
        token_frequency=None,
        n_prompt_tokens=None,
        logits=captured.logits if captured else None,
        low_logits=low_logits,
        head=load_head(find_head(handle.info.checksum_sha256)) if "head" in wanted else None,
        hidden_norms=captured.hidden_norms if captured else None,
        attention_received=captured.attention_received if captured else None,
        gradient_x_input=captured.gradient_x_input if captured else None,
        state_write=captured.state_write if captured else None,
    )


def measure_token_damage(
    nested: NestedModel,
    token_ids: Tensor,
    levels: Sequence[int],
    *,
    reference: Tensor | None = None,
    progress: Progress = NO_PROGRESS,
) -> TokenDamage:
    """True damage of every token of a text at every level: one pass per level, all tokens at it.

    A token's damage holds what the low bits of the tokens before it did to its context, as it does in any plan.

    Args:
        nested: The nested weights.
        token_ids: Shape (1, token).
        levels: Bit-widths, ascending; those above the top stored level are read at it.
        reference: Logits that damage is measured from, shape (token, vocabulary); of the top level by default.
        progress: Told about each pass.
    """
    top = nested.levels[-1]
    progress.stage("measure tokens", total=len(levels) + (reference is None), unit="pass")
    with torch.inference_mode():
        if reference is None:
            with nested.context.use(top):
                reference = nested.model(token_ids, use_cache=False).logits[0]
            progress.advance()
        rows = []
        for level in levels:
            with nested.context.use(min(level, top)):
                logits = nested.model(token_ids, use_cache=False).logits[0]
            rows.append(kl_nats(reference[None], logits[None])[0].double().cpu())
            progress.advance()
    return TokenDamage(tuple(levels), torch.stack(rows))
