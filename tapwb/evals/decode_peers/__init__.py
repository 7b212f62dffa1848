"""Programs that ``tapwb bench decode`` runs side by side; a new one is one module and one line here.

Each runs in a process of its own (:mod:`tapwb.evals.decode_worker`), so that memory is its own and no program's threads
or patches reach another.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.evals.decode_peers.contender import Contender

#: The peer that ratios are to.
BASELINE = "transformers-bf16"


@dataclass(frozen=True, slots=True)
class Peer:
    """One program.

    Attributes:
        title: For tables.
        bits: Bits of its weights, for tables.
        package: What must be installed, as it is imported.
        install: What to install.
        make: Makes it, inside its process.
    """

    title: str
    bits: str
    package: str
    install: str
    make: Callable[[str], Contender]

    def why_absent(self) -> Unavailable | None:
        """Why it cannot run here, or ``None``."""
        if importlib.util.find_spec(self.package) is None:
            return Unavailable(f"{self.install} is not installed: pip install {self.install}")
        return None


def _transformers(dtype: str, *, compiled: bool = False) -> Callable[[str], Contender]:
    def make(_: str) -> Contender:
        from tapwb.evals.decode_peers.transformers_peer import TransformersContender

        return TransformersContender(dtype, compiled=compiled)

    return make


def _torchao(bits: int) -> Callable[[str], Contender]:
    def make(_: str) -> Contender:
        from tapwb.evals.decode_peers.torchao_peer import TorchAoContender

        return TorchAoContender(bits)

    return make


def _quanto(_: str) -> Contender:
    from tapwb.evals.decode_peers.quanto_peer import QuantoContender

    return QuantoContender()


def _ctranslate2(_: str) -> Contender:
    from tapwb.evals.decode_peers.ctranslate2_peer import CTranslate2Contender

    return CTranslate2Contender()


def _onnx_genai(_: str) -> Contender:
    from tapwb.evals.decode_peers.onnx_genai_peer import OnnxGenaiContender

    return OnnxGenaiContender()


def _llama_cpp(gguf: str) -> Contender:
    from tapwb.evals.decode_peers.llama_cpp_peer import LlamaCppContender

    return LlamaCppContender(gguf)


PEERS: dict[str, Peer] = {
    BASELINE: Peer("transformers bf16", "16", "transformers", "transformers", _transformers("bfloat16")),
    "transformers-fp32": Peer("transformers fp32", "32", "transformers", "transformers", _transformers("float32")),
    "transformers-compiled": Peer(
        "transformers bf16, compiled", "16", "transformers", "transformers", _transformers("bfloat16", compiled=True)
    ),
    "torchao-int8": Peer("torchao int8 weights", "8", "torchao", "torchao", _torchao(8)),
    "torchao-int4": Peer("torchao int4 weights", "4", "torchao", "torchao", _torchao(4)),
    "quanto-int8": Peer("quanto int8 weights", "8", "optimum.quanto", "optimum-quanto", _quanto),
    "ctranslate2-int8": Peer("CTranslate2 int8", "8", "ctranslate2", "ctranslate2", _ctranslate2),
    "onnxruntime-genai-int4": Peer(
        "onnxruntime-genai int4", "4", "onnxruntime_genai", "onnxruntime-genai onnx onnx-ir", _onnx_genai
    ),
}


def peer_of(name: str) -> Peer:
    """The peer of a name; ``llama.cpp:FILE.gguf`` is llama.cpp on that file.

    Raises:
        UsageError: If there is none.
    """
    kind, _, file = name.partition(":")
    if kind == "llama.cpp" and file:
        return Peer(f"llama.cpp {file.rpartition('/')[2]}", "as stored", "llama_cpp", "llama-cpp-python", _llama_cpp)
    if name not in PEERS:
        raise UsageError(f"{name!r} is no peer. Choose from {', '.join(PEERS)} or llama.cpp:FILE.gguf.")
    return PEERS[name]
