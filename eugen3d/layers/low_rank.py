"""LowRankLinear: a dense layer as the product of two thin matrices, with the activation outside.

    y = U V x + b,    V ∈ R^{r×d},  U ∈ R^{l×r}

The baseline that keeps all neurons. It is also the corner of the EUGen family with order 1, Φ = identity and no norm.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen3d.layers.features import Phi, draw_uniform
from eugen3d.layers.kind import KindConfig, KindLayer, carry_over


@dataclass(frozen=True)
class LowRankConfig(KindConfig):
    """A low-rank dense layer. The constructor arguments of `LowRankLinear`, less its two widths."""

    rank: int = 32
    """r: width between the two matrices."""
    bias: bool = True
    """Whether the output adds a learned bias."""

    @property
    def inner_width(self) -> int:
        """r."""
        return self.rank

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}, expected at least 1")


class LowRankLinear(KindLayer):
    """Two dense layers in the place of one, `up(down(x))`, without an activation.

    A fresh layer keeps the second moment of its input up to the factor 2 that a ReLU behind it halves again (He et
    al. 2015), and its bias is zero.

    Args:
        in_features: d, length of an input.
        out_features: l, length of an output.
        rank: r, width between the two; above min(d, l) it costs more than a dense layer and can do no more.
        bias: whether the output has a bias.
        generator: source of the random draw, on the CPU; the global one by default.

    Raises:
        ValueError: on a width or a rank below one.

    Shape: (..., in_features) → (..., out_features), any number of leading axes, empty ones included.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 32,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.config = LowRankConfig(rank, bias)  # checks the rest
        like = {"device": device, "dtype": dtype}
        self.down = nn.Linear(in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, out_features, bias=bias, **like)
        self.reset_parameters(generator)

    @property
    def in_features(self) -> int:
        """d, length of an input."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """l, length of an output."""
        return self.up.out_features

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        activation: Phi = "identity",
        config: LowRankConfig | None = None,
        inputs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> "LowRankLinear":
        """Build the best layer of its rank for a dense one; approximate below the rank of its weight W.

        Without inputs W_r is the truncated singular value decomposition of W (Eckart & Young 1936). With inputs it
        minimises the error of the output over them, Σ‖W x + b − W_r x − b_r‖². Whatever W_r, the best b_r makes the
        mean residual zero, b_r = b + (W − W_r) x̄, so what is left is ‖(W − W_r) X‖ over the centred rows X. By Eckart &
        Young again W_r X is the truncated decomposition of W X, that is U Uᵀ W X with U its left singular vectors, and
        W_r = U Uᵀ W attains it: reduced-rank regression (Izenman 1975) or activation-aware SVD. Without an output bias
        the rows are not centred.

        Args:
            linear: the dense layer; device, dtype, training flag and requires_grad carry over.
            activation: "identity"; an activation stays outside.
            inputs: rows that the dense layer sees, shape (..., in_features).
            generator: source of what is left over where the rank exceeds that of W.

        Raises:
            ValueError: on an activation, a bias that the configuration leaves out, or no input row.
        """
        config = config or LowRankConfig()
        if activation != "identity":
            raise ValueError(f"activation is {activation!r}, expected 'identity': a low-rank layer has none inside")
        if linear.bias is not None and not config.bias:
            raise ValueError("config.bias is False, expected True: the dense layer has a bias")
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls.from_config(config, linear.in_features, linear.out_features, generator=generator, **like)
        rows = None if inputs is None else inputs.reshape(-1, linear.in_features)
        if rows is not None and len(rows) == 0:
            raise ValueError("there are no input rows, expected at least one")
        layer._fit(linear, rows)
        carry_over(linear, layer)
        return layer

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw both matrices anew; the bias becomes zero."""
        self.down.weight.copy_(draw_uniform(self.down.weight.shape, math.sqrt(3 / self.in_features), generator))
        self.up.weight.copy_(draw_uniform(self.up.weight.shape, math.sqrt(6 / self.up.in_features), generator))
        if self.up.bias is not None:
            self.up.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def maps(self) -> list[nn.Module]:
        """The maps that the layer is a chain of, for folding."""
        return [self.down, self.up]

    @torch.no_grad()
    def _fit(self, linear: nn.Linear, rows: Tensor | None) -> None:
        """Set the matrices to the optimum over centred rows, in float64; rows (n, d), or None for W itself."""
        weight = linear.weight.double().cpu()
        wide = None if rows is None else rows.double().cpu()
        mean = weight.new_zeros(self.in_features) if wide is None or not self.config.bias else wide.mean(dim=0)
        seen = weight
        if wide is not None:  # the triangular factor stands for the rows: they may be many
            seen = weight @ torch.linalg.qr(wide - mean, mode="r").R.T
        left = torch.linalg.svd(seen, full_matrices=False).U
        rank = min(self.config.rank, left.shape[1])
        down = left[:, :rank].T @ weight
        self.down.weight[:rank] = down.to(self.down.weight)
        self.up.weight.zero_()  # what is left of `down` stays as it was drawn, so that it can be trained
        self.up.weight[:, :rank] = left[:, :rank].to(self.up.weight)
        if self.up.bias is not None:
            bias = 0 if linear.bias is None else linear.bias.double().cpu()
            self.up.bias.copy_(bias + weight @ mean - left[:, :rank] @ (down @ mean))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, r={self.config.rank}"
