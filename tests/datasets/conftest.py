"""One small recording, written in every layout that RGB-D sequences come in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

FX, FY, CX, CY = 10.0, 11.0, 6.2, 4.1
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Recording:
    """Four frames of 12 x 8 pixels: millimetres (0: none), colours, and poses with OpenGL axes."""

    depth: np.ndarray
    color: np.ndarray
    poses: np.ndarray

    def __len__(self) -> int:
        return len(self.depth)


@pytest.fixture
def recording() -> Recording:
    rng = np.random.default_rng(3)
    depth = rng.integers(400, 4000, (4, 8, 12)).astype(np.uint16)
    depth[:, 0, 0] = 0
    poses = np.tile(np.eye(4), (4, 1, 1))
    for pose in poses:
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        pose[:3, :3] = rotation * np.linalg.det(rotation)
        pose[:3, 3] = rng.normal(size=3)
    return Recording(depth, rng.integers(0, 256, (4, 8, 12, 3)).astype(np.uint8), poses)


def matrix(shift: float, size: int = 3) -> np.ndarray:
    camera = np.eye(size)
    camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2] = FX, FY, CX - shift, CY - shift
    return camera


def write_nerfstudio(folder: Path, recording: Recording) -> None:
    camera = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": 12, "h": 8}
    frames = []
    for n in range(len(recording)):
        iio.imwrite(folder / f"depth{n}.png", recording.depth[n])
        iio.imwrite(folder / f"color{n}.png", recording.color[n])
        frames.append({"file_path": f"color{n}.png", "depth_file_path": f"depth{n}.png", "time": n / 30})
        frames[-1]["transform_matrix"] = recording.poses[n].tolist()
    (folder / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))


def write_seven_scenes(folder: Path, recording: Recording) -> None:
    for n in range(len(recording)):
        iio.imwrite(folder / f"frame-{n:06d}.depth.png", recording.depth[n])
        iio.imwrite(folder / f"frame-{n:06d}.color.png", recording.color[n])
        np.savetxt(folder / f"frame-{n:06d}.pose.txt", recording.poses[n] @ FLIP)
    np.savetxt(folder / "camera-intrinsics.txt", matrix(0.0))


def write_scannet(folder: Path, recording: Recording) -> None:
    for name in ("depth", "color", "pose", "intrinsic"):
        (folder / name).mkdir()
    for n in range(len(recording)):
        iio.imwrite(folder / f"depth/{n}.png", recording.depth[n])
        iio.imwrite(folder / f"color/{n}.png", recording.color[n])
        np.savetxt(folder / f"pose/{n}.txt", recording.poses[n] @ FLIP)
    for kind in ("depth", "color"):
        np.savetxt(folder / f"intrinsic/intrinsic_{kind}.txt", matrix(0.5, size=4))


def write_replica_cad(folder: Path, recording: Recording) -> None:
    (folder / "results").mkdir()
    for n in range(len(recording)):
        iio.imwrite(folder / f"results/depth{n:06d}.png", recording.depth[n])
        iio.imwrite(folder / f"results/frame{n:06d}.png", recording.color[n])
    np.savetxt(folder / "traj.txt", (recording.poses @ FLIP).reshape(-1, 16))
    camera = {"w": 12, "h": 8, "fx": FX, "fy": FY, "cx": CX - 0.5, "cy": CY - 0.5}
    (folder / "replicaCAD_info.json").write_text(json.dumps({"camera": camera, "depth_scale": 1000.0}))


def write_tum(folder: Path, recording: Recording) -> None:
    lines: dict[str, list[str]] = {"depth": ["# depth maps"], "rgb": ["# color images"], "groundtruth": ["# poses"]}
    for n in range(len(recording)):
        time = 1305031102.0 + n / 30
        for kind, images in (("depth", 5 * recording.depth), ("rgb", recording.color)):
            (folder / kind).mkdir(exist_ok=True)
            iio.imwrite(folder / kind / f"{n}.png", images[n])
            lines[kind].append(f"{time + (0.004 if kind == 'rgb' else 0.0):.6f} {kind}/{n}.png")
        pose = recording.poses[n] @ FLIP
        values = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines["groundtruth"].append(f"{time + 0.003:.6f} " + " ".join(f"{value:.9f}" for value in values))
        lines["groundtruth"].append(f"{time + 0.013:.6f} 9 9 9 0 0 0 1")
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    np.savetxt(folder / "camera-intrinsics.txt", matrix(0.5))


WRITERS: dict[str, Callable[[Path, Recording], None]] = {
    "nerfstudio": write_nerfstudio,
    "7-Scenes": write_seven_scenes,
    "ScanNet": write_scannet,
    "ReplicaCAD": write_replica_cad,
    "TUM RGB-D": write_tum,
}


@pytest.fixture(params=WRITERS)
def sequence_folder(request: pytest.FixtureRequest, tmp_path: Path, recording: Recording) -> Path:
    """The recording in each of the layouts."""
    folder = tmp_path / "sequence"
    folder.mkdir()
    WRITERS[request.param](folder, recording)
    return folder


@pytest.fixture
def seven_scenes_folder(tmp_path: Path, recording: Recording) -> Path:
    folder = tmp_path / "seven"
    folder.mkdir()
    write_seven_scenes(folder, recording)
    return folder


@pytest.fixture
def nerfstudio_folder(tmp_path: Path, recording: Recording) -> Path:
    folder = tmp_path / "nerfstudio"
    folder.mkdir()
    write_nerfstudio(folder, recording)
    return folder


@pytest.fixture
def scannet_folder(tmp_path: Path, recording: Recording) -> Path:
    write_scannet(tmp_path, recording)
    return tmp_path


@pytest.fixture
def tum_folder(tmp_path: Path, recording: Recording) -> Path:
    write_tum(tmp_path, recording)
    return tmp_path


@pytest.fixture
def replica_cad_folder(tmp_path: Path, recording: Recording) -> Path:
    write_replica_cad(tmp_path, recording)
    return tmp_path
