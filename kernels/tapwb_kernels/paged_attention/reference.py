"""paged_attention, the specification: one query of each sequence over its sealed pages, in rotated coordinates."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb_kernels.paged_attention.pages import KvPages, read_codes


def paged_attention(
    query: Float[Tensor, "sequence query_head channel"], pages: KvPages
) -> tuple[
    Float[Tensor, "sequence query_head channel"],
    Float[Tensor, "sequence query_head"],
    Float[Tensor, "sequence query_head entry"],
]:
    """``softmax(q K^T) V`` over the pages of each sequence, with the share of each page.

    Args:
        query: Rotated and scaled queries; several query heads may share a head of keys.
        pages: Sealed pages of the layer.

    Returns:
        The attended values (still rotated), the logarithm of the sum of exponentials (to join this with the part of a
        cache that is not in pages), and the probability mass that falls on each page; all fp32. A sequence without
        pages gets zeros and minus infinity.
    """
    n_sequences, n_heads, channels = query.shape
    heads = pages.centre.shape[1]
    out = torch.zeros(n_sequences, n_heads, channels, device=query.device)
    log_sum = torch.full((n_sequences, n_heads), -torch.inf, device=query.device)
    mass = torch.zeros(n_sequences, n_heads, pages.table.shape[1], device=query.device)
    for sequence in range(n_sequences):
        held = pages.table[sequence, : int(pages.n_pages[sequence])].tolist()
        if not held:
            continue
        keys, values, counts = [], [], []
        for page in held:
            centred, _ = read_codes(pages.keys, page)
            centre = pages.centre[page].float() * pages.centre_step[page].float()[:, None]
            keys.append(centred + centre[:, None])
            values.append(read_codes(pages.values, page)[0])
            counts.append(centred.shape[1])
        shared = n_heads // heads
        k = torch.cat(keys, 1).repeat_interleave(shared, 0).double()
        v = torch.cat(values, 1).repeat_interleave(shared, 0).double()
        scores = (k @ query[sequence].double().unsqueeze(-1)).squeeze(-1)
        probability = scores.softmax(-1)
        out[sequence] = (probability.unsqueeze(1) @ v).squeeze(1).float()
        log_sum[sequence] = scores.logsumexp(-1).float()
        for entry, part in enumerate(probability.split(counts, -1)):
            mass[sequence, :, entry] = part.sum(-1).float()
    return out, log_sum, mass
