"""Files of rwkv.cpp: read exactly, refused with reasons when damaged; and the RWKV models that come from them."""

import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.core.errors import CorruptWeights, EmptyPrompt, ModelNotFound, TapError, UnsupportedModel
from tapwb.models.rwkv import RwkvModel, RwkvSizes, RwkvState, load_rwkv
from tapwb.models.rwkv.v4 import block4, wkv4
from tapwb.models.rwkv.v5 import block5, wkv5
from tapwb.models.rwkv.v7 import block7, wkv7
from tapwb.models.rwkv_file import open_rwkv

MAGIC = 0x67676D66
VERSIONS = ["4", "5.2", "7"]
PUBLISHED = {"4": "4v0-660K", "5.2": "5v2-730K", "7": "7v0-834K"}
# rwkv.cpp's own test: the logits after these three bytes, one token each.
PROMPT = b'"in'
TEXT = b"in a hole in the ground there lived"
# Axes of size 1 that the converter leaves, by the end of the name: torch shape in the file from the plain shape.
PADDED = {
    "time_decay": lambda t: t[..., None] if t.ndim == 2 else t,
    "time_faaaa": lambda t: t[..., None],
    "x_rwkvag": lambda t: t[:, None],
} | dict.fromkeys(("w0", "a0", "v0", "k_k", "k_a", "x_k"), lambda t: t[None, None])


def tiny(version: str) -> RwkvModel:
    """A small model of two layers with random weights."""
    heads = 1 if version == "4" else 2
    ranks = {"w": 3, "a": 4, "v": 2, "g": 5} if version == "7" else {}
    sizes = RwkvSizes(vocabulary=11, width=8, layers=2, feed_forward=12, heads=heads, ranks=ranks)
    block = {"4": block4, "5.2": block5, "7": block7}[version]
    model = RwkvModel(version, sizes, [block(sizes, layer) for layer in range(sizes.layers)])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.4, generator=generator)
            if name.endswith("time_decay"):
                parameter.copy_(-parameter.exp() if version == "4" else torch.exp(-parameter.exp()))
            if ".ln" in name and name.endswith(".weight"):
                parameter.add_(1)
    return model.eval()


def stored(model: RwkvModel) -> dict[str, np.ndarray]:
    """The parameters under the names and in the shapes that rwkv.cpp's converter gives them."""
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if leaf[:-1] in {"w", "a", "v", "g"}:
            name = name.removesuffix(".weight")
        tensors[name] = PADDED.get(leaf, lambda t: t)(values)
    return tensors


