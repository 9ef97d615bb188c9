"""The embedded room: what its README says of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eugen3d.datasets import DepthFrame, open_depth_sequence
from eugen3d.metrics.triangle_mesh import TriangleMesh
from eugen3d.metrics.visibility import sample_visible_volume, unproject

ROOM = Path(__file__).parents[2] / "data" / "room"
SOME = range(0, 200, 23)


@pytest.fixture(scope="module")
def mesh() -> TriangleMesh:
    return TriangleMesh.load(ROOM / "mesh.ply")


def frames(name: str, numbers: range = SOME) -> list[DepthFrame]:
    sequence = open_depth_sequence(ROOM / name)
    return [sequence[number] for number in numbers]


def test_the_sequence_is_whole() -> None:
    sequence = open_depth_sequence(ROOM)
    assert len(sequence) == 200 and sequence.size == (120, 160)
    assert sum(file.stat().st_size for file in ROOM.rglob("*") if file.is_file()) < 10e6
    first, last = sequence[0], sequence[199]
    assert (first.time, last.time) == (0.0, 19.9) and first.intrinsics == (146.25, 146.25, 80.0, 60.0)
    assert all(frame.rgb is not None and frame.rgb.float().std() > 10 for frame in (first, last))


def test_the_mesh_is_one_solid_around_the_room(mesh: TriangleMesh) -> None:
    assert mesh.is_closed and mesh.volume > 0
    places = torch.tensor([[0.0, 0.0, 1.4], [0.0, 0.0, -0.1], [2.6, 0.0, 1.0], [1.0, 0.55, 0.73]], dtype=torch.float64)
    distances = mesh.signed_distance(places)
    assert distances[0] > 0.5 and (distances[1:] < 0).all()
    assert distances[1].item() == pytest.approx(-0.1, abs=1e-6)
    assert distances[3].item() == pytest.approx(-0.02, abs=1e-6), "in the middle of the table's top"


def test_clean_depth_is_on_the_mesh(mesh: TriangleMesh) -> None:
    for frame in frames("transforms_clean.json"):
        pixels = frame.depth.nonzero()[::29]
        points = unproject(frame, pixels, frame.depth[pixels[:, 0], pixels[:, 1]].double())
        assert (frame.depth > 0).all() and mesh.closest(points)[0].max() < 2e-3


def test_the_camera_keeps_its_distance_and_sees_free_space(mesh: TriangleMesh) -> None:
    seen = frames("transforms_clean.json")
    centres = torch.stack([frame.camera_to_world[:, 3] for frame in seen])
    assert mesh.signed_distance(centres.double()).min() > 0.3
    points = sample_visible_volume(seen, 200, behind=-0.005)
    assert (mesh.signed_distance(points.double()) > 0).double().mean() > 0.999, "but for millimetres and edges"


def test_noise_is_the_models() -> None:
    """In ranges of distance, on surfaces level enough that a neighbouring pixel's depth is nearly the same."""
    error, distance, many = [], [], range(0, 200, 7)
    for measured, clean in zip(frames("transforms.json", many), frames("transforms_clean.json", many), strict=True):
        rise = np.abs(np.gradient(clean.depth.numpy())).max(axis=0)
        flat = (measured.depth > 0).numpy() & (rise < 0.004)
        error.append((measured.depth - clean.depth).numpy()[flat])
        distance.append(clean.depth.numpy()[flat])
    errors, distances = np.concatenate(error), np.concatenate(distance)
    for low in (1.0, 1.5, 2.0, 2.5):
        ring = (distances >= low) & (distances < low + 0.1)
        expected = 0.0012 + 0.0019 * (low + 0.05 - 0.4) ** 2
        assert ring.sum() > 100
        assert errors[ring].std() == pytest.approx(expected, rel=0.2)
        assert abs(errors[ring].mean()) < 5 * expected / np.sqrt(ring.sum()) + 5e-4


def test_some_of_it_is_not_measured() -> None:
    missing = [float((frame.depth == 0).float().mean()) for frame in frames("transforms.json")]
    assert sum(missing) / len(missing) > 0.002 and max(missing) < 0.2
