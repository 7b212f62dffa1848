"""Files of rwkv.cpp: read exactly, run to the published logits, refused with reasons when damaged."""

import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.core.errors import CorruptWeights, ModelNotFound, TapError, UnsupportedModel
from tapwb.models.recurrent.memory import RecurrentCache
from tapwb.models.rwkv import load_rwkv
from tapwb.models.rwkv.model import RwkvForCausalLM
from tapwb.models.rwkv_file import open_rwkv

MAGIC = 0x67676D66
VERSIONS = ["4", "5.2", "7"]
PUBLISHED = {"4": "4v0-660K", "5.2": "5v2-730K", "7": "7v0-834K"}
# rwkv.cpp's own test: the logits after these three bytes, one token each.
PROMPT = b'"in'
TEXT = b"in a hole in the ground there lived"
TOKEN_IDS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(3))
# Axes of size 1 that the converter leaves, by the end of the name: torch shape in the file from the plain shape.
PADDED = {
    "time_decay": lambda t: t[..., None] if t.ndim == 2 else t,
    "time_faaaa": lambda t: t[..., None],
    "x_rwkvag": lambda t: t[:, None],
} | dict.fromkeys(("w0", "a0", "v0", "k_k", "k_a", "x_k"), lambda t: t[None, None])


def stored(model: RwkvForCausalLM) -> dict[str, np.ndarray]:
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

    def load(version: str) -> tuple[RwkvForCausalLM, torch.Tensor]:
        label = PUBLISHED[version]
        logits = np.fromfile(folder / f"expected-logits-{label}.bin", dtype="<f4")
        return load_rwkv(folder / f"tiny-rwkv-{label}-FP32.bin"), torch.from_numpy(logits)

    return load


@pytest.fixture
def tiny_file(tiny_rwkv, tmp_path):
    """An RWKV-4 file made here."""
    return write(tmp_path / "tiny.bin", stored(tiny_rwkv("4")))


