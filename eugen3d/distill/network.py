"""A network whose layers can be exchanged one at a time: what each of them sees, and who reads it."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from eugen3d.layers import KindConfig, Link, Site, find_sites, first_matrix, make_layer, place_layer
from eugen3d.layers.patterns import Patterns

Batch = tuple[Tensor, ...]
Run = Callable[[nn.Module, Batch], Batch]


@runtime_checkable
class Linked(Protocol):
    """A module that says how its chains are linked, where that is not the order of an `nn.Sequential`."""

    def links(self) -> list[Link]:
        """Every chain with those that take its output, and the columns where they take it."""
        ...


def call(module: nn.Module, batch: Batch) -> Batch:
    """Run a module on a batch of positional arguments; what it gives as a tuple."""
    outputs = module(*batch)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True)
class Reader:
    """A layer that takes another one's output, directly."""

    name: str
    """Its site."""
    columns: slice
    """Where that output stands in its input."""


class Network:
    """A module with its sites in the order in which they are run.

    Args:
        module: in evaluation mode.
        sites: in order of evaluation.
        readers: for every site the sites that take its output; for those that are not known none.
        run: evaluates the module on a batch.
    """

    def __init__(
        self, module: nn.Module, sites: Mapping[str, Site], readers: Mapping[str, list[Reader]], run: Run = call
    ) -> None:
        self.module, self.sites, self.readers, self.run = module, dict(sites), dict(readers), run

    @classmethod
    def trace(cls, module: nn.Module, batch: Batch, run: Run = call, patterns: Patterns | None = None) -> "Network":
        """The network of a module, whose order of evaluation is that of one pass over a batch.

        Dense layers that the pass does not run are no sites of it.
        """
        found = find_sites(module, patterns)
        order: list[str] = []
        hooks = [
            (site.layer(module), lambda _module, _inputs, name=name: order.append(name)) for name, site in found.items()
        ]
        with _hooked(hooks), torch.no_grad():
            run(module, batch)
        sites = {name: found[name] for name in dict.fromkeys(order)}
        return cls(module, sites, _readers(module, sites), run)

    def __call__(self, batch: Batch) -> Batch:
        return self.run(self.module, batch)

    def copy(self) -> "Network":
        """The same network over a copy of the module."""
        return Network(copy.deepcopy(self.module), self.sites, self.readers, self.run)

    def chosen(self, names: Sequence[str] | None) -> list[str]:
        """The sites that are meant, in order of evaluation.

        Args:
            names: sites by name, or by number among those that an activation follows; None for every such site whose
                input is as wide as its output, so that what sees an encoding itself stays dense; for every such site
                at all where fewer than two are, as in the small networks behind a hash grid.

        Raises:
            ValueError: naming what did not match and what there is.
        """
        hidden = [name for name, site in self.sites.items() if site.activations]
        if names is None:
            dense = {name: self.dense(name) for name in hidden}
            chosen = [name for name, layer in dense.items() if layer.in_features == layer.out_features]
            return chosen if len(chosen) > 1 else hidden
        numbered = {str(number): name for number, name in enumerate(hidden)}
        for name in names:
            if name not in numbered and name not in self.sites:
                listed = ", ".join(self.sites)
                raise ValueError(f"{name!r} matches none of the teacher's dense layers, expected of {listed}")
        meant = {numbered.get(name, name) for name in names}
        return [name for name in self.sites if name in meant]

    def dense(self, name: str) -> nn.Linear:
        """The dense layer of a site.

        Raises:
            ValueError: another layer stands there.
        """
        layer = self.layer(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} is a {type(layer).__name__}, expected a dense layer")
        return layer

    def layer(self, name: str) -> nn.Module:
        """What stands at a site."""
        return self.sites[name].layer(self.module)

    def block(self, name: str) -> nn.Sequential:
        """What stands at a site, with the activation that follows."""
        return self.sites[name].block(self.module)

    def place(self, name: str, layer: nn.Module, config: KindConfig) -> None:
        """Put a layer of that kind at a site, in place."""
        place_layer(self.module, self.sites[name], layer, config.includes_activation)

    def place_drawn(self, name: str, config: KindConfig) -> None:
        """Put a freshly drawn layer at a site, in place."""
        dense = self.dense(name)
        self.place(name, make_layer(config, dense.in_features, dense.out_features)[0].to(dense.weight), config)

    @torch.no_grad()
    def seen(self, name: str, batch: Batch) -> Tensor:
        """The rows (n, in_features) that a site sees in one pass; the pass ends at its first call."""
        rows: list[Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
            raise _Reached

        with _hooked([(self.layer(name), stop)]):
            try:
                self(batch)
            except _Reached:
                return rows[0]
        raise ValueError(f"{name} is not run by the batch, expected it to be")

    def read_by(self, name: str) -> list[Tensor]:
        """The matrices (outputs, width) by which other layers read a site's output; none where that is not known."""
        return [first_matrix(nn.Sequential(self.layer(r.name)))[:, r.columns] for r in self.readers.get(name, [])]


class _Reached(Exception):  # noqa: N818 - no error: it ends a pass whose rest is not needed
    """A pass has come to the site that was asked for."""


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _readers(module: nn.Module, sites: Mapping[str, Site]) -> dict[str, list[Reader]]:
    """Who reads whom: as the module and its parts say, and one after the other inside a chain."""
    of_layer = {site.layer(module): site for site in sites.values()}
    activations = {module.get_submodule(place) for site in sites.values() for place in site.activations}
    readers: dict[str, list[Reader]] = {}
    for part in module.modules():
        for producer, consumers in part.links() if isinstance(part, Linked) else []:
            last, firsts = _layers(producer, of_layer)[-1:], [(_layers(c, of_layer)[:1], s) for c, s in consumers]
            if last and all(first for first, _ in firsts):
                readers[last[0].name] = [Reader(first[0].name, columns) for first, columns in firsts]
        if type(part) is nn.Sequential:
            children = [child for child in part if child not in activations and not isinstance(child, nn.Identity)]
            for child, following in pairwise(children):
                if child in of_layer and following in of_layer:
                    readers[of_layer[child].name] = [Reader(of_layer[following].name, slice(None))]
    return readers


def _layers(chain: nn.Module, of_layer: Mapping[nn.Module, Site]) -> list[Site]:
    return [of_layer[module] for module in chain.modules() if module in of_layer]
