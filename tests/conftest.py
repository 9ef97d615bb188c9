"""Seeds, and the small models and scenes that the tests share."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import jaxtyping
import numpy as np
import pytest
import torch
import trimesh

from eugen3d.fields import NerfFieldConfig
from eugen3d.layers import EUGenConfig, LayerConfig

torch.set_num_threads(1)  # the tensors are tiny: a second thread costs more than it computes


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real captures and meshes, which lie beside the project where there are any."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real data are no part of the project")
    return folder


@dataclass
class Command:
    """An installed command in a process of its own, which has ended where there is a `returncode`."""

    pid: int
    poll_once: Callable[[], int | None]
    stdout: Path
    stderr: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        self.returncode = self.poll_once() if self.returncode is None else self.returncode
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait until it ends; what it printed, and its errors."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, self.stdout.read_text()[-6000:]
            time.sleep(0.02)
        return self.stdout.read_text(), self.stderr.read_text()

    def kill(self) -> None:
        """End it without a chance to tidy up; `communicate` waits for that."""
        if self.poll() is None:
            os.kill(self.pid, 9)


@dataclass
class Commands:
    """Starts the installed commands: as a user would, or, without seconds of imports each, as forks of one process."""

    folder: Path
    started: list[Command] = field(default_factory=list)
    server: subprocess.Popen[str] | None = None

    def start(
        self,
        words: list[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        is_new: bool = False,
        is_one_output: bool = False,
    ) -> Command:
        """Start a command in a folder.

        Args:
            words: its name and arguments.
            is_new: whether in a new interpreter; in every case where there is a GPU, which no fork can use.
            is_one_output: whether its errors go where it prints.
        """
        stdout = self.folder / f"{len(self.started)}.txt"
        stderr = stdout if is_one_output else stdout.with_suffix(".errors.txt")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        if is_new or torch.cuda.is_available():
            with stdout.open("a") as printed, stderr.open("a") as errors:
                process = subprocess.Popen(
                    [str(Path(sys.executable).with_name(words[0])), *words[1:]],
                    **{"cwd": folder, "env": variables, "stdout": printed, "stderr": errors},
                )
            self.started.append(Command(process.pid, process.poll, stdout, stderr))
        else:
            request = {"words": words, "folder": str(folder), "environment": variables}
            pid = self.ask(request | {"stdout": str(stdout), "stderr": str(stderr)})
            self.started.append(Command(pid, lambda: self.ask({"poll": pid}), stdout, stderr))
        return self.started[-1]

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The answer of the process that forks."""
        if self.server is None:
            self.server = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(Path(__file__).with_name("command_server.py"))],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        """End what still runs."""
        for command in self.started:
            command.kill()
        if self.server is not None:
            self.server.communicate()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """The installed commands."""
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No run-time type checks, as users run the code: wrong values reach its own errors, and it can be compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def field_config() -> NerfFieldConfig:
    """A field of three layers with a skip, two of them EUGen layers of order 1 with the norm."""
    return NerfFieldConfig(
        num_layers=3,
        layer_width=24,
        view_width=12,
        skip=2,
        num_position_frequencies=2,
        num_direction_frequencies=1,
        layer=LayerConfig("eugen", EUGenConfig(num_features=5)),
        replaced_layers=(1, 2),
    )


@pytest.fixture
def blender_scene(tmp_path: Path) -> Path:
    """A scene in Blender's layout: 4 train, 2 val and 2 test views, 16 x 16 RGBA, a disc on a transparent ground."""
    scene = tmp_path / "disc"
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        (scene / split).mkdir(parents=True)
        frames = []
        for index in range(count):
            iio.imwrite(scene / split / f"r_{index}.png", disc_image(index))
            pose = pose_on_circle(2 * math.pi * index / count)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
        meta = {"camera_angle_x": 0.7, "frames": frames}
        (scene / f"transforms_{split}.json").write_text(json.dumps(meta))
    return scene


def disc_image(index: int) -> np.ndarray:
    """A disc of radius 5 pixels, (16, 16, 4) uint8, whose colour tells the views apart."""
    rows, columns = np.mgrid[:16, :16] - 7.5
    image = np.zeros((16, 16, 4), np.uint8)
    image[rows**2 + columns**2 < 25] = (200, 40 * index, 90, 255)
    return image


def pose_on_circle(azimuth: float, radius: float = 4.0) -> np.ndarray:
    """Camera to world, (4, 4), OpenGL axes, on a circle around the z axis and looking at its middle."""
    back = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([np.cross(up, back), up, back], axis=1)
    pose[:3, 3] = radius * back
    return pose


@pytest.fixture
def wall_sequence(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an RGB-D sequence: a camera that moves along a wall 2 m away, a mesh of it beside."""

    def write(count: int = 5, name: str = "wall", mesh: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        camera = {"fl_x": 16.0, "fl_y": 16.0, "cx": 16.0, "cy": 12.0, "w": 32, "h": 24}
        frames = []
        for n in range(count):
            iio.imwrite(folder / f"depth{n:03d}.png", np.full((24, 32), 2000, np.uint16))
            iio.imwrite(folder / f"color{n:03d}.png", np.full((24, 32, 3), (200, 100, 50), np.uint8))
            pose = np.eye(4)
            pose[0, 3] = 0.02 * n
            files = {"file_path": f"color{n:03d}.png", "depth_file_path": f"depth{n:03d}.png", "time": n / 10}
            frames.append(files | {"transform_matrix": pose.tolist()})
        if mesh:
            solid = trimesh.creation.box((40.0, 40.0, 2.0), trimesh.transformations.translation_matrix((0, 0, -3)))
            solid.export(folder / "mesh.ply")
            camera["mesh_file_path"] = "mesh.ply"
        (folder / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
        return folder

    return write
