"""What nerfstudio's viewer shows of a field of signed distance beside its renderings: surface, slice and keyframes.

Scene units are metres; viser's are nerfstudio's `VISER_NERFSTUDIO_SCALE_RATIO` to the metre.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import viser
import viser.transforms as vtf
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE
from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import Tensor

from eugen3d.mapping import SdfQuery
from eugen3d.mapping.keyframes import Keyframe, Keyframes, seen_points
from eugen3d.mapping.mesh import keep_near, march_box
from eugen3d.metrics.visibility import visible

ROOT = "/signed_distance"
"""What the scene's names begin with."""
INTERVAL = 2.0
"""Seconds between two drawings at least."""
CPU_RESOLUTION = 164
"""Pixels of the longer side of the viewer's renderings on a CPU, until its slider is moved: training waits for them."""
MAX_SHARE = 0.1
"""Largest share of the time that drawing takes."""
VOXEL = 0.08
"""Side of the surface's voxels, metres; longer where a side of the scene has more than `MAX_VOXELS` of them."""
MAX_VOXELS = 64
MAX_SEEN = 20_000
"""How many of the points that keyframes measured tell where surface was seen."""
SEEN_WITHIN = 0.15
"""Surface is shown within so many metres of them."""
SEEN_ROWS = 20
"""About so many rows of pixels of a keyframe, evenly spread, and the same share of its columns are among them."""
SLICE_RANGE = 1.0
"""Distance at which the slice's colours end, metres."""
INSIDE, OUTSIDE, UNSEEN = (200, 60, 40), (40, 90, 200), (128, 128, 128)


