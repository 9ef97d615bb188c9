"""A recorded sequence of depth frames: by index or one after the other, each read when it is asked for."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_checks import BadFrameError, FrameLog, nearest_rigid
from eugen3d.datasets.depth_files import FrameFiles, read_depth, read_frame, read_pose
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_layouts import list_frames

NUM_VOTES = 5
"""Frames, spread over a sequence, whose depth tells the size that all of it should have."""


def open_depth_sequence(path: Path, depth_unit: float | None = None) -> "DepthSequence":
    """Open an RGB-D sequence, whose kind is told from its folder.

    Known are nerfstudio's transforms.json with `depth_file_path` (or any such file by its name), 7-Scenes, TUM RGB-D,
    ScanNet's exported folders and ReplicaCAD as iSDF ships it. Depth comes out in metres without lens distortion.

    Args:
        path: the folder, or a transforms.json file.
        depth_unit: metres per step of the depth's values; None: what the layout has.

    Raises:
        SceneError: no such sequence is there, or none of its poses or none of its depth can be read; the message is one
            line.
    """
    files = list_frames(path, depth_unit)
    _check_poses(path, files)
    return DepthSequence(path, files, _size_of_most(path, files))


class DepthSequence:
    """Frames of a folder, in their order; `len` counts bad ones too, since they show only when they are read.

    Iterating skips bad frames and says once at the end how many there were and which came first. By index, a bad frame
    raises `BadFrameError`.

    Args:
        path: the folder or file, for messages.
        files: the frames.
        size: the height and width that every depth has to have.
    """

    def __init__(self, path: Path, files: Sequence[FrameFiles], size: tuple[int, int]) -> None:
        self.path = path
        self.files = files
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> DepthFrame:
        """Read one frame.

        Raises:
            BadFrameError: it cannot be used.
            IndexError: there is no such frame.
        """
        return read_frame(self.files[index], self.size)[0]

    def every(self, step: int, start: int = 0) -> "DepthSequence":
        """The sequence of every `step`-th frame from `start` on."""
        return DepthSequence(self.path, self.files[start::step], self.size)

    def __iter__(self) -> Iterator[DepthFrame]:
        """The frames that can be used; what was skipped is reported at the end, also where the caller stops early.

        Raises:
            SceneError: at the end, where no frame could be used.
        """
        log = FrameLog(str(self.path))
        try:
            for files in self.files:
                try:
                    frame, deviation = read_frame(files, self.size)
                except BadFrameError as error:
                    log.skip(error)
                    continue
                log.use(deviation)
                yield frame
            if log.num_skipped and not log.num_used:
                raise SceneError(f"{self.path}: none of its {len(self)} frames can be used: {log.first_skipped[0]}")
        finally:
            if log.num_used:
                log.report()


def _check_poses(path: Path, files: Sequence[FrameFiles]) -> None:
    """Refuse a sequence without a pose that can be used; usually the first one can."""
    first_error: BadFrameError | None = None
    for frame in files:
        try:
            nearest_rigid(frame.name, read_pose(frame), frame.axes)
        except BadFrameError as error:
            first_error = first_error or error
            continue
        return
    raise SceneError(f"{path}: none of its {len(files)} frames has a pose that can be used: {first_error}")


def _size_of_most(path: Path, files: Sequence[FrameFiles]) -> tuple[int, int]:
    """Height and width of most of a few frames; of the first that can be read where all of these are bad."""
    sizes: Counter[tuple[int, int]] = Counter()
    cameras: dict[tuple[int, int], FrameFiles] = {}
    first_error: BadFrameError | None = None
    spread = range(0, len(files), max(len(files) // NUM_VOTES, 1))
    rest = (index for index in range(len(files)) if index not in spread)
    for number, index in enumerate([*spread, *rest]):
        if sizes and number >= len(spread):
            break
        try:
            size = _depth_size(files[index])
        except BadFrameError as error:
            first_error = first_error or error
            continue
        sizes[size] += 1
        cameras.setdefault(size, files[index])
    if not sizes:
        raise SceneError(f"{path}: none of its {len(files)} frames has a depth that can be read: {first_error}")
    size = sizes.most_common(1)[0][0]
    _check_shape(path, cameras[size], size)
    return size


def _depth_size(files: FrameFiles) -> tuple[int, int]:
    if files.depth is None:
        raise BadFrameError(f"{files.name}: no depth is named")
    height, width = read_depth(files.depth, files.depth_unit).shape
    return height, width


def _check_shape(path: Path, files: FrameFiles, size: tuple[int, int]) -> None:
    """Refuse a camera for pictures of another shape: scaling it would not be the same camera."""
    given = files.camera.size
    if given is None:
        return
    if abs(given[0] * size[1] / given[1] - size[0]) >= 1.0:  # less is the rounding of a scaled size
        raise SceneError(
            f"{path}: its depth is {size[1]}x{size[0]}, but the camera is for {given[1]}x{given[0]}, another shape"
        )
