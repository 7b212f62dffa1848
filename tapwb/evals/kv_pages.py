"""What a cache holds: bytes at every width by length, and the bits of every token in every layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.evals.kv_bench import spread_windows
from tapwb.execution.kv_cache import PAGE_TOKENS, SINK_TOKENS, TapCache, cache_bytes
from tapwb.execution.kv_plan import attention_of, make_cache
from tapwb.execution.scoring import tokenize
from tapwb.models.cache_rules import cache_arguments
from tapwb.models.load import load_model


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bytes of one cache.

    Attributes:
        kv: Bits of sealed tokens.
        n_tokens: Tokens it holds.
        n_bytes: Counted on its tensors, scales and lists of levels included.
        bytes_per_token: ``n_bytes / n_tokens``.
    """

    kv: str
    n_tokens: int
    n_bytes: int
    bytes_per_token: float


@dataclass(frozen=True, slots=True)
class CachePicture:
    """The bits of every token in every layer of one cache.

    Attributes:
        key_bits: One row a layer, one number a token; 16 for the first tokens and the recent ones.
        value_bits: Likewise.
        n_bytes: Bytes of the whole cache, counted on its tensors.
        page_tokens: Tokens that are sealed together.
    """

    key_bits: list[list[int]]
    value_bits: list[list[int]]
    n_bytes: int
    page_tokens: int = PAGE_TOKENS

    def histogram(self) -> dict[int, float]:
        """Share of all keys and values at each width."""
        every = [bits for row in (*self.key_bits, *self.value_bits) for bits in row]
        return {bits: every.count(bits) / len(every) for bits in sorted(set(every))}


@torch.inference_mode()
def cache_sizes(
    model_id: str, lengths: Sequence[int], kinds: Sequence[str] = ("16", "8", "4", "3", "2")
) -> list[CacheSize]:
    """Bytes of caches of one level: they depend on shapes alone, so random keys and values fill them.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        lengths: Tokens to hold, ascending.
        kinds: Widths, out of 16, 8, 4, 3 and 2.

    Raises:
        UsageError: If a width is none of these.
    """
    config = load_model(model_id).model.config
    text = config.get_text_config(decoder=True)
    channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    page = torch.randn(1, text.num_key_value_heads, PAGE_TOKENS, channels, generator=torch.manual_seed(0)).half()
    sizes = []
    for kind in kinds:
        cache, held = make_cache(config, kind), 0
        for length in lengths:
            for start in range(held, length, PAGE_TOKENS):
                part = page[:, :, : min(PAGE_TOKENS, length - start)]
                for index in range(len(cache.layers)):
                    cache.update(part, part, index)
            held = length
            n_bytes = cache_bytes(cache)
            sizes.append(CacheSize(kind, length, n_bytes, n_bytes / length))
    return sizes


@torch.inference_mode()
def picture_cache(model_id: str, text: str, kv: str, *, context: int, progress: Progress = NO_PROGRESS) -> CachePicture:
    """Read the start of a text and look into the cache.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text.
        kv: Precision of the cache, but not one that needs scores.
        context: Tokens to read.
        progress: Told about every page.

    Raises:
        UsageError: If the text is too short, the window does not fit the model, or the precision is unknown.
    """
    handle = load_model(model_id, dtype="float32", progress=progress)
    ids = spread_windows(tokenize(handle, text), context, 1, handle.anatomy.context_length)[0]
    cache = make_cache(handle.model.config, kv)
    starts = range(0, ids.shape[1], PAGE_TOKENS)
    progress.stage("read the text", total=len(starts), unit="page")
    with attention_of(handle.model, cache):
        for start in starts:
            part = ids[:, start : start + PAGE_TOKENS]
            handle.model(part, **cache_arguments(handle.model, cache, part.shape[1]))
            progress.advance()
    layers = cache.own_layers if isinstance(cache, TapCache) else []
    return CachePicture(
        [_bits([page.bits for page in layer.pages], ids.shape[1]) for layer in layers],
        [_bits([page.value_bits for page in layer.pages], ids.shape[1]) for layer in layers],
        cache_bytes(cache),
    )


def _bits(pages: Sequence[Tensor], n_tokens: int) -> list[int]:
    """Bits along one layer: the first tokens, the sealed pages, the recent tokens."""
    sealed = [int(bits) for page in pages for bits in page]
    first = min(SINK_TOKENS, n_tokens - len(sealed))
    return [16] * first + sealed + [16] * (n_tokens - first - len(sealed))
