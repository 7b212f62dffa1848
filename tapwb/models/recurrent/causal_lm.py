"""What this project's own recurrent language models share: tokens and a cache of memories in, logits out.

A model says how it reads tokens with one memory per block; where the memories come from, what a pass refuses and how
logits are cut is here. So the same model runs under ``generate``, under training, and with a cache that keeps states at
few bits.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from tapwb.core.errors import EmptyPrompt, ExecutionError
from tapwb.models.recurrent.memory import LayerMemory, PlainMemory, RecurrentCache

Rows = Float[Tensor, "batch token width"]
#: What the output calls the cache depends on the version of transformers.
_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


class RecurrentCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A model in which every block is recurrent and that predicts the next token.

    Args:
        config: Its shape; ``num_hidden_layers`` and ``use_cache`` are read here.
    """

    base_model_prefix = ""
    _is_stateful = True

    @abstractmethod
    def read(
        self, input_ids: Int[Tensor, "batch token"], memories: Sequence[LayerMemory], n_before: int
    ) -> tuple[Rows, ...]:
        """The stream before every block, and behind the last norm.

        Args:
            input_ids: The tokens that follow.
            memories: One for each block; they have what came before.
            n_before: How many tokens that is.
        """

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # transformers would make keys and values; the model makes a cache of its own

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        labels: Int[Tensor, "batch token"] | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits after every token.

        Args:
            input_ids: The tokens that follow what the cache has read, at least one.
            attention_mask: Ones only: texts of one batch are equally long.
            cache: Of this or an earlier pass, with a recurrent memory for every block.
            use_cache: Whether to make one where none is given.
            logits_to_keep: Logits of the last so many tokens; 0 keeps all.
            labels: The tokens again; the loss is then the mean over the predictions of all but the first, in nats.
                Those of -100 do not count.
            output_hidden_states: Whether the stream before every block, and behind the last norm, comes too.
            **options: ``past_key_values`` is another name of the cache; the rest is not looked at.

        Raises:
            EmptyPrompt: If there is no token.
            ExecutionError: If the mask hides a token, or the cache has no recurrent memory.
        """
        self._check(input_ids, attention_mask)
        cache = options.get("past_key_values") if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache) and not self.training:
            cache = RecurrentCache(self.config.num_hidden_layers)
        memories = [self._memory(cache, index) for index in range(self.config.num_hidden_layers)]
        seen = self.read(input_ids, memories, 0 if cache is None else int(cache.get_seq_length()))
        if hasattr(cache, "count"):
            cache.count(input_ids.shape[1])
        last = seen[-1][:, -logits_to_keep:] if logits_to_keep else seen[-1]
        logits = self.get_output_embeddings()(last)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=seen if output_hidden_states else None, **{_CACHE: cache}
        )

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if input_ids.shape[1] == 0:
            raise EmptyPrompt("there is no token to process; at least one is needed. Give a text.")
        if attention_mask is not None and not bool((attention_mask[:, -input_ids.shape[1] :] != 0).all()):
            raise ExecutionError(
                f"{type(self).__name__} reads every token of a row: padding cannot be hidden. Give texts one by one."
            )

    def _memory(self, cache: Any, index: int) -> LayerMemory:
        if cache is None:
            return PlainMemory()
        layer: Any = cache.layers[index] if index < len(cache.layers) else None
        if not hasattr(layer, "advance"):
            held = "nothing" if layer is None else f"a {type(layer).__name__}"
            raise ExecutionError(
                f"block {index} of {type(self).__name__} keeps a state, and the cache holds {held} for it. "
                "Leave the cache out, or make a RecurrentCache."
            )
        memory: LayerMemory = layer
        return memory


def at_least_fp32(x: Tensor) -> Tensor:
    """The same numbers in the type that forms compute in: fp32, or fp64 where they come in it.

    Args:
        x: Of any floating-point type.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
