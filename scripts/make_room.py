"""Renders the procedural "room" data set: an RGB-D sequence with the noise of a depth sensor, clean depth and the mesh.

The geometry is `room_parts.py`, computed with NumPy from a fixed seed. Colour is path traced with Mitsuba 3, depth is
cast against the union of all solids. Needs the extra ``data``. Frames on disk are kept, so a stopped run can go on.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import manifold3d  # pyright: ignore[reportMissingImports]
import mitsuba as mi  # pyright: ignore[reportMissingImports]
import numpy as np
import trimesh
import tyro
from make_still_life import Array, Part, encode, save_png, weld, write_ply
from room_parts import HEIGHT, room_parts, volume
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation
from trimesh.ray.ray_pyembree import RayMeshIntersector

WIDTH, HEIGHT_PIXELS = 160, 120
FOCAL_LENGTH = 146.25
"""Pixels: that of the first Kinect, 585, at a quarter of its resolution."""
PIXELS_OF_MODEL = 640
"""The noise model's lateral noise is in pixels of a picture this wide."""
BASELINE = 0.075
"""Metres from the camera to the projector of its pattern (Khoshelham & Elberink 2012)."""
NEAREST, FARTHEST = 0.4, 5.0
"""Metres; the sensor measures nothing beyond."""
STEEPEST = math.radians(80.0)
"""Surfaces seen at a larger angle to their normal give no measurement."""

STATIONS = np.array(
    [  # seconds, position, and the point looked at, in metres
        (0.0, -1.1, -0.1, 1.45, -0.7, -1.8, 0.55),
        (2.0, -0.4, -0.4, 1.50, 0.9, 0.3, 0.75),
        (4.0, 0.3, -0.7, 1.40, 1.7, -1.9, 0.60),
        (6.0, 1.3, -0.8, 1.45, 2.5, -0.6, 1.40),
        (8.0, 1.7, -0.6, 1.50, 1.2, 0.7, 0.70),
        (10.0, 0.5, -0.5, 1.45, 0.6, 2.0, 1.60),
        (12.0, -0.3, 0.2, 1.45, -1.1, 1.8, 0.60),
        (14.0, -0.8, 0.7, 1.50, -2.4, 0.5, 0.90),
        (16.0, -0.8, 0.2, 1.40, -1.9, -1.1, 0.20),
        (18.0, -0.3, 1.1, 1.55, -0.6, -1.7, 0.60),
        (20.0, 0.2, 1.3, 1.60, 1.9, 1.0, 1.40),
    ]
)


@dataclass
class Args:
    """Command line options; `every` above 1 renders only every n-th frame (into another `output_dir`, please)."""

    output_dir: Path = Path("data/room")
    num_frames: int = 200
    frames_per_second: float = 10.0
    samples_per_pixel: int = 35
    jpeg_quality: int = 88
    seed: int = 7
    every: int = 1


def union(parts: list[Part]) -> tuple[Array, Array]:
    """Vertices and faces of all solids as one: no face lies inside another part."""
    solids = []
    for part in parts:
        first, group = weld(part.vertices)
        faces = group[part.faces]
        faces = faces[np.all(faces != np.roll(faces, 1, axis=1), axis=1)]
        solid = manifold3d.Manifold(manifold3d.Mesh64(part.vertices[first], faces.astype(np.uint64)))
        if solid.status() != manifold3d.Error.NoError or volume(part) <= 0.0:
            raise ValueError(f"a part of {len(faces)} faces is not closed or turned inside out: {solid.status()}")
        solids.append(solid)
    mesh = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add).to_mesh64()
    return np.asarray(mesh.vert_properties)[:, :3], np.asarray(mesh.tri_verts).astype(np.int64)


