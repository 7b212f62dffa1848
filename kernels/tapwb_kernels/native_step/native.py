"""A step program run by one call of compiled code.

Maths and error bound are in README.md beside this file, the loops in ``step.cpp`` and the headers it includes. This
module builds the library, turns a program into the list of structures it takes, and calls it through ``ctypes``.
"""

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb_kernels.native_build import NativeUnavailable, build_library
from tapwb_kernels.native_step.memory import MemoryStruct, StepMemory
from tapwb_kernels.native_step.program import MAX_ROWS, StepProgram
from tapwb_kernels.native_step.structs import OpStruct, StepStruct, WeightStruct, packed_ops

SOURCE = Path(__file__).with_name("step.cpp")
RELATIVE_ERROR = 1e-3
"""Largest difference of logits from the PyTorch path, as a share of their norm; a self-test holds every model to it."""

_INTERFACE = 3
_FUNCTIONS = ("exp", "tanh", "sigmoid", "half")


class StepLibrary:
    """A loaded library.

    Args:
        path: Of the library.

    Attributes:
        instructions: Which loops were compiled: ``"AVX-512 VNNI"``, ``"AVX2"``, ``"portable C++"`` ...
        path: Of the library.

    Raises:
        NativeUnavailable: If it cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            library.tap_instructions.restype = ctypes.c_char_p
            library.tap_step_sizes.restype = ctypes.c_int64
            library.tap_step_make.restype = ctypes.c_void_p
            library.tap_step_make.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
            library.tap_step_free.argtypes = [ctypes.c_void_p]
            library.tap_step_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            library.tap_step_function.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            interface = int(library.tap_step_interface())
            self.instructions = str(library.tap_instructions().decode())
        except (OSError, AttributeError) as error:
            raise NativeUnavailable(f"{path} cannot be loaded: {error}") from None
        sizes = [int(library.tap_step_sizes(which)) for which in range(4)]
        mine = [ctypes.sizeof(struct) for struct in (WeightStruct, OpStruct, MemoryStruct, StepStruct)]
        if interface != _INTERFACE or sizes != mine:
            raise NativeUnavailable(f"{path} has interface {interface} {sizes}, not {_INTERFACE} {mine}. Delete it")
        self.path, self.functions = path, library

    def function(self, name: str, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One of the vectorized functions by itself: ``"exp"``, ``"tanh"``, ``"sigmoid"``, or ``"half"`` and back.

        Raises:
            ValueError: If there is no such function.
        """
        if name not in _FUNCTIONS:
            raise ValueError(f"no function {name!r}. Known: {', '.join(_FUNCTIONS)}.")
        kept = x.float().contiguous()
        y = torch.empty_like(kept)
        self.functions.tap_step_function(_FUNCTIONS.index(name), kept.data_ptr(), y.data_ptr(), kept.numel())
        return y


class NativeProgram:
    """A step program, ready to run. One step at a time; the slots are its own.

    Args:
        library: The compiled code.
        program: What to run.

    Raises:
        ValueError: If parts of the program do not fit, or tensors are not as native code reads them.
    """

    def __init__(self, library: StepLibrary, program: StepProgram) -> None:
        program.check()
        self.compiled, self.program = library, program
        self._slots = {name: torch.zeros(MAX_ROWS, width) for name, width in program.slots().items()}
        self._ops, self._alive = packed_ops(program, self._slots)
        self._lock = threading.Lock()
        self._handle = library.functions.tap_step_make(self._ops, len(program.ops), program.n_groups)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            self.compiled.functions.tap_step_free(handle)

    def slot(self, name: str) -> Float[Tensor, "max_row width"]:
        """A slot as the last step left it; rows beyond the step's are of earlier ones."""
        return self._slots[name]

    def run(
        self,
        token_ids: Sequence[int],
        levels: Int[Tensor, "group row"],
        memory: StepMemory,
        *,
        corrections: Float[Tensor, " group"] | None = None,
        n_threads: int = 1,
        n_outputs: int | None = None,
        ops: range | None = None,
    ) -> Float[Tensor, "row vocabulary"]:
        """One step; afterwards the memory holds the tokens.

        Args:
            token_ids: The next tokens of the sequence, 1 to ``MAX_ROWS``.
            levels: Level of each layer group and row, int32, contiguous, 1 to 8; gates write theirs into it.
            memory: Of the sequence.
            corrections: What is taken off each group's gate, fp64; ``None`` where levels are planned.
            n_threads: Threads to share each product.
            n_outputs: One token alone: logits of the first so many of the vocabulary are all that is wanted.
            ops: Operations to run, for comparing one by one; the memory then stays as long as it was.

        Returns:
            Logits after each token.

        Raises:
            ValueError: If the arguments do not fit the program.
        """
        n_rows, n_groups = len(token_ids), self.program.n_groups
        if levels.shape != (n_groups, n_rows) or levels.dtype != torch.int32 or not levels.is_contiguous():
            raise ValueError(f"levels {tuple(levels.shape)} of {levels.dtype} are not int32 of {(n_groups, n_rows)}")
        if corrections is not None and (corrections.shape != (n_groups,) or corrections.dtype != torch.float64):
            raise ValueError(
                f"corrections {tuple(corrections.shape)} of {corrections.dtype} are not fp64 of {n_groups}"
            )
        memory.reserve(memory.length + n_rows)
        part = range(len(self.program.ops)) if ops is None else ops
        step = StepStruct(
            (ctypes.c_int32 * n_rows)(*token_ids),
            levels.data_ptr(),
            None if corrections is None else corrections.data_ptr(),
            n_rows,
            memory.length,
            (n_outputs or 0) if n_rows == 1 else 0,
            n_threads,
            part.start,
            part.stop,
        )
        view = self.program.logits
        width = min(n_outputs or view.width, view.width) if n_rows == 1 else view.width
        with self._lock:
            if self.compiled.functions.tap_step_run(self._handle, ctypes.byref(step), ctypes.byref(memory.struct)):
                raise ValueError(
                    f"tokens {list(token_ids)} at levels {levels.unique().tolist()} do not fit the program. Give 1 to "
                    f"{MAX_ROWS} tokens of its vocabulary, at levels from 1 to 8."
                )
            # A copy, because the next step writes to the same place.
            logits = self._slots[view.slot][:n_rows, view.start : view.start + width].clone()
        if ops is None:
            memory.length += n_rows
        return logits


def load(folder: Path, *, defines: tuple[str, ...] = ()) -> StepLibrary:
    """The library for this machine, built on first use.

    Args:
        folder: Where libraries are kept.
        defines: Further arguments for the compiler; ``-DTAP_PORTABLE`` leaves the instruction sets out.

    Raises:
        NativeUnavailable: If it cannot be built or loaded.
    """
    return StepLibrary(build_library(SOURCE, folder, defines=defines))
