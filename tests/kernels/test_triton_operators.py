"""The kernels as operators: their fakes tell shapes and dtypes truly, and they run where Triton does not.

Seed features: S1.15
"""

import pytest
import torch

from tapwb_kernels import ops
from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.nested_linear import reference
from tapwb_kernels.paged_attention.pages import KV_LEVELS, pool_codes


def weight_of(out, cols, size, plane_bits):
    """Random planes, their widths, minimum and step."""
    generator = torch.Generator().manual_seed(0)
    groups = n_groups(cols, size)
    codes = torch.randint(0, 256, (out, groups, size), dtype=torch.uint8, generator=generator)
    low = torch.randn(out, groups, generator=generator).half()
    return list(split_code(codes, plane_bits)), list(plane_bits), low, (torch.rand(out, groups) / 64).half()


def page_arguments():
    """Two pages of one sequence, as the operator takes them."""
    generator = torch.Generator().manual_seed(0)

    def part():
        codes = [torch.randint(0, 256, (2, n, 16), dtype=torch.uint8, generator=generator) for n in (64, 5)]
        bits = [torch.tensor(KV_LEVELS)[torch.randint(0, 4, (n,), generator=generator)] for n in (64, 5)]
        scale = [torch.randint(0, 9, (2, n), dtype=torch.uint8, generator=generator) for n in (64, 5)]
        held = pool_codes(codes, bits, scale, [torch.ones(2).bfloat16()] * 2)
        return [list(held.planes), held.slots, held.scale, held.top]

    centre = torch.randint(-9, 9, (2, 2, 16), dtype=torch.int8, generator=generator)
    table, n_pages = torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    return [torch.randn(1, 4, 16), *part(), *part(), centre, torch.ones(2, 2).bfloat16(), table, n_pages]


CALLS = {
    "nested_linear": lambda: (torch.randn(3, 40), *weight_of(17, 40, 16, (4, 4)), 5),
    "nested_linear_mixed": lambda: (
        torch.randn(3, 40),
        *weight_of(17, 40, 16, (4, 1, 1, 2)),
        torch.tensor([4, 8, 6]),
        [4, 6, 8],
    ),
    "nested_pack": lambda: (torch.randint(0, 256, (3, 2, 16), dtype=torch.uint8), [8]),
    "norm_quantize": lambda: (torch.randn(3, 40).bfloat16(), torch.ones(40), 1e-5),
    "paged_attention": page_arguments,
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_is_what_its_schema_and_its_fake_say(name):
    """No input is changed or returned, and shapes, strides and dtypes are known without running it."""
    arguments = CALLS[name]()
    torch.library.opcheck(getattr(ops, name), arguments, test_utils=("test_schema", "test_faketensor"))


def test_operators_run_without_triton_and_give_what_the_reference_gives(monkeypatch):
    """The PyTorch path of the same operation."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, *weight, bits = CALLS["nested_linear"]()
    expected = reference.nested_linear(x, *weight, torch.full((3,), bits))
    torch.testing.assert_close(torch.ops.tapwb_kernels.nested_linear(x, *weight, bits), expected, rtol=1e-5, atol=1e-5)
    x, *weight, levels, _ = CALLS["nested_linear_mixed"]()
    expected = reference.nested_linear(x, *weight, levels)
    actual = torch.ops.tapwb_kernels.nested_linear_mixed(x, *weight, levels, [4, 6, 8])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_compiled_graph_holds_the_operator_whole():
    """No break in the graph: tracing needs only the fake."""
    x, *weight, bits = CALLS["nested_linear"]()
    seen = []

    def backend(graph, _):
        seen.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(
        lambda x: ops.nested_linear(x * 2, *weight, bits) + 1, backend=backend, fullgraph=True, dynamic=False
    )
    torch.testing.assert_close(compiled(x), ops.nested_linear(x * 2, *weight, bits) + 1)
    assert any("nested_linear" in str(target) for target in seen[0])
