"""Renders the procedural "courtyard" data set: an unbounded outdoor scene, all around, in nerfstudio's layout.

The geometry is `courtyard_parts.py` and `courtyard_surroundings.py`, the light a procedural sky that the cameras see;
all is computed with NumPy from a fixed seed and path traced with Mitsuba 3. Needs ``mitsuba``, ``numpy``,
``opencv-python-headless`` and ``tyro``. Views which are already on disk are kept, so a stopped run can be resumed.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import drjit as dr  # pyright: ignore[reportMissingImports]
import mitsuba as mi  # pyright: ignore[reportMissingImports]
import numpy as np
import tyro
from courtyard_parts import middle_parts
from courtyard_surroundings import surroundings
from make_still_life import Array, Part, encode, save_png, write_ply

FIELD_OF_VIEW = 60.0
"""Degrees, across and up."""
SUN_AZIMUTH, SUN_ELEVATION, SUN_RADIUS = 236.0, 28.0, 1.3
"""Degrees; the sun's disc is about five times wider than ours, so that it spans a few pixels."""
SUN_RADIANCE = (2150.0, 1950.0, 1640.0)
EXPOSURE = 1.1
LOOPS = ((2.7, 0.5), (3.5, 1.1), (4.1, 1.7), (3.3, 2.5))
"""Radius and height, in scene units, of the loops the cameras lie on."""
TEST_EVERY = 5
"""Of every so many consecutive cameras, the third is for testing."""


@dataclass
class Args:
    """Command line options; `every` above 1 renders only every n-th view (into another `output_dir`, please)."""

    output_dir: Path = Path("data/courtyard")
    num_views: int = 100
    resolution: int = 256
    samples_per_pixel: int = 18
    feature_samples: int = 49
    variant: Literal["llvm_ad_rgb", "scalar_rgb"] = "llvm_ad_rgb"
    num_threads: int = 2
    coarse_step: int = 5
    seed: int = 7
    every: int = 1


def smooth_noise(x: Array, y: Array, rng: np.random.Generator, octaves: int) -> Array:
    """Value noise over the plane, from 0 to 1, in octaves of half the size and half the weight each."""
    total, weight = np.zeros_like(x), 0.0
    for k in range(octaves):
        lattice = rng.random((64, 64))
        p, q = x * 2.0**k + 7.3 * k, y * 2.0**k + 3.1 * k
        i, j = np.floor(p).astype(int), np.floor(q).astype(int)
        s, t = (f * f * (3.0 - 2.0 * f) for f in (p - i, q - j))
        a, b, c, d = (lattice[(i + m) % 64, (j + n) % 64] for m in (0, 1) for n in (0, 1))
        total += 0.5**k * ((1 - s) * ((1 - t) * a + t * b) + s * ((1 - t) * c + t * d))
        weight += 0.5**k
    return total / weight


