"""What every linear layer of a model is fed while it reads a text, weighed by what it matters.

Most layers' tokens count alike. Keys and values do not: an output is a mix of values, and in language models the first
token alone often receives half of the attention while it is one token in five hundred. An error in its value reaches
every output; one in the value of a token that nobody attends to reaches none. So each input of a key or value
projection counts by the attention that it receives, head by head. That attention is measured from a few probe rows
(:mod:`tapwb.models.attention_probe`), and where a model does not show it, all tokens count alike.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tapwb.models.attention_probe import AttentionProbe, choose_probe_rows
from tapwb.models.linear_sites import role_of
from tapwb.quant.calibration import InputStatistics

_ATTENDED = ("attention.key", "attention.value")


class InputWatcher(ExitStack):
    """Adds up the inputs of some layers; layers that are fed the same tensor share their sums.

    Args:
        model: The model; hooks live inside the ``with`` block.
        linears: Layers to watch, by name.
    """

    def __init__(self, model: Any, linears: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._statistics: dict[str, InputStatistics] = {}
        self._leaders: dict[str, str] = {}
        self._last: dict[tuple[bool, int], tuple[str, Tensor]] = {}
        self._waiting: list[tuple[str, Tensor]] = []
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None) or 1
        attended = {name for name in linears if role_of(name) in _ATTENDED}
        for name, module in linears.items():
            rows = int(getattr(module, "out_features", 0))
            blocks = heads if name in attended and rows and rows % heads == 0 else 1
            self._add_hook(module.register_forward_pre_hook(self._watch(name, name in attended, blocks)))
        for parent in {name.rpartition(".")[0] for name in attended}:
            self._add_hook(model.get_submodule(parent).register_forward_hook(self._no_attention_seen))

    def statistics(self) -> dict[str, InputStatistics]:
        """Sums by name of the layer; one object for layers that share them."""
        return {name: self._statistics[leader] for name, leader in self._leaders.items()}

    def read(self, model: Any, window: Int[Tensor, "one token"]) -> None:
        """Run the model on some text and take in what its layers are fed."""
        rows = choose_probe_rows(window.shape[1])
        # bf16 is three times as fast on processors that have it, and inputs do not need more.
        with torch.autocast(window.device.type, dtype=torch.bfloat16), AttentionProbe(rows, see=self._attended):
            model(window, use_cache=False)

    def _add_hook(self, handle: Any) -> None:
        self.callback(handle.remove)

    def _watch(self, name: str, is_attended: bool, blocks: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if name not in self._leaders:
                leader, seen = self._last.get((is_attended, blocks), (name, None))
                self._leaders[name] = leader if seen is x else name
            if self._leaders[name] != name:
                return
            self._last[is_attended, blocks] = (name, x)
            if name not in self._statistics:
                self._statistics[name] = InputStatistics(x.shape[-1], blocks)
            rows = x.reshape(-1, x.shape[-1])
            if is_attended:
                self._waiting.append((name, rows))
            else:
                self._statistics[name].add(rows)

        return watch

    def _attended(self, probabilities: Float[Tensor, "batch head row token"]) -> None:
        """The attention of the layer whose projections were just computed."""
        waiting, self._waiting = self._waiting, []
        received = probabilities.sum(2)
        for name, rows in waiting:
            blocks = self._statistics[name].blocks
            if received.shape[1] % blocks or rows.shape[0] != received.shape[0] * received.shape[2]:
                self._statistics[name].add(rows)  # heads are laid out in a way this does not know
                continue
            by_block = received.unflatten(1, (blocks, -1)).sum(2)  # (batch, block, token)
            self._statistics[name].add(rows, by_block.transpose(0, 1).flatten(1))

    def _no_attention_seen(self, *_: Any) -> None:
        """An attention that was not seen (linear attention, one of the model's own): all tokens count alike."""
        waiting, self._waiting = self._waiting, []
        for name, rows in waiting:
            self._statistics[name].add(rows)
