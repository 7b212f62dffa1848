"""RWKV-4, 5.2 and 7 in plain PyTorch: the exact models that recurrent execution is held against.

``load_rwkv(path)`` reads a file of rwkv.cpp; ``model(token_ids, state)`` and ``model.step(token_ids, state)`` return
logits and the next state.
"""

from tapwb.models.rwkv.load import load_rwkv
from tapwb.models.rwkv.model import RwkvModel, RwkvSizes
from tapwb.models.rwkv.state import LayerState, RwkvState

__all__ = ["load_rwkv", "RwkvModel", "RwkvSizes", "RwkvState", "LayerState"]
