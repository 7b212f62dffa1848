"""The libraries this program works with: which version is here, what works with it, and a proof that can be run.

"Works with X" is a claim, so every entry of :data:`integrations` carries a function that shows it on a tiny random
model, on the processor, in seconds. :func:`prove` runs one; a library that is not installed is
:class:`~tapwb.core.reading.Unavailable` with the command that installs it, never an import error.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tapwb.core.errors import ExecutionError
from tapwb.core.reading import Unavailable
from tapwb.core.registry import Registry

_TEXT = "one two three two one"
#: Run in an interpreter of its own: Triton reads its settings once, on import, and may be interpreting in this one.
_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tapwb_kernels.capability import capability_of
from tapwb_kernels.nested_dequantize.triton import nested_dequantize_kernel as kernel
pointers = dict.fromkeys(("plane0_ptr", "plane1_ptr", "plane2_ptr", "plane3_ptr"), "*u8")
signature = {"out_ptr": "*bf16", **pointers, "scale_ptr": "*fp32", "offset_ptr": "*fp32"}
signature |= dict.fromkeys(("n_rows", "n_cols", "n_groups"), "i32")
constants = dict(GROUP=64, W0=4, W1=1, W2=1, W3=2, DROP=0, BLOCK_R=64, BLOCK_C=64)
signature |= dict.fromkeys(constants, "constexpr")
source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
binary = triton.compile(source, target=GPUTarget("cuda", 90, 32))
card = capability_of("cuda")
place = f"runs on {card.name}" if card.has_triton else f"no kernel runs here: {card.why_not_triton}"
print(f"Triton {triton.__version__} compiles nested_dequantize for sm_90 to {len(binary.asm['cubin'])} bytes; {place}")
"""


@dataclass(frozen=True, slots=True)
class Integration:
    """One library.

    Attributes:
        package: Name of its distribution.
        works: What works with it, in one sentence.
        install: The command that installs it.
        proof: Shows it on a tiny model and says what was seen; needs the library.
    """

    package: str
    works: str
    install: str
    proof: Callable[[], str]

    @property
    def installed(self) -> str | Unavailable:
        """The version that is installed here, looked up without importing the library."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return Unavailable(f"{self.package} is not installed: {self.install}")


integrations: Registry[Integration] = Registry("library")


def prove(library: str) -> str | Unavailable:
    """Run the proof of one library.

    Args:
        library: A name of :data:`integrations`.

    Returns:
        What was seen, in one sentence; ``Unavailable`` with the installing command where the library is absent.

    Raises:
        UnknownName: If no such library is registered.
        ExecutionError: If what is claimed does not hold here.
    """
    entry = integrations[library]
    installed = entry.installed
    return installed if isinstance(installed, Unavailable) else entry.proof()


def _works(library: str, works: str, *, install: str | None = None) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the decorated proof; the libraries without an ``install`` come with the program."""

    def wrap(proof: Callable[[], str]) -> Callable[[], str]:
        integrations.add(
            library, Integration(library, works, install or "python -m pip install --upgrade tapwb", proof), works
        )
        return proof

    return wrap


def _check(holds: bool, library: str, claim: str) -> None:
    if not holds:
        raise ExecutionError(
            f"{library} {version(library)}: {claim} does not hold here. Install the versions the project file names, "
            "or report this with the output of `pip list`."
        )


def _ids(tokenizer: Any) -> Any:
    return tokenizer(_TEXT, return_tensors="pt").input_ids


def _nested(n_layers: int = 2) -> tuple[Any, Any]:
    """A nested tiny model, and the tokens of a short text."""
    from tapwb.execution.nest import nest_model
    from tapwb.models.tiny import tiny_model
    from tapwb.quant.nested import NestedLayout

    tiny = tiny_model("llama", n_layers=n_layers)
    nest_model(tiny.model, layout=NestedLayout.named("fine"))
    return tiny.model, _ids(tiny.tokenizer)


