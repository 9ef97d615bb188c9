"""What the configurations and the layers of all kinds have in common."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


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


class KindLayer(nn.Module):
    """Base of a kind's layer: constructed with two widths and the fields of its configuration.

    Raises:
        ValueError: on a width that does not exist.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"widths are {in_features} and {out_features}, expected at least 1")

    @classmethod
    def from_config(cls: type[Layer], config: KindConfig, in_features: int, out_features: int, **kwargs: Any) -> Layer:
        """Build a freshly drawn layer; `kwargs` are `device`, `dtype` and `generator`."""
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return cls(in_features, out_features, **fields, **kwargs)