def direction(azimuth: float, elevation: float) -> Array:
    """The unit vector towards an azimuth and an elevation in degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])


def sky(rng: np.random.Generator, height: int = 1024) -> Array:
    """Radiance all around, (height, 2 * height, 3): a gradient, clouds on a plane overhead, haze and the sun."""
    polar, turn = np.meshgrid(
        (np.arange(height) + 0.5) * np.pi / height, (np.arange(2 * height) + 0.5) * np.pi / height, indexing="ij"
    )
    x, y, z = np.sin(polar) * np.sin(turn), np.sin(polar) * np.cos(turn), np.cos(polar)
    up = np.clip(z, 0.0, 1.0)[..., None]
    colour = np.array([0.60, 0.70, 0.82]) + (np.array([0.10, 0.25, 0.58]) - [0.60, 0.70, 0.82]) * (1 - (1 - up) ** 3)
    cosine = x * (sun := direction(SUN_AZIMUTH, SUN_ELEVATION))[0] + y * sun[1] + z * sun[2]
    colour += np.exp(-(1.0 - cosine[..., None]) / 0.04) * [0.5, 0.4, 0.24]
    lift = np.maximum(z, 0.0) + 0.14
    cover = smooth_noise(1.1 * x / lift + 20.0, 1.1 * y / lift + 20.0, rng, 6)
    cloud = np.clip((cover - 0.5) / 0.16, 0.0, 1.0)[..., None] * np.clip(up / 0.05, 0.0, 1.0)
    shade = np.clip((cover - 0.56) / 0.2, 0.0, 1.0)[..., None]
    white = np.array([1.0, 0.98, 0.95]) - shade * [0.36, 0.33, 0.28]
    colour = colour + 0.9 * cloud * (white - colour)
    colour = np.where(z[..., None] < 0.0, np.array([0.40, 0.42, 0.36]), colour)
    apart = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))[..., None]
    edge = np.clip((SUN_RADIUS - apart) / 0.2 + 0.5, 0.0, 1.0)
    return (colour + edge * (np.array(SUN_RADIANCE) - colour)).astype(np.float32)


def load_scene(parts: list[Part], environment: Array) -> mi.Scene:
    """Builds the Mitsuba scene: the parts, seen from both sides, and the sky."""
    to_world = mi.ScalarTransform4f().rotate([1.0, 0.0, 0.0], 90.0)
    scene: dict[str, Any] = {"type": "scene"}
    scene["sky"] = {"type": "envmap", "bitmap": mi.Bitmap(environment), "to_world": to_world}
    with tempfile.TemporaryDirectory() as folder:
        for k, part in enumerate(parts):
            path = Path(folder) / f"{k}.ply"
            write_ply(path, "x y z nx ny nz u v", np.hstack([part.vertices, part.normals(), part.uvs]), part.faces)
            bsdf = {"type": "twosided", "bsdf": part.bsdf}
            scene[f"part{k}"] = {"type": "ply", "filename": str(path), "face_normals": part.flat, "bsdf": bsdf}
        return mi.load_dict(scene)


def look_at(position: Array, target: Array) -> Array:
    """A camera-to-world matrix (OpenGL axes) of an upright camera."""
    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.vstack([np.stack([right, np.cross(back, right), back, position], -1), [0.0, 0.0, 0.0, 1.0]])


def camera_poses(args: Args, rng: np.random.Generator) -> list[Array]:
    """Cameras on loops about the fountain, jittered, each loop a bit ahead of the last; they look about its middle."""
    poses = []
    for k in range(args.num_views):
        turn = len(LOOPS) * k / args.num_views
        radius, height = LOOPS[int(turn)]
        azimuth = 2.0 * math.pi * (turn + 0.25 * int(turn) / (args.num_views / len(LOOPS))) + rng.uniform(-0.05, 0.05)
        radius, height = radius + rng.uniform(-0.15, 0.25), height + rng.uniform(-0.25, 0.25)
        target = np.array([0.0, 0.0, 0.8]) + rng.uniform(-0.2, 0.2, 3)
        poses.append(look_at(np.array([radius * math.cos(azimuth), radius * math.sin(azimuth), height]), target))
    return poses


def make_sensor(pose: Array, args: Args, samples_per_pixel: int) -> mi.Sensor:
    """A pinhole sensor; Mitsuba's camera looks along +z with +x to the left."""
    film = {"type": "hdrfilm", "width": args.resolution, "height": args.resolution, "pixel_format": "rgba"}
    film |= {"component_format": "float32", "rfilter": {"type": "box"}}
    to_world = mi.ScalarTransform4f(pose @ np.diag([-1.0, 1.0, -1.0, 1.0]))
    sensor = {"type": "perspective", "fov": FIELD_OF_VIEW, "fov_axis": "x", "near_clip": 0.05, "far_clip": 1e4}
    sampler = {"type": "multijitter", "sample_count": samples_per_pixel}
    return mi.load_dict(sensor | {"to_world": to_world, "film": film, "sampler": sampler})


