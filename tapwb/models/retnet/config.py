"""The shape of a RetNet."""

from typing import Any

from transformers import PreTrainedConfig

from tapwb.core.errors import UsageError

ACTIVATIONS = ("silu", "gelu")


class RetNetConfig(PreTrainedConfig):
    """Sizes of a RetNet (Sun et al. 2023, arXiv:2307.08621).

    Args:
        vocab_size: Tokens of the vocabulary.
        hidden_size: Width of the stream.
        num_hidden_layers: Blocks.
        num_attention_heads: Retention heads, each with a decay of its own.
        value_size: Width of all values together; the paper takes twice the width of the stream.
        intermediate_size: Inner width of the feed-forward part.
        activation: Of the feed-forward part, ``"silu"`` or ``"gelu"``; the published code takes ``"gelu"``.
        embedding_scale: What the table of tokens is multiplied with.
        layer_norm_eps: Of all norms.
        initializer_range: Standard deviation of fresh weights.
        use_cache: Whether a pass without a cache makes one.
        **options: What every configuration takes.

    Raises:
        UsageError: If a width does not divide among the heads, a head's queries cannot be rotated in pairs, or the
            activation is another.
    """

    model_type = "tapwb_retnet"

    def __init__(
        self,
        vocab_size: int = 1024,
        hidden_size: int = 192,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 3,
        value_size: int | None = None,
        intermediate_size: int | None = None,
        activation: str = "silu",
        embedding_scale: float = 1.0,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **options: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.value_size = 2 * hidden_size if value_size is None else value_size
        self.intermediate_size = hidden_size if intermediate_size is None else intermediate_size
        self.activation = activation
        self.embedding_scale = embedding_scale
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        if hidden_size % (2 * num_attention_heads) or self.value_size % num_attention_heads:
            raise UsageError(
                f"{num_attention_heads} heads do not share keys of {hidden_size} and values of {self.value_size}. Give "
                "values a multiple of the heads, and keys a multiple of twice the heads: queries are rotated in pairs."
            )
        if activation not in ACTIVATIONS:
            raise UsageError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}. Choose one of them.")
        super().__init__(**options)

    @property
    def key_head_size(self) -> int:
        """Size of one head's queries and keys."""
        return self.hidden_size // self.num_attention_heads

    @property
    def value_head_size(self) -> int:
        """Size of one head's values."""
        return self.value_size // self.num_attention_heads
