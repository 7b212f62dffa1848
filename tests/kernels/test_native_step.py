"""A step program run natively gives what its reference gives: every operation, odd sizes, poisoned memory.

Seed features: S1.15
"""

import pytest
import torch

from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.native_build import NativeUnavailable, processor
from tapwb_kernels.native_step import native, reference
from tapwb_kernels.native_step.memory import StepMemory
from tapwb_kernels.native_step.program import (
    ACTIVATIONS,
    Activate,
    Add,
    Attend,
    Embed,
    Gate,
    Linear,
    Norm,
    Position,
    Rope,
    Scale,
    StepProgram,
    StoredWeight,
    View,
)

VARIANTS = {"native": (), "no tiles": ("-DTAP_NO_TILES",), "avx2": ("-march=haswell",), "portable": ("-DTAP_PORTABLE",)}
ERROR = 2e-4
"""Of a step of :func:`program_of` whose keys and values are fp32; seen over 20 draws: 0.8e-4 to 1.8e-4."""
VOCABULARY, HIDDEN = 41, 72


@pytest.fixture(scope="module")
def library(native_folder):
    """The library as this machine uses it."""
    return load_or_skip(native_folder)


def load_or_skip(folder, defines=()):
    """The library, or the reason there is none."""
    try:
        return native.load(folder, defines=defines)
    except NativeUnavailable as error:
        pytest.skip(str(error))


