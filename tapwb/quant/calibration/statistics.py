"""What a linear layer's inputs look like: their mean and their covariance, gathered over a text."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import InvalidTensor


class InputStatistics:
    """Running sums over the inputs of one layer.

    The error of a layer's output is ``E @ x`` for a weight error ``E``. Its constant part ``E @ mean`` can be added
    back once and for all; what is left has the expectation ``trace(E @ covariance @ E.T)``, and that is made small.

    Inputs may be weighted, and each of several equal blocks of the layer's rows may weigh them in its own way (the
    heads of a projection): the mean is then kept block by block, the covariance for all of them together.

    Args:
        columns: Input features.
        blocks: Blocks of rows that weigh inputs differently.
    """

    def __init__(self, columns: int, blocks: int = 1) -> None:
        self.total_weight = 0.0
        self.n_tokens = 0
        self._sums = torch.zeros(blocks, columns, dtype=torch.float64)
        self._squares = torch.zeros(columns, columns)

    def add(self, x: Float[Tensor, "token column"], weights: Float[Tensor, "block token"] | None = None) -> None:
        """Take in some inputs.

        Args:
            x: Inputs.
            weights: What each input counts for each block of rows, with the same sum for every block; 1 by default.
        """
        rows = x.detach().float()
        if weights is None:
            weights = torch.ones(self.blocks, rows.shape[0], device=rows.device)
        weights = weights.detach().float()
        # Half precision, which may be on around this call, would round the squares of large means over the rest.
        with torch.autocast(rows.device.type, enabled=False):
            self.n_tokens += int(rows.shape[0])
            self.total_weight += float(weights.double().sum())
            self._sums += (weights @ rows).double().cpu()
            weighted = rows * weights.sum(0).unsqueeze(-1)
            if rows.is_cpu:
                self._squares.addmm_(weighted.T, rows)
            else:
                self._squares += (weighted.T @ rows).cpu()

    @property
    def blocks(self) -> int:
        """Blocks of rows that weigh inputs in their own way."""
        return len(self._sums)

    @property
    def mean(self) -> Float[Tensor, " column"]:
        """Mean input of all blocks.

        Raises:
            InvalidTensor: If no token was seen.
        """
        self._check()
        return (self._sums.sum(0) / self.total_weight).float()

    @property
    def covariance(self) -> Float[Tensor, "column column"]:
        """Covariance of the inputs."""
        self._check()
        return self._squares / self.total_weight - torch.outer(self.mean, self.mean)

    def row_sums(self, error: Float[Tensor, "row column"]) -> Float[Tensor, " row"]:
        """``error @ mean``, with the mean of the block that each row belongs to.

        Args:
            error: What a weight lacks.

        Raises:
            InvalidTensor: If no token was seen, or the rows do not divide into the blocks.
        """
        self._check()
        n_rows, n_blocks = int(error.shape[0]), self.blocks
        if n_rows % n_blocks:
            raise InvalidTensor(
                f"{n_rows} rows do not divide into {n_blocks} blocks. Gather statistics without blocks."
            )
        means = (self._sums * (n_blocks / self.total_weight)).float()
        return torch.einsum("brc,bc->br", error.reshape(n_blocks, -1, error.shape[1]), means).flatten()

    @property
    def nbytes(self) -> int:
        """Bytes the sums take."""
        return self._squares.numel() * 4 + self._sums.numel() * 8

    def _check(self) -> None:
        if not self.total_weight:
            raise InvalidTensor("no input was seen, so there are no statistics. Run the model on a text first.")
        if not bool(torch.isfinite(self._squares.diagonal()).all()):
            raise InvalidTensor("the inputs seen hold NaN or infinity. Check the model's weights and the text.")
