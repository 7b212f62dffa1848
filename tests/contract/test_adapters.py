"""Every architecture adapter keeps its promises, held against tiny models that are really allocated and really run."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM, DynamicCache

from tapwb.models.adapters import adapters
from tapwb.models.anatomy import ModelAnatomy, anatomy_from_config, anatomy_of_model, linear_sites, meta_model
from tapwb.models.cache_probe import probe_memory
from tapwb.models.cache_rules import SequenceMemory
from tapwb.models.own_models import register_own_models
from tapwb.models.retnet.config import RetNetConfig
from tapwb.models.rwkv.config import TapRwkvConfig

register_own_models()
N_TOKENS = 13  # past every window below, and no multiple of anything
BASE = {"vocab_size": 257, "hidden_size": 32, "max_position_embeddings": 64}
DEEP = BASE | {"num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48, "kv_lora_rank": 12,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip
SSM = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
MIXER = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}
FALCON = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
RWKV = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 56}
RANKS = {"w": 6, "a": 10, "v": 4, "g": 12}
SLIDES = ["sliding_attention", "sliding_attention", "full_attention"]

# Name: the registered model_type, or the same followed by a variant in brackets.
ADAPTED: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**DEEP, **HEADS, attention_bias=True),
    "mistral": lambda: hf.MistralConfig(**DEEP, **HEADS, sliding_window=None),
    "mistral[window]": lambda: hf.MistralConfig(**DEEP, **HEADS, sliding_window=7),
    "mixtral": lambda: hf.MixtralConfig(**DEEP, **HEADS, num_local_experts=4),
    "qwen2": lambda: hf.Qwen2Config(**DEEP, **HEADS, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**DEEP, **HEADS, head_dim=16),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(**DEEP, **HEADS, **EXPERTS, shared_expert_intermediate_size=40),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**DEEP, **HEADS, **EXPERTS, head_dim=16),
    "gemma": lambda: hf.GemmaConfig(**DEEP, **HEADS | {"num_key_value_heads": 1}, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(**DEEP, **HEADS, head_dim=16, sliding_window=7),
    "gemma3_text": lambda: hf.Gemma3TextConfig(**DEEP, **HEADS, head_dim=16, sliding_window=5, layer_types=SLIDES),
    "phi": lambda: hf.PhiConfig(**DEEP, **HEADS),
    "phi3": lambda: hf.Phi3Config(**DEEP, **HEADS, pad_token_id=0, sliding_window=6),
    "gpt2": lambda: hf.GPT2Config(vocab_size=257, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**DEEP, num_attention_heads=4, intermediate_size=128),
    "falcon": lambda: hf.FalconConfig(**FALCON, multi_query=True),
    "falcon[grouped]": lambda: hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "deepseek_v2": lambda: hf.DeepseekV2Config(
        **DEEP, **LATENT, q_lora_rank=None, n_group=None, topk_group=None, topk_method="greedy"
    ),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**DEEP, **LATENT, q_lora_rank=20, n_group=2, topk_group=1),
    "olmo": lambda: hf.OlmoConfig(**DEEP, **HEADS),
    "olmo2": lambda: hf.Olmo2Config(**DEEP, **HEADS),
    "olmo3": lambda: hf.Olmo3Config(**DEEP, **HEADS, sliding_window=5, layer_types=SLIDES),
    "stablelm": lambda: hf.StableLmConfig(**DEEP, **HEADS),
    "mamba": lambda: hf.MambaConfig(**SSM, conv_kernel=4),
    "falcon_mamba": lambda: hf.FalconMambaConfig(**SSM, conv_kernel=4),
    "mamba2": lambda: hf.Mamba2Config(**SSM, num_heads=4, head_dim=16, n_groups=2, chunk_size=16),
    "jamba": lambda: hf.JambaConfig(
        **BASE, **HEADS, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=8, mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "bamba": lambda: hf.BambaConfig(**DEEP, **HEADS, **MIXER, attn_layer_indices=[1]),
    "falcon_h1": lambda: hf.FalconH1Config(**DEEP, **HEADS, **MIXER, mamba_d_ssm=64),
    "lfm2": lambda: hf.Lfm2Config(**DEEP, **HEADS, conv_L_cache=3, layer_types=["conv", "full_attention", "conv"]),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **BASE, **HEADS, **EXPERTS, num_hidden_layers=4, head_dim=16, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_num_value_heads=4, linear_value_head_dim=16, shared_expert_intermediate_size=24,
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
        intermediate_size=96, lru_width=32, attention_window_size=8, conv1d_width=4,
    ),
    "rwkv": lambda: hf.RwkvConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32, context_length=64
    ),
    "tapwb_retnet": lambda: RetNetConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, value_size=48, intermediate_size=40
    ),
    "tapwb_rwkv": lambda: TapRwkvConfig(**RWKV, version="7", num_attention_heads=2, ranks=RANKS),
    "tapwb_rwkv[4]": lambda: TapRwkvConfig(**RWKV, version="4"),
    "tapwb_rwkv[5.2]": lambda: TapRwkvConfig(**RWKV, version="5.2", num_attention_heads=4),
}  # fmt: skip

# Families without an adapter: their caches come from a forward pass without memory.
UNKNOWN: dict[str, Callable[[], Any]] = {
    "gpt_oss": lambda: hf.GptOssConfig(
        **DEEP, **HEADS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5
    ),
    "llama4_text": lambda: hf.Llama4TextConfig(
        **DEEP, **HEADS, head_dim=8, intermediate_size_mlp=40, num_local_experts=2, num_experts_per_tok=1,
        attention_chunk_size=8,
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        vocab_size=257, hidden_size=32, layers_block_type=["mamba", "attention", "mlp"], num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, mamba_num_heads=4, mamba_head_dim=16, n_groups=1,
        ssm_state_size=8, chunk_size=16,
    ),
    "opt": lambda: hf.OPTConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=3, ffn_dim=64, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
    "bloom": lambda: hf.BloomConfig(vocab_size=257, hidden_size=32, n_layer=3, n_head=4),
}  # fmt: skip
CONFIGS = ADAPTED | UNKNOWN
EXPERT_ROLES = ("expert.gate_up", "expert.down")


def test_every_registered_adapter_is_tried_here() -> None:
    """A family without a tiny configuration in this file is not covered by the promises below."""
    assert set(adapters) == {name.partition("[")[0] for name in ADAPTED}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_equal_the_sum_over_an_allocated_model(name: str) -> None:
    """Embeddings, tied heads, norms, biases and fused experts are all counted, once."""
    anatomy = anatomy_from_config(CONFIGS[name]())
    n_allocated = sum(p.numel() for p in _allocated(name).parameters())
    assert anatomy.n_parameters == n_allocated
    assert anatomy.weights_bytes(16) == 2 * n_allocated
    assert anatomy.weights_bytes(32) == 4 * n_allocated


@pytest.mark.parametrize("n_tokens", [1, 3, N_TOKENS])
@pytest.mark.parametrize("name", CONFIGS)
def test_cache_and_state_bytes_equal_what_a_run_allocates(name: str, n_tokens: int) -> None:
    """After a real forward pass in bf16 the cached tensors take exactly the bytes that the anatomy says."""
    anatomy = anatomy_from_config(CONFIGS[name]())
    kv_bytes, state_bytes = _run(name, n_tokens)
    assert (anatomy.kv_bytes(n_tokens), anatomy.state_bytes()) == (kv_bytes, state_bytes)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_has_a_role(name: str) -> None:
    """No matrix of a known family is left as 'other', and matrices of one role and shape come as one record."""
    linears = anatomy_from_config(CONFIGS[name]()).linears
    assert [spec.role for spec in linears if spec.role.startswith("other")] == []
    keys = [(spec.role, spec.in_features, spec.out_features, spec.bias) for spec in linears]
    assert len(keys) == len(set(keys))
    assert sum(spec.count for spec in linears if spec.role == "head") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_take_inputs_of_the_size_they_say(name: str) -> None:
    """What a hook sees entering each linear module has the width that the anatomy records (transposed weights too)."""
    model = _allocated(name)
    sites = {site.name: site for site in linear_sites(model)}
    seen: dict[str, int] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].shape[-1]}))
        for name, module in model.named_modules()
        if name in sites
    ]
    with torch.no_grad():
        model(torch.arange(5)[None])
    for handle in handles:
        handle.remove()
    assert seen, "no linear module ran"
    assert seen == {name: sites[name].in_features for name in seen}


@pytest.mark.parametrize("name", ADAPTED)
def test_the_rule_of_an_adapter_agrees_with_a_run_without_memory(name: str) -> None:
    """Two independent ways to the caches, by rule and by shape inference, give the same bytes at any length."""
    config = ADAPTED[name]()
    probed = probe_memory(meta_model(config))
    if not isinstance(probed, SequenceMemory):
        pytest.skip(f"{name} cannot be probed: {probed.reason}")
    anatomy = anatomy_from_config(config)
    by_probe = ModelAnatomy("", 0, 1, 1, 1, (), probed.caches, probed.states, False, 0, 0)
    assert [anatomy.kv_bytes(n) for n in (1, 6, 50)] == [by_probe.kv_bytes(n) for n in (1, 6, 50)]
    assert anatomy.state_bytes() == by_probe.state_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_model_and_its_configuration_give_the_same_anatomy(name: str) -> None:
    """Weights add nothing: the anatomy of the allocated model is the one made from the configuration."""
    assert anatomy_of_model(_allocated(name)) == anatomy_from_config(CONFIGS[name]())


@pytest.mark.parametrize("name", CONFIGS)
def test_an_anatomy_survives_json(name: str) -> None:
    """Through a JSON document and back, every field is the same, an absent context limit included."""
    anatomy = anatomy_from_config(CONFIGS[name]())
    assert ModelAnatomy.from_json(json.dumps(anatomy.to_json())) == anatomy


def _allocated(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.bfloat16).eval()


def _run(name: str, n_tokens: int) -> tuple[int, int]:
    """Bytes of (attention cache, recurrent state) after a forward pass over ``n_tokens``."""
    model = _allocated(name)
    extra = {}
    if name == "recurrent_gemma":  # makes no cache by itself, and keeps its states on the modules
        extra["past_key_values"] = DynamicCache(config=model.config)
    with torch.no_grad():
        output = model(torch.arange(n_tokens)[None] + 3, use_cache=True, **extra)
    named = (extra.get("past_key_values"), *(output.get(n) for n in ("cache", "past_key_values", "cache_params")))
    cache = next((found for found in named if found is not None), None)
    states = list(output.get("state") or [])
    if name == "recurrent_gemma":
        names = ("conv1d_state", "recurrent_states")
        states += [getattr(module, n) for module in model.modules() for n in names if hasattr(module, n)]
    for layer in cache.layers if cache is not None else ():
        states += [t for kind in ("conv_states", "recurrent_states") for t in getattr(layer, kind, {}).values()]
    return _bytes(_keys_and_values(cache)), _bytes(states)


def _keys_and_values(cache: Any) -> Iterator[Any]:
    for layer in cache.layers if cache is not None else ():
        yield getattr(layer, "keys", None)
        yield getattr(layer, "values", None)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text"])
def test_fused_experts_read_the_hidden_size_and_write_it_back(name: str) -> None:
    """Stored as (expert, in, out) or as (expert, out, in), the way up reads 32 and the way down writes 32."""
    experts = {s.role: s for s in anatomy_from_config(CONFIGS[name]()).linears if s.role in EXPERT_ROLES}
    up, down = (experts[role] for role in EXPERT_ROLES)
    assert (up.in_features, down.out_features) == (32, 32)
    assert up.out_features == 2 * down.in_features


def test_a_matrix_that_two_layers_share_is_counted_once() -> None:
    """Zamba-style sharing: one tensor in two modules is one matrix, and nothing else changes its count for it."""
    model = _allocated("llama")
    before = anatomy_of_model(model)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    after = anatomy_of_model(model)
    assert after.n_parameters == sum(p.numel() for p in model.parameters())
    assert [s.count for s in after.linears if s.role == "mlp.up"] == [2]
    assert before.other_parameters == after.other_parameters
