"""RWKV-4, 5.2 and 7: a model of this project for the recurrences of ``models/recurrent``.

``load_rwkv(path)`` reads a file of rwkv.cpp; transformers' Auto classes load saved folders once :func:`register` was
called.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapwb.models.rwkv.model import RwkvForCausalLM


def register() -> None:
    """Make the Auto classes of transformers know these models; more than once is as good as once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tapwb.models.rwkv.config import TapRwkvConfig
    from tapwb.models.rwkv.model import RwkvForCausalLM

    AutoConfig.register(TapRwkvConfig.model_type, TapRwkvConfig, exist_ok=True)
    AutoModelForCausalLM.register(TapRwkvConfig, RwkvForCausalLM, exist_ok=True)


def load_rwkv(path: Path) -> "RwkvForCausalLM":
    """The model in a file of rwkv.cpp; see :func:`tapwb.models.rwkv.load.load_rwkv`.

    Args:
        path: The file.
    """
    from tapwb.models.rwkv import load

    return load.load_rwkv(path)
