"""CTranslate2: its own file, int8 weights and activations."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tapwb.core import settings
from tapwb.evals.decode_peers.contender import Clock, Timing


class CTranslate2Contender:
    """``ctranslate2.Generator`` with int8 weights; the converted model stays in the user's cache."""

    def load(self, folder: str, text: str) -> None:
        """Convert once, then load."""
        import ctranslate2

        from tapwb.models.load import read_tokenizer

        del text
        out = settings.cache_dir() / "decode_peers" / f"ctranslate2-int8-{Path(folder).name}"
        if not (out / "model.bin").is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            ctranslate2.converters.TransformersConverter(folder).convert(str(out), quantization="int8", force=True)
        self._bytes = (out / "model.bin").stat().st_size
        self._version = ctranslate2.__version__
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self._tokenizer = read_tokenizer(Path(folder))
        self._generator = ctranslate2.Generator(str(out), compute_type="int8", intra_threads=threads)

    def generate(self, prompt: str, prompt_ids: Sequence[int], n_new: int) -> Timing:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        del prompt
        tokens = self._tokenizer.convert_ids_to_tokens(list(prompt_ids))
        clock = Clock()
        for step in self._generator.generate_tokens(tokens, max_length=n_new, end_token=[]):
            clock.token(step.token_id)
            if len(clock.timing.token_ids) == n_new:
                break
        return clock.timing

    def nll_nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`."""
        found = []
        for window in windows:
            scored = self._generator.score_batch([self._tokenizer.convert_ids_to_tokens(list(window))])[0]
            found.append(-sum(scored.log_probs) / len(scored.log_probs))
        return found

    def weights_bytes(self) -> int:
        """Of the file."""
        return int(self._bytes)

    def facts(self) -> dict[str, Any]:
        """Versions."""
        return {"ctranslate2": self._version, "activations": "int8"}