def noise(*shape, seed=0, scale=1.0):
    """The same random numbers on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def weight_of(out, cols, seed, *, plane_bits=(4, 1, 1, 2), group_size=24, is_rich=False):
    """A random nested weight; a rich one has a bias and corrections at two levels."""
    generator = torch.Generator().manual_seed(seed)
    groups = n_groups(cols, group_size)
    codes = torch.randint(0, 256, (out, groups, group_size), dtype=torch.uint8, generator=generator)
    step = (torch.rand(out, groups, generator=generator) / 256).half()
    low = (torch.randn(out, groups, generator=generator) * 0.05 - 128 * step.float()).half()
    refit = {bits: ((step.float() * 2 ** (8 - bits)).half(), low) for bits in (1, 2)}
    planes = split_code(codes, plane_bits)
    if not is_rich:
        return StoredWeight(planes, plane_bits, low, step, refit, cols)
    correction = {
        level: (noise(out, seed=seed + level, scale=0.1).half(), noise(out, seed=seed - level).half())
        for level in (4, 5)
    }
    return StoredWeight(planes, plane_bits, low, step, refit, cols, correction, noise(out, seed=seed + 1))


def program_of(*, head_dim=12, n_heads=6, n_kv_heads=2, window=0, softcap=0.0, activation="silu", gates=False):
    """A step with every operation: two layers of attention and feed-forward over odd sizes."""
    q_width, kv_width = n_heads * head_dim, n_kv_heads * head_dim
    x, normed = View("x", HIDDEN), View("normed", HIDDEN)
    ops = [
        Embed(y=x, table=weight_of(VOCABULARY, HIDDEN, 1, plane_bits=(8,)), factor=1.7),
        Position(x=x, y=x, table=noise(64, HIDDEN, seed=2, scale=0.3)),
    ]
    for layer in range(2):
        seed = 100 * (layer + 1)
        group = 2 * layer
        gate = Gate(
            x=normed,
            group=group,
            direction=noise(HIDDEN, seed=seed + 20, scale=0.2) if layer else None,
            slope=0.4,
            offset=0.1,
            cuts=torch.tensor([-1.5, 0.0, 1.5], dtype=torch.float64),
            levels=(4, 5, 6, 8),
        )
        joined = View("kv", 2 * kv_width)
        ops += [
            Norm(x=x, y=normed, weight=noise(HIDDEN, seed=seed), eps=1e-5),
            *([gate] if gates else []),
            Linear(x=normed, y=View("q", q_width), weight=weight_of(q_width, HIDDEN, seed + 1), group=group),
            Linear(x=normed, y=joined, weight=weight_of(2 * kv_width, HIDDEN, seed + 2, is_rich=True), group=group),
            Norm(x=View("q", q_width), y=View("q", q_width), weight=noise(head_dim), eps=1e-6, n_heads=n_heads),
            Rope(y=View("q", q_width), n_heads=n_heads, rotary_dim=head_dim // 4 * 2, table=layer),
            Rope(y=joined.part(0, kv_width), n_heads=n_kv_heads, rotary_dim=head_dim // 4 * 2, table=layer),
            Attend(
                q=View("q", q_width),
                k=joined.part(0, kv_width),
                v=joined.part(kv_width, kv_width),
                y=View("mixed", q_width),
                layer=layer,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                factor=0.4,
                window=window if layer else 0,
                softcap=softcap,
            ),
            Linear(x=View("mixed", q_width), y=normed, weight=weight_of(HIDDEN, q_width, seed + 3), group=group + 1),
            Add(x=x, x2=normed, y=x, factor=0.5),
            Norm(x=x, y=normed, weight=noise(HIDDEN), bias=noise(HIDDEN, seed=9), eps=1e-5, is_centred=True),
            Linear(x=normed, y=View("up", 58), weight=weight_of(58, HIDDEN, seed + 4, is_rich=True), group=group + 1),
            Activate(
                x=View("up", 58).part(0, 29), x2=View("up", 58).part(29, 29), y=View("in", 29), activation=activation
            ),
            Linear(x=View("in", 29), y=normed, weight=weight_of(HIDDEN, 29, seed + 5), group=group + 1),
            Add(x=x, x2=normed, y=x),
        ]
    head = weight_of(VOCABULARY, HIDDEN, 7, plane_bits=(8,), is_rich=True)
    logits = View("logits", VOCABULARY)
    ops += [Linear(x=x, y=logits, weight=head, fixed_level=8), Scale(x=logits, y=logits, factor=0.9, softcap=6.0)]
    return StepProgram(tuple(ops), 4, logits, ((n_kv_heads, head_dim), (n_kv_heads, head_dim)))


def tables_of(head_dim):
    """Two tables of angles, as a model's own rotation would give them."""

    def tables(n):
        angles = torch.arange(n)[:, None] * torch.linspace(0.1, 1.0, head_dim // 4 * 2)[None]
        return [((angles * speed).cos(), (angles * speed).sin()) for speed in (1.0, 0.3)]

    return tables


def both(library, program, steps, *, kv_dtype=torch.float32, head_dim=12, corrections=None):
    """Logits and levels of native code and of the reference, over steps of (tokens, levels)."""
    made = native.NativeProgram(library, program)
    memory = StepMemory(program.memory_shapes, tables_of(head_dim), dtype=kv_dtype, capacity=3)
    slots = program.slots()
    keys = [torch.zeros(heads, 0, dim, dtype=kv_dtype) for heads, dim in program.memory_shapes]
    values = [tensor.clone() for tensor in keys]
    found = []
    for tokens, levels in steps:
        for name in slots:
            made.slot(name).fill_(float("nan"))
        start = memory.length
        actual_levels, n_rows = levels.to(torch.int32).contiguous(), len(tokens)
        actual = made.run(tokens, actual_levels, memory, corrections=corrections)
        step = reference.ReferenceStep(
            slots={name: torch.full((n_rows, width), float("nan")) for name, width in slots.items()},
            token_ids=torch.tensor(tokens),
            position=start,
            levels=levels.clone(),
            keys=keys,
            values=values,
            tables=list(tables_of(head_dim)(64)),
            corrections=corrections,
        )
        found.append((actual, reference.run(program, step), actual_levels.long(), step.levels))
    return found


def relative(actual, expected):
    """As a share of the norm of what is right; NaN is infinite."""
    error = float((actual.double() - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def steps_of(sizes, levels=(4, 5, 6, 8)):
    """Random tokens with random levels of each group and row."""
    generator = torch.Generator().manual_seed(3)
    for size in sizes:
        tokens = torch.randint(0, VOCABULARY, (size,), generator=generator).tolist()
        yield tokens, torch.tensor(levels)[torch.randint(0, len(levels), (4, size), generator=generator)]


@pytest.mark.parametrize("variant", ["native", "no tiles", pytest.param("avx2", marks=pytest.mark.slow), "portable"])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16], ids=str)
def test_steps_of_one_to_eight_rows_give_what_the_reference_gives(native_folder, variant, kv_dtype):
    """Each row and group at a level of its own, memory that grows on the way, on several instruction sets.

    With fp16 keys and values the bound is that of a whole model: a number between two halves may be kept as either.
    """
    if variant == "avx2" and "avx2" not in processor():
        pytest.skip("this processor has no AVX2")
    library = load_or_skip(native_folder, VARIANTS[variant])
    assert variant in ("native", "no tiles", library.instructions.lower().split()[0])
    bound = ERROR if kv_dtype == torch.float32 else native.RELATIVE_ERROR
    for actual, expected, _, _ in both(library, program_of(), steps_of((1, 8, 3, 2, 5, 7, 4, 6, 1)), kv_dtype=kv_dtype):
        assert relative(actual, expected) <= bound


@pytest.mark.parametrize("level", range(1, 9))
def test_every_level_is_read_as_the_reference_reads_it(library, level):
    """1 and 2 bits by their own scale, corrections where there are some.

    The bound is that of a whole model: these weights are noise, and at few bits they make an error larger.
    """
    for actual, expected, _, _ in both(library, program_of(), steps_of((3, 1), (level,))):
        assert relative(actual, expected) <= native.RELATIVE_ERROR


@pytest.mark.parametrize(
    "shape",
    [
        {"head_dim": 8, "n_heads": 9, "n_kv_heads": 1},
        {"head_dim": 40, "n_heads": 3, "n_kv_heads": 3},
        {"head_dim": 32, "n_heads": 10, "n_kv_heads": 2, "window": 3},
        {"head_dim": 20, "n_heads": 4, "n_kv_heads": 2, "window": 5, "softcap": 2.0},
    ],
    ids=str,
)
def test_heads_of_any_number_and_width_attend_alike(library, shape):
    """Shared keys, columns that do not fill eight, windows, capped scores."""
    program = program_of(**shape)
    for actual, expected, _, _ in both(library, program, steps_of((4, 1, 6, 1, 8)), head_dim=shape["head_dim"]):
        assert relative(actual, expected) <= ERROR


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_that_of_pytorch(library, activation):
    """Gated, on a width that does not fill eight."""
    for actual, expected, _, _ in both(library, program_of(activation=activation), steps_of((2, 1))):
        assert relative(actual, expected) <= ERROR


def test_gates_decide_as_the_reference_decides(library):
    """Levels by what a layer is fed, moved by corrections; planned groups keep theirs."""
    program, corrections = program_of(gates=True), torch.tensor([0.1, 0.0, -0.2, 0.0], dtype=torch.float64)
    seen = set()
    for actual, expected, mine, theirs in both(library, program, steps_of((1, 8, 5, 8)), corrections=corrections):
        assert torch.equal(mine, theirs)
        assert relative(actual, expected) <= ERROR
        seen |= set(mine[2].tolist())
    assert len(seen) >= 3
    for infinite, level in ((float("inf"), 4), (float("-inf"), 8)):
        moved = torch.full((4,), infinite, dtype=torch.float64)
        assert all(
            (mine[[0, 2]] == level).all() for *_, mine, _ in both(library, program, steps_of((3,)), corrections=moved)
        )


def test_a_row_does_not_depend_on_the_rows_beside_it_or_on_threads(library):
    """To the last bit: eight rows at once, one by one, and on three threads."""
    made = native.NativeProgram(library, program_of())
    tokens = list(range(8))
    levels = torch.full((4, 8), 5, dtype=torch.int32)
    found = []
    for pieces, n_threads in (([8], 1), ([1] * 8, 1), ([3, 5], 3)):
        memory, rows, start = StepMemory(made.program.memory_shapes, tables_of(12), capacity=2), [], 0
        for size in pieces:
            part = levels[:, :size].contiguous()
            rows.append(made.run(tokens[start : start + size], part, memory, n_threads=n_threads))
            start += size
        found.append(torch.cat(rows))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_memory_grows_by_doubling_and_can_be_taken_back(library):
    """The tokens that are in it stay; what is taken back is as if it had never been."""
    made = native.NativeProgram(library, program_of())
    memory = StepMemory(made.program.memory_shapes, tables_of(12), dtype=torch.float16, capacity=2)
    one = torch.full((4, 1), 8, dtype=torch.int32)
    logits = [made.run([token], one, memory) for token in (1, 2, 3, 4, 5)]
    assert (memory.length, memory.capacity) == (5, 8)
    assert memory.nbytes() == 2 * 2 * 2 * 5 * 2 * 12
    memory.length = 2
    made.run([9, 9], torch.full((4, 2), 4, dtype=torch.int32), memory)
    memory.length = 2
    assert torch.equal(made.run([3], one, memory), logits[2])


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "half"])
@pytest.mark.parametrize("variant", ["native", "portable"])
def test_vectorized_functions_stay_within_their_bounds(native_folder, name, variant):
    """Exp and sigmoid to 3e-7 of their value, tanh to 3e-7; halves are rounded exactly as PyTorch rounds them."""
    library = load_or_skip(native_folder, VARIANTS[variant])
    edges = [0.0, -0.0, 6e-8, 2e-8, 3e-8, 6.1e-5, 65504.0, 65519.9, 65520.0, 1e30, -1e30, 88.0, -86.9]
    x = torch.cat([torch.linspace(-86, 86, 30011), noise(2000, scale=1e-3), torch.tensor(edges)])
    y = library.function(name, x)
    if name == "half":
        assert torch.equal(y, x.half().float())
        assert library.function("half", torch.tensor([float("nan")])).isnan()
        return
    x = x[x.abs() <= 86]
    expected, y = getattr(torch, name)(x.double()), library.function(name, x).double()
    bound = 3e-7 * (1.0 if name == "tanh" else expected.abs())
    assert bool(((y - expected).abs() <= bound).all())
    special = torch.tensor([float("nan"), float("-inf"), -1e4, 1e4])
    found = library.function(name, special)
    assert found[0].isnan()
    assert found[1:].isfinite().all()
    assert float(found[2]) == pytest.approx(-1.0 if name == "tanh" else 0.0, abs=1e-37)


