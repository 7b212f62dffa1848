"""The shape of an RWKV model of this project."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from tapwb.core.errors import UsageError

VERSIONS = ("4", "5.2", "7")
#: Of the norm of the heads. 5.2: what rwkv.cpp computes, and what reproduces the logits published with its test model;
#: larger models were trained with heads divided by 8 before the norm, which is 64e-5 here, and files do not say which.
#: 7: published models were trained with 1e-5 times the square of the divisor of the head size, 8.
_GROUP_NORM_EPS = {"4": 0.0, "5.2": 1e-5, "7": 64e-5}
_RANKS: Mapping[str, int] = {"w": 32, "a": 32, "v": 32, "g": 64}


class TapRwkvConfig(PreTrainedConfig):
    """Sizes of an RWKV model of version 4, 5.2 or 7.

    Args:
        version: ``"4"``, ``"5.2"`` or ``"7"``.
        vocab_size: Tokens of the vocabulary.
        hidden_size: Width of the stream.
        num_hidden_layers: Blocks.
        intermediate_size: Inner width of the channel mix; three and a half times the stream by default.
        num_attention_heads: Heads of the time mix; RWKV-4 has none and leaves 1.
        ranks: Inner widths of RWKV-7's low-rank maps: ``w`` of the decay, ``a`` of the learning rate, ``v`` of the
            share of the first values, ``g`` of the gate.
        group_norm_eps: Of the norm of the heads; the version's own by default.
        layer_norm_eps: Of all other norms.
        initializer_range: Standard deviation of fresh matrices.
        use_cache: Whether a pass without a cache makes one.
        **options: What every configuration takes.

    Raises:
        UsageError: If the version is another, or the heads do not fill the width.
    """

    model_type = "tapwb_rwkv"

    def __init__(
        self,
        version: str = "7",
        vocab_size: int = 1024,
        hidden_size: int = 192,
        num_hidden_layers: int = 4,
        intermediate_size: int | None = None,
        num_attention_heads: int = 1,
        ranks: Mapping[str, int] | None = None,
        group_norm_eps: float | None = None,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **options: Any,
    ) -> None:
        if version not in VERSIONS:
            raise UsageError(f"RWKV version {version!r} is not one of {', '.join(VERSIONS)}. Choose one of them.")
        if hidden_size % num_attention_heads or (version == "4" and num_attention_heads != 1):
            raise UsageError(
                f"{num_attention_heads} heads do not fill a width of {hidden_size} of RWKV-{version}. Give a divisor "
                "of the width, and 1 for RWKV-4."
            )
        self.version = version
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = 7 * hidden_size // 2 if intermediate_size is None else intermediate_size
        self.num_attention_heads = num_attention_heads
        self.ranks = dict(_RANKS if ranks is None else ranks) if version == "7" else {}
        self.group_norm_eps = _GROUP_NORM_EPS[version] if group_norm_eps is None else group_norm_eps
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        options.setdefault("tie_word_embeddings", False)
        super().__init__(**options)

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_attention_heads
