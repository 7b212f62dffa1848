"""RWKV-4, 5.2 and 7 as a transformers model: a state of one size instead of a cache that grows.

The frame is the same for all versions: embedding, blocks, head. Decays of versions 4 and 5.2 are kept as files have
them, after the function that holds them in range while they are trained; version 7 keeps that function and can be
trained here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tapwb.models.recurrent.causal_lm import RecurrentCausalLM, Rows
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.rwkv.block import Mix, RwkvBlock
from tapwb.models.rwkv.config import TapRwkvConfig
from tapwb.models.rwkv.v4 import block4
from tapwb.models.rwkv.v5 import block5
from tapwb.models.rwkv.v7 import block7

_BLOCKS: Mapping[str, Callable[[TapRwkvConfig, int], RwkvBlock]] = MappingProxyType(
    {"4": block4, "5.2": block5, "7": block7}
)


class RwkvForCausalLM(RecurrentCausalLM):
    """An RWKV model that predicts the next token.

    Args:
        config: Version and sizes.
    """

    config_class = TapRwkvConfig
    _tied_weights_keys = {"head.weight": "emb.weight"}  # noqa: RUF012 - transformers reads it from the class
    _no_split_modules = frozenset({"RwkvBlock"})
    # At 16 bits a decay near one becomes one, and its channel forgets nothing any more.
    _keep_in_fp32_modules_strict = frozenset({"time_decay", "w0"})

    def __init__(self, config: TapRwkvConfig) -> None:
        super().__init__(config)
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_BLOCKS[config.version](config, layer) for layer in range(config.num_hidden_layers))
        self.ln_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.emb

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of tokens."""
        self.emb = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.head = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Mix):
            module.begin()

    def read(
        self, input_ids: Int[Tensor, "batch token"], memories: Sequence[LayerMemory], n_before: int
    ) -> tuple[Rows, ...]:
        """See :meth:`RecurrentCausalLM.read`."""
        x, first_value, seen = self.emb(input_ids), None, []
        for block, memory in zip(cast(Iterable[RwkvBlock], self.blocks), memories, strict=True):
            seen.append(x)
            x, first_value = block(x, memory, first_value)
        return (*seen, self.ln_out(x))
