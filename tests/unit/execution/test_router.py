"""A router decides inside the pass: the same arithmetic as a plan with its levels, prompt or decode, and on disk."""

import pytest
import torch

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.execution.layer_groups import GroupBytes, assign_layer_groups, bytes_read
from tapwb.execution.linear import TokenAdaptiveExperts, TokenAdaptiveLinear
from tapwb.execution.nest import nest_model
from tapwb.execution.router import HELD_FROM_TOKENS, LayerRouter, Routing
from tapwb.execution.router_file import load_router, save_router
from tapwb.models.tiny import tiny_model
from tapwb.plan.layer_damage import LayerDamage
from tapwb.quant.nested import layout_for_levels

LEVELS = (3, 4, 5, 6, 8)


def router_for(nested, seed=0) -> LayerRouter:
    """Random gates of the right shapes, with cuts set on random inputs."""
    g = torch.Generator().manual_seed(seed)
    groups = assign_layer_groups(nested)
    widths = {}
    for module in nested.model.modules():
        if isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is None:
            widths[int(module.layer_fraction * len(groups) + 1e-6)] = module.in_features
        elif isinstance(module, TokenAdaptiveExperts):
            widths[int(module.layer_fraction * len(groups) + 1e-6)] = module.gate_up[0].cols
    n = len(groups)
    directions = tuple((0.2 * torch.randn(widths[i], generator=g)).half() for i in range(n))
    quantiles = torch.stack([1.2 * torch.randn(200, generator=g).sort().values for _ in range(n)])
    nats = 0.3 * torch.rand(n, 1, generator=g, dtype=torch.float64) + 0.01
    layers = LayerDamage(
        tuple(group.name for group in groups), tuple(group.n_weights for group in groups), (4,), nats, {4: 1.0, 8: 0.01}
    )
    return LayerRouter(directions, 0.1 * torch.randn(n, generator=g), torch.zeros(n), quantiles, layers, {"a": [1]})


@pytest.fixture(scope="module")
def nested():
    """A tiny llama, readable at all levels."""
    return nest_model(tiny_model("llama").model, layout=layout_for_levels(LEVELS))


@pytest.fixture(scope="module")
def router(nested) -> LayerRouter:
    """Random gates for it."""
    return router_for(nested)


def ids_of(*shape, seed=1):
    """Random token ids."""
    return torch.randint(0, 250, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def run(nested, ids, bits):
    """Logits of one pass."""
    with nested.context.use(bits):
        return nested.model(ids, use_cache=False).logits


@pytest.mark.parametrize(("shape", "hold"), [((1, 48), True), ((3, 40), True), ((2, 9), True), ((1, 48), False)])
def test_a_routed_pass_is_bit_for_bit_a_plan_with_its_levels(nested, router, shape, hold):
    """Rows are grouped by level and multiplied as for any plan of shape (layer_group, row)."""
    ids, routing = ids_of(*shape), Routing(router, 4.5, LEVELS, hold=hold)
    routed = run(nested, ids, routing)
    plan = torch.stack([torch.cat(routing._chosen[group]) for group in range(router.layers.n_groups)])
    assert plan.unique().numel() > 2, "several levels, or nothing is tested"
    assert torch.equal(routed, run(nested, ids, plan))
    assert not torch.equal(routed, run(nested, ids, 5))


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "phi3"])
def test_experts_and_fused_projections_are_routed_as_well(family):
    """Every family: the levels of an expert's tokens travel with them."""
    other = nest_model(tiny_model(family).model, layout=layout_for_levels(LEVELS))
    routing = Routing(router_for(other), 5.0, LEVELS)
    ids = ids_of(1, 40)
    routed = run(other, ids, routing)
    plan = torch.stack([torch.cat(routing._chosen[group]) for group in range(routing.router.layers.n_groups)])
    assert torch.equal(routed, run(other, ids, plan))
    assert routing.finish_pass(40).mean_bits == pytest.approx(5.0, rel=0.02)


def test_a_prompt_keeps_the_mean_that_was_asked_for(nested, router):
    """Within 2 %, in each sequence of a batch, on inputs the gates' cuts were not set on."""
    for mean in (4.0, 4.5, 5.5):
        routing = Routing(router, mean, LEVELS)
        run(nested, ids_of(2, 100), routing)
        done = routing.finish_pass(200)
        assert done.token_bits.reshape(2, 100).mean(dim=1).tolist() == pytest.approx([mean, mean], rel=0.02)
        assert sum(done.histogram.values()) == 200 * router.layers.n_groups


def test_a_token_alone_is_decided_as_among_others(nested, router):
    """By the calibrated cuts, one row gives the gate's very number and level that it gives within a prompt."""
    generator = torch.Generator().manual_seed(5)
    for group, direction in enumerate(router.directions):
        x = torch.randn(1, 30, direction.numel(), generator=generator)
        fraction = (group + 0.5) / router.layers.n_groups
        together = Routing(router, 4.5, LEVELS).levels_of(x, fraction)
        alone = torch.cat([Routing(router, 4.5, LEVELS).levels_of(x[:, t : t + 1], fraction) for t in range(30)])
        assert torch.equal(router.log_factor(group, x)[0, 7], router.log_factor(group, x[:, 7:8])[0, 0])
        assert torch.equal(together, alone)


