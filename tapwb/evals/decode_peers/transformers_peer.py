"""Hugging Face transformers: fp32, bf16, and bf16 compiled with a static cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from tapwb.evals.decode_peers.contender import Clock, Timing, mean_nll_nats


class _Stamps(BaseStreamer):  # type: ignore[misc]
    """Notes the time of each token; the first call brings the prompt."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Called by ``generate`` with the prompt and then with every token."""
        if self._has_prompt:
            self.clock.token(int(value.flatten()[-1]))
        self._has_prompt = True

    def end(self) -> None:
        """Called at the end of the answer; there is nothing to do."""


class TransformersContender:
    """``AutoModelForCausalLM.generate``.

    Args:
        dtype: Of the weights and activations.
        compiled: With a static cache and ``torch.compile``.
        options: Further arguments of ``from_pretrained``, such as a quantization.
    """

    def __init__(self, dtype: str, *, compiled: bool = False, options: dict[str, Any] | None = None) -> None:
        self._dtype, self._compiled, self._options = dtype, compiled, options or {}
        self._model: Any = None

    def load(self, folder: str, text: str) -> None:
        """Load; a compiled model runs once."""
        dtype = getattr(torch, self._dtype)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **self._options).eval()
        if self._compiled:
            self._model.forward = torch.compile(self._model.forward, fullgraph=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder))
            self.generate(text, tokenizer(text, add_special_tokens=False).input_ids, 8)

    def generate(self, prompt: str, prompt_ids: Sequence[int], n_new: int) -> Timing:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        del prompt
        ids, stamps = torch.tensor([list(prompt_ids)]), _Stamps()
        options: dict[str, Any] = {"cache_implementation": "static"} if self._compiled else {}
        with torch.inference_mode():
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_new, min_new_tokens=n_new,
                pad_token_id=0, streamer=stamps, **options,
            )  # fmt: skip
        return stamps.clock.timing

    def nll_nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        forward = type(self._model).forward  # not the compiled one: other shapes would compile again
        return mean_nll_nats(lambda ids: forward(self._model, ids, use_cache=False).logits[0], windows)

    def weights_bytes(self) -> int:
        """Of the tensors, quantized ones by their parts."""
        seen = {}
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            for part in _parts(tensor):
                storage = part.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
        return sum(seen.values())

    def facts(self) -> dict[str, Any]:
        """Versions."""
        return {"transformers": transformers.__version__, "torch": torch.__version__, "dtype": self._dtype}


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor of a subclass is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _parts(getattr(tensor, name))]
    return [tensor.data]
