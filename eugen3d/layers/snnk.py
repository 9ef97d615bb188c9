"""SNNKLinear: a scalable neural network kernel, random features of the input and one output matrix.

    f(W x) ≈ Ψ(W)ᵀ Φ(x),    Φ(x) = φ(G x),    G ∈ R^{m×d}          (Sehanobish et al. 2024)

From the paper: the separation of weights and inputs, the ReLU form Φ(u) = Ψ(u) = max(G u, 0)/√m with Gaussian rows, and
that a trained layer keeps Ψ(W) as a free matrix. On average its features have the arc-cosine kernel of order 1 (Cho &
Saul 2009) for their product, which is not ReLU(wᵀx): the form stands for a layer once its output matrix is fitted.

Not from the paper: the form "fourier". The paper's universal random features draw frequencies from the Fourier
transform of f, and complex exponentials linearise the kernel exp(2πi ξ wᵀx) of each. Ours are the plain random Fourier
features of Rahimi & Recht (2007), sin(g·x + β) with Gaussian g and uniform phases β: they know nothing of f and have
the Gaussian kernel of the inputs for their product. What depends on f is left to the fitted or trained output matrix.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import Phi, draw_projection, draw_uniform
from eugen3d.layers.kind import KindConfig, KindLayer, carry_over
from eugen3d.layers.readout import fit_readout

SNNKForm = Literal["relu", "fourier"]


@dataclass(frozen=True)
class SNNKConfig(KindConfig):
    """An SNNK layer (Sehanobish et al. 2024). The constructor arguments of `SNNKLinear`, less its two widths."""

    num_features: int = 64
    """m: random features."""
    form: SNNKForm = "relu"
    """The features: max(G x, 0)/√m, as in the paper, or plain random Fourier features sin(G x + β), which are not the
    paper's (see the module)."""
    train_projections: bool = False
    """Whether G (and the phases β) are trained, or stay as they were drawn, as in the paper."""
    bias: bool = True
    """Whether the output adds a learned bias."""

    @property
    def includes_activation(self) -> bool:
        """f is inside."""
        return True

    @property
    def inner_width(self) -> int:
        """m."""
        return self.num_features

    def __post_init__(self) -> None:
        if self.num_features < 1:
            raise ValueError(f"num_features is {self.num_features}, expected at least 1")
        if self.form not in get_args(SNNKForm):
            raise ValueError(f"form {self.form!r} is unknown, expected one of {', '.join(get_args(SNNKForm))}")


class SNNKLinear(KindLayer):
    """An SNNK layer in the place of `nn.Linear(in_features, out_features)` and of its activation.

    It is kept as `features` and `readout`, as an EUGen layer is: its features are EUGen features of order 1 without the
    norm, so it folds as they do. ReLU is positively homogeneous, so the factor 1/√m of the ReLU form stands in G. The
    rows of the Fourier form have variance 1/d: inputs of unit variance have angles of unit variance.

    Args:
        in_features: d, length of an input.
        out_features: l, length of an output.
        num_features: m.
        form: "relu" or "fourier".
        train_projections: whether G and the phases require a gradient.
        bias: whether the output has a bias.
        generator: source of the random draw, on the CPU; the global one by default.

    Raises:
        ValueError: on a width, a number of features or a form that does not exist.

    Shape: (..., in_features) → (..., out_features), any number of leading axes, empty ones included.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_features: int = 64,
        form: SNNKForm = "relu",
        train_projections: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.config = SNNKConfig(num_features, form, train_projections, bias)  # checks the rest
        like = {"device": device, "dtype": dtype}
        phi: Phi = "relu" if form == "relu" else "sine"
        self.features = EUGenFeatures(in_features, num_features, phi=phi, bias=form == "fourier", **like)
        self.readout = nn.Linear(num_features, out_features, bias=bias, **like)
        self.reset_parameters(generator)
        self.features.requires_grad_(train_projections)

    @property
    def in_features(self) -> int:
        """d, length of an input."""
        return self.features.in_features

    @property
    def out_features(self) -> int:
        """l, length of an output."""
        return self.readout.out_features

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        activation: Phi = "identity",
        config: SNNKConfig | None = None,
        inputs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> "SNNKLinear":
        """Build the layer that stands for activation(linear(x)), without training; approximate.

        G is drawn and the readout is the least-squares fit over `inputs`, or over standard normal inputs when there are
        none.

        Args:
            linear: the dense layer; device, dtype, training flag and requires_grad carry over.
            activation: what follows the dense layer and goes into this one.
            inputs: rows that the dense layer sees, shape (..., in_features).
        """
        config = config or SNNKConfig()
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls.from_config(config, linear.in_features, linear.out_features, generator=generator, **like)
        fit_readout(layer.features, layer.readout, linear, activation, inputs, generator)
        carry_over(linear, layer)
        return layer

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw G, the phases and the readout anew, the readout so that the second moment is kept; the bias is zero."""
        width, num_features = self.in_features, self.config.num_features
        projection = draw_projection("gaussian", num_features, width, generator)
        if self.config.form == "relu":
            self.features.projection.weight.copy_(projection / math.sqrt(num_features))
            variance = 2 / width  # of features with a second moment of d/2m each
        else:
            self.features.projection.weight.copy_(projection / math.sqrt(width))
            self.features.projection.bias.copy_(draw_uniform((num_features,), math.pi, generator))
            variance = 2 / num_features  # of features with a second moment of 1/2 each
        self.readout.weight.copy_(draw_uniform(self.readout.weight.shape, math.sqrt(3 * variance), generator))
        if self.readout.bias is not None:
            self.readout.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x))

    def maps(self) -> list[nn.Module]:
        """The maps that the layer is a chain of, for folding."""
        return [self.features, self.readout]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, form={self.config.form}"
