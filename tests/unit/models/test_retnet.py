"""RetNet: the Auto classes load it, all ways of reading a text agree, published checkpoints find their place.

Seed features: S1.20
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tapwb.core.errors import EmptyPrompt, ExecutionError, UnsupportedModel, UsageError
from tapwb.models import retnet
from tapwb.models.recurrent.memory import RecurrentCache
from tapwb.models.recurrent.retention import retnet_log_decay
from tapwb.models.retnet.config import RetNetConfig
from tapwb.models.retnet.convert import from_published, load_published, published_config
from tapwb.models.retnet.model import MultiScaleRetention, RetNetForCausalLM

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "value_size": 48}


@pytest.fixture(scope="module")
def model():
    """With random weights, larger than usual so that every part matters."""
    torch.manual_seed(0)
    retnet.register()
    config = AutoConfig.for_model("tapwb_retnet", initializer_range=0.3, **SIZES)
    return AutoModelForCausalLM.from_config(config).eval()


def ids_of(n_tokens, batch=1, seed=1):
    """Random tokens."""
    return torch.randint(0, 61, (batch, n_tokens), generator=torch.Generator().manual_seed(seed))


def relative(actual, expected):
    """Distance as a share of the norm."""
    return float((actual - expected).norm() / expected.norm())


@torch.no_grad()
def test_retention_is_the_sum_over_all_pairs_that_the_paper_writes():
    """Equation 5 in fp64, pair by pair: rotated query and key, a decay by distance, then norm and gate."""
    torch.manual_seed(2)
    config = RetNetConfig(**SIZES)
    layer = MultiScaleRetention(config).double()
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    heads, size, eps = 3, 8, config.layer_norm_eps
    q, k = (part(x)[0].view(9, heads, size) for part in (layer.q_proj, layer.k_proj))
    v = layer.v_proj(x)[0].view(9, heads, 16)
    speed = 10_000 ** -torch.linspace(0, 1, size // 2, dtype=torch.float64)
    gamma = torch.exp(retnet_log_decay(heads).double())
    expected = torch.zeros(9, heads, 16, dtype=torch.float64)
    for n in range(9):
        for m in range(n + 1):
            turn = torch.polar(torch.ones(size // 2, dtype=torch.float64), (n - m) * speed)
            for h in range(heads):
                one = torch.view_as_complex(q[n, h].view(-1, 2).contiguous())
                other = torch.view_as_complex(k[m, h].view(-1, 2).contiguous())
                product = (one * turn * other.conj()).real.sum() * size**-0.5
                expected[n, h] += gamma[h] ** (n - m) * product * v[m, h]
    expected = expected / (expected.square().mean(-1, keepdim=True) + eps).sqrt()
    gated = torch.nn.functional.silu(layer.g_proj(x)[0]) * expected.flatten(-2)
    expected = layer.out_proj(gated)

    from tapwb.models.recurrent.memory import PlainMemory
    from tapwb.models.retnet.model import _turn

    turn = _turn(size, 0, torch.zeros(1, 9, dtype=torch.long))
    actual = layer(x, turn, PlainMemory())[0]
    assert relative(actual, expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(1,) * 70, (64, 6), (3, 1, 40, 26), (69, 1)])
def test_any_way_of_cutting_a_text_gives_the_same_logits(model, cuts):
    """In one pass, token by token, in pieces."""
    ids = ids_of(70, batch=2)
    whole = model(ids).logits
    cache, pieces, start = None, [], 0
    for length in cuts:
        out = model(ids[:, start : start + length], cache=cache, use_cache=True)
        cache, start = out["cache"] if "cache" in out else out["past_key_values"], start + length
        pieces.append(out.logits)
    assert cache.get_seq_length() == 70
    assert relative(torch.cat(pieces, 1), whole) < 1e-5


@torch.no_grad()
def test_generate_writes_what_the_model_writes_alone(model):
    """Greedy, by transformers' own loop and by passes over the whole text."""
    ids = ids_of(11)
    text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    expected = ids
    for _ in range(text.shape[1] - ids.shape[1]):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert text.tolist() == expected.tolist()


def test_saved_and_loaded_it_is_the_same_model(model, tmp_path):
    """Through the Auto classes, tied head included."""
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, RetNetForCausalLM)
    with torch.no_grad():
        assert torch.equal(again(ids_of(9)).logits, model(ids_of(9)).logits)


def test_gradients_reach_every_weight(model):
    """What training stands on."""
    model.train()
    try:
        model(ids_of(40)).logits.square().mean().backward()
        lacking = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
        assert lacking == []
    finally:
        model.zero_grad()
        model.eval()


SETTINGS = {
    "vocab_size": 61, "decoder_embed_dim": 24, "decoder_value_embed_dim": 48, "decoder_retention_heads": 3,
    "decoder_ffn_embed_dim": 20, "decoder_layers": 2, "no_scale_embedding": False,
}  # fmt: skip


def published_state():
    """A checkpoint as the published code would save it: random weights and its two tables."""
    rng = torch.Generator().manual_seed(3)
    shapes = {"embed_tokens": (61, 24), "output_projection": (61, 24), "layer_norm": (24,)}
    for n in range(2):
        shapes |= {f"layers.{n}.retention.{name}_proj": (24, 24) for name in "qk"}
        shapes |= {f"layers.{n}.retention.{name}_proj": (48, 24) for name in "vg"}
        shapes |= {f"layers.{n}.{name}_layer_norm": (24,) for name in ("retention", "final")}
        shapes |= {f"layers.{n}.retention.out_proj": (24, 48), f"layers.{n}.ffn.fc2": (24, 20)}
        shapes |= {f"layers.{n}.ffn.{name}": (20, 24) for name in ("fc1", "gate")}
    state = {f"decoder.{name}.weight": torch.randn(shape, generator=rng) * 0.3 for name, shape in shapes.items()}
    state["decoder.retnet_rel_pos.angle"] = (1e4 ** -torch.linspace(0, 1, 4)).repeat_interleave(2)
    state["decoder.retnet_rel_pos.decay"] = torch.log(1 - 2.0 ** -(5 + torch.arange(3)))
    return state


