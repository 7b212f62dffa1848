"""The anatomy of a model: made from a configuration alone, exact in its counts, quick, and without side effects."""

import time

import pytest
import torch
import transformers as hf

from tapwb.core.errors import UnsupportedBits, UnsupportedModel, UsageError
from tapwb.core.units import parse_parameters
from tapwb.models.anatomy import (
    CacheSpec,
    LinearSpec,
    ModelAnatomy,
    anatomy_from_config,
    anatomy_from_parameters,
    meta_model,
)
from tapwb.models.linear_sites import layer_index, role_of
from tapwb.models.published_shapes import PUBLISHED_SHAPES, PublishedShape, published_shape


def test_a_7b_configuration_is_described_within_a_second_and_without_its_weights() -> None:
    """Llama-2-7B: the published 6,738,415,616 parameters, and not one parameter with storage."""
    anatomy_from_config(hf.LlamaConfig(num_hidden_layers=1))  # the first call imports the model's code
    start = time.perf_counter()
    anatomy = anatomy_from_config(hf.LlamaConfig())
    assert time.perf_counter() - start < 1
    assert anatomy.n_parameters == 6_738_415_616
    assert {p.device.type for p in meta_model(hf.LlamaConfig()).parameters()} == {"meta"}


def test_published_totals_come_out() -> None:
    """Mixtral-8x7B and DeepSeek-V3 have the parameter counts that their authors publish."""
    assert round(anatomy_from_config(hf.MixtralConfig()).n_parameters / 1e9, 1) == 46.7
    assert round(anatomy_from_config(hf.DeepseekV3Config()).n_parameters / 1e9) == 671


def test_latent_attention_is_the_latent_unless_asked_for_the_expansion() -> None:
    """DeepSeek-V3: (512 + 64) numbers a layer and token in the cache; 128 heads of 192 + 128 when expanded."""
    anatomy = anatomy_from_config(hf.DeepseekV3Config())
    assert anatomy.kv_bytes(1) == 61 * (512 + 64) * 2
    assert anatomy.kv_bytes(1, expanded=True) == 61 * 128 * (192 + 128) * 2


def test_a_sliding_layer_keeps_one_token_less_than_its_window() -> None:
    """A query sees itself too, so a window of 4096 keeps 4095 earlier tokens, and never more."""
    cache = CacheSpec(0, "sliding", 8, 128, 128, window=4096)
    assert [cache.kept_tokens(n) for n in (0, 4095, 4096, 100_000)] == [0, 4095, 4095, 4095]


def test_making_an_anatomy_changes_neither_configuration_nor_random_state() -> None:
    """A planner may be asked at any time; it must not disturb a seeded run."""
    config = hf.Qwen2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
    before, seed_state = config.to_dict(), torch.get_rng_state()
    anatomy_from_config(config)
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), seed_state)


def test_a_configuration_that_is_no_decoder_is_refused_in_one_line() -> None:
    """An encoder-decoder has no causal language model; the message names it and what to use."""
    with pytest.raises(UnsupportedModel, match=r"'t5'.*decoder that transformers knows"):
        anatomy_from_config(hf.T5Config())


def test_experts_count_one_by_one() -> None:
    """A fused block of four experts in three layers is twelve matrices of each kind."""
    config = hf.MixtralConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, num_local_experts=4,
    )  # fmt: skip
    experts = [spec for spec in anatomy_from_config(config).linears if spec.role.startswith("expert")]
    assert [(s.role, s.in_features, s.out_features, s.count, s.layers) for s in experts] == [
        ("expert.gate_up", 32, 96, 12, (0, 1, 2)),
        ("expert.down", 48, 32, 12, (0, 1, 2)),
    ]


def test_a_tied_head_is_listed_but_not_paid_twice() -> None:
    """The head multiplies, so it is among the linears; its numbers are the embedding's."""
    tied = hf.LlamaConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
                          intermediate_size=128, tie_word_embeddings=True)  # fmt: skip
    untied = hf.LlamaConfig(**tied.to_dict() | {"tie_word_embeddings": False})
    a, b = anatomy_from_config(tied), anatomy_from_config(untied)
    assert (a.tied_embedding, b.tied_embedding) == (True, False)
    assert [s.role for s in a.linears] == [s.role for s in b.linears]
    assert b.n_parameters - a.n_parameters == 64 * 1000


def test_nested_bytes_are_planes_plus_four_bytes_a_group() -> None:
    """One 5 x 130 matrix, groups of 64: three groups a row (the last padded), 36 or 68 bytes each."""
    anatomy = ModelAnatomy("t", 1, 130, 1, 1, (LinearSpec("mlp.up", 130, 5),), (), (), False, 0, 7)
    assert anatomy.weights_bytes(4) == 5 * 3 * (32 + 4) + 7 * 2
    assert anatomy.weights_bytes(8) == 5 * 3 * (64 + 4) + 7 * 2
    assert anatomy.weights_bytes(8, group_size=128) == 5 * 2 * (128 + 4) + 7 * 2


def test_tables_of_a_nested_model_stay_at_eight_bits_unless_told() -> None:
    """Embedding and head have their own widths, 8 by default whatever the matrices have."""
    head = LinearSpec("head", 64, 10)
    anatomy = ModelAnatomy("t", 1, 64, 10, 1, (head,), (), (), False, 640, 0)
    assert anatomy.weights_bytes(4) == 2 * 10 * (64 + 4)
    assert anatomy.weights_bytes(4, embedding_bits=16) == 10 * 128 + 10 * (64 + 4)
    assert anatomy.weights_bytes(4, head_bits=4, embedding_bits=16) == 10 * 128 + 10 * (32 + 4)


