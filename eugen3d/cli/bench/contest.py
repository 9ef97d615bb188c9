"""One comparison of `eugen3d bench layers`: chains and backends on the same rows, timed in turn."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from eugen3d.cli.bench.chains import Chain, Direction, count_flops, make_chain
from eugen3d.cli.bench.timing import Call, peak_allocation, time_in_turn
from eugen3d.cli.errors import first_line
from eugen3d.runtime import Backend, RuntimeFallbackWarning, build
from eugen3d.runtime.tiled import GPU_TILE_ROWS, TILE_ROWS

TRAINING_BACKENDS: tuple[Backend, ...] = ("eager", "compiled")
"""The others evaluate without gradients."""


@dataclass(frozen=True)
class Shape:
    """What all contestants of a comparison have in common, the batch excepted."""

    width: int
    depth: int
    dtype: torch.dtype
    direction: Direction
    use_norm: bool
    device: torch.device


@dataclass(frozen=True)
class Measured:
    """A contestant's result."""

    chain: Chain
    backend: Backend
    seconds: float
    flops: float
    """Of one row."""
    num_parameters: int
    peak_memory_bytes: int


@dataclass
class Contest:
    """Chains and backends on rows of one shape; what was built for one batch is kept for the next.

    `unavailable` says of the backends that cannot run here why.
    """

    shape: Shape
    chains: Sequence[Chain]
    backends: Sequence[Backend]
    unavailable: dict[str, str] = field(default_factory=dict)
    _modules: dict[Chain, nn.Module] = field(default_factory=dict)
    _built: dict[tuple[Chain, Backend, int], nn.Module] = field(default_factory=dict)
    _trained: dict[tuple[Chain, Backend], Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def measure(self, batch: int, rounds: int, on_turn: Callable[[], None] = lambda: None) -> list[Measured]:
        """Time all contestants on a batch of standard normal rows, then look at the memory of each."""
        shape = self.shape
        x = torch.randn(batch, shape.width, generator=torch.Generator().manual_seed(0)).to(shape.device, shape.dtype)
        calls: dict[tuple[Chain, Backend], Call] = {}
        for chain in self.chains:
            for backend in self.backends:
                if (call := self._call(chain, backend, x)) is not None:
                    calls[chain, backend] = call
        seconds = time_in_turn(calls, rounds, shape.device, on_turn)
        return [self._result(key, seconds[key], calls[key], x) for key in calls]

    def forget(self) -> None:
        """Let go of what was built."""
        self._modules.clear()
        self._built.clear()
        self._trained.clear()

    @property
    def turns(self) -> int:
        """Turns of one round, where all backends are available."""
        return len(self.chains) * len(self.backends)

    def _call(self, chain: Chain, backend: Backend, x: Tensor) -> Call | None:
        """What is timed, called once; None where the backend cannot run it."""
        if backend in self.unavailable:
            return None
        try:
            call = (
                self._inference(chain, backend, x)
                if self.shape.direction == "forward"
                else self._training(chain, backend, x)
            )
            call()
        except (RuntimeError, RuntimeFallbackWarning) as error:
            if backend == "eager":
                raise
            self.unavailable[backend] = first_line(error)
            return None
        return call

    def _inference(self, chain: Chain, backend: Backend, x: Tensor) -> Call:
        """Evaluation as the runtime does it, without gradients."""
        tile_rows = min(len(x), TILE_ROWS if x.device.type == "cpu" else GPU_TILE_ROWS)
        key = chain, backend, tile_rows
        if key not in self._built:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeFallbackWarning)
                self._built[key] = build(self._module(chain), backend, tile_rows)
        module = self._built[key]
        return lambda: module(x)

    def _training(self, chain: Chain, backend: Backend, x: Tensor) -> Call:
        """The output, and the gradients of all parameters for a gradient of ones; the input takes none."""
        module, ones = self._module(chain), torch.ones_like(x)
        if (chain, backend) not in self._trained:
            run = torch.compile(module, dynamic=False) if backend == "compiled" else module
            self._trained[chain, backend] = run
        run = self._trained[chain, backend]

        def call() -> None:
            module.zero_grad(set_to_none=True)
            run(x).backward(ones)

        return call

    def _module(self, chain: Chain) -> nn.Module:
        if chain not in self._modules:
            shape = self.shape
            module = make_chain(chain, shape.width, shape.depth, shape.direction, shape.use_norm)
            self._modules[chain] = module.to(shape.device, shape.dtype)
        return self._modules[chain]

    def _result(self, key: tuple[Chain, Backend], seconds: float, call: Call, x: Tensor) -> Measured:
        chain, backend = key
        module = self._module(chain)
        module.zero_grad(set_to_none=True)
        held = sum(tensor.nbytes for tensor in (x, *module.parameters()))
        memory = held + peak_allocation(call, x.device)
        module.zero_grad(set_to_none=True)
        count = sum(parameter.numel() for parameter in module.parameters())
        flops = count_flops(module, self.shape.width, self.shape.direction, len(x))
        return Measured(chain, backend, seconds, flops, count, memory)
