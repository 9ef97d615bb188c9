"""LayerStack: an MLP of layers of any kind, before some of which its input is concatenated again."""

from collections.abc import Collection, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from eugen3d.layers.fold import Link, fold_links
from eugen3d.layers.maps import first_matrix
from eugen3d.layers.merged import Deferred


class LayerStack(nn.ModuleList):
    """Chains one after the other, with skip connections.

    Args:
        chains: every layer with its activation, as `make_layer` gives them.
        skips: the chains, counted from 0, that see [the stack's input, the output of the chain before].

    Raises:
        ValueError: on a skip to the first chain, or to one that is not there.

    Shape: (..., in_features) → (..., out_features).
    """

    def __init__(self, chains: Iterable[nn.Module] = (), skips: Collection[int] = ()) -> None:
        super().__init__(chains)
        self.skips = frozenset(skips)
        out_of_range = sorted(index for index in self.skips if not 0 < index < len(self))
        if out_of_range:
            raise ValueError(f"skips has {out_of_range}, expected indices of 1 to {len(self) - 1}")

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.through(Deferred.of(x)).form()
        hidden = x  # without gradients stacks are folded, and there is nothing left to merge
        for index, chain in enumerate(self):
            hidden = chain(torch.cat([x, hidden.to(x.dtype)], dim=-1) if index in self.skips else hidden)
        return hidden

    def through(self, value: Deferred) -> Deferred:
        """The same with affine maps that are merged with what reads them, at either end, too."""
        hidden = value
        for index, chain in enumerate(self):
            hidden = (Deferred.cat([value, hidden]) if index in self.skips else hidden).through(chain)
        return hidden

    def links(self) -> list[Link]:
        """Every chain but the last, with the one that takes its output and the columns where it does."""
        chains = [chain for chain in self if isinstance(chain, nn.Sequential)]
        return [
            (chain, [(following, self._columns(index))]) for index, (chain, following) in enumerate(pairwise(chains), 1)
        ]

    def fold_(self) -> None:
        """Fold in place: every readout is merged into the layer that takes it (see `eugen3d.layers.fold`)."""
        fold_links([chain for chain in self if isinstance(chain, nn.Sequential)], self.links)

    def join_(self) -> None:
        """Join the chains in place, up to a skip and from there on, for evaluation alone.

        A runtime then has as few chains as there can be, and activations stay inside them.
        """
        ends = [*sorted(self.skips), len(self)]
        parts = [[*self][start:end] for start, end in pairwise([0, *ends])]
        self._modules.clear()
        self.extend(nn.Sequential(*part) for part in parts)
        self.skips = frozenset(range(1, len(parts)))

    def _columns(self, index: int) -> slice:
        """Where chain `index` takes the output of the one before it."""
        return slice(first_matrix(self[0]).shape[1], None) if index in self.skips else slice(None)