@pytest.mark.parametrize(
    ("tokens", "levels"),
    [([VOCABULARY], [[8]] * 4), ([-1], [[8]] * 4), ([1], [[9]] * 4), ([1], [[0]] * 4), ([1] * 9, [[8] * 9] * 4)],
    ids=["token too large", "token below zero", "level too high", "level too low", "too many rows"],
)
def test_what_would_be_read_beyond_its_table_is_refused(library, tokens, levels):
    """Before anything runs; the memory stays as it was."""
    made = native.NativeProgram(library, program_of())
    memory = StepMemory(made.program.memory_shapes, tables_of(12))
    with pytest.raises(ValueError, match=r"do not fit the program\. Give 1 to 8 tokens"):
        made.run(tokens, torch.tensor(levels, dtype=torch.int32), memory)
    assert memory.length == 0


def test_arguments_of_another_shape_are_refused(library):
    """With what came and what is allowed."""
    made = native.NativeProgram(library, program_of())
    memory = StepMemory(made.program.memory_shapes, tables_of(12))
    with pytest.raises(ValueError, match="are not int32 of"):
        made.run([1], torch.full((3, 1), 8, dtype=torch.int32), memory)
    with pytest.raises(ValueError, match="are not fp64 of 4"):
        made.run([1], torch.full((4, 1), 8, dtype=torch.int32), memory, corrections=torch.zeros(4))
    with pytest.raises(ValueError, match=r"Use torch\.float32 or torch\.float16"):
        StepMemory(made.program.memory_shapes, tables_of(12), dtype=torch.bfloat16)