def camera_path(args: Args, rng: np.random.Generator) -> Array:
    """Camera-to-world matrices (OpenGL axes) of a camera held in the hand: a smooth walk, unsteady by sines."""
    seconds = np.arange(args.num_frames) / args.frames_per_second
    towards = STATIONS[:, 4:] - STATIONS[:, 1:4]
    yaw = np.unwrap(np.arctan2(towards[:, 1], towards[:, 0]))
    pitch = np.arctan2(towards[:, 2], np.linalg.norm(towards[:, :2], axis=1))
    walk = CubicSpline(STATIONS[:, 0], np.column_stack([STATIONS[:, 1:4], yaw, pitch]))(seconds)
    frequencies, phases = rng.uniform(0.4, 2.2, (6, 4)), rng.uniform(0.0, 2.0 * np.pi, (6, 4))
    sway = np.sin(2.0 * np.pi * frequencies[..., None] * seconds + phases[..., None]).mean(axis=1).T
    positions = walk[:, :3] + 0.015 * sway[:, :3]
    tilt = math.radians(2.0) * sway[:, 3:]
    yaw, pitch, roll = walk[:, 3] + tilt[:, 0], walk[:, 4] + tilt[:, 1], tilt[:, 2]
    ahead = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], -1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), 0.0 * yaw], -1)
    upright = np.stack([right, np.cross(right, ahead), -ahead], -1)
    poses = np.tile(np.eye(4), (args.num_frames, 1, 1))
    poses[:, :3, :3] = upright @ Rotation.from_euler("z", roll[:, None]).as_matrix()
    poses[:, :3, 3] = positions
    return poses


def pixel_directions(pose: Array, shift: Array | float = 0.0) -> Array:
    """Directions of unit depth through the pixels' centres, moved by `shift` pixels, (height * width, 3)."""
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT_PIXELS) + 0.5)
    pixels = np.stack([columns, rows], -1).reshape(-1, 2) + shift - [WIDTH / 2, HEIGHT_PIXELS / 2]
    return np.column_stack([pixels * [1.0, -1.0] / FOCAL_LENGTH, -np.ones(len(pixels))]) @ pose[:3, :3].T


def cast(rays: RayMeshIntersector, origins: Array, directions: Array) -> tuple[Array, Array]:
    """How many directions away the first surface is (infinite: none), and its normal; from the faces' planes."""
    mesh, faces = rays.mesh, rays.intersects_first(origins, directions)
    normals = mesh.face_normals[faces]
    offsets = np.sum((mesh.triangles[faces, 0] - origins) * normals, axis=1)
    steps = offsets / np.sum(directions * normals, axis=1)
    return np.where(faces < 0, np.inf, steps), normals


def measured_depth(rays: RayMeshIntersector, pose: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Clean depth and the depth a structured-light sensor measures there, (height, width) metres, 0 for none.

    Axial and lateral noise follow Nguyen, Izadi & Lovell (2012), whose fits are for the first Kinect: axial standard
    deviation 0.0012 + 0.0019 (z - 0.4)^2 + 0.0001 / sqrt(z) * (angle / (pi/2 - angle))^2 metres, lateral
    0.8 + 0.035 angle / (pi/2 - angle) pixels of 640. No measurement: out of range, at steep angles, and where the
    projector's light does not reach (the shadows beside edges; Khoshelham & Elberink 2012).
    """
    origins = np.broadcast_to(pose[:3, 3], (WIDTH * HEIGHT_PIXELS, 3))
    directions = pixel_directions(pose)
    clean, normals = cast(rays, origins, directions)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    angle = np.minimum(np.arccos(np.clip(np.abs(np.sum(unit * normals, axis=1)), 0.0, 1.0)), STEEPEST)
    slope = angle / (0.5 * np.pi - angle)
    lateral = (0.8 + 0.035 * slope) * WIDTH / PIXELS_OF_MODEL
    moved = pixel_directions(pose, lateral[:, None] * rng.normal(size=(len(clean), 2)))
    depth, _ = cast(rays, origins, moved)
    projector = origins - BASELINE * pose[:3, 0]
    to_surface = origins + depth[:, None] * moved - projector
    lit = cast(rays, projector, to_surface)[0] > 1.0 - 1e-3
    axial = 0.0012 + 0.0019 * (depth - 0.4) ** 2 + 0.0001 / np.sqrt(depth) * slope**2
    depth = depth + axial * rng.normal(size=len(depth))
    seen = lit & (angle < STEEPEST) & (depth >= NEAREST) & (depth <= FARTHEST)
    return clean.reshape(HEIGHT_PIXELS, WIDTH), np.where(seen, depth, 0.0).reshape(HEIGHT_PIXELS, WIDTH)


def load_scene(parts: list[Part]) -> mi.Scene:
    """Builds the Mitsuba scene: the parts, and a large area light just below the ceiling."""
    to_world = mi.ScalarTransform4f().look_at([0.0, 0.0, HEIGHT - 0.003], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    to_world = to_world @ mi.ScalarTransform4f().scale([1.3, 0.9, 1.0])
    light = {"type": "area", "radiance": {"type": "rgb", "value": [4.6, 4.45, 4.2]}}
    scene: dict[str, Any] = {"type": "scene"}
    scene["light"] = {"type": "rectangle", "to_world": to_world, "emitter": light}
    with tempfile.TemporaryDirectory() as folder:
        for k, part in enumerate(parts):
            path = Path(folder) / f"{k}.ply"
            write_ply(path, "x y z nx ny nz u v", np.hstack([part.vertices, part.normals(), part.uvs]), part.faces)
            scene[f"part{k}"] = {"type": "ply", "filename": str(path), "face_normals": part.flat, "bsdf": part.bsdf}
        return mi.load_dict(scene)


def make_sensor(pose: Array, args: Args) -> mi.Sensor:
    """A pinhole sensor; Mitsuba's camera looks along +z with +x to the left."""
    film = {"type": "hdrfilm", "width": WIDTH, "height": HEIGHT_PIXELS, "pixel_format": "rgba"}
    film |= {"component_format": "float32", "rfilter": {"type": "box"}}
    to_world = mi.ScalarTransform4f(pose @ np.diag([-1.0, 1.0, -1.0, 1.0]))
    fov = math.degrees(2.0 * math.atan(0.5 * WIDTH / FOCAL_LENGTH))
    sensor = {"type": "perspective", "fov": fov, "fov_axis": "x", "near_clip": 0.05}
    sampler = {"type": "multijitter", "sample_count": args.samples_per_pixel}
    return mi.load_dict(sensor | {"to_world": to_world, "film": film, "sampler": sampler})


def save_jpeg(path: Path, image: Array, quality: int) -> None:
    """Writes a JPEG under a temporary name and then renames it."""
    temporary = path.with_suffix(".tmp.jpg")
    if not cv2.imwrite(str(temporary), image, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]):
        raise OSError(f"cannot write {temporary}")
    temporary.replace(path)


