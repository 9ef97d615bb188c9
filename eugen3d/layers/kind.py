"""What the configurations of all layer kinds have in common."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class KindConfig:
    """Base of a layer kind's configuration: the constructor arguments of its layer, less the two widths."""

    @property
    def includes_activation(self) -> bool:
        """Whether the layer stands for a dense layer together with its activation, or for the dense layer alone."""
        return False

    @property
    def inner_width(self) -> int:
        """Numbers between the two maps of the layer, on which its fit to rows depends; 0 where it has but one map."""
        return 0


def carry_over(linear: nn.Linear, layer: nn.Module) -> None:
    """Give a layer the training flag of the dense layer that it was made from, and freeze it if that one is frozen."""
    layer.train(linear.training)
    if not linear.weight.requires_grad:
        layer.requires_grad_(False)
