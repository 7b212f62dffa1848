"""Import PyTorch's compiler front end, which every transformers model needs, without the Triton that nobody here runs.

transformers decorates functions with ``torch._dynamo`` when its model code is imported, and ``torch._dynamo`` imports
Triton wherever it is installed, only to know one of its types. That maps LLVM: 75 MB of resident memory and a fifth of
a second, in a process on a CPU that never launches a Triton kernel, next to weights of 143 MB (SmolLM2 at 8 bits).
Neither library has a setting for it.
"""

import importlib.util
import os
import sys
from typing import Any, cast


def import_dynamo_without_triton() -> None:
    """Import ``torch._dynamo`` as if Triton were not installed, unless a device or the interpreter can run Triton.

    The CPU builds of PyTorch need no Triton and are tested without it; compiling for a CPU goes through C++. Nothing of
    PyTorch is replaced: only while ``torch._dynamo`` is imported is ``triton`` marked as absent, the way Python has for
    that. Afterwards ``import triton`` works as ever; PyTorch itself remembers that it found none. Call it before the
    first import of transformers' model code; where ``torch._dynamo`` or Triton is there already, it does nothing.
    """
    if "torch._dynamo" in sys.modules or "triton" in sys.modules or _can_run_triton():
        return
    cast(dict[str, Any], sys.modules)["triton"] = None  # `import triton` now raises ModuleNotFoundError
    try:
        import torch._dynamo  # noqa: F401 - kept for those who import it later
    finally:
        sys.modules.pop("triton", None)


def _can_run_triton() -> bool:
    """Whether a device or Triton's interpreter (for tests) may launch its kernels; False too if it is not installed."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return False
    return torch.accelerator.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