def test_a_program_whose_parts_do_not_fit_is_refused(library):
    """A weight of another width than its slots; heads that do not share evenly; columns outside a slot."""
    x, y, weight = View("x", 8), View("y", 8), weight_of(8, 9, 1, group_size=16)
    with pytest.raises(ValueError, match="a weight of 8 x 9 does not fit its slots"):
        native.NativeProgram(library, StepProgram((Linear(x=x, y=y, weight=weight),), 1, y, ()))
    attend = Attend(
        q=View("q", 20), k=View("k", 12), v=View("v", 12), y=y, layer=0, n_heads=5, n_kv_heads=3, factor=1.0
    )
    with pytest.raises(ValueError, match="5 heads do not share 3"):
        native.NativeProgram(library, StepProgram((attend,), 1, y, ((3, 4),)))
    with pytest.raises(ValueError, match="lie outside the 8 of slot x"):
        x.part(4, 5)


def test_one_row_may_ask_for_the_first_logits_only(library):
    """They are the same to the last bit, the cache too; several rows get all of them."""
    program = program_of()
    made = native.NativeProgram(library, program)
    memories = [StepMemory(program.memory_shapes, tables_of(12), capacity=3) for _ in range(2)]
    levels = torch.full((4, 1), 5, dtype=torch.int32)
    for token in (3, 1, 4):
        whole = made.run([token], levels, memories[0])
        made.slot("logits").fill_(float("nan"))
        short = made.run([token], levels, memories[1], n_outputs=18)
        assert short.shape == (1, 18)
        assert torch.equal(short, whole[:, :18])
    pair = made.run([1, 5], levels.expand(4, 2).contiguous(), memories[1], n_outputs=18)
    assert pair.shape == (2, VOCABULARY)
    assert torch.equal(pair, made.run([1, 5], levels.expand(4, 2).contiguous(), memories[0]))
