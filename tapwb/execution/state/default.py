"""How states are stored unless somebody asks for something else; ``tapwb bench state`` shows why."""

from tapwb.execution.state import feedback_codec as _feedback_codec  # noqa: F401 - registers
from tapwb.execution.state.codec import codecs
from tapwb.execution.state.memory import TapMemory, UpdateBits, exact_updates

DEFAULT_CODEC = "int8+4"
#: Tokens between two writes of a state.
WRITE_EVERY = 16


def default_memory(bits_of: UpdateBits = exact_updates) -> TapMemory:
    """A memory with the default codec.

    Args:
        bits_of: Levels of the updates of the tokens of a pass.
    """
    return TapMemory(codecs[DEFAULT_CODEC], WRITE_EVERY, bits_of)
