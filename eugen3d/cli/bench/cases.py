"""Which layers of the whole models are replaced, and what the paper says of it (EUGens 2025).

Where the setting as stated does not give the paper's figure, a second case stands beside it: the nearest setting that
does. Each differs in one thing, which it names.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from eugen3d.cli.bench.models import ModelName
from eugen3d.layers import Patterns, Sine
from eugen3d.layers.features import Phi

Quantity = Literal["megabytes", "parameters", "saved_bytes", "saved_share", "share"]


@dataclass(frozen=True)
class PaperFigure:
    """A number of the paper, and how ours is taken to compare with it."""

    figure: str
    """What it says, with the unit."""
    value: float
    quantity: Quantity
    """Megabytes or parameters left, bytes saved, the share saved, or the share left."""
    assumption: str
    """Which layers and how many features the number is for, as far as it is said."""
    state: Literal["converted", "folded"] = "folded"
    """Which of our models is compared."""
    remark: str = ""
    """How the two differ, beside the number."""


@dataclass(frozen=True)
class Case:
    """A model and the layers of it that are replaced."""

    model: ModelName
    layers: str
    """The layers, in words."""
    names: str
    """The layers: a regular expression for their whole names."""
    num_features: int
    phi: Phi = "relu"
    patterns: Patterns | None = None
    """Activations that are counted as going into the layer although they are another function than Φ's."""
    paper: PaperFigure | None = None


_VIT_B = ("MB left of 346", 196.85, "megabytes", "top 6 FFLs, m = 32")
_VIT_L = ("parameters left of 304 M", 150e6, "parameters", "21 of 24 FFLs, m not said")
_NERF = ("share of the storage saved", 0.30, "saved_share", "3 hidden layers, m = 256")
_SIREN = ("share of the size left, about a third", 1 / 3, "share", "the hidden layers, m = 32", "converted")
_TANH_GELU: Patterns = {"transformers.NewGELUActivation": "gelu"}

CASES: tuple[Case, ...] = (
    Case(
        "vit-base",
        "fc1 with its activation, top 6 of 12 FFLs",
        r"blocks\.([6-9]|1[01])\.mlp\.fc1",
        32,
        paper=PaperFigure(*_VIT_B, remark="six FFLs are 113 MB in all, the figure saves 149: it takes eight"),
    ),
    Case(
        "vit-base",
        "fc1 with its activation, top 8 of 12 FFLs",
        r"blocks\.([4-9]|1[01])\.mlp\.fc1",
        32,
        paper=PaperFigure(*_VIT_B, remark="differs in the FFLs: eight"),
    ),
    Case(
        "vit-large",
        "fc1 with its activation, top 21 of 24 FFLs",
        r"blocks\.([3-9]|1\d|2[0-3])\.mlp\.fc1",
        32,
        paper=PaperFigure(*_VIT_L, remark="ViT-B's m = 32 leaves fewer: the figure takes m = 512"),
    ),
    Case(
        "vit-large",
        "fc1 with its activation, top 21 of 24 FFLs",
        r"blocks\.([3-9]|1\d|2[0-3])\.mlp\.fc1",
        512,
        paper=PaperFigure(*_VIT_L, remark="differs in m: 512"),
    ),
    Case(
        "gpt2",
        "c_fc with its activation, top 11 of 12 FFLs",
        r"transformer\.h\.([1-9]|1[01])\.mlp\.c_fc",
        64,
        patterns=_TANH_GELU,
        paper=PaperFigure(
            "bytes saved of 1.4 GB",
            0.2e9,
            "saved_bytes",
            "11 of 12 FFLs, m = 64",
            remark="the 1.4 GB are more than the float32 weights (0.5 GB), so the difference is compared",
        ),
    ),
    Case("bert-base", "dense with its activation, top 11 of 12 FFLs", r"encoder\.layer\.([1-9]|1[01])\.inter.*", 64),
    Case("efficientvit-b1", "the head's first dense layer", r"head\.classifier\.0", 64),
    Case(
        "nerf",
        "trunk layers 1 to 3 of 0 to 7",
        r"trunk\.[123]\.0",
        256,
        paper=PaperFigure(*_NERF, remark="at m = 256 the folded layers are as wide as the dense ones, plus the norms"),
    ),
    Case(
        "nerf",
        "trunk layers 5 to 7 of 0 to 7",
        r"trunk\.[567]\.0",
        128,
        paper=PaperFigure(
            *_NERF, remark="differs in m: 128, and in the layers: the last three, which fold into the heads"
        ),
    ),
    Case(
        "zipnerf",
        "first view-dependent layer; dense layers only",
        r"colour\.layers\.0\.0",
        64,
    ),
    Case(
        "isdf",
        "layers 1 and 2 of 0 to 5",
        r"layers\.[12]\.0",
        128,
        "softplus",
        {nn.Softplus: "softplus"},
    ),
    Case(
        "siren",
        "the three hidden layers",
        r"layers\.[123]\.0",
        32,
        "sine",
        {Sine: "sine"},
        PaperFigure(*_SIREN, remark="unfolded; a third takes m = 42"),
    ),
    Case(
        "siren",
        "the three hidden layers",
        r"layers\.[123]\.0",
        42,
        "sine",
        {Sine: "sine"},
        PaperFigure(*_SIREN, remark="differs in m: 42"),
    ),
)