def write_transforms(folder: Path, poses: Array, args: Args) -> None:
    """Writes the cameras in nerfstudio's layout, once with the measured depth and once with the clean one."""
    camera = {"camera_model": "OPENCV", "fl_x": FOCAL_LENGTH, "fl_y": FOCAL_LENGTH, "w": WIDTH, "h": HEIGHT_PIXELS}
    camera |= {"cx": WIDTH / 2, "cy": HEIGHT_PIXELS / 2, "mesh_file_path": "mesh.ply"}
    for name, depth in (("transforms.json", "depth"), ("transforms_clean.json", "clean_depth")):
        frames = [
            {
                "file_path": f"color/{k:04d}.jpg",
                "depth_file_path": f"{depth}/{k:04d}.png",
                "time": round(k / args.frames_per_second, 6),
                "transform_matrix": np.round(pose, 8).tolist(),
            }
            for k, pose in enumerate(poses)
        ]
        lines = ",\n  ".join(json.dumps(frame) for frame in frames)
        (folder / name).write_text(f'{json.dumps(camera)[:-1]}, "frames": [\n  {lines}\n]}}\n')


def main(args: Args) -> None:
    """Writes the mesh, the cameras and all frames which are missing."""
    mi.set_variant("scalar_rgb")
    parts = room_parts(args.seed)
    for name in ("color", "depth", "clean_depth"):
        (args.output_dir / name).mkdir(parents=True, exist_ok=True)
    vertices, faces = union(parts)
    write_ply(args.output_dir / "mesh.ply", "x y z", vertices, faces)
    rays = RayMeshIntersector(trimesh.Trimesh(vertices, faces, process=False))
    poses = camera_path(args, np.random.default_rng(args.seed))
    write_transforms(args.output_dir, poses, args)
    scene = load_scene(parts)
    integrator = mi.load_dict({"type": "path", "max_depth": 5})
    for k in range(0, args.num_frames, args.every):
        color, depth, clean = (
            args.output_dir / name / f"{k:04d}.{end}"
            for name, end in (("color", "jpg"), ("depth", "png"), ("clean_depth", "png"))
        )
        if not (depth.exists() and clean.exists()):
            images = measured_depth(rays, poses[k], np.random.default_rng([args.seed, k]))
            for path, image in zip((clean, depth), images, strict=True):
                save_png(path, np.round(1000.0 * image).astype(np.uint16))
        if not color.exists():
            image = integrator.render(scene, make_sensor(poses[k], args), args.seed + 1000 * k, args.samples_per_pixel)
            save_jpeg(color, encode(np.array(image))[..., :3], args.jpeg_quality)
        print(color, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
