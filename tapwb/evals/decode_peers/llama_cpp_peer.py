"""llama.cpp through llama-cpp-python, on the GGUF file that the user names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tapwb.evals.decode_peers.contender import Clock, Timing, mean_nll_nats


class LlamaCppContender:
    """``llama_cpp.Llama``.

    Args:
        gguf: The file, as quantized as it is.
    """

    def __init__(self, gguf: str) -> None:
        self._file = Path(gguf)

    def load(self, folder: str, text: str) -> None:
        """Load the file; the folder is not used."""
        import llama_cpp

        del folder, text
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self._version = llama_cpp.__version__
        self._llama = llama_cpp.Llama(
            str(self._file), n_ctx=2048, n_threads=threads, n_threads_batch=threads, logits_all=True
        )

    def generate(self, prompt: str, prompt_ids: Sequence[int], n_new: int) -> Timing:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        del prompt
        self._llama.reset()
        clock = Clock()
        for token in self._llama.generate(list(prompt_ids), temp=0.0, repeat_penalty=1.0):
            clock.token(int(token))
            if len(clock.timing.token_ids) == n_new:
                break
        return clock.timing

    def nll_nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""

        def logits(ids: torch.Tensor) -> torch.Tensor:
            self._llama.reset()
            self._llama.eval(ids[0].tolist())
            return torch.tensor(self._llama.scores[: ids.shape[1]])

        return mean_nll_nats(logits, windows)

    def weights_bytes(self) -> int:
        """Of the file."""
        return self._file.stat().st_size

    def facts(self) -> dict[str, Any]:
        """Versions."""
        return {"llama-cpp-python": self._version, "file": self._file.name}
