"""Sums over rows from which a gate is solved in closed form, and which can be put aside and taken up again."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(slots=True)
class _Moments:
    """Sums of one group, about a shift that keeps fp32 exact enough.

    Attributes:
        shift: Mean of the first rows, shape (feature,).
        gram: Sum of outer products of shifted features, shape (feature, feature).
        cross: Sum of shifted features times target, shape (feature,).
        total: Sum of shifted features, shape (feature,).
        scalars: Rows and sum of targets, float64, shape (2,).
    """

    shift: Tensor
    gram: Tensor
    cross: Tensor
    total: Tensor
    scalars: Tensor


@dataclass(slots=True)
class GateSums:
    """Sums of many groups.

    Attributes:
        n_windows: Windows that were added, for whoever counts them.
    """

    n_windows: int = 0
    _moments: dict[int, _Moments] = field(default_factory=dict)
    _floors: dict[int, float] = field(default_factory=dict)

    @staticmethod
    def bytes_of(n_features: int) -> int:
        """Memory of one group's sums, bytes."""
        return 4 * n_features * (n_features + 3)

    def __contains__(self, group: int) -> bool:
        return group in self._moments

    def floor_of(self, group: int, proposed: float) -> float:
        """What is added to damages of a group before the logarithm: the first proposal, for all rows."""
        return self._floors.setdefault(group, max(proposed, 1e-30))

    def add(self, group: int, features: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            group: Which group's.
            features: Shape (row, feature), fp32.
            target: Shape (row,).
        """
        features, target = features.float(), target.float()
        if group not in self._moments:
            n, device = features.shape[1], features.device
            gram, cross, total = (torch.zeros(shape, device=device) for shape in ((n, n), (n,), (n,)))
            self._moments[group] = _Moments(features.mean(0), gram, cross, total, torch.zeros(2, dtype=torch.float64))
        part = self._moments[group]
        z = features - part.shift
        part.gram.addmm_(z.T, z)
        part.cross += z.T @ target
        part.total += z.sum(0)
        part.scalars += torch.tensor([len(z), float(target.double().sum())], dtype=torch.float64)

    def solve(self, group: int, ridge: float) -> tuple[Tensor, float]:
        """Weights of the features and the constant, so that the mean prediction is the mean target less itself: 0.

        Args:
            group: Which group's.
            ridge: Strength of the penalty on standardised features (Hoerl and Kennard 1970).

        Returns:
            Weights of shape (feature,), fp32, and the constant.
        """
        part = self._moments[group]
        n, target_sum = part.scalars.tolist()
        mean = part.total / n
        covariance = part.gram / n - torch.outer(mean, mean)
        moment = part.cross / n - mean * (target_sum / n)
        scale = covariance.diagonal().clamp_min(1e-12).sqrt()
        standard = covariance / torch.outer(scale, scale)
        standard.diagonal().add_(ridge)
        weights = torch.linalg.solve(standard, moment / scale) / scale
        return weights, -float(weights.double() @ (part.shift + mean).double())

    def save(self, path: Path) -> None:
        """Put the sums aside; an existing file is replaced in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{group}.{name}": getattr(part, name).cpu().contiguous()
            for group, part in self._moments.items()
            for name in _Moments.__slots__
        }
        tensors["floors"] = torch.tensor(list(self._floors.items()), dtype=torch.float64).reshape(-1, 2)
        scratch = path.with_suffix(f".{os.getpid()}.part")
        save_file(tensors, scratch, metadata={"windows": str(self.n_windows)})
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "GateSums | None":
        """What :meth:`save` put aside, on a device; ``None`` if there is nothing that can be read: begin again."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                sums = cls(int((file.metadata() or {})["windows"]))
                names = [name for name in file.keys() if name != "floors"]  # noqa: SIM118 - not a mapping
                for group in sorted({int(name.split(".")[0]) for name in names}):
                    parts = {name: file.get_tensor(f"{group}.{name}") for name in _Moments.__slots__}
                    moved = {name: part if name == "scalars" else part.to(device) for name, part in parts.items()}
                    sums._moments[group] = _Moments(**moved)
                sums._floors = {int(group): floor for group, floor in file.get_tensor("floors").tolist()}
                return sums
        except (SafetensorError, KeyError, ValueError):
            return None