def write(path: Path, tensors: dict[str, np.ndarray], *, layers: int = 2, vocabulary: int = 11, width: int = 8) -> Path:
    """Write a file of rwkv.cpp; float16 arrays are stored as such."""
    parts = [struct.pack("<6I", MAGIC, 101, vocabulary, width, layers, 0)]
    for name, values in tensors.items():
        label = name.encode()
        shape = tuple(reversed(values.shape))
        kind = 1 if values.dtype == np.float16 else 0
        parts.append(struct.pack(f"<3I{len(shape)}I", len(shape), len(label), kind, *shape))
        parts += [label, np.ascontiguousarray(values).tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def entry(data: bytes, name: str) -> int:
    """Offset of a tensor's entry: three numbers, the dimensions, the name."""
    at = data.index(name.encode())
    return next(start for n in range(1, 5) if struct.unpack_from("<I", data, start := at - 4 * n - 12)[0] == n)


def patched(path: Path, offset: int, number: int) -> Path:
    """The file with one uint32 replaced."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, offset, number)
    path.write_bytes(data)
    return path


def refusal(path: Path, kind: type[TapError]) -> str:
    """The message with which ``path`` is refused: one line that names the file and says what to do."""
    with pytest.raises(kind) as caught:
        load_rwkv(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert any(way in message for way in ("Fetch the file again", "Give ", "Convert it again")), message
    return message


@pytest.fixture
def published(evaldata):
    """Loads a published test model and the logits published with it."""
    folder = evaldata / "rwkv"
    if not folder.is_dir():
        pytest.skip(f"the public RWKV test models are absent: put rwkv.cpp's tests/*.bin into {folder}")

    def load(version: str) -> tuple[RwkvModel, torch.Tensor]:
        label = PUBLISHED[version]
        logits = np.fromfile(folder / f"expected-logits-{label}.bin", dtype="<f4")
        return load_rwkv(folder / f"tiny-rwkv-{label}-FP32.bin"), torch.from_numpy(logits)

    return load


@pytest.fixture(params=VERSIONS)
def model(request):
    """A tiny model of each version in double precision, where rounding cannot hide a wrong order of steps."""
    with torch.no_grad():
        yield tiny(request.param).double()


@pytest.fixture
def token_ids():
    """Two sequences of nine tokens."""
    return torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def tiny_file(tmp_path):
    """An RWKV-4 file made here."""
    return write(tmp_path / "tiny.bin", stored(tiny("4")))


def tensors_of(state: RwkvState) -> list[torch.Tensor]:
    """Everything in a state."""
    return [tensor for layer in state.layers for tensor in (layer.time_shift, layer.channel_shift, layer.wkv)]


def close(actual, expected, atol=1e-10):
    """Equal up to rounding: of double precision, unless told."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_the_published_logits_come_out(published, version):
    """Logits up to 7 agree within 1e-5, about a dozen units in the last place, whole prompt or token by token."""
    model, expected = published(version)
    assert model.version == version
    token_ids = torch.tensor([list(PROMPT)])
    close(model(token_ids)[0][0, -1], expected, atol=1e-5)
    state = model.init_state()
    for token in token_ids[0]:
        logits, state = model.step(token[None], state)
    close(logits[0], expected, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_published_models_carry_their_state(published, version):
    """With trained weights, a text in two pieces gives the logits and the state of the whole."""
    model = published(version)[0].double()
    token_ids = torch.tensor([list(TEXT)])
    whole, state = model(token_ids)
    first, between = model(token_ids[:, :13])
    second, after = model(token_ids[:, 13:], between)
    close(torch.cat((first, second), dim=1), whole)
    close(tensors_of(after), tensors_of(state))


def random(*shape: int) -> torch.Tensor:
    """Normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(math.prod(shape)))


def test_wkv4_is_the_weighted_mean_of_the_paper():
    """The running form equals equation 16, summed directly."""
    k, v, decay, bonus = random(1, 7, 3), random(7, 1, 3).view(1, 7, 3) + 1, -random(3).exp(), random(3)
    empty = torch.zeros(1, 3, 3, dtype=torch.float64)
    empty[:, 2] = -1e30
    means, _ = wkv4(k, v, decay, bonus, empty)
    for t in range(7):
        weights = [torch.exp((t - 1 - i) * decay + k[0, i]) for i in range(t)] + [torch.exp(bonus + k[0, t])]
        expected = sum(weight * v[0, i] for i, weight in enumerate(weights)) / sum(weights)
        close(means[0, t], expected)


def test_wkv4_survives_keys_whose_exponential_does_not_exist():
    """A constant added to all keys cancels, also where exp of it overflows float32."""
    k, v, decay, bonus = random(1, 7, 3).float(), random(7, 3, 1).view(1, 7, 3).float(), -torch.ones(3), torch.zeros(3)
    empty = torch.tensor([0.0, 0.0, -1e30]).view(1, 3, 1).expand(1, 3, 3)
    plain, _ = wkv4(k, v, decay, bonus, empty)
    for constant in (200.0, -200.0):
        shifted, _ = wkv4(k + constant, v, decay, bonus, empty)
        close(shifted, plain, atol=1e-4)  # keys near 200 are rounded to 1.5e-5


def test_wkv5_is_the_decayed_sum_of_the_paper():
    """Every output is the direct sum over all tokens before, plus the bonus for its own."""
    r, k, v = random(1, 6, 2, 3), random(6, 1, 2, 3).view(1, 6, 2, 3) + 1, random(3, 2, 6).view(1, 6, 2, 3)
    decay, bonus = torch.sigmoid(random(2, 3)), random(3, 2).view(2, 3)
    outputs, _ = wkv5(r, k, v, decay, bonus, torch.zeros(1, 2, 3, 3, dtype=torch.float64))
    for t in range(6):
        memory = sum((decay ** (t - 1 - i) * k[0, i])[..., None] * v[0, i][:, None] for i in range(t))
        memory = memory + (bonus * k[0, t])[..., None] * v[0, t][:, None]
        close(outputs[0, t], torch.einsum("hk,hkv->hv", r[0, t], memory))


def test_wkv7_is_the_transition_of_the_paper():
    """Written as in the paper, a value-by-key matrix times an explicit transition matrix, the outputs are the same."""
    r, k, v = random(1, 6, 1, 4), random(6, 1, 4, 1).view(1, 6, 1, 4), random(4, 6).view(1, 6, 1, 4)
    w, a = torch.sigmoid(random(6, 4)).view(1, 6, 1, 4), torch.sigmoid(random(2, 12)).view(1, 6, 1, 4)
    kk = torch.nn.functional.normalize(random(3, 8).view(1, 6, 1, 4), dim=-1)
    before = random(4, 4)
    outputs, after = wkv7(r, w, k, v, kk, a, before.T[None, None])
    memory = before
    for t in range(6):
        r_t, w_t, k_t, v_t, kk_t, a_t = (tensor[0, t, 0] for tensor in (r, w, k, v, kk, a))
        memory = memory @ (torch.diag(w_t) - torch.outer(kk_t, a_t * kk_t)) + torch.outer(v_t, k_t)
        close(outputs[0, t, 0], memory @ r_t)
    close(after[0, 0], memory.T)


def test_wkv7_replaces_what_a_key_holds():
    """Without decay and with a = 1, writing twice under one key leaves the second value, not the sum."""
    key, ones = torch.tensor([0.6, 0.8]).expand(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    v = torch.tensor([[5.0, -3.0], [1.0, 2.0]]).view(1, 2, 1, 2)
    outputs, _ = wkv7(key, ones, key, v, key, ones, torch.zeros(1, 1, 2, 2))
    close(outputs, v, atol=1e-6)


def test_many_tokens_equal_one_at_a_time(model, token_ids):
    """``forward`` over a sequence gives the logits and the state of as many ``step``."""
    logits, state = model(token_ids)
    stepped = model.init_state(batch=2)
    for t in range(token_ids.shape[1]):
        one, stepped = model.step(token_ids[:, t], stepped)
        close(one, logits[:, t])
    close(tensors_of(stepped), tensors_of(state))


def test_a_sequence_may_be_split_anywhere(model, token_ids):
    """Two pieces with the state carried give the logits of one run; without the state they do not."""
    whole, _ = model(token_ids)
    for cut in range(1, token_ids.shape[1]):
        first, state = model(token_ids[:, :cut])
        second, _ = model(token_ids[:, cut:], state)
        close(torch.cat((first, second), dim=1), whole)
        assert not torch.allclose(model(token_ids[:, cut:])[0], whole[:, cut:], atol=1e-3)


def test_sequences_of_a_batch_do_not_meet(model, token_ids):
    """Each sequence gets the logits it gets alone, although heads are normalised in groups."""
    together, _ = model(token_ids)
    for row in range(2):
        close(model(token_ids[row : row + 1])[0][0], together[row])


def test_a_state_is_a_value(model, token_ids):
    """Going on from a state leaves it as it was, so one can go on from it twice."""
    _, state = model(token_ids[:, :4])
    kept = [tensor.clone() for tensor in tensors_of(state)]
    model(token_ids[:, 4:], state)
    close(tensors_of(state), kept, atol=0)


def test_a_state_has_one_size_and_keeps_nothing_else_alive(model, token_ids):
    """After nine tokens it holds as many bytes as after none, and no tensor is a view of a longer one."""
    _, state = model(token_ids)
    assert state.n_bytes == model.init_state(batch=2).n_bytes
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors_of(state))


def test_no_token_is_an_error_that_says_so(model):
    """An empty sequence has no last token to carry."""
    with pytest.raises(EmptyPrompt, match="at least one is needed"):
        model(torch.zeros(1, 0, dtype=torch.long))


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_a_file_gives_back_the_model_it_was_written_from(tmp_path, token_ids, version):
    """Version, sizes and every parameter arrive, through the axes and names that the converter changes."""
    model = tiny(version)
    loaded = load_rwkv(write(tmp_path / "tiny.bin", stored(model)))
    assert (loaded.version, loaded.sizes) == (version, model.sizes)
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(loaded(token_ids)[0], model(token_ids)[0])


def test_the_table_lists_what_lies_in_the_file(tmp_path):
    """Names, torch's order of axes, types and values, in file order."""
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -2], dtype=np.float16)
    file = open_rwkv(write(tmp_path / "two.bin", {"first": first, "second": second}, layers=7))
    assert [(t.name, t.shape, t.type_name, t.n_bytes) for t in file.tensors.values()] == [
        ("first", (2, 3), "FP32", 24),
        ("second", (2,), "FP16", 4),
    ]
    assert (file.vocabulary, file.width, file.layers) == (11, 8, 7)
    np.testing.assert_array_equal(file.read("first"), first)
    np.testing.assert_array_equal(file.read("second"), second.astype(np.float32))
    assert file.read("second").dtype == np.float32