@pytest.mark.parametrize("bits", [0, 0.5, 9, 12, 17, 64])
def test_widths_that_nothing_stores_are_refused(bits: float) -> None:
    """Between 8 and 16 bits there is no format; the message says which widths there are."""
    anatomy = anatomy_from_parameters("135M")
    with pytest.raises(UnsupportedBits, match="1 to 8"):
        anatomy.weights_bytes(bits)
    with pytest.raises(UnsupportedBits, match="1 to 8"):
        anatomy.kv_bytes(10, bits)


def test_a_quantized_cache_pays_for_its_scales_and_its_exact_window() -> None:
    """200 tokens, 132 of them exact: 68 at 4 bits, two pages of key scales, one value scale a token and head."""
    cache = CacheSpec(0, "full", kv_heads=3, key_dim=16, value_dim=16)
    anatomy = ModelAnatomy("t", 1, 1, 1, 1, (), (cache,), (), False, 0, 0)
    expected = 132 * 96 * 2 + 68 * 96 // 2 + 4 * 3 * (2 * 16 + 68)
    assert anatomy.kv_bytes(200, 4, full_precision_tokens=132) == expected


@pytest.mark.parametrize(
    ("size", "config"),
    [
        ("7B", hf.LlamaConfig()),
        ("135M", hf.LlamaConfig(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                                num_key_value_heads=3, intermediate_size=1536, tie_word_embeddings=True)),
        ("13B", hf.LlamaConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40,
                               intermediate_size=13824)),
        ("70B", hf.LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
                               intermediate_size=28672)),
        ("20B", hf.GPTNeoXConfig()),
        ("40B", hf.FalconConfig(hidden_size=8192, num_hidden_layers=60, num_attention_heads=128, num_kv_heads=8,
                                new_decoder_architecture=True, vocab_size=65024)),
        ("120B", hf.OPTConfig(vocab_size=50000, hidden_size=10240, num_hidden_layers=96, ffn_dim=40960,
                              num_attention_heads=80, word_embed_proj_dim=10240, enable_bias=False,
                              layer_norm_elementwise_affine=False)),
    ],
    ids=["Llama-2-7B", "SmolLM2-135M", "Llama-2-13B", "Llama-2-70B", "GPT-NeoX-20B", "Falcon-40B", "Galactica-120B"],
)  # fmt: skip
def test_a_published_shape_has_the_parameters_of_the_real_configuration(size: str, config: object) -> None:
    """The table needs no transformers, and agrees with it to the last parameter."""
    assert anatomy_from_parameters(size).n_parameters == anatomy_from_config(config).n_parameters


@pytest.mark.parametrize("shape", PUBLISHED_SHAPES, ids=lambda shape: shape.model)
def test_a_published_shape_weighs_about_what_its_name_says(shape: PublishedShape) -> None:
    """Within 8 % of the size it is sold as, and labelled an estimate."""
    anatomy = anatomy_from_parameters(shape.size)
    assert anatomy.n_parameters == pytest.approx(parse_parameters(shape.size), rel=0.08)
    assert anatomy.source == f"estimated:shape of {shape.model}"


@pytest.mark.parametrize("size", ["50M", "350M", "2.8B", "9B", "30B", "180B", "1T"])
def test_a_size_between_gets_a_shape_within_two_percent(size: str) -> None:
    """No published model has these sizes; Llama's proportions are filled up to the count asked for."""
    anatomy = anatomy_from_parameters(size)
    assert published_shape(size) is None
    assert anatomy.n_parameters == pytest.approx(parse_parameters(size), rel=0.02)
    assert anatomy.source.startswith("estimated:Llama proportions")


@pytest.mark.parametrize("size", ["13X", "", "1K", "100T"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    """A count that cannot be read, or no language model has, gets one line of advice."""
    with pytest.raises(UsageError):
        anatomy_from_parameters(size)


def test_a_model_without_positions_says_that_it_has_no_limit() -> None:
    """Mamba states no context length: no limit, which is not a limit of zero."""
    assert anatomy_from_config(hf.MambaConfig(hidden_size=32, num_hidden_layers=1)).context_length is None


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.self_attn.q_proj", "attention.query"),
        ("transformer.h.0.attn.c_proj", "attention.output"),
        ("transformer.h.0.mlp.c_proj", "mlp.down"),
        ("model.layers.1.mlp.experts.down_proj", "expert.down"),
        ("model.layers.1.mlp.shared_experts.up_proj", "shared_expert.up"),
        ("model.layers.1.mlp.shared_expert_gate", "expert.router"),
        ("model.layers.1.strange_thing", "other.strange_thing"),
    ],
)
def test_roles_come_from_the_names_modules_have(name: str, role: str) -> None:
    """One table of names serves all families; what it does not know is called other."""
    assert role_of(name) == role


def test_the_layer_is_the_first_number_in_a_name() -> None:
    """Expert numbers come later in the name; modules outside the layers have none."""
    assert [layer_index(n) for n in ("model.layers.12.mlp.experts.3.w1", "h.7", "lm_head")] == [12, 7, None]
