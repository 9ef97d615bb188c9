"""LayerConfig, which chooses between the layer kinds, and the configurations that it chooses from."""

from dataclasses import dataclass
from typing import Literal, get_args

from eugen3d.layers.eugen import EUGenConfig
from eugen3d.layers.kind import KindConfig
from eugen3d.layers.linear import LinearConfig
from eugen3d.layers.low_rank import LowRankConfig
from eugen3d.layers.sine import SineConfig
from eugen3d.layers.snnk import SNNKConfig

__all__ = ["EUGenConfig", "LayerConfig", "LayerKind", "LinearConfig", "LowRankConfig", "SNNKConfig", "SineConfig"]

LayerKind = Literal["linear", "eugen", "low-rank", "snnk", "sine"]


@dataclass(frozen=True)
class LayerConfig:
    """Which kind of layer stands where a dense layer would, and the settings of that kind.

    The settings of a kind are the field that bears its name, spelled with an underscore. Defaults are plain values, not
    factories: they are attributes of the class then, which a configuration finds that was saved before its kind was.
    """

    kind: LayerKind = "eugen"
    """The layer kind; "linear" is the dense baseline."""
    eugen: EUGenConfig = EUGenConfig()
    """Settings of the kind "eugen"."""
    low_rank: LowRankConfig = LowRankConfig()
    """Settings of the kind "low-rank"."""
    snnk: SNNKConfig = SNNKConfig()
    """Settings of the kind "snnk"."""
    sine: SineConfig = SineConfig()
    """Settings of the kind "sine"."""
    linear: LinearConfig = LinearConfig()
    """Settings of the kind "linear"."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(LayerKind):
            raise ValueError(f"layer kind {self.kind!r} is unknown, expected one of {', '.join(get_args(LayerKind))}")

    @property
    def chosen(self) -> KindConfig:
        """The configuration of the chosen kind."""
        return getattr(self, self.kind.replace("-", "_"))
