"""The viewer's scene of a field: what a client of the real viewer is sent, and that it changes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import viser
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.viewer import Viewer
from torch import Tensor, nn
from websockets.sync.client import ClientConnection, connect

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.mapping import SdfQuery
from eugen3d.mapping.keyframes import Keyframes
from eugen3d.models.isdf_pipeline import SdfPipeline
from eugen3d.models.isdf_viewer import SdfScene, slice_colors

SURFACE, SLICE, KEYFRAMES = (f"/signed_distance/{name}" for name in ("surface", "slice", "keyframes"))


class Plane(nn.Module):
    """The distance to the plane z = `level` from above."""

    def __init__(self, level: float = -2.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2] - self.level


class Client:
    """A browser's part of the viewer: it says where its camera is, and takes in what the server sends."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.nodes: dict[str, dict[str, Any]] = {}
        self.sliders: dict[str, str] = {}
        camera = {"wxyz": (1.0, 0, 0, 0), "position": (0.0, 0, 0), "fov": 1.0, "aspect": 1.0, "look_at": (0.0, 0, 1)}
        self.send(type="ViewerCameraMessage", up_direction=(0.0, 0, 1), **camera)

    def send(self, **message: Any) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        """Take in messages until something is there."""
        deadline = time.monotonic() + 60
        while not is_there():
            assert time.monotonic() < deadline, f"it is not there, but {sorted(self.nodes)}"
            try:
                content = msgspec.msgpack.decode(self.socket.recv(timeout=1, decode=False))
            except TimeoutError:
                continue
            for message in content if isinstance(content, list) else [content]:
                self.take(message)

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "RemoveSceneNodeMessage":
            self.nodes.pop(message["name"], None)
        elif message["type"] in ("MeshMessage", "ImageMessage", "CameraFrustumMessage"):
            self.nodes[message["name"]] = message
        elif {"label", "id"} <= message.keys():
            self.sliders[message["label"]] = message["id"]

    def vertices(self) -> np.ndarray:
        """Of the surface, in metres."""
        return np.frombuffer(self.nodes[SURFACE]["vertices"], np.float32).reshape(-1, 3) / 10


@pytest.fixture
def loaded(make_pipeline: Callable[..., SdfPipeline], wall_sequence: Callable[..., Path]) -> SdfPipeline:
    """A pipeline with two keyframes and a field that is known."""
    pipeline = make_pipeline(wall_sequence(3), "test", eval_interval=0)
    pipeline.model.field = Plane()  # pyright: ignore[reportArgumentType]
    pipeline.mapper.add_keyframes(pipeline.source.all_frames()[:2])
    return pipeline


@pytest.fixture
def view(tmp_path: Path) -> Iterator[Callable[[SdfPipeline], tuple[Viewer, Client]]]:
    """A function that opens nerfstudio's viewer of a pipeline, and a client of it."""
    with contextlib.ExitStack() as stack:

        def open_viewer(pipeline: SdfPipeline) -> tuple[Viewer, Client]:
            config = ViewerConfig(websocket_host="127.0.0.1")
            viewer = Viewer(config, tmp_path / "viewer.log", tmp_path, pipeline, train_lock=Lock())
            stack.callback(viewer.viser_server.stop)
            viewer.ready = False  # for its renderings, which take long and are not what is looked at
            viewer.init_scene(pipeline.datamanager.train_dataset, "completed")  # pyright: ignore[reportArgumentType]
            port = viewer.viser_server.get_port()
            return viewer, Client(stack.enter_context(connect(f"ws://127.0.0.1:{port}", max_size=None)))

        yield open_viewer


def test_a_client_sees_the_surface_a_slice_and_the_keyframes_of_a_run(loaded: SdfPipeline, view) -> None:
    viewer, client = view(loaded)
    assert viewer.control_panel.max_res == 164, "training waits for renderings"
    client.wait_for(lambda: {SURFACE, SLICE, f"{KEYFRAMES}/1", "/cameras/camera_00002"} <= client.nodes.keys())
    vertices = client.vertices()
    assert len(vertices) > 100 and np.abs(vertices[:, 2] + 2).max() < 1e-4
    assert np.ptp(vertices[:, 0]) == pytest.approx(4, abs=0.6), "what two metres away was seen by 90 degrees"
    assert client.nodes[f"{KEYFRAMES}/0"]["fov"] == pytest.approx(2 * np.arctan(12 / 16))


