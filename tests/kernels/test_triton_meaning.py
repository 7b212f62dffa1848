"""The references of cache pages and quantized norms mean what the workbench means by them.

Seed features: S1.15
"""

import pytest
import torch

from tapwb.execution.activations import outlier_ratio, quantize_rows
from tapwb.execution.kv_codes import rotation
from tapwb.execution.kv_page import KvPage, read_rotated
from tapwb_kernels.norm_quantize import reference as norm_reference
from tapwb_kernels.paged_attention import reference as attention_reference
from tapwb_kernels.paged_attention.pages import KV_LEVELS, KvPages, pool_codes, read_codes


def pooled(pages):
    """The workbench's pages of one sequence in the kernel's format."""

    def part(codes_of, scale_of, top_of):
        bits = [codes_of(page).bits for page in pages]
        codes = [codes_of(page).codes()[0][0] for page in pages]
        return pool_codes(codes, bits, [scale_of(page)[0] for page in pages], [top_of(page)[0, :, 0] for page in pages])

    return KvPages(
        part(lambda page: page._keys, lambda page: page._key_scale, lambda page: page._key_top),
        part(lambda page: page._values, lambda page: page._value_scale, lambda page: page._value_top),
        torch.cat([page._centre for page in pages]),
        torch.cat([page._centre_step[..., 0] for page in pages]),
        torch.arange(len(pages), dtype=torch.int32)[None],
        torch.tensor([len(pages)], dtype=torch.int32),
    )


@pytest.fixture
def pages():
    """Two full pages and a short one, every token at its own level."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in (64, 64, 9):
        keys, values = torch.randn(1, 2, n, 32, generator=generator) + 1, torch.randn(1, 2, n, 32, generator=generator)
        bits = torch.tensor(KV_LEVELS)[torch.randint(0, 4, (n,), generator=generator)]
        made.append(KvPage(keys, values, bits, bits.flip(0)))
    return made


def test_a_page_reads_back_as_the_workbench_reads_it(pages):
    """Keys with their centre and values, at 2, 3, 4 and 8 bits, to fp32 rounding."""
    held = pooled(pages)
    for index, page in enumerate(pages):
        keys, values = read_rotated([page])
        centred, levels = read_codes(held.keys, index)
        centre = held.centre[index].float() * held.centre_step[index].float()[:, None]
        torch.testing.assert_close(centred + centre[:, None], keys[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(read_codes(held.values, index)[0], values[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(levels, page.bits)


def test_attention_over_pages_is_attention_over_what_they_hold(pages):
    """Rotated once and back once; the masses of the pages add up to one."""
    query = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1))
    turned = rotation(32)
    out, log_sum, mass = attention_reference.paged_attention(query @ turned, pooled(pages))
    keys = torch.cat([page.dequantize()[0] for page in pages], 2).repeat_interleave(3, 1)
    values = torch.cat([page.dequantize()[1] for page in pages], 2).repeat_interleave(3, 1)
    scores = (keys @ query.unsqueeze(-1)).squeeze(-1)
    expected = (scores.softmax(-1).unsqueeze(2) @ values).squeeze(2)
    torch.testing.assert_close(out @ turned, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    by_page = torch.stack([part.sum(-1) for part in scores.softmax(-1).split([64, 64, 9], -1)], -1)
    torch.testing.assert_close(mass, by_page, rtol=1e-4, atol=1e-6)


def test_fewer_bits_take_fewer_bytes(pages):
    """A token at 2 bits holds a quarter of the codes of one at 8, and nothing else grows."""
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 256, (2, 64, 32), dtype=torch.uint8, generator=generator)]
    scale, top = [torch.zeros(2, 64, dtype=torch.uint8)], [torch.ones(2).bfloat16()]
    held = {bits: pool_codes(codes, [torch.full((64,), bits)], scale, top) for bits in KV_LEVELS}
    spare = 2 * 32  # one row of zeros in each pool
    assert {bits: sum(p.numel() for p in part.planes) - spare for bits, part in held.items()} == {
        bits: 2 * 64 * 32 * bits // 8 for bits in KV_LEVELS
    }
    assert pooled(pages).nbytes() > 0


@pytest.mark.parametrize(
    ("tokens", "bits", "channels", "message"),
    [(65, 8, 32, "a page of 65 tokens"), (4, 5, 32, r"4 tokens at \[5\] bits"), (4, 8, 12, "heads of 12 channels")],
)
def test_what_no_page_can_hold_is_refused(tokens, bits, channels, message):
    """With what came and what is allowed."""
    codes, scale = torch.zeros(1, tokens, channels, dtype=torch.uint8), torch.zeros(1, tokens, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        pool_codes([codes], [torch.full((tokens,), bits)], [scale], [torch.ones(1).bfloat16()])


def test_quantized_norms_are_the_workbenchs_codes_and_outlier_ratio():
    """Of the normed rows: same codes, same scales, same score."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 300, generator=generator), torch.rand(300, generator=generator) + 0.5
    x[2] = 0
    x[3, 7] = 900
    codes, scale, score = norm_reference.norm_quantize(x, weight, 1e-5)
    normed = torch.nn.functional.rms_norm(x, (300,), weight, 1e-5)
    expected = quantize_rows(normed, torch.zeros(9, dtype=torch.bool))
    torch.testing.assert_close(scale, expected.scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(score, outlier_ratio(normed), rtol=1e-4, atol=0)
    assert int((codes.int() - expected.high.int()).abs().max()) <= 1
    assert float((codes != expected.high).float().mean()) < 1e-2
