"""On a real model: the seed's snippet, the resident bytes, and a cache whose old tokens are coarse.

Seed features: S1.14, S1.17, S1.25, S1.26, S1.27, S1.28, S1.29
"""

import pydoc_data.topics
import subprocess
import sys
from typing import Any

import pytest
import torch

from tapwb.engine import PrecisionMode, TAPConfig, TAPEngine
from tapwb.execution.kv_plan import make_cache

pytestmark = [pytest.mark.smollm2]
TEXT = " ".join(list(pydoc_data.topics.topics.values())[:3])


@pytest.fixture(scope="module")
def snippet(smollm2_path) -> tuple[TAPEngine, str, dict[str, Any], int]:
    """The seed's first example with only the import and the model id changed; and the bytes before it ran."""
    config = TAPConfig(
        precision_mode=PrecisionMode.ADAPTIVE,
        precision_levels=[4, 8, 16, 32],
        precision_thresholds=[0.25, 0.5, 0.75],
    )
    engine = TAPEngine(config=config)
    engine.load_model("smollm2-135m", levels=[4, 5, 6, 8])
    fresh_bytes = engine.weights_bytes()
    text, metrics = engine.generate(prompt="The capital of France is", max_new_tokens=4)
    return engine, text, metrics, fresh_bytes


def test_the_snippet_runs_on_the_embedded_model(snippet):
    """It answers sensibly, and says where its saving comes from."""
    _, text, metrics, _ = snippet
    assert "Paris" in text
    printed = f"{metrics['precision']['energy_saved_pct']:.2f}%"
    float(printed.rstrip("%"))
    assert metrics["precision"]["energy_source"].startswith("estimated")


def test_weights_stay_below_56_percent_of_bf16_at_every_mean(snippet):
    """Counted on the tensors, after loading and after runs; no copy of a quantized weight is alive.

    In a process of its own: in this one, other tests may hold the weights of the same model for good reasons.
    """
    engine, _, _, fresh_bytes = snippet
    limit = 0.56 * 2 * engine.anatomy.n_parameters
    assert fresh_bytes <= limit
    for precision in ("adaptive:4.5:position", "adaptive:6:position", "8"):
        _, metrics = engine.generate("The capital", 2, precision=precision)
        assert metrics["memory"]["weights_bytes"] == engine.weights_bytes() == fresh_bytes
    run = subprocess.run([sys.executable, "-c", COUNT_COPIES], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["before", "211", "after", "0"]


#: Counts floating-point tensors as large as a quantized weight: while the reference is there, and without it.
COUNT_COPIES = """
import gc
import torch
from tapwb import TAPConfig, TAPEngine

engine = TAPEngine(TAPConfig(mean_bits=5))
engine.load_model("smollm2-135m")
engine.generate("The capital", 2)
sizes = {s.out_features * s.in_features for s in engine.anatomy.linears}
# Minima and steps of the head happen to be as many numbers as a matrix has; they lie in a buffer of integers.
packed = {buffer.untyped_storage().data_ptr() for buffer in engine.nested.model.buffers()}

def copies():
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.is_floating_point()]
    dense = [t for t in tensors if t.numel() in sizes and t.untyped_storage().data_ptr() not in packed]
    return len({t.data_ptr() for t in dense})

print("before", copies())
engine.release_reference()
print("after", copies())
"""


@pytest.fixture(scope="module")
def logits_by_kv(snippet) -> dict[int, tuple[torch.Tensor, int]]:
    """Log-probabilities of the last tokens of a 448-token text, and the bytes of the cache, per width."""
    engine = snippet[0]
    handle = engine.reference(dtype="float32")  # dense: what is compared is the cache, and dense is quicker
    model: Any = handle.model
    ids = engine.tokenize(TEXT)[:, :448]
    assert ids.shape[1] == 448
    out = {}
    with torch.inference_mode():
        filled = make_cache(model.config, 16)
        model(ids[:, :400], past_key_values=filled, logits_to_keep=1)
        for bits in (16, 8, 2):
            cache: Any = make_cache(model.config, bits)
            for ours, exact in zip(cache.layers, filled.layers, strict=True):
                keys = torch.cat([exact._sink_keys, exact.keys], dim=2).float()
                ours.update(keys, torch.cat([exact._sink_values, exact.values], dim=2).float())
            logits = model(ids[:, 400:], past_key_values=cache).logits[0]
            out[bits] = (logits.float().log_softmax(-1), cache.nbytes())
    engine.release_reference()
    return out


def test_an_8_bit_cache_is_near_exact_and_a_2_bit_one_is_not(logits_by_kv):
    """Divergence from the 16-bit cache over 48 tokens, nats per token."""
    exact, bytes_16 = logits_by_kv[16]
    kl = {
        bits: float((exact.exp() * (exact - other)).sum(-1).mean())
        for bits, (other, _) in logits_by_kv.items()
        if bits != 16
    }
    assert 0 <= kl[8] < 1e-3
    assert 3 * kl[8] < kl[2] < 1
    assert logits_by_kv[2][1] < logits_by_kv[8][1] < bytes_16