def published_logits(state, ids, eps=1e-6):
    """The published computation, written out: all pairs at once, with the scales that keep half precision stable."""
    w = {name.removeprefix("decoder.").removesuffix(".weight"): tensor.double() for name, tensor in state.items()}
    place = torch.arange(len(ids), dtype=torch.float64)
    angle, gap = place[:, None] * w["retnet_rel_pos.angle"], place[:, None] - place
    mask = torch.exp(gap * w["retnet_rel_pos.decay"][:, None, None]).tril()
    mask = mask / mask.sum(-1, keepdim=True).sqrt()

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def heads(x):
        return x.unflatten(-1, (3, -1)).transpose(0, 1)

    def turned(x):
        swapped = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * angle.cos() + swapped * angle.sin()

    x = w["embed_tokens"][ids] * 24**0.5
    for n in range(2):
        of = {name.removeprefix(f"layers.{n}."): tensor for name, tensor in w.items()}
        y = norm(x) * of["retention_layer_norm"]
        q, k, v = (heads(y @ of[f"retention.{name}_proj"].T) for name in "qkv")
        pairs = turned(q) @ turned(k * 8**-0.5).mT * mask
        pairs = pairs / pairs.sum(-1, keepdim=True).abs().clamp(min=1)
        read = norm(pairs @ v).transpose(0, 1).flatten(-2)
        gate = torch.nn.functional.silu(y @ of["retention.g_proj"].T)
        x = x + (gate * read) @ of["retention.out_proj"].T
        y = norm(x) * of["final_layer_norm"]
        x = x + (torch.nn.functional.gelu(y @ of["ffn.fc1"].T) * (y @ of["ffn.gate"].T)) @ of["ffn.fc2"].T
    return (norm(x) * w["layer_norm"]) @ w["output_projection"].T


@torch.no_grad()
def test_a_published_checkpoint_computes_what_the_published_code_does():
    """Its activation and the scale of its embedding included.

    The scales for half precision cancel in the norms but for the epsilon: without one nothing is left of them.
    """
    state, ids = published_state(), ids_of(40)
    bare = load_published(state, SETTINGS | {"layernorm_eps": 0.0})
    assert relative(bare(ids).logits[0], published_logits(state, ids[0], eps=0.0)) < 1e-5
    assert relative(load_published(state, SETTINGS)(ids).logits[0], published_logits(state, ids[0])) < 1e-3
    other = load_published(state, SETTINGS | {"activation_fn": "swish"})
    assert relative(other(ids).logits[0], published_logits(state, ids[0])) > 0.01


@torch.no_grad()
def test_a_published_checkpoint_without_a_head_uses_its_embedding():
    """As the published code does where both are shared."""
    state = published_state()
    del state["decoder.output_projection.weight"]
    model = load_published(state, SETTINGS | {"share_decoder_input_output_embed": True})
    assert torch.equal(model.lm_head.weight, state["decoder.embed_tokens.weight"])


def test_a_checkpoint_that_would_be_computed_wrongly_is_refused():
    """Foreign and missing tensors, other decays, settings of another computation."""
    state, model = published_state(), RetNetForCausalLM(published_config(SETTINGS))
    with pytest.raises(UnsupportedModel, match=r"1 tensors have no place \(layers.0.retention.q_proj.bias\)"):
        from_published(state | {"decoder.layers.0.retention.q_proj.bias": torch.zeros(24)}, model)
    with pytest.raises(UnsupportedModel, match=r"1 are missing \(layer_norm.weight\)"):
        from_published({name: t for name, t in state.items() if name != "decoder.layer_norm.weight"}, model)
    with pytest.raises(UnsupportedModel, match=r"retnet_rel_pos\.decay is not the one"):
        from_published(state | {"decoder.retnet_rel_pos.decay": torch.full((3,), -0.1)}, model)
    for settings in ({"deepnorm": True}, {"moe_freq": 2}, {"layernorm_embedding": True}):
        with pytest.raises(UnsupportedModel, match=f"cannot be followed .{next(iter(settings))}="):
            published_config(SETTINGS | settings)
    with pytest.raises(UnsupportedModel, match="vocab_size is missing or activation_fn"):
        published_config(SETTINGS | {"activation_fn": "relu"})


def test_what_cannot_be_read_is_refused_with_the_reason(model):
    """No token, hidden padding, a cache of keys and values, sizes that do not divide."""
    with pytest.raises(EmptyPrompt, match="at least one"):
        model(ids_of(0))
    with pytest.raises(ExecutionError, match="padding cannot be hidden"):
        model(ids_of(3, batch=2), attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(ExecutionError, match="block 2 of RetNetForCausalLM keeps a state"):
        model(ids_of(3), cache=RecurrentCache(2))
    with pytest.raises(UsageError, match="'relu' is not one of silu, gelu"):
        RetNetConfig(activation="relu")
    with pytest.raises(UsageError, match="5 heads do not share keys of 24"):
        RetNetConfig(hidden_size=24, num_attention_heads=5)
