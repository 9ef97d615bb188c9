"""The folders that RGB-D sequences come in: which one it is, and where its frames, cameras and poses are.

Principal points are moved to the convention of `DepthFrame`, where the first pixel's centre is at (0.5, 0.5): OpenCV's
calibrations have it at (0, 0).
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eugen3d.datasets.dataparser import SceneError, read_transforms
from eugen3d.datasets.depth_checks import BadFrameError
from eugen3d.datasets.depth_files import FrameFiles, LensCamera, read_numbers

MILLIMETRE = 1e-3
TUM_UNIT = 1.0 / 5000.0
FRAMES_PER_SECOND = 30.0
"""Of the sensors behind 7-Scenes, ScanNet and ReplicaCAD's renders."""
ASSOCIATED_WITHIN = 0.02
"""Seconds between what TUM RGB-D's own tool takes for simultaneous."""
SEVEN_SCENES_CAMERA = LensCamera(585.0, 585.0, 320.0, 240.0, size=(480, 640))
"""The nominal depth camera that 7-Scenes is published with (Shotton et al. 2013); its middle is the picture's."""
TUM_CAMERA = LensCamera(525.0, 525.0, 320.0, 240.0, size=(480, 640))
"""The set that TUM RGB-D (Sturm et al. 2012) recommends for its registered depth, 319.5 and 239.5 there."""
COLOR_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Layout:
    """A kind of folder: how it is told from the others, and its frames."""

    name: str
    sign: str
    """What is looked for, in words."""
    matches: Callable[[Path], bool]
    frames: Callable[[Path], list[FrameFiles]]


def list_frames(path: Path, depth_unit: float | None = None) -> list[FrameFiles]:
    """The frames of a sequence in their order; pictures are not read yet.

    Args:
        path: a folder, or a transforms.json file.
        depth_unit: metres per step of the depth's values; None: what the layout has.

    Raises:
        SceneError: the folder is of no known kind, or what holds for all its frames cannot be read.
    """
    if not path.exists():
        raise SceneError(f"{path}: not found, expected the folder of an RGB-D sequence")
    for layout in LAYOUTS:
        if layout.matches(path):
            try:
                frames = layout.frames(path)
            except BadFrameError as error:  # of a file that holds for all frames
                raise SceneError(str(error)) from error
            if not frames:
                raise SceneError(f"{path}: found no frames, expected those of {layout.name} ({layout.sign})")
            return frames if depth_unit is None else [replace(frame, depth_unit=depth_unit) for frame in frames]
    signs = ", ".join(f"{layout.sign} ({layout.name})" for layout in LAYOUTS)
    raise SceneError(f"{path}: is no RGB-D sequence, found none of {signs}")


def mesh_path(path: Path) -> Path | None:
    """The mesh of what a sequence shows, `mesh_file_path` of its transforms.json; None where none is named."""
    file = _transforms(path)
    if not file.is_file():
        return None
    name = read_transforms(file, ("frames",)).get("mesh_file_path")
    return None if name is None else file.parent / name


def _nerfstudio(path: Path) -> list[FrameFiles]:
    file = _transforms(path)
    meta = read_transforms(file, ("frames",))
    if not any("depth_file_path" in frame for frame in meta["frames"]):
        raise SceneError(f"{file}: none of its {len(meta['frames'])} frames has 'depth_file_path'")
    frames = []
    for number, frame in enumerate(meta["frames"]):
        color = file.parent / frame["file_path"]
        depth = file.parent / frame["depth_file_path"] if "depth_file_path" in frame else None
        try:
            pose = np.array(frame["transform_matrix"], np.float64)
        except (TypeError, ValueError):
            pose = np.zeros(0)  # told apart by its shape, when the frame's turn has come
        camera = _nerfstudio_camera(file, number, meta | frame)
        time = float(frame["time"]) if "time" in frame else None
        name = f"{file.parent.name}/{frame.get('depth_file_path', frame['file_path'])}"
        frames.append(FrameFiles(name, depth, pose, "opengl", MILLIMETRE, camera, color, time=time))
    return frames


def _transforms(path: Path) -> Path:
    return path if path.suffix == ".json" else path / "transforms.json"


