"""Frozen configurations of the layer kinds: one class a kind, and `LayerConfig`, which chooses between them."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from eugen3d.layers.features import Phi, Projection

LayerKind = Literal["linear", "eugen"]


@dataclass(frozen=True)
class LinearConfig:
    """The dense layer, `torch.nn.Linear`: the baseline of every method."""

    bias: bool = True
    """Whether the layer adds a learned output bias."""


@dataclass(frozen=True)
class EUGenConfig:
    """An EUGen layer (EUGens 2025, eq. 1). The constructor arguments of `EUGenLinear`, less its two widths."""

    num_features: int = 64
    """m: features per degree."""
    order: int = 1
    """k: highest degree of the products of projections."""
    phi: Phi = "relu"
    """Φ: the element-wise map of the features. With "identity", the activation of the layer stays outside."""
    use_norm: bool = True
    """Whether the norm of the input is projected beside the input."""
    projection: Projection = "orthogonal"
    """Distribution that the projections are drawn from."""
    shared: bool = True
    """Whether the degrees share their projections: k matrices, or k(k+1)/2 independent ones."""
    train_projections: bool = True
    """Whether the projections are trained, or stay as they were drawn."""
    bias: bool = True
    """Whether the projections see a constant beside the input, and the output adds a learned bias."""

    def __post_init__(self) -> None:
        if self.num_features < 1:
            raise ValueError(f"num_features is {self.num_features}, expected at least 1")
        if self.order < 1:
            raise ValueError(f"order is {self.order}, expected at least 1")
        for name, value, choices in (("phi", self.phi, Phi), ("projection", self.projection, Projection)):
            if value not in get_args(choices):
                raise ValueError(f"{name} {value!r} is unknown, expected one of {', '.join(get_args(choices))}")


@dataclass(frozen=True)
class LayerConfig:
    """Which kind of layer stands where a dense layer would, and the settings of that kind."""

    kind: LayerKind = "eugen"
    """The layer kind; "linear" is the dense baseline."""
    eugen: EUGenConfig = field(default_factory=EUGenConfig)
    """Settings of the kind "eugen"."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(LayerKind):
            raise ValueError(f"layer kind {self.kind!r} is unknown, expected one of {', '.join(get_args(LayerKind))}")

    @property
    def chosen(self) -> LinearConfig | EUGenConfig:
        """The configuration of the chosen kind."""
        return self.eugen if self.kind == "eugen" else LinearConfig()