def test_the_scene_grows_while_it_is_trained_and_somebody_looks(loaded: SdfPipeline, view) -> None:
    viewer, client = view(loaded)
    clock = SimpleNamespace(now=0.0)
    loaded.scene._clock = lambda: clock.now
    client.wait_for(lambda: bool(viewer.viser_server.get_clients()) and SURFACE in client.nodes)
    first = dict(client.nodes)
    with torch.no_grad():
        loaded.model.get_parameter("field.level").add_(0.05)
    loaded.mapper.add_keyframes(loaded.source.all_frames()[2:])
    loaded.scene.refresh()
    client.wait_for(lambda: f"{KEYFRAMES}/2" in client.nodes and client.nodes[SLICE] is not first[SLICE])
    assert np.abs(client.vertices()[:, 2] + 1.95).max() < 1e-4
    drawn = client.nodes[SURFACE]
    assert drawn != first[SURFACE] and client.nodes[SLICE]["data"] != first[SLICE]["data"]

    messages = []
    loaded.scene.draw, draw = lambda: messages.append(clock.now), loaded.scene.draw
    loaded.scene.refresh()
    clock.now += 60
    loaded.scene.refresh()
    assert messages == [60.0], "not before its time"
    loaded.scene.draw = draw


def test_the_slider_moves_the_slice(loaded: SdfPipeline, view) -> None:
    _, client = view(loaded)
    client.wait_for(lambda: SLICE in client.nodes and "Slice height" in client.sliders)
    before = client.nodes[SLICE]
    client.send(type="GuiUpdateMessage", id=client.sliders["Slice height"], updates={"value": 1.0})
    client.wait_for(lambda: client.nodes[SLICE] is not before)
    assert client.nodes[SLICE]["data"] != before["data"]


def test_keyframes_that_are_gone_are_taken_away(loaded: SdfPipeline, view) -> None:
    _, client = view(loaded)
    client.wait_for(lambda: f"{KEYFRAMES}/1" in client.nodes)
    del loaded.mapper.keyframes.entries[0]
    loaded.scene.draw()
    client.wait_for(lambda: f"{KEYFRAMES}/0" not in client.nodes)
    assert f"{KEYFRAMES}/1" in client.nodes


def test_nothing_is_asked_of_the_field_where_nobody_looks(loaded: SdfPipeline) -> None:
    asked = []

    def query() -> SdfQuery:
        asked.append(1)
        return loaded.model.query()  # pyright: ignore[reportCallIssue]

    scene, server = SdfScene(lambda: loaded.mapper.keyframes, query), viser.ViserServer("127.0.0.1", 0, verbose=False)
    scene.refresh()
    scene.draw()
    assert not asked, "there is no viewer"
    try:
        scene._server = server
        scene.refresh()
        assert not asked
        SdfScene(lambda: Keyframes(2), query).draw()
        assert not asked
    finally:
        server.stop()


def test_a_slice_has_the_colours_of_its_distances() -> None:
    distance, is_seen = torch.tensor([0.0, 0.5, 2.0, -1.0, 2.0]), torch.tensor([True, True, True, True, False])
    assert slice_colors(distance, is_seen, 0.04).tolist() == [
        [0, 0, 0],
        [148, 172, 228],  # half way from white; halves round to even
        [40, 90, 200],
        [200, 60, 40],
        [106, 118, 146],
    ]


def test_the_frames_of_a_scene_need_not_have_a_size_in_common(loaded: SdfPipeline, view) -> None:
    small = DepthFrame("small", torch.full((8, 8), 2.0), torch.eye(3, 4), (4.0, 4.0, 4.0, 4.0))
    loaded.mapper.add_keyframes([small])
    _, client = view(loaded)
    client.wait_for(lambda: f"{KEYFRAMES}/2" in client.nodes)
    assert client.nodes[f"{KEYFRAMES}/2"]["aspect"] == 1
