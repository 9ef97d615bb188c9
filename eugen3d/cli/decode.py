"""`eugen3d decode`: the file that a network of sines stands for, at any size or rate."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from eugen3d.cli.errors import UsageError
from eugen3d.cli.export_mesh import FORMATS, encode_mesh
from eugen3d.cli.files import whole_folder, write_whole
from eugen3d.cli.runs import resolve_device
from eugen3d.cli.siren_file import SUFFIX, PackedSiren, read_packed
from eugen3d.cli.siren_runs import load_siren_run
from eugen3d.datasets.signals import ShapeFormat, SignalFormat, encode_signal, write_frames
from eugen3d.layers.jets import Jet, chain_jet
from eugen3d.models.siren_evaluation import surface_of, values_of
from eugen3d.runtime import Backend

NORMALS_AT_ONCE = 1 << 14


@dataclass
class Decode:
    """Write the image, sound, video or shape that a run of eugen-siren stands for, in the format that it came in."""

    load: Path
    """The run's config.yml, or what `eugen3d compress` made of it."""
    output: Path
    """The file to write, or the folder of frames; of shapes a .ply, .obj or .glb."""
    size: tuple[int, ...] | None = None
    """Height and width of images; frames, height and width of videos; samples of a sound. By default the original's."""
    rate: float | None = None
    """Samples or frames a second. Where no --size is given their number follows: it sounds and plays as long."""
    resolution: int = 256
    """Voxels along a side of the cube that holds a shape."""
    runtime: Backend = "eager"
    """How the folded network is evaluated."""
    device: str = "cpu"
    """cpu or cuda."""

    def main(self) -> None:
        """Run the command."""
        network = self._network()
        console, start = Console(highlight=False), time.perf_counter()
        if isinstance(network.signal, ShapeFormat):
            told = self._write_shape(network, network.signal)
        else:
            told = self._write_samples(network, network.signal)
        console.print(f"{told}, in {time.perf_counter() - start:.2f} s")
        console.print(f"wrote {self.output}", soft_wrap=True)

    def _network(self) -> PackedSiren:
        if self.load.suffix == SUFFIX:
            return read_packed(self.load, resolve_device(self.device), self.runtime)
        run = load_siren_run(self.load, self.device)
        return PackedSiren(run.model.folded().layers, run.signal, self.runtime, run.model.device)

    def _write_samples(self, network: PackedSiren, signal: SignalFormat) -> str:
        """Write an image, a sound or a video; gives what there is to say of it."""
        expected = "the name of a folder" if signal.is_folder else f"a file's name that ends in {signal.suffix}"
        if self.output.exists() and signal.is_folder:
            raise UsageError(f"--output {self.output}: exists already, expected a folder to be made")
        if not signal.is_folder and (self.output.suffix.lower() != signal.suffix or self.output.is_dir()):
            raise UsageError(f"--output {self.output}: expected {expected}, as the {signal.kind} had")
        size, rate = self._size(signal), signal.rate if self.rate is None else self.rate
        if signal.kind == "video" and not signal.is_folder and rate is None:
            raise UsageError("--rate: found none, and the video's is not known; expected frames a second")
        values = values_of(network, size)
        if signal.is_folder:
            with whole_folder(self.output) as folder:
                write_frames(signal, values, folder)
        else:
            write_whole(self.output, encode_signal(signal, values, rate))
        return f"{signal.kind} of {' x '.join(map(str, size))}" + ("" if rate is None else f" at {rate:g} a second")

    def _size(self, signal: SignalFormat) -> tuple[int, ...]:
        size = self.size
        if self.rate is not None:
            if signal.kind == "image" or not self.rate > 0:
                raise UsageError(f"--rate {self.rate:g}: expected a positive one of a sound or a video")
            if size is None and signal.rate is not None:
                return (max(1, round(signal.size[0] * self.rate / signal.rate)), *signal.size[1:])
        if size is None:
            return signal.size
        if len(size) != len(signal.size) or min(size) < 1:
            names = {"image": "height width", "sound": "samples", "video": "frames height width"}[signal.kind]
            raise UsageError(f"--size {' '.join(map(str, size))}: expected {names}, at least 1 each")
        return size

    def _write_shape(self, network: PackedSiren, shape: ShapeFormat) -> str:
        if self.output.suffix not in FORMATS or self.output.is_dir():
            raise UsageError(f"--output {self.output}: expected a file's name that ends in one of {', '.join(FORMATS)}")
        if self.resolution < 2:
            raise UsageError(f"--resolution {self.resolution}: expected at least 2")
        for flag, value in (("size", self.size), ("rate", self.rate)):
            if value is not None:
                raise UsageError(f"--{flag}: found for a shape, expected --resolution")
        vertices, faces = surface_of(network, self.resolution)
        if not len(faces):
            raise UsageError(f"{self.load}: its field has no surface, expected one that was trained for longer")
        parts = torch.from_numpy(vertices).float().split(NORMALS_AT_ONCE)
        gradients = [chain_jet(network.chain, Jet.of(part.to(network.device))).gradient[:, :, 0] for part in parts]
        normals = torch.nn.functional.normalize(torch.cat(gradients), dim=1).cpu().numpy()
        world = np.array(shape.center) + vertices / shape.scale
        write_whole(self.output, encode_mesh((world, faces), normals, self.output.suffix))
        return f"{len(vertices):,} vertices, {len(faces):,} triangles"
