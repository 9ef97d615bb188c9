"""Choose the fastest backend by measuring each: once a machine per structure, rows, dtype, device and threads."""

import hashlib
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.runtime.machine import cache_folder, machine_name, synchronize

Outputs = Tensor | tuple[Tensor, ...]

MIN_ROWS = 4096
"""Calls with fewer rows are evaluated eagerly, unless the choice for them is known: they are over in no time."""
MAX_ROWS = 32768
"""Rows that a measurement takes; beyond them the time is proportional to the rows."""
REPEATS = 3


class AutoModule(nn.Module):
    """A module that measures its backends on the first call with enough rows and keeps to the fastest.

    The choice is remembered in `choices.json` of the user's cache folder. The first call on a machine takes seconds,
    or minutes where a backend compiles.

    Args:
        module: the folded module; its structure is what a choice is remembered for.
        makers: the backends by name, each with what builds its evaluation of `module`; "eager" is among them. One
            that raises RuntimeError, when it is built or called, is not available and is left out; `unavailable` then
            says why.
        settings: what the choice depends on beside structure, rows, dtype, device and threads.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        module: nn.Module,
        makers: Mapping[str, Callable[[], nn.Module]],
        settings: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.unavailable: dict[str, str] = {}
        self._makers, self._clock = makers, clock
        shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()]
        self._structure = f"{module!r} {shapes} {settings}"
        self._choices: dict[str, str] = {}
        # Not submodules: their parameters are those of `module`, and would stand in the state dict again.
        self.__dict__["_built"] = {}

    def forward(self, *inputs: Tensor) -> Outputs:
        return self._backend(self.choice(*inputs))(*inputs)

    @torch.no_grad()
    def choice(self, *inputs: Tensor) -> str:
        """The name of the backend that evaluates these inputs, measured first where it is not known yet."""
        rows = len(inputs[0])
        key = self._key(inputs)
        if key not in self._choices:
            known = load_choices().get(machine_name(), {}).get(key)
            if known is not None and known in self._makers and self._is_available(known, inputs):
                self._choices[key] = known
            elif rows < MIN_ROWS:
                return "eager"
            else:
                self._choices[key] = self._measure(tuple(x[:MAX_ROWS] for x in inputs))
                save_choice(machine_name(), key, self._choices[key])
        return self._choices[key]

    def _key(self, inputs: tuple[Tensor, ...]) -> str:
        """What a choice is remembered for; rows count as the power of two below them, up to `MAX_ROWS`."""
        rows = 1 << min(len(inputs[0]), MAX_ROWS).bit_length() >> 1
        device = inputs[0].device
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        structure = hashlib.sha256(self._structure.encode()).hexdigest()[:16]
        return f"{structure} rows={rows} {inputs[0].dtype} {hardware} threads={torch.get_num_threads()}"

    def _measure(self, inputs: tuple[Tensor, ...]) -> str:
        seconds = {name: self._seconds(name, inputs) for name in self._makers if self._is_available(name, inputs)}
        return min(seconds, key=lambda name: seconds[name])

    def _is_available(self, name: str, inputs: tuple[Tensor, ...]) -> bool:
        """Build a backend and call it once, which compiles what there is to compile; note why where that fails."""
        try:
            self._backend(name)(*(x[:MAX_ROWS] for x in inputs))
        except RuntimeError as error:
            if name == "eager":
                raise
            self.unavailable[name] = (str(error).splitlines() or [type(error).__name__])[0]
        return name not in self.unavailable

    def _seconds(self, name: str, inputs: tuple[Tensor, ...]) -> float:
        """The median of a few calls."""
        times = []
        for _ in range(REPEATS):
            synchronize(inputs[0].device)
            start = self._clock()
            self._backend(name)(*inputs)
            synchronize(inputs[0].device)
            times.append(self._clock() - start)
        return statistics.median(times)

    def _backend(self, name: str) -> nn.Module:
        built: dict[str, nn.Module] = self.__dict__["_built"]
        if name not in built:
            built[name] = self._makers[name]()
        return built[name]


def load_choices() -> dict[str, dict[str, str]]:
    """The remembered choices, machine → key → backend; none where the file is missing or damaged."""
    try:
        choices: Any = json.loads(_choices_file().read_text())
    except (OSError, ValueError):
        return {}
    is_whole = isinstance(choices, dict) and all(isinstance(of_machine, dict) for of_machine in choices.values())
    return choices if is_whole else {}


def save_choice(machine: str, key: str, backend: str) -> None:
    """Add a choice to the file, written beside it and renamed; where that fails it is measured again next time."""
    choices = load_choices()
    choices.setdefault(machine, {})[key] = backend
    path = _choices_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            beside = Path(folder) / path.name
            beside.write_text(json.dumps(choices, indent=2, sort_keys=True) + "\n")
            beside.replace(path)
    except OSError as error:
        warnings.warn(f"runtime auto: the choice {backend} cannot be remembered ({error})", stacklevel=2)


def _choices_file() -> Path:
    return cache_folder() / "choices.json"
