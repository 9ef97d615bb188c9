"""Makes data/signals: a picture, a sound, a video and a shape, for experiments with eugen-siren.

The picture is scikit-image's `camera` (CC0) at two sizes; the others are computed here.

    python scripts/make_signals.py
"""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import soundfile
import trimesh
from skimage.data import camera
from skimage.measure import marching_cubes
from skimage.transform import resize

FOLDER = Path(__file__).parents[1] / "data" / "signals"
RATE = 8000
"""Samples of the sound per second."""


def picture(side: int) -> np.ndarray:
    """The picture, (side, side) uint8."""
    return np.round(255 * np.asarray(resize(camera() / 255.0, (side, side), anti_aliasing=True))).astype(np.uint8)


def sound(seconds: float = 2.0) -> np.ndarray:
    """Eight plucked strings one after the other, each of six harmonics that fade, with some hiss; (samples,)."""
    time = np.arange(int(seconds * RATE)) / RATE
    total = 0.003 * np.random.default_rng(0).standard_normal(len(time))
    for index, step in enumerate((0, 4, 7, 12, 7, 4, 9, 5)):
        since = time - index * seconds / 8
        frequency = 220 * 2 ** (step / 12)
        for harmonic in range(1, 7):
            fade = np.exp(-5 * harmonic**0.5 * since) / harmonic
            total += np.where(since > 0, fade * np.sin(2 * np.pi * harmonic * frequency * np.maximum(since, 0)), 0)
    return 0.9 * total / np.abs(total).max()


def video(frames: int = 24, side: int = 64) -> np.ndarray:
    """The middle of the picture, which turns and comes nearer, with a coloured disc that crosses it; uint8."""
    from scipy.ndimage import map_coordinates

    source, across = camera() / 255.0, np.linspace(-1, 1, side)
    rows, columns = np.meshgrid(across, across, indexing="ij")
    shown = []
    for index in range(frames):
        angle, reach = 0.5 * index / frames, 160 - 60 * index / frames
        turned = np.cos(angle) * rows - np.sin(angle) * columns, np.sin(angle) * rows + np.cos(angle) * columns
        grey = map_coordinates(source, [150 + reach * turned[0], 220 + reach * turned[1]], order=1)
        disc = np.hypot(rows - 0.4, columns + 0.9 - 1.8 * index / frames) < 0.2
        shown.append(np.where(disc[..., None], (0.9, 0.5, 0.1), grey[..., None]))
    return (255 * np.stack(shown)).round().astype(np.uint8)


def shape(resolution: int = 64) -> trimesh.Trimesh:
    """A ball with a gyroid's channels cut into it, closed."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, resolution)] * 3, indexing="ij")
    gyroid = sum(np.sin(6 * a) * np.cos(6 * b) for a, b in ((x, y), (y, z), (z, x)))
    inside = np.maximum(np.sqrt(x**2 + y**2 + z**2) - 0.85, -0.12 * (gyroid + 1.0))
    vertices, faces, _, _ = marching_cubes(inside, 0.0, spacing=(2 / (resolution - 1),) * 3)
    mesh = trimesh.Trimesh(vertices - 1, faces)
    mesh.fix_normals()
    assert mesh.is_watertight
    return mesh


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for side in (256, 512):
        iio.imwrite(FOLDER / f"camera_{side}.png", picture(side))
    soundfile.write(FOLDER / "strings.wav", sound(), RATE, subtype="PCM_16")
    (FOLDER / "disc").mkdir(exist_ok=True)
    for index, frame in enumerate(video()):
        iio.imwrite(FOLDER / "disc" / f"{index:03d}.png", frame)
    shape().export(FOLDER / "gyroid.ply")
    for path in sorted(FOLDER.rglob("*.*")):
        print(f"{path.relative_to(FOLDER)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