def test_half_precision_matrices_are_widened(tmp_path):
    """An FP16 file, whose vectors stay FP32 as the converter leaves them, loads as float32 with the rounded values."""
    tensors = stored(tiny("4"))
    halved = {name: values.astype(np.float16) if values.ndim > 1 else values for name, values in tensors.items()}
    loaded = load_rwkv(write(tmp_path / "half.bin", halved))
    assert loaded.head.weight.dtype == torch.float32
    np.testing.assert_array_equal(loaded.head.weight.detach(), tensors["head.weight"].astype(np.float16))
    np.testing.assert_array_equal(loaded.ln_out.bias.detach(), tensors["ln_out.bias"])


def test_a_file_cut_anywhere_is_refused(tiny_file):
    """Whatever prefix of the file has arrived, in the middle of a number or between two tensors."""
    data = tiny_file.read_bytes()
    for n_bytes in {*range(0, len(data), 53), *range(200), entry(data, "head.weight"), entry(data, "blocks.0.att.key")}:
        tiny_file.write_bytes(data[:n_bytes])
        refusal(tiny_file, CorruptWeights)
    tiny_file.write_bytes(data[:-1])
    assert (
        f"is truncated: tensor 'head.weight' of shape (11, 8) in FP32 needs 352 bytes at {len(data) - 352}"
        in refusal(tiny_file, CorruptWeights)
    )