def render(scene: mi.Scene, environment: Array, pose: Array, args: Args, seed: int) -> Array:
    """A view as linear RGBA floats, (resolution, resolution, 4).

    What is path traced and denoised is the light that arrives, colour over albedo. The albedo, of which more samples
    are cheap, is multiplied in again and the sky put behind, so that textures and edges stay sharp.
    """
    light = mi.load_dict({"type": "path", "max_depth": 3, "hide_emitters": True})
    aovs = {"type": "aov", "aovs": "albedo:albedo,normal:sh_normal", "nested": {"type": "depth"}}
    half, tiny = max(args.samples_per_pixel // 2, 1), 1e-4
    first, second = (np.array(light.render(scene, make_sensor(pose, args, half), seed + k, half)) for k in range(2))
    sensor = make_sensor(pose, args, args.feature_samples)
    exact = np.array(mi.load_dict(aovs).render(scene, sensor, seed + 2, args.feature_samples))
    albedo = exact[..., 4:7] + tiny
    first, second = (image[..., :3] / albedo for image in (first, second))
    colour = albedo * denoise(first, second, exact[..., 7:10], exact[..., :1])
    colour = EXPOSURE * (colour + (1.0 - exact[..., 3:4]) * background(environment, pose, args.resolution))
    return np.concatenate([colour, np.ones_like(colour[..., :1])], -1)


def denoise(first: Array, second: Array, normals: Array, depth: Array, radius: int = 4) -> Array:
    """The mean of two independent pictures by non-local means (Rousselle et al. 2012), guided by normals and depth.

    All are (height, width, channels). Pixels are averaged where they differ no more than the pictures' own noise.
    """
    mean = 0.5 * (first + second)
    noise = cv2.blur(0.25 * (first - second) ** 2, (5, 5))
    total, weights = np.zeros_like(mean), np.zeros_like(mean[..., :1])
    for shift in np.ndindex(2 * radius + 1, 2 * radius + 1):
        step = (shift[0] - radius, shift[1] - radius)
        other, other_noise, other_normals, other_depth = (
            np.roll(image, step, axis=(0, 1)) for image in (mean, noise, normals, depth)
        )
        apart = (mean - other) ** 2 - (noise + np.minimum(noise, other_noise))
        apart = cv2.blur(apart / (0.5 * (noise + other_noise) + 1e-5), (3, 3)).mean(axis=-1, keepdims=True)
        turned = np.sum((normals - other_normals) ** 2, axis=-1, keepdims=True) / 0.05
        away = ((depth - other_depth) / (0.06 * np.minimum(depth, other_depth) + 0.02)) ** 2
        weight = np.exp(-np.maximum(apart, 0.0) - turned - away)
        total, weights = total + weight * other, weights + weight
    return total / weights


def background(environment: Array, pose: Array, resolution: int, samples: int = 4) -> Array:
    """The sky behind everything, (resolution, resolution, 3)."""
    size, height = resolution * samples, len(environment)
    offset = ((np.arange(size) + 0.5) / size * 2.0 - 1.0) * math.tan(math.radians(0.5 * FIELD_OF_VIEW))
    x, y = np.meshgrid(offset, -offset)
    x, y, z = np.moveaxis(np.stack([x, y, -np.ones_like(x)], -1) @ pose[:3, :3].T, -1, 0)
    turn, polar = np.arctan2(x, y) % (2.0 * np.pi), np.arctan2(np.hypot(x, y), z)
    columns, rows = (angle * height / np.pi - 0.5 for angle in (turn, polar))
    wide = np.concatenate([environment[:, -1:], environment, environment[:, :1]], axis=1)
    clipped = np.minimum(wide, 4.0)
    picked = cv2.remap(clipped, (columns + 1.0).astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)
    return cv2.resize(picked, (resolution, resolution), interpolation=cv2.INTER_AREA)


def coarsen(image: Array, step: int) -> Array:
    """Rounds the pixels that differ from a neighbour by more than `step` to multiples of `step`, to save bytes."""
    kernel = np.ones((3, 3), np.uint8)
    contrast = (cv2.dilate(image, kernel) - cv2.erode(image, kernel)).max(axis=-1, keepdims=True)
    rounded = np.minimum(np.round(image / step) * step, 255.0)
    return np.where(contrast > step, rounded, image).astype(np.uint8)


def view_names(args: Args) -> list[str]:
    """The views' file names, in the order of the cameras."""
    names, counts = [], {"train": 0, "test": 0}
    for k in range(args.num_views):
        split = "test" if k % TEST_EVERY == 2 else "train"
        names.append(f"images/{split}_{counts[split]:03d}.png")
        counts[split] += 1
    return names


def write_transforms(path: Path, names: list[str], poses: list[Array], args: Args) -> None:
    """Writes the cameras and the splits in nerfstudio's layout."""
    focal_length = 0.5 * args.resolution / math.tan(math.radians(0.5 * FIELD_OF_VIEW))
    camera = {"camera_model": "OPENCV", "fl_x": focal_length, "fl_y": focal_length, "w": args.resolution}
    camera |= {"h": args.resolution, "cx": args.resolution / 2, "cy": args.resolution / 2}
    test = [name for name in names if "test" in name]
    camera |= {"train_filenames": [name for name in names if name not in test]}
    camera |= {"val_filenames": test, "test_filenames": test}
    frames = [
        json.dumps({"file_path": name, "transform_matrix": np.round(pose, 8).tolist()})
        for name, pose in zip(names, poses, strict=True)
    ]
    lines = ",\n  ".join(frames)
    path.write_text(f'{json.dumps(camera)[:-1]}, "frames": [\n  {lines}\n]}}\n')


def main(args: Args) -> None:
    """Writes the cameras and all views which are missing."""
    mi.set_variant(args.variant)
    dr.set_thread_count(args.num_threads)
    parts = middle_parts(np.random.default_rng(args.seed)) + surroundings(np.random.default_rng(args.seed + 1))
    environment = sky(np.random.default_rng(args.seed + 2))
    scene = load_scene(parts, environment)
    names, poses = view_names(args), camera_poses(args, np.random.default_rng(args.seed + 3))
    (args.output_dir / "images").mkdir(parents=True, exist_ok=True)
    write_transforms(args.output_dir / "transforms.json", names, poses, args)
    for k in range(0, args.num_views, args.every):
        path = args.output_dir / names[k]
        if not path.exists():
            image = encode(render(scene, environment, poses[k], args, args.seed + 1000 * (k + 1)))[..., :3]
            save_png(path, coarsen(image, args.coarse_step))
        print(path, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
