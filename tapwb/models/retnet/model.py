"""RetNet as a transformers model: retention instead of attention, a state of fixed size instead of a cache that grows.

Each block is ``x + retention(norm(x))``, then ``x + feed_forward(norm(x))`` (Sun et al. 2023, arXiv:2307.08621, section
2). Names of modules are those of the published code where they meet (:mod:`tapwb.models.retnet.convert`). The published
code divides retention by running sums to keep training in half precision stable; behind the norm of each head that
factor cancels, so it is left out.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tapwb.models.recurrent.causal_lm import RecurrentCausalLM, Rows
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.recurrent.retention import Retention, RetentionInputs, retnet_log_decay
from tapwb.models.retnet.config import RetNetConfig

_ROTATION_BASE = 10_000.0


class MultiScaleRetention(nn.Module):
    """Retention with a decay for each head, a norm for each head, and a gate (equations 6 to 8).

    Args:
        config: Sizes.
    """

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.form = Retention(self.heads, config.key_head_size, config.value_head_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.value_size, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, config.value_size, bias=False)
        self.out_proj = nn.Linear(config.value_size, config.hidden_size, bias=False)

    def forward(self, x: Rows, turn: tuple[Tensor, Tensor], memory: LayerMemory) -> Rows:
        """Read the tokens that follow.

        Args:
            x: Normed stream.
            turn: Sine and cosine of each token's rotation, shapes (token, key).
            memory: Has what came before.
        """
        q, k, v = (part(x).float().unflatten(-1, (self.heads, -1)) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotated(q, turn), _rotated(k, turn) * self.form.key_size**-0.5
        log_decay = retnet_log_decay(self.heads).to(x.device)
        read = memory.advance(self.form, RetentionInputs(q, k, v, log_decay))
        normed = F.rms_norm(read, read.shape[-1:], eps=self.eps).flatten(-2)
        projected: Tensor = self.out_proj(F.silu(self.g_proj(x)) * normed.to(x.dtype))
        return projected


class GatedFeedForward(nn.Module):
    """``fc2(activation(fc1(x)) * gate(x))``.

    Args:
        config: Sizes.
    """

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.activation = F.gelu if config.activation == "gelu" else F.silu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Rows) -> Rows:
        """The same for every token."""
        out: Tensor = self.fc2(self.activation(self.fc1(x)) * self.gate(x))
        return out


class RetNetBlock(nn.Module):
    """Retention and feed-forward part, each behind a norm and added to the stream.

    Args:
        config: Sizes.
    """

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.retention_layer_norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.retention = MultiScaleRetention(config)
        self.final_layer_norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = GatedFeedForward(config)

    def forward(self, x: Rows, turn: tuple[Tensor, Tensor], memory: LayerMemory) -> Rows:
        """See :class:`MultiScaleRetention`."""
        x = x + self.retention(self.retention_layer_norm(x), turn, memory)
        out: Tensor = x + self.ffn(self.final_layer_norm(x))
        return out


class RetNetForCausalLM(RecurrentCausalLM):
    """A RetNet that predicts the next token.

    Args:
        config: Sizes.
    """

    config_class = RetNetConfig
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012 - transformers reads it from the class
    _no_split_modules = ["RetNetBlock"]  # noqa: RUF012 - transformers reads it from the class

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(RetNetBlock(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of tokens."""
        self.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    def read(
        self, input_ids: Int[Tensor, "batch token"], memories: Sequence[LayerMemory], n_before: int
    ) -> tuple[Rows, ...]:
        """See :meth:`RecurrentCausalLM.read`."""
        turn = _turn(self.config.key_head_size, n_before, input_ids)
        x, seen = self.embed_tokens(input_ids) * self.config.embedding_scale, []
        for block, memory in zip(self.layers, memories, strict=True):
            seen.append(x)
            x = block(x, turn, memory)
        return (*seen, self.layer_norm(x))


def rotation_speeds(size: int) -> Float[Tensor, " pair"]:
    """How far each pair of columns of a query turns with every token, in radians, fp64.

    From one radian a token down to one in ten thousand, both ends included, as in the published code.

    Args:
        size: Columns, an even number.
    """
    return _ROTATION_BASE ** -torch.linspace(0, 1, size // 2, dtype=torch.float64)


def _turn(size: int, n_before: int, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of the rotation of each token, each number twice: pairs of columns turn together."""
    place = torch.arange(n_before, n_before + input_ids.shape[1], device=input_ids.device, dtype=torch.float64)
    speed = rotation_speeds(size).to(input_ids.device)
    angle = (place[:, None] * speed).repeat_interleave(2, dim=-1)
    return angle.sin().float(), angle.cos().float()


def _rotated(x: Float[Tensor, "batch token head key"], turn: tuple[Tensor, Tensor]) -> Tensor:
    sine, cosine = (part[:, None] for part in turn)
    pairs = x.unflatten(-1, (-1, 2))
    beside = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cosine + beside * sine