@_works(
    "transformers", "from_pretrained nests a model given TapConfig, and save_pretrained keeps the planes bit by bit."
)
def prove_transformers() -> str:
    """Load with ``TapConfig``, save, load again: the logits are the same.

    Raises:
        ExecutionError: If they are not.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tapwb.execution.hf_quantizer import TapConfig
    from tapwb.models.quiet import without_progress_bars
    from tapwb.models.tiny import save_tiny

    with tempfile.TemporaryDirectory() as place, torch.no_grad(), without_progress_bars():
        plain, packed = save_tiny("llama", Path(place, "plain")), Path(place, "packed")
        first = AutoModelForCausalLM.from_pretrained(plain, quantization_config=TapConfig())
        first.save_pretrained(packed)
        second = AutoModelForCausalLM.from_pretrained(packed)
        ids = torch.arange(19)[None]
        same = torch.equal(first(ids).logits, second(ids).logits)
    _check(same and first.tap.levels == second.tap.levels, "transformers", "an unchanged model after saving")
    return f"a model nested by from_pretrained came back from its folder unchanged, levels {list(second.tap.levels)}"


@_works("accelerate", "A nested model larger than the given memory runs with part of its layers on disk.")
def prove_accelerate() -> str:
    """Give a nested model room for about half of itself: the logits stay the same to the last bit.

    Raises:
        ExecutionError: If they do not, or nothing went to disk.
    """
    import torch

    from tapwb.execution.nest import resident_bytes
    from tapwb.execution.offload import spread_over_devices

    model, ids = _nested(n_layers=4)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before = model(ids).logits
        room: dict[str | int, int] = {"cpu": resident_bytes(model) * 3 // 5}
        placed = spread_over_devices(model, max_memory_bytes=room, offload_folder=Path(folder))
        same = torch.equal(model(ids).logits, before)
    on_disk = sum(device == "disk" for device in placed.values())
    _check(same and on_disk > 0, "accelerate", "the same logits with layers on disk")
    return f"{on_disk} of {len(placed)} parts ran from disk, with identical logits"


@_works(
    "bitsandbytes",
    "The tokens of a model loaded in 4 or 8 bits can be scored; nesting it is refused, since its weights are codes.",
    install='python -m pip install "tapwb[integrations]"',
)
def prove_bitsandbytes() -> str:
    """Score the tokens of a model whose weights are NF4 codes.

    Raises:
        ExecutionError: If the scores are not finite.
    """
    import torch

    from tapwb.importance.analyzer import TokenImportanceAnalyzer
    from tapwb.importance.facts import TokenFacts
    from tapwb.models.capture import capture

    model, ids = four_bit_model()
    seen = capture(model, ids, hidden_norms=True, attention=True)
    facts = TokenFacts(
        ids,
        vocab_size=model.config.vocab_size,
        logits=seen.logits,
        hidden_norms=seen.hidden_norms,
        attention_received=seen.attention_received,
    )
    scores = TokenImportanceAnalyzer(["attention", "entropy", "hidden_norm"]).analyze(facts).scores
    _check(bool(torch.isfinite(scores).all()) and float(scores.std()) > 0, "bitsandbytes", "scoring the tokens")
    return f"scored {scores.numel()} tokens of an NF4 model by attention, entropy and hidden norm"


def four_bit_model() -> tuple[Any, Any]:
    """A tiny model with NF4 weights of bitsandbytes, on the processor, and the tokens of a short text.

    Its feed-forward size is a multiple of 32: bitsandbytes' processor kernels accept no other number of rows.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from tapwb.models.quiet import without_progress_bars
    from tapwb.models.tiny import save_tiny

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as place, without_progress_bars():
        folder = save_tiny("llama", Path(place), intermediate_size=128)
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
        )
        return model, _ids(AutoTokenizer.from_pretrained(folder))


@_works(
    "peft",
    "LoRA adapters train on nested weights, whose codes stay bit by bit what they were.",
    install='python -m pip install "tapwb[integrations]"',
)
def prove_peft() -> str:
    """Train an adapter for a few steps: the loss falls, and without the adapter the model is what it was.

    Raises:
        ExecutionError: If the loss does not fall, or the model underneath changed.
    """
    import torch

    from tapwb.execution.peft_lora import add_lora

    nested, ids = _nested()
    with torch.no_grad():
        before = nested(ids).logits
    model = add_lora(nested)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad(), model.disable_adapter():
        same = torch.equal(model(ids).logits, before)
    _check(same and losses[-1] < losses[0], "peft", "training an adapter beside unchanged codes")
    return f"6 steps took the loss from {losses[0]:.2f} to {losses[-1]:.2f} nats a token; the codes are unchanged"


@_works(
    "triton",
    "The nested_dequantize kernel compiles ahead of time, without a card; it runs where a CUDA or ROCm device is.",
    install="python -m pip install triton (Linux on x86-64 only)",
)
def prove_triton() -> str:
    """Compile the kernel for a card that need not be there, and say whether there is one.

    Raises:
        ExecutionError: If it does not compile.
    """
    done = subprocess.run([sys.executable, "-c", _COMPILE], capture_output=True, text=True, timeout=300, check=False)
    _check(done.returncode == 0, "triton", f"compiling nested_dequantize ({done.stderr.strip()[-300:]})")
    return done.stdout.strip()
