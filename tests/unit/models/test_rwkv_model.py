"""RWKV as a transformers model: however a text is cut the logits are the same, and folders bring it back.

Seed features: S1.20
"""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from tapwb.core.errors import CorruptWeights, EmptyPrompt, ExecutionError, UnsupportedModel, UsageError
from tapwb.models import load_model, resolve_model
from tapwb.models.own_models import register_own_models
from tapwb.models.recurrent.memory import PlainMemory, RecurrentCache
from tapwb.models.rwkv.config import TapRwkvConfig
from tapwb.models.rwkv.folder import plain_byte_tokenizer, rwkv_tokenizer
from tapwb.models.rwkv.model import RwkvForCausalLM
from tapwb.models.tokenizer_bytes import byte_tokenizer

VERSIONS = ["4", "5.2", "7"]
TOKEN_IDS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=VERSIONS)
def model(request, tiny_rwkv):
    """A tiny model of each version in double precision, where rounding cannot hide a wrong order of steps."""
    with torch.no_grad():
        yield tiny_rwkv(request.param).double()


def close(actual, expected, atol=1e-10):
    """Equal up to rounding: of double precision, unless told."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def held(cache):
    """Everything in a cache."""
    return [tensor for layer in cache.layers for tensor in layer.tensors()]


def test_many_tokens_equal_one_at_a_time(model):
    """A pass over a text gives the logits and the state of as many passes of one token, which the cache counts."""
    whole, stepped = RecurrentCache(2), RecurrentCache(2)
    logits = model(TOKEN_IDS, cache=whole).logits
    for t in range(9):
        close(model(TOKEN_IDS[:, t : t + 1], cache=stepped).logits[:, 0], logits[:, t])
    close(held(stepped), held(whole))
    assert stepped.get_seq_length() == whole.get_seq_length() == 9


def test_a_text_may_be_split_anywhere(model):
    """Two pieces with the cache carried give the logits of one run; without it they do not."""
    whole = model(TOKEN_IDS).logits
    for cut in range(1, 9):
        cache = RecurrentCache(2)
        pieces = [model(part, past_key_values=cache).logits for part in (TOKEN_IDS[:, :cut], TOKEN_IDS[:, cut:])]
        close(torch.cat(pieces, dim=1), whole)
        assert not torch.allclose(model(TOKEN_IDS[:, cut:]).logits, whole[:, cut:], atol=1e-3)


def test_texts_of_a_batch_do_not_meet(model):
    """Each gets the logits it gets alone, although heads are normalised in groups."""
    together = model(TOKEN_IDS).logits
    for row in range(2):
        close(model(TOKEN_IDS[row : row + 1]).logits[0], together[row])


def test_one_can_go_back_to_a_snapshot(model):
    """Going on leaves it as it was, so one can go on from it twice."""
    cache = RecurrentCache(2)
    model(TOKEN_IDS[:, :4], cache=cache)
    mark = cache.snapshot()
    first = model(TOKEN_IDS[:, 4:], cache=cache).logits
    cache.restore(mark)
    assert cache.get_seq_length() == 4
    close(model(TOKEN_IDS[:, 4:], cache=cache).logits, first, atol=0)


def test_a_cache_has_one_size_and_keeps_nothing_else_alive(model):
    """After nine tokens it holds as many bytes as after one, and no row is a view of the whole text's."""
    short, long = RecurrentCache(2), RecurrentCache(2)
    model(TOKEN_IDS[:, :1], cache=short)
    model(TOKEN_IDS, cache=long)
    assert [tensor.nbytes for tensor in held(short)] == [tensor.nbytes for tensor in held(long)]
    rows = [row for layer in long.layers for row in layer.rows.values()]
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in rows)


def test_the_loss_is_that_of_the_next_tokens(model):
    """In nats, as other transformers models give it; ``logits_to_keep`` cuts what is returned."""
    out = model(TOKEN_IDS, labels=TOKEN_IDS)
    picked = out.logits[:, :-1].log_softmax(-1).gather(-1, TOKEN_IDS[:, 1:, None])
    close(out.loss.double(), -picked.mean(), atol=1e-6)
    close(model(TOKEN_IDS, logits_to_keep=2).logits, out.logits[:, -2:], atol=0)


@torch.no_grad()
def test_generate_writes_what_the_model_writes_alone(model):
    """Greedy, by transformers' own loop and by passes over the whole text."""
    text = model.generate(
        TOKEN_IDS, attention_mask=torch.ones_like(TOKEN_IDS), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    expected = TOKEN_IDS
    for _ in range(12):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert text.tolist() == expected.tolist()


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_model(tiny_rwkv, version, tmp_path):
    """Through the Auto classes, to the bit; at 16 bits decays keep their 32."""
    register_own_models()
    model = tiny_rwkv(version)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, RwkvForCausalLM)
    assert torch.equal(again(TOKEN_IDS).logits, model(TOKEN_IDS).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = {name.rpartition(".")[2] for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert kept == {"w0" if version == "7" else "time_decay"}
    distance = (half(TOKEN_IDS).logits.float() - model(TOKEN_IDS).logits).norm() / model(TOKEN_IDS).logits.norm()
    assert 0 < distance < 0.05


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fresh_model_is_finite_remembers_and_gives_every_weight_a_gradient(version):
    """What training stands on: the first token still moves the logits of the last."""
    torch.manual_seed(0)
    heads = 1 if version == "4" else 3
    model = RwkvForCausalLM(TapRwkvConfig(version, hidden_size=48, num_hidden_layers=3, num_attention_heads=heads))
    with torch.no_grad():
        for parameter in model.parameters():  # maps of low rank and bonuses begin at zero or near it
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
            parameter.clamp_(max=0.999) if version == "5.2" and parameter.ndim == 2 and len(parameter) == 3 else None
    ids = torch.randint(0, 1024, (2, 40), generator=torch.Generator().manual_seed(1))
    loss = model.train()(ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1024), rel=0.1)
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert lacking == []
    other = torch.cat([(ids[:, :1] + 1) % 1024, ids[:, 1:]], dim=1)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits[:, -1], model(other).logits[:, -1])


