"""Loading takes little more memory than what stays: matrices are widened one at a time, and the file is let go."""

import json
import subprocess
import sys
import weakref

import pytest
import torch

from tapwb.engine import TAPConfig, TAPEngine
from tapwb.models.tiny import tiny_model

#: Prints how far anonymous memory rose above the start, what stayed of it, the weights, and bytes of the mapped file.
_CHILD = """
import json, re, sys, threading, time
from pathlib import Path

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) << 10

import torch
torch.set_num_threads(1)
from transformers import PreTrainedModel
import tapwb.execution.hf_quantizer, tapwb.execution.nest
from tapwb.engine import TAPConfig, TAPEngine

small = TAPEngine(TAPConfig(precision_levels=(4, 8), time_reference=False))
small.load_model("tiny-random-llama")
before, top, is_loading = status("RssAnon"), 0, True

def watch():
    global top
    while is_loading:
        top = max(top, status("RssAnon"))
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
engine = TAPEngine(TAPConfig(precision_levels=(4, 8), time_reference=False))
engine.load_model(sys.argv[1])
is_loading = False
watcher.join()
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
mapped = [line for line in mapped if sys.argv[1] in line]
print(json.dumps({"rise": top - before, "weights": engine.weights_bytes(), "mapped": len(mapped)}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """50 M random weights in bf16, with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    at = tmp_path_factory.mktemp("wide")
    small = tiny_model("llama")
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=12, num_key_value_heads=4,
        vocab_size=small.model.config.vocab_size, tie_word_embeddings=True, torch_dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(at)
    small.tokenizer.save_pretrained(at)
    return at


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_little_above_what_stays(folder):
    """In a process of its own: at most 1.3 times the nested weights and one matrix's temporaries; no file is kept."""
    done = subprocess.run([sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["mapped"] == 0
    assert seen["weights"] > 40e6
    assert seen["rise"] < 1.3 * seen["weights"] + 64e6  # a block of one matrix in fp32, several times


def test_weights_from_a_narrow_file_are_the_same(folder):
    """bf16 nested as it is mapped, or widened first: the same codes, and activations in fp32 either way."""
    mapped, widened = TAPEngine(TAPConfig(precision_levels=(4, 8))), TAPEngine(TAPConfig(precision_levels=(4, 8)))
    mapped.load_model(str(folder))
    widened.load_model(str(folder), dtype="float32")
    one, other = mapped.nested.model.state_dict(), widened.nested.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    ids = torch.tensor([[1, 2, 3]])
    logits = [engine.nested.model(ids).logits for engine in (mapped, widened)]
    assert logits[0].dtype == torch.float32
    assert torch.equal(*logits)
    assert mapped.loaded.dtype == "float32"


def test_a_head_that_differs_from_the_embedding_is_kept(folder, tmp_path):
    """Two different tensors are not tied, whatever the configuration says: the copy does as transformers does."""
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    engine = TAPEngine(TAPConfig(precision_levels=(4, 8)))
    engine.load_model(str(tmp_path))
    ids = torch.tensor([[1, 2, 3]])
    own = engine.nested.model(ids).logits[0, -1]
    other = engine.reference(dtype="float32").model(ids).logits[0, -1]
    assert torch.corrcoef(torch.stack([own, other]))[0, 1] > 0.999


def test_a_closed_engine_holds_no_model(folder):
    """A model that was run natively is gone when the next one is read, not at some later collection."""
    engine = TAPEngine(TAPConfig(precision_levels=(4, 8), time_reference=False))
    engine.load_model(str(folder))
    engine.generate("a b", max_new_tokens=2)
    gone = weakref.ref(engine.nested.model)
    engine.close()
    assert gone() is None
