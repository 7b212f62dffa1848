"""torchao through transformers: weights of 8 or 4 bits."""

from typing import Any

from tapwb.evals.decode_peers.transformers_peer import TransformersContender


class TorchAoContender(TransformersContender):
    """Weight-only quantization, bf16 activations.

    Args:
        bits: 8, or 4 in groups of 64.
    """

    def __init__(self, bits: int) -> None:
        super().__init__("bfloat16")
        self._bits = bits

    def load(self, folder: str, text: str) -> None:
        """Load and quantize."""
        import torchao
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        super().load(folder, text)
        if self._bits == 8:
            quantize_(self._model, Int8WeightOnlyConfig())
        else:
            quantize_(self._model, _int4_config())
        self._version = torchao.__version__

    def facts(self) -> dict[str, Any]:
        """Versions."""
        return super().facts() | {"torchao": self._version, "group_size": 64 if self._bits == 4 else "row"}


def _int4_config() -> Any:
    """The layout for CPUs, which torchao 0.18 keeps among its prototypes."""
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=64)