def test_rwkv4_averages_with_the_weights_of_the_paper(tiny_rwkv):
    """Equation 16, summed directly in fp64: what the time mix makes of its projections."""
    mix = tiny_rwkv("4").double().blocks[1].att
    x = torch.randn(1, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = F.pad(x, (0, 0, 1, -1))
    shares = (mix.time_mix_k, mix.time_mix_v, mix.time_mix_r)
    k, v, r = (
        part(x * s + before * (1 - s)) for part, s in zip((mix.key, mix.value, mix.receptance), shares, strict=True)
    )
    means = []
    for t in range(7):
        age = torch.arange(t - 1, -1, -1, dtype=torch.float64)[:, None]
        weights = torch.cat([age * mix.time_decay + k[0, :t], (mix.time_first + k[0, t])[None]]).exp()
        means.append((weights * v[0, : t + 1]).sum(0) / weights.sum(0))
    expected = mix.output(torch.sigmoid(r) * torch.stack(means))
    close(mix(x, PlainMemory(), None)[0], expected)


def test_rwkv7_follows_the_transition_matrices_of_the_paper(tiny_rwkv):
    """A value-by-key matrix times an explicit transition matrix, head by head, in fp64."""
    mix = tiny_rwkv("7").double().blocks[0].att
    x = torch.randn(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    token, gate, _ = mix._of_token(x, F.pad(x, (0, 0, 1, -1)) - x, None)
    r, k, v, log_decay, rate, removal = (tensor[0].view(6, 2, 4) for tensor in token)
    removal = F.normalize(removal, dim=-1)
    memory, outputs = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for t in range(6):
        for h in range(2):
            erase = torch.outer(removal[t, h], rate[t, h] * removal[t, h])
            memory[h] = memory[h] @ (torch.diag(log_decay[t, h].exp()) - erase) + torch.outer(v[t, h], k[t, h])
        outputs.append((memory @ r[t, :, :, None]).flatten())
    normed = F.group_norm(torch.stack(outputs), 2, mix.ln_x.weight, mix.ln_x.bias, mix.ln_x.eps)
    bonus = ((r * k * mix.r_k).sum(-1, keepdim=True) * v).flatten(1)
    close(mix(x, PlainMemory(), None)[0], mix.output((normed + bonus)[None] * gate))


def test_what_cannot_be_read_is_refused_with_the_reason(tiny_rwkv):
    """No token, hidden padding, a cache of keys and values, sizes that do not divide, a version that is none."""
    model = tiny_rwkv("7")
    with pytest.raises(EmptyPrompt, match="at least one is needed"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ExecutionError, match="padding cannot be hidden"):
        model(TOKEN_IDS[:, :3], attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(ExecutionError, match="block 0 of RwkvForCausalLM keeps a state, and the cache holds a Dynamic"):
        model(TOKEN_IDS, cache=DynamicCache(config=model.config))
    with pytest.raises(UsageError, match="5 heads do not fill a width of 24 of RWKV-7"):
        TapRwkvConfig("7", hidden_size=24, num_attention_heads=5)
    with pytest.raises(UsageError, match=r"version '6' is not one of 4, 5\.2, 7"):
        TapRwkvConfig("6")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_published_file_loads_by_its_path(evaldata, own_cache, version):
    """Like any model: converted once, with a tokenizer of bytes and no end token, and it writes text."""
    found = sorted((evaldata / "rwkv").glob(f"tiny-rwkv-{version[0]}v*-FP32.bin"))
    if not found:
        pytest.skip("the public RWKV test models are absent")
    loaded = load_model(found[0], dtype="float32")
    assert (loaded.info.source, loaded.info.title) == ("rwkv", found[0].stem)
    assert loaded.anatomy.state_bytes() > 0 == loaded.anatomy.kv_bytes(100)
    assert loaded.tokenizer.eos_token_id is None
    prompt = 'in a hole, "über alles" ภาษาไทย\n'
    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == list(prompt.encode())
    assert loaded.tokenizer.decode(ids[0]) == prompt
    assert resolve_model(found[0]).path == loaded.info.path
    assert loaded.model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)


def test_a_model_of_words_needs_the_tokenizer_beside_it(tmp_path):
    """It says which file is missing; one with too many tokens, or that is none, is refused."""
    path = tmp_path / "world.bin"
    with pytest.raises(UnsupportedModel, match=r"65536 tokens and no tokenizer.*Put the tokenizer\.json"):
        rwkv_tokenizer(path, 65536)
    byte_tokenizer().save_pretrained(tmp_path)
    assert len(rwkv_tokenizer(path, 300)) == 257
    with pytest.raises(UnsupportedModel, match=r"has 257 tokens, world\.bin has 256"):
        rwkv_tokenizer(path, 256)
    for content in ("{}", "[]", "no JSON"):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(CorruptWeights, match="is no tokenizer"):
            rwkv_tokenizer(path, 300)


def test_the_byte_tokenizer_survives_being_saved(tmp_path):
    """256 tokens and none beyond, before and after."""
    plain_byte_tokenizer().save_pretrained(tmp_path)
    again = rwkv_tokenizer(tmp_path / "model.bin", 256)
    assert len(again) == 256
    assert again("\x00ÿ")["input_ids"] == list("\x00ÿ".encode())
