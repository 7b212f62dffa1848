"""How much attention each token receives, without asking the model for its attention matrices.

Fused attention never forms the probabilities, and forming all of them costs a matrix of tokens x tokens per head. A
few *probe rows* (queries) are enough: their scores against every key are recomputed beside the fused call. The calls
are seen through :class:`torch.overrides.TorchFunctionMode`, which is local to this thread and to the ``with`` block:
the model, its configuration and torch are never patched, replaced linears do not matter (queries and keys are taken
after projection and rotation), and families that call torch directly instead of transformers' attention interface
(falcon) are covered as well.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SHARE_OF_EACH_KIND = 0.05
_MIN_ROWS = 8


def choose_probe_rows(
    n_tokens: int, probe_rows: int | None = None, *, narrowest_window: int | None = None, seed: int = 0
) -> Int[Tensor, "row"]:
    """Query positions to probe: half of them the last ones, half spread over the text at random.

    Args:
        n_tokens: Length of the text.
        probe_rows: How many; ``None`` is 5 % last and 5 % spread, at least 8. All rows if there are no more.
        narrowest_window: Shortest sliding window of the model. There are then enough rows for every token to be in
            the window of at least one.
        seed: Of the random half, one draw in each of equally long stretches.

    Returns:
        Sorted distinct positions.
    """
    wanted = max(_MIN_ROWS, 2 * math.ceil(_SHARE_OF_EACH_KIND * n_tokens)) if probe_rows is None else probe_rows
    if wanted >= n_tokens:
        return torch.arange(n_tokens)
    n_last = max(1, wanted // 2)
    n_spread = wanted - n_last
    if narrowest_window is not None:  # two stretches per window: one lies wholly inside any window
        n_spread = max(n_spread, math.ceil(2 * n_tokens / narrowest_window))
    generator = torch.Generator().manual_seed(seed)
    edges = torch.linspace(0, n_tokens, n_spread + 1)
    spread = edges[:-1] + torch.rand(n_spread, generator=generator) * (edges[1:] - edges[:-1])
    return torch.cat([spread.long().clamp(max=n_tokens - 1), torch.arange(n_tokens - n_last, n_tokens)]).unique()


class AttentionProbe(TorchFunctionMode):
    """Collects the attention that probe rows pay, from every causal self-attention inside the ``with`` block.

    Args:
        rows: Query positions to probe.
        is_real: False for padding, whose queries and keys do not count; ``None`` if there is none.
        see: Called with the probabilities that the rows pay, shape (batch, head, row, token), right after the inputs of
            the layer's projections were computed.
    """

    def __init__(
        self,
        rows: Int[Tensor, "row"],
        is_real: Bool[Tensor, "batch token"] | None = None,
        see: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self._rows = rows
        self._is_real = is_real
        self._call = see
        self._layers: list[Float[Tensor, "batch token"]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let every call through; note the attention calls on the way."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self._see(*args, **kwargs)
        return func(*args, **kwargs)

    def add_probabilities(self, probabilities: Float[Tensor, "batch head token token"]) -> None:
        """Take one layer's full probabilities, as a model without fused attention returns them."""
        visible = probabilities[:, 0, self._rows.to(probabilities.device)] > 0
        self._add(probabilities[:, :, self._rows.to(probabilities.device)].float(), visible)

    def received(self) -> Float[Tensor, "batch token"] | None:
        """Mean over layers and heads of the probability a probe row that can see the token pays to it.

        ``None`` if no attention was seen. A token that no row of any layer can see (padding) received 0. Layers whose
        rows cannot see a token (it left their window) do not count in its mean.
        """
        if not self._layers:
            return None
        layers = torch.stack(self._layers)
        return layers.nanmean(dim=0).nan_to_num(0.0)

    def _see(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        n_tokens = query.shape[-2]
        if query.ndim != 4 or key.shape[-2] != n_tokens or self._rows.numel() == 0 or self._rows[-1] >= n_tokens:
            return  # cross-attention, or a single step against a cache
        with torch.no_grad():
            rows = self._rows.to(query.device)
            probe, keys = query[:, :, rows].float(), key.float()
            if (repeats := query.shape[1] // key.shape[1]) > 1:
                keys = keys.repeat_interleave(repeats, dim=1)
            scores = probe @ keys.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
            visible, bias = _mask_of_rows(attn_mask, rows, n_tokens, is_causal)
            if bias is not None:
                scores = scores + bias
            scores = scores.masked_fill(~visible, -torch.inf)
            probabilities = torch.softmax(scores, dim=-1).nan_to_num(0.0)  # a padded row sees nothing at all
            self._add(probabilities, visible.expand(query.shape[0], -1, -1, -1)[:, 0])

    def _add(
        self, probabilities: Float[Tensor, "batch head row token"], visible: Bool[Tensor, "batch row token"]
    ) -> None:
        if self._call is not None:
            self._call(probabilities)
        if self._is_real is not None:
            is_real = self._is_real.to(visible.device)
            visible = visible & is_real[:, None, :] & is_real[:, self._rows.to(visible.device), None]
        paid = (probabilities.mean(dim=1) * visible).sum(dim=1)
        n_rows = visible.sum(dim=1)
        self._layers.append((paid / n_rows.where(n_rows > 0, torch.nan)).cpu())


def _mask_of_rows(
    mask: Tensor | None, rows: Int[Tensor, "row"], n_tokens: int, is_causal: bool
) -> tuple[Bool[Tensor, "batch head row token"], Tensor | None]:
    """What the probe rows may see, and what is added to their scores."""
    if mask is None:
        positions = torch.arange(n_tokens, device=rows.device)
        limit = rows if is_causal else torch.full_like(rows, n_tokens)
        return (positions[None, :] <= limit[:, None])[None, None], None
    mask = mask.expand(*mask.shape[:-2], n_tokens, n_tokens)[..., rows, :]
    while mask.ndim < 4:
        mask = mask[None]
    if mask.dtype == torch.bool:
        return mask, None
    return mask > torch.finfo(mask.dtype).min / 2, mask.float()
