"""optimum-quanto through transformers: weights of 8 bits."""

from typing import Any

from tapwb.evals.decode_peers.transformers_peer import TransformersContender


class QuantoContender(TransformersContender):
    """Weight-only quantization, bf16 activations."""

    def __init__(self) -> None:
        super().__init__("bfloat16")

    def load(self, folder: str, text: str) -> None:
        """Load and quantize."""
        from optimum import quanto

        super().load(folder, text)
        quanto.quantize(self._model, weights=quanto.qint8)
        quanto.freeze(self._model)

    def facts(self) -> dict[str, Any]:
        """Versions."""
        from importlib.metadata import version

        return super().facts() | {"optimum-quanto": version("optimum-quanto")}
