"""Several answers at once: independent caches, a round of each in turn.

Every answer goes at its own pace, so a slow guesser never holds up the others, and none sees another's cache. The
passes are not merged: the levels and lengths of a round differ from answer to answer.
"""

from collections.abc import Callable, Sequence

from tapwb.execution.speculative.records import Round
from tapwb.execution.speculative.sequence import SpeculativeSequence


def write_in_turns(
    sequences: Sequence[SpeculativeSequence], on_round: Callable[[int, Round], None] | None = None
) -> list[SpeculativeSequence]:
    """Write all answers, a round of each in turn.

    Args:
        sequences: One for each request.
        on_round: Told the number of the request and what its answer grew by.

    Returns:
        The same sequences, finished, in the order of the requests.
    """
    writing = [index for index, sequence in enumerate(sequences) if not sequence.finish_reason]
    while writing:
        for index in writing:
            one = sequences[index].step()
            if on_round is not None:
                on_round(index, one)
        writing = [index for index in writing if not sequences[index].finish_reason]
    return list(sequences)