def test_another_kind_of_file_is_refused_by_its_magic(tiny_file):
    """What it starts with, and what it should."""
    assert "starts with b'GGUF'; an rwkv.cpp file starts with b'fmgg'" in refusal(
        patched(tiny_file, 0, int.from_bytes(b"GGUF", "little")), CorruptWeights
    )


def test_a_pickle_is_not_run(tmp_path):
    """A checkpoint that would write a file when it is unpickled writes none."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "model.bin").write_bytes(pickle.dumps(Trap()))
    assert "a .pth checkpoint is not one" in refusal(tmp_path / "model.bin", CorruptWeights)
    assert not (tmp_path / "ran").exists()


def test_another_version_of_the_format_is_refused(tiny_file):
    """Its layout could be anything."""
    assert "version 102 of the rwkv.cpp format; versions 100 and 101" in refusal(
        patched(tiny_file, 4, 102), UnsupportedModel
    )


def test_a_tensor_longer_than_the_file_is_refused_before_it_is_read(tiny_file):
    """Its size and what is left; a size of 16 exabytes is only a number."""
    shape = entry(tiny_file.read_bytes(), "blocks.1.ffn.value.weight") + 12
    message = refusal(patched(patched(tiny_file, shape, 2**31), shape + 4, 2**31), CorruptWeights)
    assert f"tensor 'blocks.1.ffn.value.weight' of shape ({2**31}, {2**31}) in FP32 needs {2**64} bytes" in message


@pytest.mark.parametrize(("kind", "name"), [(2, "Q4_0"), (3, "Q4_1"), (7, "Q5_0"), (8, "Q5_1"), (9, "Q8_0")])
def test_quantized_tensors_are_refused_with_the_reason(tiny_file, kind, name):
    """The bits are gone, and the file that has them is asked for."""
    at = entry(tiny_file.read_bytes(), "blocks.0.att.key.weight") + 8
    message = refusal(patched(tiny_file, at, kind), UnsupportedModel)
    assert f"'blocks.0.att.key.weight' of tiny.bin is stored as {name}; FP32 and FP16 can be read" in message


@pytest.mark.parametrize("place", ["header", "tensor"])
def test_an_unknown_data_type_is_refused(tiny_file, place):
    """In the header or at a tensor."""
    at = 20 if place == "header" else entry(tiny_file.read_bytes(), "ln_out.weight") + 8
    assert "unknown data type 77; 0 (FP32) and 1 (FP16) can be read" in refusal(
        patched(tiny_file, at, 77), UnsupportedModel
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "name", ["emb.weight", "blocks.0.ln0.bias", "blocks.0.ffn.key.weight", "blocks.1.att.output.weight", "head.weight"]
)
def test_a_missing_tensor_is_named(tmp_path, version, name):
    """No layer is left with numbers of nobody."""
    tensors = stored(tiny(version))
    del tensors[name]
    assert f"holds no tensor {name!r}" in refusal(write(tmp_path / "lacking.bin", tensors), CorruptWeights)


@pytest.mark.parametrize(
    ("name", "shape"), [("blocks.1.att.key.weight", (8, 7)), ("blocks.0.ln1.bias", (9,)), ("emb.weight", (11, 4, 2))]
)
def test_a_tensor_of_another_shape_is_named(tmp_path, name, shape):
    """Also where the number of values is the same."""
    path = write(tmp_path / "odd.bin", stored(tiny("5.2")) | {name: np.ones(shape, dtype=np.float32)})
    assert f"tensor {name!r} of odd.bin has shape {shape}" in refusal(path, CorruptWeights)


def test_heads_that_do_not_fill_the_width_are_refused(tmp_path):
    """Two heads of three channels are no eight."""
    path = write(tmp_path / "odd.bin", stored(tiny("7")) | {"blocks.0.att.r_k": np.ones((2, 3), dtype=np.float32)})
    assert "2 heads of 3 channels and width 8" in refusal(path, CorruptWeights)


@pytest.mark.parametrize(
    ("offset", "number", "message"),
    [
        (8, 12, "announces 12 tokens of width 8, its embedding has 11 of 8"),
        (16, 2**32 - 1, f"holds no tensor 'blocks.{2**32 - 2}.ln1.weight'"),
        (16, 0, "width 8 and 0 layers; at least 1 of each is needed"),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(tiny_file, offset, number, message):
    """Without first making what it announces: four thousand million layers take no memory."""
    assert message in refusal(patched(tiny_file, offset, number), CorruptWeights)


@pytest.mark.parametrize(
    ("field", "number", "message"),
    [
        (0, 0, "has 0 dimensions; 1 to 4 are possible"),
        (0, 5, "has 5 dimensions; 1 to 4 are possible"),
        (4, 0, "has a name of 0 bytes"),
        (4, 2**32 - 1, "has a name of 4294967295 bytes"),
        (12, 0, "has the empty shape (0,)"),
        (16, 0xFFFFFFFF, "has a garbled name"),
    ],
)
def test_a_garbled_entry_is_refused(tiny_file, field, number, message):
    """Each number of an entry has a range, and the name is text."""
    at = entry(tiny_file.read_bytes(), "blocks.0.ln1.weight")
    assert message in refusal(patched(tiny_file, at + field, number), CorruptWeights)


def test_a_tensor_that_is_there_twice_is_refused(tiny_file):
    """Nobody could say which of them counts."""
    data = tiny_file.read_bytes()
    tiny_file.write_bytes(data + data[entry(data, "head.weight") :])
    assert "holds tensor 'head.weight' twice" in refusal(tiny_file, CorruptWeights)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    """With the tensor that holds them."""
    tensors = stored(tiny("4"))
    tensors["blocks.1.ln2.bias"][3] = bad
    path = write(tmp_path / "bad.bin", tensors)
    assert "'blocks.1.ln2.bias' of bad.bin holds NaN or infinite values" in refusal(path, CorruptWeights)


@pytest.mark.parametrize(
    ("mark", "version"), [("time_maa_x", "RWKV-6"), ("ln_x.weight", "RWKV-5.1"), (None, "a model without the time mix")]
)
def test_versions_that_cannot_be_run_are_named(tmp_path, mark, version):
    """Instead of computing something else from their weights."""
    tensors = {name: values for name, values in stored(tiny("4")).items() if "time_decay" not in name}
    if mark:
        tensors[f"blocks.0.att.{mark}"] = np.ones(8, dtype=np.float32)
    path = write(tmp_path / "other.bin", tensors)
    assert f"other.bin holds {version}" in refusal(path, UnsupportedModel)


def test_a_variant_with_more_tensors_is_refused(tmp_path):
    """Ignoring a tensor would give plausible, wrong logits."""
    path = write(tmp_path / "more.bin", stored(tiny("7")) | {"blocks.1.ffn.s_emb": np.ones((8, 8), dtype=np.float32)})
    assert "1 tensors that RWKV-7 of 2 layers does not use, among them 'blocks.1.ffn.s_emb'" in refusal(
        path, UnsupportedModel
    )


def test_what_training_leaves_in_the_first_layer_is_no_variant(tmp_path):
    """RWKV-7's layer 0 has nothing to mix in; some checkpoints hold the tensors for it nonetheless."""
    tensors = stored(tiny("7"))
    extra = {f"blocks.0.att.v{i}": tensors[f"blocks.1.att.v{i}"] for i in range(3)}
    assert load_rwkv(write(tmp_path / "idle.bin", tensors | extra)).version == "7"


def test_a_path_without_a_file_is_an_error_that_names_it(tmp_path):
    """A folder is none either."""
    for path in (tmp_path, tmp_path / "absent.bin"):
        assert "there is no file" in refusal(path, ModelNotFound)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_ends_in_another_error(tmp_path_factory, data):
    """Any four bytes set to anything: the model loads or is refused by one of our errors."""
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    whole = write(path, stored(tiny("7"))).read_bytes()
    # Most bytes are weights; the first entries hold every kind of number that is acted on.
    offset = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(whole) - 4)))
    patched(path, offset, data.draw(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))))
    try:
        outcome = load_rwkv(path).version
    except TapError as error:
        outcome = str(error)
    assert outcome == "7" or path.name in outcome
