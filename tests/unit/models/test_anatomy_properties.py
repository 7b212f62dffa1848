"""Laws of byte counting that hold for every anatomy, whatever its shape."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.models.anatomy_records import CacheSpec, LinearSpec, ModelAnatomy, StateSpec

LEVELS = (1, 2, 3, 4, 5, 6, 8)
FEATURES = st.integers(1, 700)
CACHES = st.builds(
    CacheSpec,
    layer=st.integers(0, 9),
    kind=st.just("full"),
    kv_heads=st.integers(1, 9),
    key_dim=st.integers(1, 200),
    value_dim=st.integers(0, 200),
    window=st.none() | st.integers(2, 300),
    expanded_dim=st.integers(0, 500),
)
LINEARS = st.builds(
    LinearSpec,
    role=st.sampled_from(["attention.query", "mlp.down", "expert.up", "head"]),
    in_features=FEATURES,
    out_features=FEATURES,
    count=st.integers(1, 40),
    layers=st.lists(st.integers(0, 9)).map(tuple),
    bias=st.booleans(),
)
STATES = st.builds(StateSpec, layer=st.integers(0, 9), kind=st.just("mamba"), shape=st.tuples(FEATURES, FEATURES))


@st.composite
def anatomies(draw: st.DrawFn) -> ModelAnatomy:
    """Any anatomy that could be, and some that could not."""
    vocab, hidden = draw(st.integers(1, 900)), draw(FEATURES)
    return ModelAnatomy(
        model_type="drawn",
        n_layers=draw(st.integers(1, 9)),
        hidden_size=hidden,
        vocab_size=vocab,
        context_length=draw(st.integers(1, 10**6) | st.none()),
        linears=tuple(draw(st.lists(LINEARS, max_size=6))),
        caches=tuple(draw(st.lists(CACHES, max_size=6))),
        states=tuple(draw(st.lists(STATES, max_size=4))),
        tied_embedding=draw(st.booleans()),
        embedding_parameters=vocab * hidden,
        other_parameters=draw(st.integers(0, 10**6)),
    )


@given(anatomies())
def test_sixteen_bits_are_two_bytes_a_parameter(anatomy: ModelAnatomy) -> None:
    """At 16 and 32 bits there are no scales and no padding."""
    assert anatomy.weights_bytes(16) == 2 * anatomy.n_parameters
    assert anatomy.weights_bytes(32) == 4 * anatomy.n_parameters


@given(anatomies(), st.sampled_from([8, 16, 64, 128]))
def test_more_bits_never_weigh_less(anatomy: ModelAnatomy, group_size: int) -> None:
    """Weights grow with the level, whatever the group size."""
    sizes = [anatomy.weights_bytes(bits, group_size=group_size) for bits in LEVELS]
    assert sizes == sorted(sizes)


@given(anatomies())
def test_whole_groups_at_eight_bits_weigh_less_than_sixteen(anatomy: ModelAnatomy) -> None:
    """Where no group is padded, 8 bits plus scales are 17/32 of 16 bits for every matrix."""
    whole = [
        LinearSpec(s.role, 64 * s.in_features, s.out_features, s.count) for s in anatomy.linears if s.role != "head"
    ]
    matrices = ModelAnatomy("t", 1, 1, 1, 1, tuple(whole), (), (), False, 0, 0)
    assert 32 * matrices.weights_bytes(8) == 17 * matrices.weights_bytes(16)


@given(anatomies(), st.lists(st.integers(0, 5000), min_size=2, max_size=5), st.sampled_from([*LEVELS, 16, 32]))
def test_the_cache_never_shrinks_as_the_text_grows(anatomy: ModelAnatomy, lengths: list[int], bits: int) -> None:
    """More tokens never take fewer bytes, at any width, and no tokens take none."""
    sizes = [anatomy.kv_bytes(n, bits, full_precision_tokens=132) for n in sorted(lengths)]
    assert sizes == sorted(sizes)
    assert anatomy.kv_bytes(0, bits) == 0


@given(anatomies(), st.integers(0, 5000))
def test_cache_widths_are_ordered(anatomy: ModelAnatomy, n_tokens: int) -> None:
    """Among quantized widths, and between 16 and 32 bits, wider never takes less."""
    quantized = [anatomy.kv_bytes(n_tokens, bits) for bits in LEVELS]
    assert quantized == sorted(quantized)
    assert anatomy.kv_bytes(n_tokens, 32) == 2 * anatomy.kv_bytes(n_tokens, 16)


@given(anatomies(), st.integers(1, 5000))
def test_a_full_cache_is_linear_in_tokens(anatomy: ModelAnatomy, n_tokens: int) -> None:
    """Without windows, n tokens take n times the bytes of one."""
    full = tuple(CacheSpec(c.layer, "full", c.kv_heads, c.key_dim, c.value_dim) for c in anatomy.caches)
    plain = ModelAnatomy("t", 1, 1, 1, 1, (), full, (), False, 0, 0)
    assert plain.kv_bytes(n_tokens) == n_tokens * plain.kv_bytes(1)


@given(anatomies())
@settings(max_examples=50)
def test_an_anatomy_is_the_same_after_json(anatomy: ModelAnatomy) -> None:
    """Every field survives a JSON document."""
    assert ModelAnatomy.from_json(json.dumps(anatomy.to_json())) == anatomy