def close(actual, expected, atol=1e-10):
    """Equal up to rounding: of double precision, unless told."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_the_published_logits_come_out(published, version):
    """Logits up to 7 agree within 1e-5, about a dozen units in the last place, whole prompt or token by token."""
    model, expected = published(version)
    assert model.config.version == version
    token_ids = torch.tensor([list(PROMPT)])
    close(model(token_ids).logits[0, -1], expected, atol=1e-5)
    cache = RecurrentCache(model.config.num_hidden_layers)
    for token in token_ids[0]:
        logits = model(token[None, None], cache=cache).logits
    close(logits[0, -1], expected, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_published_models_carry_their_state(published, version):
    """With trained weights, a text in two pieces, or one token at a time, gives the logits and the state of one run."""
    model = published(version)[0].double()
    token_ids, n_layers = torch.tensor([list(TEXT)]), model.config.num_hidden_layers
    caches = [RecurrentCache(n_layers) for _ in range(3)]
    whole = model(token_ids, cache=caches[0]).logits
    for cache, cuts in zip(caches[1:], ([13], range(1, len(TEXT))), strict=True):
        pieces = [model(part, cache=cache).logits for part in token_ids.tensor_split(list(cuts), dim=1)]
        close(torch.cat(pieces, dim=1), whole)
        for layer, other in zip(cache.layers, caches[0].layers, strict=True):
            close(layer.states | layer.rows, other.states | other.rows)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_a_file_gives_back_the_model_it_was_written_from(tiny_rwkv, tmp_path, version):
    """Version, sizes and every parameter arrive, through the axes and names that the converter changes."""
    model = tiny_rwkv(version)
    loaded = load_rwkv(write(tmp_path / "tiny.bin", stored(model)))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(loaded(TOKEN_IDS).logits, model(TOKEN_IDS).logits)


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


def test_half_precision_matrices_are_widened(tiny_rwkv, tmp_path):
    """An FP16 file, whose vectors stay FP32 as the converter leaves them, loads as float32 with the rounded values."""
    tensors = stored(tiny_rwkv("4"))
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
def test_a_missing_tensor_is_named(tiny_rwkv, tmp_path, version, name):
    """No layer is left with numbers of nobody."""
    tensors = stored(tiny_rwkv(version))
    del tensors[name]
    assert f"holds no tensor {name!r}" in refusal(write(tmp_path / "lacking.bin", tensors), CorruptWeights)


@pytest.mark.parametrize(
    ("name", "shape"), [("blocks.1.att.key.weight", (8, 7)), ("blocks.0.ln1.bias", (9,)), ("emb.weight", (11, 4, 2))]
)
def test_a_tensor_of_another_shape_is_named(tiny_rwkv, tmp_path, name, shape):
    """Also where the number of values is the same."""
    path = write(tmp_path / "odd.bin", stored(tiny_rwkv("5.2")) | {name: np.ones(shape, dtype=np.float32)})
    assert f"tensor {name!r} of odd.bin has shape {shape}" in refusal(path, CorruptWeights)


def test_heads_that_do_not_fill_the_width_are_refused(tiny_rwkv, tmp_path):
    """Two heads of three channels are no eight."""
    path = write(tmp_path / "odd.bin", stored(tiny_rwkv("7")) | {"blocks.0.att.r_k": np.ones((2, 3), dtype=np.float32)})
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
def test_weights_that_are_no_numbers_are_refused(tiny_rwkv, tmp_path, bad):
    """With the tensor that holds them."""
    tensors = stored(tiny_rwkv("4"))
    tensors["blocks.1.ln2.bias"][3] = bad
    path = write(tmp_path / "bad.bin", tensors)
    assert "'blocks.1.ln2.bias' of bad.bin holds NaN or infinite values" in refusal(path, CorruptWeights)


@pytest.mark.parametrize(
    ("mark", "version"), [("time_maa_x", "RWKV-6"), ("ln_x.weight", "RWKV-5.1"), (None, "a model without the time mix")]
)
def test_versions_that_cannot_be_run_are_named(tiny_rwkv, tmp_path, mark, version):
    """Instead of computing something else from their weights."""
    tensors = {name: values for name, values in stored(tiny_rwkv("4")).items() if "time_decay" not in name}
    if mark:
        tensors[f"blocks.0.att.{mark}"] = np.ones(8, dtype=np.float32)
    path = write(tmp_path / "other.bin", tensors)
    assert f"other.bin holds {version}" in refusal(path, UnsupportedModel)


def test_a_variant_with_more_tensors_is_refused(tiny_rwkv, tmp_path):
    """Ignoring a tensor would give plausible, wrong logits."""
    path = write(
        tmp_path / "more.bin", stored(tiny_rwkv("7")) | {"blocks.1.ffn.s_emb": np.ones((8, 8), dtype=np.float32)}
    )
    assert "1 tensors that RWKV-7 of 2 layers does not use, among them 'blocks.1.ffn.s_emb'" in refusal(
        path, UnsupportedModel
    )


def test_what_training_leaves_in_the_first_layer_is_no_variant(tiny_rwkv, tmp_path):
    """RWKV-7's layer 0 has nothing to mix in; some checkpoints hold the tensors for it nonetheless."""
    tensors = stored(tiny_rwkv("7"))
    extra = {f"blocks.0.att.v{i}": tensors[f"blocks.1.att.v{i}"] for i in range(3)}
    assert load_rwkv(write(tmp_path / "idle.bin", tensors | extra)).config.version == "7"


def test_a_path_without_a_file_is_an_error_that_names_it(tmp_path):
    """A folder is none either."""
    for path in (tmp_path, tmp_path / "absent.bin"):
        assert "there is no file" in refusal(path, ModelNotFound)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_ends_in_another_error(tiny_rwkv, tmp_path_factory, data):
    """Any four bytes set to anything: the model loads or is refused by one of our errors."""
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    whole = write(path, stored(tiny_rwkv("7"))).read_bytes()
    # Most bytes are weights; the first entries hold every kind of number that is acted on.
    offset = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(whole) - 4)))
    patched(path, offset, data.draw(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))))
    try:
        outcome = load_rwkv(path).config.version
    except TapError as error:
        outcome = str(error)
    assert outcome == "7" or path.name in outcome