def test_decoding_goes_on_from_where_the_prompt_moved_the_cuts(nested, router):
    """A prompt on which gates say one nat more, then the same rows one by one: the same mean, by cuts that moved."""
    group, fraction = 0, 0.5 / router.layers.n_groups
    loud = LayerRouter(
        router.directions, router.slopes, router.offsets + 1.0, router.quantiles, router.layers, router.report
    )
    x = torch.randn(1, 200, router.directions[group].numel(), generator=torch.Generator().manual_seed(6))
    routing = Routing(loud, 4.5, LEVELS)
    prompt = routing.levels_of(x, fraction)
    steps = torch.cat([routing.levels_of(x[:, t : t + 1], fraction) for t in range(200)])
    assert float((prompt == steps).double().mean()) > 0.98
    unmoved = Routing(loud, 4.5, LEVELS, hold=False).levels_of(x, fraction)
    assert float(unmoved.double().mean()) > float(steps.double().mean()) + 0.3


def test_the_shuffled_control_hands_the_same_levels_to_other_tokens(nested, router):
    """As many of each level in each group and sequence, in another order, the same order every time."""
    group, fraction = 2, 2.5 / router.layers.n_groups
    x = torch.randn(2, 64, router.directions[group].numel(), generator=torch.Generator().manual_seed(7))
    own = Routing(router, 4.5, LEVELS).levels_of(x, fraction).reshape(2, 64)
    wrong = Routing(router, 4.5, LEVELS, shuffle_seed=3).levels_of(x, fraction).reshape(2, 64)
    again = Routing(router, 4.5, LEVELS, shuffle_seed=3).levels_of(x, fraction).reshape(2, 64)
    assert torch.equal(own.sort(dim=1).values, wrong.sort(dim=1).values)
    assert not torch.equal(own, wrong)
    assert torch.equal(wrong, again)
    assert HELD_FROM_TOKENS <= 64


def test_the_account_of_a_pass_weighs_groups_and_counts_bytes(nested, router):
    """Mean bits by hand, and the bytes that a plan with the same highest levels reads."""
    routing = Routing(router, 4.5, LEVELS)
    run(nested, ids_of(1, 50), routing)
    plan = torch.stack([torch.cat(routing._chosen[group]) for group in range(router.layers.n_groups)])
    done = routing.finish_pass(50)
    sizes = torch.tensor(router.layers.n_weights, dtype=torch.float64)
    assert done.token_bits.tolist() == pytest.approx(((sizes / sizes.sum()) @ plan.double()).tolist())
    assert done.histogram == {level: int((plan == level).sum()) for level in LEVELS}
    assert GroupBytes.of(nested, LEVELS).read(done.highest) == bytes_read(nested, plan)
    with pytest.raises(ExecutionError, match="no layer was routed"):
        routing.finish_pass(50)


def test_gates_are_counted(router):
    """Bytes and multiply-adds are those of the tensors that are kept."""
    widths = [direction.numel() for direction in router.directions]
    assert router.n_multiply_adds == sum(widths) + len(widths)
    assert router.n_bytes == 2 * sum(widths) + 8 * len(widths)
    cost = router.cost()
    assert cost["share_of_multiply_adds"] == pytest.approx(router.n_multiply_adds / sum(router.layers.n_weights))
    assert cost["gate_bits_per_weight"] == pytest.approx(8 * router.n_bytes / sum(router.layers.n_weights))


def test_a_router_survives_the_disk_bit_for_bit(nested, router, tmp_path):
    """Every number, the damage of the layers, the report, and the logits that come of it."""
    loaded = load_router(save_router(router, tmp_path / "a.safetensors"))
    for name in ("slopes", "offsets", "quantiles"):
        assert torch.equal(getattr(loaded, name), getattr(router, name))
    assert all(torch.equal(a, b) for a, b in zip(loaded.directions, router.directions, strict=True))
    assert loaded.layers.to_json() == router.layers.to_json()
    assert dict(loaded.report) == {"a": [1]}
    ids = ids_of(1, 40)
    assert torch.equal(run(nested, ids, Routing(loaded, 4.5, LEVELS)), run(nested, ids, Routing(router, 4.5, LEVELS)))


def test_other_files_and_other_inputs_are_refused(router, tmp_path):
    """One line that says what to do."""
    with pytest.raises(UsageError, match=r"no router file.*tapwb train-router"):
        load_router(tmp_path / "absent.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no layer router"):
        load_router(tmp_path / "b.safetensors")
    with pytest.raises(ExecutionError, match="its layer got 3"):
        router.log_factor(0, torch.zeros(2, 3))
    with pytest.raises(UsageError, match="does not fit"):
        LayerRouter(router.directions[:-1], router.slopes, router.offsets, router.quantiles, router.layers)


def test_a_group_without_a_gate_treats_all_tokens_alike(nested, router):
    """One level for the whole group, by its measured damage."""
    directions = (torch.empty(0, dtype=torch.float16), *router.directions[1:])
    quantiles = torch.cat([torch.zeros(1, 200), router.quantiles[1:]])
    static = LayerRouter(directions, router.slopes, router.offsets, quantiles, router.layers)
    bits = Routing(static, 4.5, LEVELS, hold=False).levels_of(torch.randn(1, 9, 64), 0.0)
    assert bits.unique().numel() == 1
    assert static.n_multiply_adds < router.n_multiply_adds
