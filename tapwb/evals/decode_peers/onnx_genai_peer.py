"""onnxruntime-genai: its own ONNX file with int4 weights."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapwb.core import settings
from tapwb.evals.decode_peers.contender import Clock, Timing


class OnnxGenaiContender:
    """The model builder's int4 blocks, run by ``onnxruntime_genai``; the built model stays in the user's cache."""

    def load(self, folder: str, text: str) -> None:
        """Build once, then load.

        Raises:
            RuntimeError: If the builder fails; with its last line.
        """
        import onnxruntime_genai as genai

        del text
        out = settings.cache_dir() / "decode_peers" / f"onnx-genai-int4-{Path(folder).name}"
        if not (out / "genai_config.json").is_file():
            out.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", str(out)]
            done = subprocess.run(
                [*command, "-p", "int4", "-e", "cpu", "-c", str(out / "cache")],
                capture_output=True, text=True, errors="replace",
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"the model builder failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        self._bytes = sum(file.stat().st_size for file in out.glob("*.onnx*"))
        config = genai.Config(str(out))
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        config.overlay(
            f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}, '
            '"inter_op_num_threads": 1}}}}'
        )
        self._genai, self._model = genai, genai.Model(config)

    def generate(self, prompt: str, prompt_ids: Sequence[int], n_new: int) -> Timing:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        del prompt
        length = len(prompt_ids) + n_new
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        clock = Clock()
        generator.append_tokens(np.array([list(prompt_ids)], dtype=np.int32))
        while not generator.is_done() and len(clock.timing.token_ids) < n_new:
            generator.generate_next_token()
            clock.token(int(generator.get_next_tokens()[0]))
        return clock.timing

    def nll_nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        del windows
        raise NotImplementedError("the graph that its builder makes gives logits of the last token only")

    def weights_bytes(self) -> int:
        """Of the files."""
        return int(self._bytes)

    def facts(self) -> dict[str, Any]:
        """Versions."""
        from importlib.metadata import version

        return {"onnxruntime-genai": version("onnxruntime-genai")}
