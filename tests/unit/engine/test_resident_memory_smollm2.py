"""What the default model costs to load on a CPU: resident memory of the command, and time."""

import json
import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(
        torch.accelerator.is_available() or torch.version.cuda is not None or torch.version.hip is not None,
        reason="PyTorch for a card is larger by itself",
    ),
]

MOST_RESIDENT_BYTES = 600e6
MOST_SECONDS = 5.0

#: The real command; once its model is loaded, says on standard error what is resident and whether LLVM is mapped.
_COMMAND = """
import json, os, sys
from pathlib import Path
from tapwb.engine import TAPEngine
from tapwb.views.cli.main import main

load_model = TAPEngine.load_model

def load_and_tell(self, *given, **named):
    handle = load_model(self, *given, **named)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    seen = {"resident": pages * os.sysconf("SC_PAGE_SIZE"), "weights": self.weights_bytes()}
    seen["has_llvm"] = "libtriton" in Path("/proc/self/maps").read_text()
    print("seen", json.dumps(seen), file=sys.stderr)
    return handle

TAPEngine.load_model = load_and_tell
main(sys.argv[1:])
"""

_TIMED_LOAD = """
import json, time
from tapwb.core.threads import wait_without_spinning

wait_without_spinning()
from tapwb.engine import TAPConfig, TAPEngine

TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8)).load_model("tiny-random-llama")  # imports what a load needs
engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8))
started = time.perf_counter(), time.process_time()
engine.load_model("smollm2-135m")
print(json.dumps({"wall_s": time.perf_counter() - started[0], "cpu_s": time.process_time() - started[1]}))
"""


def test_the_command_holds_at_most_600_mb_after_load(smollm2_path):
    """Weights of 143 MB, Python, PyTorch and transformers; without the LLVM of Triton, which a CPU never runs."""
    assert smollm2_path.is_dir()
    words = ["run", "--model", "smollm2-135m", "--prompt", "Hello", "--precision", "8", "--max-new-tokens", "8"]
    done = subprocess.run([sys.executable, "-c", _COMMAND, *words], capture_output=True, text=True, check=True)
    seen = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("seen ")).removeprefix("seen "))
    assert seen["weights"] > 100e6
    assert seen["resident"] <= MOST_RESIDENT_BYTES
    assert not seen["has_llvm"]


def test_the_engine_loads_it_within_five_seconds(smollm2_path):
    """Reading, checking and nesting, imports apart; CPU time where the machine is shared."""
    assert smollm2_path.is_dir()
    done = subprocess.run([sys.executable, "-c", _TIMED_LOAD], capture_output=True, text=True, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    assert min(took.values()) < MOST_SECONDS, took