def _nerfstudio_camera(file: Path, number: int, meta: dict[str, Any]) -> LensCamera:
    model = meta.get("camera_model", "OPENCV")
    if model not in {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE"}:
        raise SceneError(f"{file}: camera_model is {model!r}, expected 'OPENCV' or 'PINHOLE' for depth")
    try:
        size = (int(meta["h"]), int(meta["w"]))
        half_angle = 0.0 if "fl_x" in meta else 0.5 * float(meta["camera_angle_x"])
        fx = float(meta["fl_x"]) if "fl_x" in meta else 0.5 * size[1] / math.tan(half_angle)
        cx, cy = float(meta.get("cx", 0.5 * size[1])), float(meta.get("cy", 0.5 * size[0]))
        distortion = [float(meta.get(key, 0.0)) for key in ("k1", "k2", "k3", "k4", "p1", "p2")]
        return LensCamera(fx, float(meta.get("fl_y", fx)), cx, cy, size, tuple(distortion))  # type: ignore[arg-type]
    except KeyError as error:
        raise SceneError(f"{file}: frame {number} has no {error}, neither of its own nor for all") from error
    except (TypeError, ValueError) as error:
        raise SceneError(f"{file}: frame {number} has a camera that is none ({error})") from error


def _seven_scenes(path: Path) -> list[FrameFiles]:
    stems = {file.name.split(".")[0] for kind in ("depth.png", "pose.txt") for file in path.glob(f"frame-*.{kind}")}
    has_color = any(path.glob("frame-*.color.*"))
    camera = _camera_file(path / "camera-intrinsics.txt", 3) or SEVEN_SCENES_CAMERA
    frames = []
    for stem in sorted(stems, key=_number):
        files = {"depth": path / f"{stem}.depth.png", "pose": path / f"{stem}.pose.txt"}
        color = _picture(path / f"{stem}.color") if has_color else None
        time = _number(stem) / FRAMES_PER_SECOND
        frames.append(FrameFiles(stem, files["depth"], files["pose"], "opencv", MILLIMETRE, camera, color, time=time))
    return _from_zero(frames)


def _scannet(path: Path) -> list[FrameFiles]:
    root = path if (path / "depth").is_dir() else path / "frames"
    stems = {file.stem for kind in ("depth", "pose") for file in (root / kind).iterdir()}
    depth_file, color_file = (root / "intrinsic" / f"intrinsic_{kind}.txt" for kind in ("depth", "color"))
    camera, color_camera = _camera_file(depth_file, 4, 0.5), _camera_file(color_file, 4, 0.5)
    if camera is None:
        raise SceneError(f"{depth_file}: not found, expected the depth camera's matrix")
    has_color = (root / "color").is_dir()
    return _from_zero(
        FrameFiles(
            name=f"{path.name}/{n}",
            depth=root / "depth" / f"{n}.png",
            pose=root / "pose" / f"{n}.txt",
            axes="opencv",
            depth_unit=MILLIMETRE,
            camera=camera,
            color=_picture(root / "color" / str(n)) if has_color else None,
            color_camera=color_camera,
            time=n / FRAMES_PER_SECOND,
        )
        for n in sorted(int(stem) for stem in stems if stem.isdigit())
    )


def _replica_cad(path: Path) -> list[FrameFiles]:
    info = next((f for f in (path / REPLICA_INFO, path.parent / REPLICA_INFO) if f.is_file()), None)
    if info is None:
        raise SceneError(f"{path}: found no {REPLICA_INFO} there or beside it, expected the camera and depth scale")
    try:
        meta = json.loads(info.read_text())
        w, h, fx, fy, cx, cy = (float(meta["camera"][key]) for key in ("w", "h", "fx", "fy", "cx", "cy"))
        camera = LensCamera(fx, fy, cx + 0.5, cy + 0.5, (int(h), int(w)))
        unit, rate = 1.0 / float(meta["depth_scale"]), float(meta.get("fps", FRAMES_PER_SECOND))
    except (OSError, ValueError, TypeError, ZeroDivisionError, KeyError) as error:
        raise SceneError(f"{info}: found no camera with w, h, fx, fy, cx, cy and no depth_scale ({error!r})") from error
    poses = read_numbers(path / "traj.txt", 16).reshape(-1, 4, 4)
    results = path / "results"
    kind = "ndepth" if any(results.glob("ndepth*.png")) else "depth"  # the noisy one is what iSDF is measured on
    has_color = any(results.glob("frame*"))
    return [
        FrameFiles(
            name=f"{path.name}/{kind}{n:06d}",
            depth=results / f"{kind}{n:06d}.png",
            pose=pose,
            axes="opencv",
            depth_unit=unit,
            camera=camera,
            color=_picture(results / f"frame{n:06d}") if has_color else None,
            time=n / rate,
        )
        for n, pose in enumerate(poses)
    ]


def _tum(path: Path) -> list[FrameFiles]:
    depths, colors = _timed_names(path / "depth.txt"), _timed_names(path / "rgb.txt")
    rows = read_numbers(path / "groundtruth.txt", 8)
    pose_times = rows[:, 0]
    camera = _camera_file(path / "camera-intrinsics.txt", 3, 0.5) or TUM_CAMERA
    color_times = np.array([time for time, _ in colors])
    frames = []
    for time, name in depths:
        row, color = _simultaneous(pose_times, time), _simultaneous(color_times, time)
        frames.append(
            FrameFiles(
                name=name,
                depth=path / name,
                pose=None if row is None else _quaternion_pose(rows[row, 1:]),
                axes="opencv",
                depth_unit=TUM_UNIT,
                camera=camera,
                color=None if color is None else path / colors[color][1],
                time=time,
            )
        )
    return _from_zero(frames)


def _timed_names(file: Path) -> list[tuple[float, str]]:
    """Lines of a time and a file's name, in the order of time; none where there is no such list."""
    if not file.is_file():
        return []
    lines = [line.split() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    try:
        return sorted((float(time), name) for time, name in lines)
    except ValueError as error:
        raise SceneError(f"{file}: found a line that is no time and file name ({error})") from error


def _simultaneous(times: np.ndarray, time: float) -> int | None:
    """The index of the nearest time that is near enough."""
    if not len(times):
        return None
    nearest = int(np.argmin(np.abs(times - time)))
    return nearest if abs(times[nearest] - time) <= ASSOCIATED_WITHIN else None


def _quaternion_pose(values: np.ndarray) -> np.ndarray:
    """tx ty tz qx qy qz qw as a matrix; of a quaternion that is no unit one it is no rotation either."""
    x, y, z, w = values[3:]
    pose = np.eye(4)
    pose[:3, :3] = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), w * w - x * x + y * y - z * z, 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), w * w - x * x - y * y + z * z],
    ]
    pose[:3, 3] = values[:3]
    return pose


