"""What every program that writes text from one model can be asked in a comparison of speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch


@dataclass(slots=True)
class Timing:
    """One answer and when its tokens came.

    Attributes:
        token_ids: The answer.
        first_s: Seconds from the request to the first token.
        step_s: Seconds between neighbouring tokens.
    """

    token_ids: list[int] = field(default_factory=list)
    first_s: float = 0.0
    step_s: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


class Contender(Protocol):
    """A program with one model loaded, in a process of its own."""

    def load(self, folder: str, text: str) -> None:
        """Load the model.

        Args:
            folder: A Hugging Face folder with safetensors and tokenizer.
            text: A short text, for programs that must run once before they are ready.
        """

    def generate(self, prompt: str, prompt_ids: Sequence[int], n_new: int) -> Timing:
        """Continue a prompt greedily, on past an end token where the program can.

        Args:
            prompt: As text.
            prompt_ids: The same, as token ids.
            n_new: Tokens to write.
        """

    def nll_nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Mean negative log-likelihood of the next tokens of each window, nats.

        Raises:
            NotImplementedError: If the program does not tell; the message says why.
        """

    def weights_bytes(self) -> int | None:
        """Bytes of its weights as stored, or ``None`` where it does not tell."""

    def facts(self) -> dict[str, Any]:
        """What ran: kernel, versions, settings."""


class Clock:
    """Notes when tokens come."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.timing = Timing()

    def token(self, token_id: int) -> None:
        """One token came."""
        now = time.perf_counter()
        if self.timing.token_ids:
            self.timing.step_s.append(now - self._last)
        else:
            self.timing.first_s = now - self._started
        self._last = now
        self.timing.token_ids.append(token_id)


def mean_nll_nats(logits: Callable[[torch.Tensor], torch.Tensor], windows: Sequence[Sequence[int]]) -> list[float]:
    """Mean negative log-likelihood of each window, nats.

    Args:
        logits: From token ids of shape (1, token) to logits of shape (token, vocabulary).
        windows: Token ids.
    """
    found = []
    for window in windows:
        ids = torch.tensor([list(window)])
        with torch.inference_mode():
            log_p = logits(ids)[:-1].float().log_softmax(-1)
        found.append(-float(log_p.gather(1, ids[0, 1:, None]).double().mean()))
    return found
