"""Received attention, hidden norms and logits, against what the model itself returns."""

import pytest
import torch

from tapwb.core.errors import EmptyPrompt, PromptTooLong, UsageError
from tapwb.models import tiny_model
from tapwb.models.attention_probe import choose_probe_rows
from tapwb.models.capture import capture
from tapwb.models.catalog import TINY_FAMILIES

VARIANTS = [*[(family, {}) for family in TINY_FAMILIES]]
VARIANTS += [("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2})]
VARIANTS += [("gemma3", {"n_layers": 5}), ("llama", {"num_key_value_heads": 1})]
ALL_ROWS = 10**6


def batch(n_sequences=2, n_tokens=53):
    """Fixed random bytes; 53 is longer than both sliding windows and no multiple of anything."""
    return torch.randint(0, 256, (n_sequences, n_tokens), generator=torch.Generator().manual_seed(3))


def eager_received(family, overrides, token_ids, rows, attention_mask=None):
    """The definition, from full attention matrices of an eager twin."""
    model = tiny_model(family, attn_implementation="eager", **overrides).model
    with torch.no_grad():
        output = model(token_ids, attention_mask=attention_mask, output_attentions=True, use_cache=False)
    per_layer = []
    for probabilities in output.attentions:
        probed = probabilities[:, :, rows]
        n_seeing = (probed[:, 0] > 0).sum(dim=1)
        per_layer.append(probed.mean(dim=1).sum(dim=1) / n_seeing)
    return torch.stack(per_layer).nanmean(dim=0)


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_received_attention_equals_the_models_own_probabilities(family, overrides):
    """With every row probed: causal and sliding masks, grouped queries, fused projections, either falcon."""
    token_ids = batch()
    captured = capture(tiny_model(family, **overrides).model, token_ids, attention=True, probe_rows=ALL_ROWS)
    expected = eager_received(family, overrides, token_ids, torch.arange(53))
    torch.testing.assert_close(captured.attention_received, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2"])
def test_a_subset_of_rows_equals_the_same_rows_of_the_full_matrix(family):
    """Probing few rows changes which queries are asked, not what they answer."""
    token_ids = batch()
    model = tiny_model(family).model
    window = {"mistral": 32, "gemma3": 16}.get(family)
    rows = choose_probe_rows(53, 11, narrowest_window=window)
    captured = capture(model, token_ids, attention=True, probe_rows=11)
    expected = eager_received(family, {}, token_ids, rows)
    torch.testing.assert_close(captured.attention_received, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_eager_model_gives_the_same_answer_as_a_fused_one(family):
    """The route differs, the definition does not."""
    token_ids = batch()
    fused = capture(tiny_model(family).model, token_ids, attention=True)
    eager = capture(tiny_model(family, attn_implementation="eager").model, token_ids, attention=True)
    torch.testing.assert_close(fused.attention_received, eager.attention_received, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_padding_neither_pays_nor_receives(family, side):
    """A padded text has the values of the same text alone, and padding received exactly 0."""
    token_ids = batch(1, 37)
    alone = capture(tiny_model(family).model, token_ids, attention=True, probe_rows=ALL_ROWS)
    padding = torch.full((1, 8), 256)
    parts = [padding, token_ids] if side == "left" else [token_ids, padding]
    masks = [torch.zeros_like(padding), torch.ones_like(token_ids)]
    mask = torch.cat(masks if side == "left" else masks[::-1], dim=1)
    padded = capture(
        tiny_model(family).model,
        torch.cat(parts, dim=1),
        attention=True,
        probe_rows=ALL_ROWS,
        attention_mask=mask,
    )
    assert torch.equal(padded.attention_received[mask == 0], torch.zeros(8))
    if side == "right":
        # Padded queries would still look back at the text; only rows of real tokens may be counted.
        expected = eager_received(family, {}, torch.cat(parts, dim=1), torch.arange(37), mask)[mask == 1]
    else:
        expected = alone.attention_received[0]
    torch.testing.assert_close(padded.attention_received[mask == 1], expected.flatten(), rtol=0, atol=1e-5)


def test_a_single_token_receives_all_attention():
    """The only query can only look at itself."""
    captured = capture(tiny_model("llama").model, batch(1, 1), attention=True)
    torch.testing.assert_close(captured.attention_received, torch.ones(1, 1))


def test_replaced_linears_are_captured_as_they_compute():
    """Attention is read after projection, so a changed query projection changes it and nothing else is needed."""

    class Halved(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 0.5

    model, twin = tiny_model("llama").model, tiny_model("llama").model
    for layer in model.model.layers:
        layer.self_attn.q_proj = Halved(layer.self_attn.q_proj)
    for layer in twin.model.layers:
        layer.self_attn.q_proj.weight.data *= 0.5
    token_ids = batch()
    ours, theirs = (capture(m, token_ids, attention=True).attention_received for m in (model, twin))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    untouched = capture(tiny_model("llama").model, token_ids, attention=True).attention_received
    assert not torch.allclose(ours, untouched, atol=1e-4)


def hooks(model):
    """Every hook on every module."""
    return [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_capture_leaves_the_model_as_it_was(implementation):
    """Attention setting, hooks, gradients, training mode, torch's own function: all unchanged."""
    model = tiny_model("llama", attn_implementation=implementation).model
    fused = torch.nn.functional.scaled_dot_product_attention
    before = hooks(model)
    capture(model, batch(), attention=True, hidden_norms=True, gradients=True)
    assert model.config._attn_implementation == implementation
    assert hooks(model) == before
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert torch.nn.functional.scaled_dot_product_attention is fused


def test_capture_cleans_up_when_the_forward_pass_fails():
    """An error inside a layer passes through and leaves no hook behind."""
    model = tiny_model("llama").model

    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("broken layer")

    model.model.layers[1].mlp = Broken()
    before = hooks(model)
    for wanted in ({"attention": True}, {"gradients": True, "logits": False}):
        with pytest.raises(RuntimeError, match="broken layer"):
            capture(model, batch(), **wanted)
        assert hooks(model) == before


def test_logits_and_norms_are_those_of_a_plain_forward_pass():
    """Watching changes nothing; the last layer is taken before the final norm."""
    model, token_ids = tiny_model("mistral").model, batch()
    captured = capture(model, token_ids, hidden_norms=True, attention=True)
    with torch.no_grad():
        output = model(token_ids, output_hidden_states=True)
    assert torch.equal(captured.logits, output.logits)
    assert captured.hidden_norms.shape == (2, 2, 53)
    torch.testing.assert_close(captured.hidden_norms[0], output.hidden_states[1].norm(dim=-1))
    with torch.no_grad():
        last = []
        hook = model.model.norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
        model(token_ids)
        hook.remove()
    torch.testing.assert_close(captured.hidden_norms[-1], last[0].norm(dim=-1))


def test_only_what_was_asked_for_is_kept():
    """The rest is None, not zeros."""
    model, token_ids = tiny_model("gpt2").model, batch()
    captured = capture(model, token_ids, logits=False, hidden_norms=True)
    assert captured.logits is None
    assert captured.attention_received is None
    assert captured.gradient_x_input is None
    assert capture(model, token_ids, logits=False) == type(captured)()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_facts(dtype):
    """Log-probabilities taken later must not be computed in 8 bits of mantissa."""
    model = tiny_model("llama").model.to(dtype)
    captured = capture(model, batch(), attention=True, hidden_norms=True, gradients=True)
    for name in ("logits", "hidden_norms", "attention_received", "gradient_x_input"):
        assert getattr(captured, name).dtype == torch.float32, name
    reference = capture(tiny_model("llama").model, batch(), attention=True).attention_received
    torch.testing.assert_close(captured.attention_received, reference, rtol=0.1, atol=0.01)


def test_a_model_without_attention_has_no_received_attention():
    """It is None, which callers can tell from zero."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=257, state_size=4)
    captured = capture(MambaForCausalLM(config).eval(), batch(), attention=True)
    assert captured.attention_received is None
    assert captured.logits.shape == (2, 53, 257)


@pytest.mark.parametrize(("n_tokens", "probe_rows", "window"), [(53, None, None), (1000, None, 16), (7, 3, None)])
def test_probe_rows_are_sorted_distinct_and_reach_the_end(n_tokens, probe_rows, window):
    """At least as many as asked for, with the last position among them."""
    rows = choose_probe_rows(n_tokens, probe_rows, narrowest_window=window)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows[0] >= 0
    assert rows[-1] == n_tokens - 1
    assert len(rows) <= n_tokens
    assert torch.equal(rows, choose_probe_rows(n_tokens, probe_rows, narrowest_window=window))


@pytest.mark.parametrize("n_tokens", [50, 333, 1001])
@pytest.mark.parametrize("window", [4, 16, 33])
def test_every_token_is_within_the_window_of_some_probe_row(n_tokens, window):
    """Otherwise a sliding-window model would leave tokens without any value."""
    rows = choose_probe_rows(n_tokens, narrowest_window=window)
    positions = torch.arange(n_tokens)
    seen = (rows[:, None] >= positions) & (rows[:, None] - positions < window)
    assert seen.any(dim=0).all()


def test_bad_input_is_refused_in_one_line():
    """No token, too many tokens, a missing batch axis, a senseless number of rows."""
    model = tiny_model("llama").model
    with pytest.raises(EmptyPrompt, match="no token"):
        capture(model, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(PromptTooLong, match="513 tokens, the model has 512"):
        capture(model, torch.zeros(1, 513, dtype=torch.long))
    with pytest.raises(UsageError, match="batch axis"):
        capture(model, torch.zeros(5, dtype=torch.long))
    with pytest.raises(UsageError, match="probe_rows=0"):
        capture(model, batch(), attention=True, probe_rows=0)


def test_keys_that_arrive_ungrouped_are_shared_by_their_queries(monkeypatch):
    """On a GPU transformers hands fewer key heads than query heads to torch; the same path, forced here."""
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    captured = capture(tiny_model("llama").model, batch(), attention=True, probe_rows=ALL_ROWS)
    expected = eager_received("llama", {}, batch(), torch.arange(53))
    torch.testing.assert_close(captured.attention_received, expected, rtol=0, atol=1e-5)
