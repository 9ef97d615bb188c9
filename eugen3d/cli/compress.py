"""`eugen3d compress`: the folded network of a run of eugen-siren as one small file, and what that costs."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.formats import si
from eugen3d.cli.runs import resolve_device
from eugen3d.cli.siren_file import SUFFIX, encode_packed, read_packed
from eugen3d.cli.siren_runs import load_siren_run
from eugen3d.datasets.signals import ShapeFormat, SignalFormat, grid_points
from eugen3d.layers.packed import Precision

NUM_POINTS = 1 << 17
"""Points, drawn evenly, at which the file is compared with the run."""


@dataclass
class Compress:
    """Write the folded network of a run of eugen-siren to one file, which `eugen3d decode` turns back into a file."""

    load_config: Path
    """The run's config.yml."""
    output: Path
    """The .safetensors file to write."""
    precision: Precision = "float16"
    """Of the matrices; biases, and what reads the coordinates, stay float32."""
    device: str = "cpu"
    """cpu or cuda, for the comparison with the run."""

    def main(self) -> None:
        """Run the command."""
        if self.output.suffix != SUFFIX or self.output.is_dir():
            raise UsageError(f"--output {self.output}: expected a file's name that ends in {SUFFIX}")
        run = load_siren_run(self.load_config, self.device)
        try:
            content = encode_packed(run.model.folded().layers, run.signal, self.precision)
        except ValueError as error:
            raise UsageError(f"{self.load_config}: {error}") from None
        write_whole(self.output, content)
        packed = read_packed(self.output, resolve_device(self.device))
        points = _points(run.signal).to(run.model.device)
        wanted = run.model.values_at(points)
        error = float((packed.values_at(points) - wanted).double().square().mean())
        kept = -10 * math.log10(error / 4) if error else math.inf
        console = Console(highlight=False)
        share = f", {len(content) / run.signal.num_bytes:.3g} of the original file's" if run.signal.num_bytes else ""
        console.print(f"{si(len(content), 'B')}{share}; {self.precision} is within {kept:.1f} dB of the run (peak 1)")
        console.print(f"wrote {self.output}", soft_wrap=True)


def _points(signal: SignalFormat | ShapeFormat) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(signal, ShapeFormat):
        return 2 * torch.rand(NUM_POINTS, 3, generator=generator) - 1
    return grid_points(signal.size, torch.randint(math.prod(signal.size), (NUM_POINTS,), generator=generator))
