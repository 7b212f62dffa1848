"""Tiny random models of every family with recurrent layers, odd in size and with nothing at its initial value."""

import copy
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tapwb.models.anatomy import anatomy_from_config
from tapwb.models.info import LoadedModel, ModelInfo
from tapwb.models.tokenizer_bytes import byte_tokenizer

BASE = {"vocab_size": 257, "hidden_size": 40, "max_position_embeddings": 512}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SSM = {"vocab_size": 257, "hidden_size": 40, "num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4}
SSD = {"mamba_n_heads": 5, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}

FAMILIES: dict[str, Callable[[], Any]] = {
    "mamba": lambda: hf.MambaConfig(**SSM),
    "falcon_mamba": lambda: hf.FalconMambaConfig(**SSM),
    "mamba2": lambda: hf.Mamba2Config(
        **SSM, num_heads=10, head_dim=8, n_groups=2, chunk_size=16, time_step_limit=(0.01, 2.0)
    ),
    "jamba": lambda: hf.JambaConfig(
        **BASE, **HEADS, num_hidden_layers=4, attn_layer_period=4, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=8, mamba_dt_rank=4,
    ),
    "bamba": lambda: hf.BambaConfig(**BASE, **HEADS, **SSD, num_hidden_layers=3, attn_layer_indices=[1]),
    "falcon_h1": lambda: hf.FalconH1Config(
        **BASE, **HEADS, **SSD, num_hidden_layers=2, mamba_d_ssm=80, ssm_multipliers=[0.5, 1.5, 0.7, 1.2, 0.9],
        ssm_in_multiplier=1.25,
    ),
    "falcon_h1-no-norm": lambda: hf.FalconH1Config(
        **BASE, **HEADS, **SSD, num_hidden_layers=2, mamba_d_ssm=80, mamba_rms_norm=False
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        vocab_size=257, hidden_size=40, layers_block_type=["mamba", "attention", "mlp", "mamba"], num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=56, mamba_num_heads=4, mamba_head_dim=16, n_groups=2,
        ssm_state_size=8, chunk_size=16,
    ),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        **BASE, **HEADS, **SSD, layer_types=["mamba", "attention", "mamba"], num_hidden_layers=3, num_local_experts=4,
        num_experts_per_tok=2, shared_intermediate_size=24,
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **BASE, **HEADS, **EXPERTS, num_hidden_layers=4, head_dim=16, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_num_value_heads=4, linear_value_head_dim=16, shared_expert_intermediate_size=24,
    ),
    "lfm2": lambda: hf.Lfm2Config(
        **BASE, **HEADS, num_hidden_layers=3, conv_L_cache=3, layer_types=["conv", "full_attention", "conv"]
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        vocab_size=257, hidden_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
        intermediate_size=112, lru_width=40, attention_window_size=8, conv1d_width=4,
    ),
    "rwkv": lambda: hf.RwkvConfig(
        vocab_size=257, hidden_size=40, num_hidden_layers=4, attention_hidden_size=40, context_length=512,
        rescale_every=2,
    ),
}  # fmt: skip
FAMILY_NAMES = tuple(FAMILIES)


@functools.cache
def _original(name: str) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(FAMILY_NAMES.index(name))
        model = hf.AutoModelForCausalLM.from_config(FAMILIES[name](), dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
        if name == "rwkv":
            model(torch.tensor([[1, 2, 3]]))  # transformers rescales weights at the first pass
    return model


@pytest.fixture(params=FAMILY_NAMES)
def family(request) -> str:
    """Every family in turn."""
    return str(request.param)


@pytest.fixture
def original() -> Callable[[str], Any]:
    """A fresh copy of transformers' model of a family."""
    return lambda name: copy.deepcopy(_original(name))


@pytest.fixture
def loaded() -> Callable[[str], LoadedModel]:
    """A fresh copy as the engine takes it."""

    def load(name: str) -> LoadedModel:
        model = copy.deepcopy(_original(name))
        info = ModelInfo(
            id=f"tiny-{name}", title=name, revision="0", checksum_sha256=f"{hash(name):064x}"[-64:], path=Path(),
            source="tiny", licence="apache-2.0",
        )  # fmt: skip
        return LoadedModel(model, byte_tokenizer(), anatomy_from_config(model.config), info, "cpu", "float32")

    return load


@pytest.fixture
def folder(tmp_path) -> Callable[[str], Path]:
    """A folder with a model of a family and its tokenizer."""

    def write(name: str) -> Path:
        _original(name).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
        return Path(tmp_path / name)

    return write


@pytest.fixture
def far() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """How far one tensor is from another, as a share of the norm of the other."""
    return lambda found, expected: float((found - expected).norm() / expected.norm())


@pytest.fixture
def cuts() -> Callable[[int, int], list[list[int]]]:
    """Ways to cut so many tokens into passes: all at once, one by one, and at random points."""

    def ways(n_tokens: int, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        points = torch.randperm(n_tokens - 1, generator=generator)[: n_tokens // 6].add(1).sort().values.tolist()
        return [[n_tokens], list(range(1, n_tokens + 1)), [*points, n_tokens]]

    return ways


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """No hub is asked."""
    before = os.environ.get("TAPWB_HUB")
    os.environ["TAPWB_HUB"] = "off"
    yield
    if before is None:
        del os.environ["TAPWB_HUB"]
    else:
        os.environ["TAPWB_HUB"] = before
