"""Lets the suite run from a checkout with nothing installed but torch, triton and transformers. Import this first.

It puts ``kernels/`` on the path; sets Triton's interpreter up, before Triton is imported, if the command line says
``--interpret``; and where jaxtyping is not installed, whose annotations ``tapwb_kernels`` writes shapes with, it puts
a module in its place in which ``Float[Tensor, "row column"]`` is just ``Tensor``.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = ("BFloat16", "Bool", "Float", "Int", "Int8", "Int32", "UInt8")


class _Shaped:
    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


def stand_in() -> ModuleType:
    """A module in which ``Float[Tensor, "row"]`` is ``Tensor``."""
    module = ModuleType("jaxtyping", "Bare annotations, made by kernels/bench/alone.py.")
    for name in NAMES:
        setattr(module, name, _Shaped)
    return module


if "--interpret" in sys.argv:
    os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
if (_kernels := str(Path(__file__).resolve().parents[1])) not in sys.path:
    sys.path.insert(0, _kernels)
if "jaxtyping" not in sys.modules and importlib.util.find_spec("jaxtyping") is None:
    sys.modules["jaxtyping"] = stand_in()
