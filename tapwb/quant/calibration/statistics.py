"""What a linear layer's inputs look like: their mean and their covariance, gathered over a text."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import InvalidTensor


class InputStatistics:
    """Running sums over the inputs of one layer.

    The error of a layer's output is ``E @ x`` for a weight error ``E``. Its constant part ``E @ mean`` can be added
    back once and for all; what is left has the expectation ``trace(E @ covariance @ E.T)``, and that is made small.

    Args:
        columns: Input features.
    """

    def __init__(self, columns: int) -> None:
        self.n_tokens = 0
        self._sum = torch.zeros(columns, dtype=torch.float64)
        self._squares = torch.zeros(columns, columns)

    def add(self, x: Float[Tensor, "token column"]) -> None:
        """Take in some inputs."""
        rows = x.detach().float()
        self.n_tokens += rows.shape[0]
        self._sum += rows.sum(0).double().cpu()
        self._squares += (rows.T @ rows).cpu()

    @property
    def mean(self) -> Float[Tensor, " column"]:
        """Mean input.

        Raises:
            InvalidTensor: If no token was seen.
        """
        self._check()
        return (self._sum / self.n_tokens).float()

    @property
    def covariance(self) -> Float[Tensor, "column column"]:
        """Covariance of the inputs."""
        self._check()
        return self._squares / self.n_tokens - torch.outer(self.mean, self.mean)

    @property
    def nbytes(self) -> int:
        """Bytes the sums take."""
        return self._squares.numel() * 4 + self._sum.numel() * 8

    def _check(self) -> None:
        if not self.n_tokens:
            raise InvalidTensor("no input was seen, so there are no statistics. Run the model on a text first.")
        if not bool(torch.isfinite(self._squares.diagonal()).all()):
            raise InvalidTensor("the inputs seen hold NaN or infinity. Check the model's weights and the text.")