class SdfScene(ViewerControl):
    """Surface, horizontal slice and keyframes of a field, drawn anew while it is trained and somebody looks.

    nerfstudio's viewer finds it on the pipeline and sets it up.

    Args:
        keyframes: the frames whose poses are shown, and whose measurements tell what was seen.
        query: gives the field as it is now.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        keyframes: Callable[[], Keyframes],
        query: Callable[[], SdfQuery],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keyframes, self._query, self._clock = keyframes, query, clock
        self._next = -np.inf
        self._server: viser.ViserServer | None = None
        self._cameras: dict[Keyframe, viser.CameraFrustumHandle] = {}
        self._num_cameras = 0
        self._box: tuple[np.ndarray, np.ndarray] | None = None

    def _setup(self, viewer: Any) -> None:
        super()._setup(viewer)
        self._server = viewer.viser_server
        if viewer.pipeline.device.type == "cpu":
            viewer.control_panel._max_res.value = CPU_RESOLUTION
        with self.viser_server.gui.add_folder("Signed distance"):
            self.show_surface = self.viser_server.gui.add_checkbox("Surface", True)
            self.show_slice = self.viser_server.gui.add_checkbox("Slice", True)
            self.slice_height = self.viser_server.gui.add_slider(
                "Slice height", 0.0, 1.0, 0.01, 0.5, hint="As a share of the height of what the keyframes saw"
            )
        for handle in (self.show_surface, self.show_slice, self.slice_height):
            handle.on_update(lambda _: self._redraw())
        self._redraw()  # of a run that was loaded; one that begins has nothing to show yet

    def refresh(self) -> None:
        """Draw anew if somebody looks and it is time; for who trains the field, after every step."""
        if self._server is None or self._clock() < self._next or not self._server.get_clients():
            return
        start = self._clock()
        self.draw()
        self._next = self._clock() + max(INTERVAL, (self._clock() - start) / MAX_SHARE)

    def draw(self) -> None:
        """Draw the field and the keyframes as they are now; nothing without a viewer or a frame."""
        if self._server is None or not len(self._keyframes()):
            return
        entries, query = self._keyframes().entries, self._query()
        seen = torch.cat([seen_points([e], max(len(e.frame.depth) // SEEN_ROWS, 1)) for e in entries]).cpu()
        if not len(seen):
            return
        seen = seen[:: len(seen) // MAX_SEEN + 1].double().numpy()
        self._box = seen.min(axis=0) - VOXEL, seen.max(axis=0) + VOXEL
        self._draw_cameras(entries)
        self._draw_surface(query, seen)
        self._draw_slice(query)

    def _redraw(self) -> None:
        """The same from a thread of the viewer's, while no step of training is under way."""
        with self.viewer.train_lock or contextlib.nullcontext():
            self.draw()

    def _draw_surface(self, query: SdfQuery, seen: np.ndarray) -> None:
        assert self._box is not None
        lower, upper = self._box
        voxel = max(VOXEL, float((upper - lower).max()) / MAX_VOXELS)
        x, y, z = (int(count) for count in np.ceil((upper - lower) / voxel))
        vertices, faces = keep_near(march_box(query, lower, voxel, (x, y, z)), seen, SEEN_WITHIN + voxel)
        self.viser_server.scene.add_mesh_simple(
            f"{ROOT}/surface",
            (vertices * SCALE).astype(np.float32),
            faces.astype(np.uint32),
            color=(200, 200, 190),
            side="double",
            visible=self.show_surface.value and len(faces) > 0,
        )

    def _draw_slice(self, query: SdfQuery) -> None:
        assert self._box is not None
        lower, upper = self._box
        height = float(lower[2] + self.slice_height.value * (upper[2] - lower[2]))
        pixel = max(VOXEL, float((upper - lower).max()) / MAX_VOXELS) / 2
        columns, rows = (int(count) for count in np.ceil((upper - lower)[:2] / pixel))
        x, y = (lower[axis] + pixel * (np.arange(count) + 0.5) for axis, count in ((0, columns), (1, rows)))
        grid = torch.from_numpy(np.stack([*np.meshgrid(x, y), np.full((rows, columns), height)], axis=-1)).float()
        points = grid.view(-1, 3)
        is_seen = visible(points, (entry.frame for entry in self._keyframes().entries), behind=SEEN_WITHIN)
        image = slice_colors(query.distance(points), is_seen, pixel).view(rows, columns, 3)
        self.viser_server.scene.add_image(
            f"{ROOT}/slice",
            image.numpy(),
            render_width=columns * pixel * SCALE,
            render_height=rows * pixel * SCALE,
            format="png",
            position=SCALE * np.array([lower[0] + columns * pixel / 2, lower[1] + rows * pixel / 2, height]),
            visible=self.show_slice.value,
        )  # viser draws an image's first row at the least y

    def _draw_cameras(self, entries: list[Keyframe]) -> None:
        for entry in set(self._cameras) - set(entries):
            self._cameras.pop(entry).remove()
        for entry in (entry for entry in entries if entry not in self._cameras):
            rows, columns = entry.frame.depth.shape
            pose = entry.frame.camera_to_world.cpu().double().numpy()
            rotation = vtf.SO3.from_matrix(pose[:, :3]) @ vtf.SO3.from_x_radians(np.pi)  # viser's cameras look along z
            self._cameras[entry] = self.viser_server.scene.add_camera_frustum(
                f"{ROOT}/keyframes/{self._num_cameras}",
                fov=2 * float(np.arctan(rows / 2 / entry.frame.intrinsics[1])),
                aspect=columns / rows,
                scale=0.1 * SCALE,
                color=(230, 140, 30),
                wxyz=rotation.wxyz,
                position=SCALE * pose[:, 3],
            )
            self._num_cameras += 1


def slice_colors(distance: Tensor, is_seen: Tensor, pixel: float) -> Tensor:
    """Colours (n, 3) uint8 of distances (n,) in metres: blue outside, red inside, paler towards the surface, which is
    black; where nothing was seen (n,) mixed with grey.

    Args:
        pixel: the side of a pixel, metres; the surface is drawn as wide.
    """
    share = (distance.abs() / SLICE_RANGE).clamp(max=1)[:, None]
    full = torch.where(distance[:, None] < 0, torch.tensor(INSIDE), torch.tensor(OUTSIDE)).float()
    colors = 255 + share * (full - 255)
    colors[distance.abs() < pixel / 2] = 0
    colors = torch.where(is_seen[:, None], colors, (colors + 3 * torch.tensor(UNSEEN)) / 4)
    return colors.round().to(torch.uint8)