def _camera_file(file: Path, rows: int, shift: float = 0.0) -> LensCamera | None:
    """The camera of a 3x3 or 4x4 matrix, its principal point shifted; None where there is no such file."""
    if not file.is_file():
        return None
    matrix = read_numbers(file, rows)
    if len(matrix) != rows or not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise SceneError(f"{file}: found {matrix.tolist()}, expected a camera's {rows}x{rows} matrix")
    return LensCamera(matrix[0, 0], matrix[1, 1], matrix[0, 2] + shift, matrix[1, 2] + shift)


def _picture(without_ending: Path) -> Path:
    """The picture of that name, whatever its format; a name that does not exist where there is none."""
    named = [without_ending.with_name(without_ending.name + ending) for ending in COLOR_ENDINGS]
    return next((file for file in named if file.is_file()), named[0])


def _number(stem: str) -> int:
    digits = "".join(filter(str.isdigit, stem))
    return int(digits) if digits else 0


def _from_zero(frames: Iterable[FrameFiles]) -> list[FrameFiles]:
    """The same frames with times since the first."""
    listed = list(frames)
    start = min((frame.time for frame in listed if frame.time is not None), default=0.0)
    return [frame if frame.time is None else replace(frame, time=frame.time - start) for frame in listed]


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: all((path / name).exists() for name in names)


REPLICA_INFO = "replicaCAD_info.json"
LAYOUTS = (
    Layout("nerfstudio", "transforms.json", lambda path: _transforms(path).is_file(), _nerfstudio),
    Layout("TUM RGB-D", "depth.txt with groundtruth.txt", _has("depth.txt", "groundtruth.txt"), _tum),
    Layout("ReplicaCAD", "traj.txt with results/", _has("traj.txt", "results"), _replica_cad),
    Layout("7-Scenes", "frame-*.depth.png", lambda path: any(path.glob("frame-*.depth.png")), _seven_scenes),
    Layout(
        "ScanNet",
        "depth/ with pose/",
        lambda path: _has("depth", "pose")(path) or _has("frames/depth", "frames/pose")(path),
        _scannet,
    ),
)
