"""Optimizers of the fields: Adam, and Muon for the matrices with Adam for everything else."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from torch.nn import Parameter

from eugen3d.training import Muon


@dataclass
class FieldOptimizerConfig(OptimizerConfig):
    """Optimizer of a field's dense and EUGen layers."""

    _target: type = field(default_factory=lambda: Muon)
    """Target class to instantiate with the kind "muon"."""
    kind: Literal["muon", "adam"] = "muon"
    """Muon for matrices and Adam for the rest, or Adam for all."""
    lr: float = 1e-2
    """Learning rate; with Muon, Adam takes a tenth of it."""
    eps: float = 1e-8
    """Adam's denominator offset."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the means of gradients and of their squares."""
    momentum: float = 0.9
    """Muon's momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay: of matrices with Muon, of everything with Adam (AdamW)."""

    def setup(self, params: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Build the optimizer for a list of parameters."""
        adam = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        if self.kind == "adam":
            return torch.optim.AdamW(params, **adam)
        return Muon(params, momentum=self.momentum, **adam)
