"""The same numbers as the PyTorch paths of transformers, where it has the recurrence.

It has none of retention, RWKV-5, RWKV-6 and RWKV-7.

Seed features: S1.19, S1.21
"""

import pytest
import torch
from torch.nn import functional as F

from tapwb.models.recurrent.gated_delta import GatedDelta, GatedDeltaInputs

N_TOKENS = 131


def test_selective_scan_equals_the_slow_path_of_mamba(cases, assert_near):
    """Its scan always begins with an empty state, so ours does too; channels come before tokens there."""
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    case = cases["selective_scan"]
    i = case.inputs(N_TOKENS)
    out, last = mamba.mamba_selective_scan(i.x.mT, i.dt.mT, i.A, i.B.mT, i.C.mT, D=i.D, return_last_state=True)
    assert_near((out.mT, {"ssm": last}), case.form.chunk(i, case.form.init_state(2)))


def test_selective_scan_step_equals_the_decode_path_of_mamba(cases, assert_near):
    """One token from a random state, which that path overwrites."""
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    case = cases["selective_scan"]
    i, state = case.inputs(1), case.state()
    found = case.form.step(i, state)
    theirs = state["ssm"].clone()
    out = mamba.mamba_selective_state_update(theirs, i.x[:, 0], i.dt[:, 0], i.A, i.B[:, 0], i.C[:, 0], D=i.D)
    assert_near((out.unsqueeze(1), {"ssm": theirs}), found)


def test_ssd_equals_the_segment_sums_of_mamba2(cases, assert_near):
    """With groups, a random state at the start, and a length that is no multiple of its chunk."""
    mamba2 = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    case = cases["ssd"]
    i, state = case.inputs(N_TOKENS), case.state()
    expected, last = mamba2.mamba2_chunk_scan(
        i.x, i.dt, i.A, i.B, i.C, chunk_size=32, D=i.D, initial_states=state["ssm"], return_final_states=True
    )
    assert_near((expected, {"ssm": last}), case.form.chunk(i, state))


def test_rwkv4_equals_the_time_loop_of_transformers(cases, assert_near):
    """States are exchanged as they are: numerator, denominator, maximum. Decays are handed over before their exp."""
    rwkv = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")
    case = cases["rwkv4"]
    i, state = case.inputs(N_TOKENS), case.state()
    out, last = rwkv.rwkv_linear_attention_cpu(
        (-i.log_decay).log(), i.bonus, i.k, i.v, state=list(state.values()), return_state=True
    )
    assert_near((out, dict(zip(state, last, strict=True))), case.form.chunk(i, state))


@pytest.mark.parametrize("name", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_gated_delta_equals_both_paths_of_qwen3_next(cases, name, assert_near):
    """They scale the queries themselves; key heads are shared by value heads."""
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    case = cases["gated_delta"]
    i, state = case.inputs(N_TOKENS), case.state()
    options = {"initial_state": state["kv"], "output_final_state": True}
    out, last = getattr(qwen, name)(i.q * i.q.shape[-1] ** 0.5, i.k, i.v, g=i.log_decay, beta=i.beta, **options)
    assert_near((out, {"kv": last}), case.form.chunk(i, state))
    assert_near((out, {"kv": last}), case.by_steps(i, state))


def test_gated_delta_equals_qwen3_next_at_its_real_head_sizes(assert_near):
    """Sixteen key heads of 128 would be slow here: two of them, with four value heads, and its norm of keys."""
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    generator = torch.Generator().manual_seed(0)
    q, k = (qwen.l2norm(torch.randn(1, 200, 2, 128, generator=generator)) for _ in range(2))
    v, g = torch.randn(1, 200, 4, 128, generator=generator), -F.softplus(torch.randn(1, 200, 4, generator=generator))
    beta = torch.rand(1, 200, 4, generator=generator)
    out, last = qwen.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, output_final_state=True)
    form = GatedDelta(4, 128, 128)
    inputs = GatedDeltaInputs(q * 128**-0.5, k, v, g, beta)
    assert_near((out, {"kv": last}), form.chunk(inputs, form.init_state(1)))
