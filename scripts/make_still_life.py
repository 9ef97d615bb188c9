"""Renders the procedural "still_life" data set in the Blender (nerf_synthetic) layout with Mitsuba 3.

Every mesh and texture is computed here with NumPy from a fixed seed. Needs ``mitsuba``, ``numpy``,
``opencv-python-headless`` and ``tyro``. Views which are already on disk are kept, so a stopped run can be resumed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mitsuba as mi  # pyright: ignore[reportMissingImports]
import numpy as np
import tyro

Array = np.ndarray
Pattern = Callable[[Array, Array], Array]
CAMERA_ANGLE_X = 0.6911112070083618
CAMERA_RADIUS = 4.031
DEPTH_UNIT = 1e-4
TABLE_Z = -0.4


@dataclass
class Args:
    """Command line options; `preview` renders only so many test views (into another `output_dir`, please)."""

    output_dir: Path = Path("data/still_life")
    resolution: int = 200
    samples_per_pixel: int = 100
    num_train: int = 80
    num_val: int = 10
    num_test: int = 20
    seed: int = 7
    preview: int = 0


@dataclass
class Part:
    """A triangle mesh with one material; `flat` ones are shaded with their faces' normals."""

    vertices: Array
    uvs: Array
    faces: Array
    flat: bool = False
    bsdf: dict[str, Any] | None = None

    def placed(self, bsdf: dict[str, Any], offset: tuple[float, float, float], turn: float = 0.0) -> Part:
        """Returns a copy with a material, turned about z by `turn` degrees and moved by `offset` above the table."""
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        vertices = self.vertices @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        return Part(vertices + np.array(offset) + [0.0, 0.0, TABLE_Z], self.uvs, self.faces, self.flat, bsdf)

    def normals(self) -> Array:
        """Area-weighted vertex normals, shared between coincident vertices."""
        a, b, c = self.vertices[self.faces].swapaxes(0, 1)
        group = weld(self.vertices)[1]
        total = np.zeros_like(self.vertices)
        np.add.at(total, group[self.faces], np.cross(b - a, c - a)[:, None])
        return total[group] / np.maximum(np.linalg.norm(total[group], axis=1, keepdims=True), 1e-12)


def weld(vertices: Array) -> tuple[Array, Array]:
    """Groups coincident vertices: the index of one of each group, and every vertex's group."""
    _, first, group = np.unique(np.round(vertices, 5), axis=0, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


def grid_part(points: Array) -> Part:
    """Triangulates an (I, J, 3) grid; u follows the second axis and v the arc length of the first."""
    index = np.arange(points[..., 0].size).reshape(points.shape[:2])
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    p, q, r = points.reshape(-1, 3)[faces].swapaxes(0, 1)
    faces = faces[np.linalg.norm(np.cross(q - p, r - p), axis=1) > 1e-10]
    steps = np.linalg.norm(np.diff(points, axis=0), axis=-1).mean(axis=1)
    v = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    uvs = np.stack(np.meshgrid(np.linspace(0.0, 1.0, points.shape[1]), v), -1).reshape(-1, 2)
    return Part(points.reshape(-1, 3), uvs, faces)


def spline(points: list[tuple[float, float]], samples: int) -> Array:
    """A Catmull-Rom curve through (radius, height) points."""
    p = np.array(points)
    p = np.concatenate([2.0 * p[:1] - p[1:2], p, 2.0 * p[-1:] - p[-2:-1]])
    t = np.linspace(0.0, len(points) - 1.0, samples)
    k = np.minimum(t.astype(int), len(points) - 2)
    f = (t - k)[:, None]
    p0, p1, p2, p3 = p[k], p[k + 1], p[k + 2], p[k + 3]
    curve = p1 + 0.5 * f * (p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0)))
    return np.maximum(curve, [0.0, -np.inf])


def lathe(profile: Array, sides: int) -> Part:
    """Revolves a (radius, height) profile, given from the bottom outwards and upwards, about z."""
    angle = np.linspace(0.0, 2.0 * np.pi, sides + 1)
    ring = np.stack([np.cos(angle), np.sin(angle), 0.0 * angle], -1)
    return grid_part(profile[:, None, :1] * ring + profile[:, None, 1:] * [0.0, 0.0, 1.0])


def ball(radius: float, dent: float = 0.0) -> Part:
    """A sphere standing on z = 0, with its poles pulled in by `dent` like an apple's."""
    polar = np.linspace(0.0, np.pi, 17)
    r = np.where(np.sin(polar) < 1e-9, 0.0, np.sin(polar))
    height = -np.cos(polar) * (1.0 - dent * np.exp(-((r / 0.35) ** 2)))
    return lathe(radius * np.stack([r, height - height.min()], -1), 32)


def tube(curve: Array, across: Array, radius: float, sides: int, closed: bool) -> Part:
    """Sweeps a circle along a curve; `across` gives a direction across the curve at every point."""
    radii = np.full(len(curve), radius)
    tangent = np.gradient(curve, axis=0)
    if closed:
        tangent[[0, -1]] = curve[1] - curve[-2]
    else:
        curve, across, tangent, radii = (np.concatenate([x[:1], x, x[-1:]]) for x in (curve, across, tangent, radii))
        radii[[0, -1]] = 0.0
    tangent = tangent / np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = across - tangent * np.sum(across * tangent, 1, keepdims=True)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    angle = np.linspace(0.0, 2.0 * np.pi, sides + 1)[:, None]
    ring = np.cos(angle) * normal[:, None] + np.sin(angle) * np.cross(tangent, normal)[:, None]
    return grid_part(curve[:, None] + radii[:, None, None] * ring)


def box(width: float, depth: float, height: float) -> Part:
    """A box standing on z = 0; side k uses the k-th sixth of its texture's width."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    vertices, uvs = np.empty((6, 4, 3)), np.empty((6, 4, 2))
    for side in range(6):
        n, s = np.eye(3)[side // 2] * (side % 2 * 2 - 1), np.eye(3)[(side // 2 + 1) % 3]
        vertices[side] = 0.5 * (n + corners @ np.stack([s, np.cross(n, s)]) + [0.0, 0.0, 1.0])
        uvs[side] = (corners * 0.49 + 0.5 + [side, 0.0]) / [6.0, 1.0]
    faces = (4 * np.arange(6)[:, None, None] + [(0, 1, 2), (0, 2, 3)]).reshape(-1, 3)
    return Part(vertices.reshape(-1, 3) * [width, depth, height], uvs.reshape(-1, 2), faces, flat=True)


def paint(pattern: Pattern, palette: str, size: tuple[int, int] = (512, 512), alpha: float = 0.0) -> dict[str, Any]:
    """A material, matt or (alpha > 0) rough plastic, with `pattern(u, v)` picking from a palette of hex colours."""
    colours = np.array([[int(c[k : k + 2], 16) for k in (0, 2, 4)] for c in palette.split()], dtype=np.float32)
    u, v = np.meshgrid(*[(np.arange(2 * n) + 0.5) / (2 * n) for n in size])
    texture = cv2.resize(colours[pattern(u, v).astype(int) % len(colours)], size, interpolation=cv2.INTER_AREA)
    bitmap = {"type": "bitmap", "bitmap": mi.Bitmap(np.round(texture).astype(np.uint8))}
    if alpha > 0.0:
        return {"type": "roughplastic", "diffuse_reflectance": bitmap, "alpha": alpha, "nonlinear": False}
    return {"type": "diffuse", "reflectance": bitmap}


def rings(count: float, palette: str, length: int, alpha: float = 0.0) -> dict[str, Any]:
    """A material with stripes across the v axis."""
    return paint(lambda u, v: np.floor(v * count), palette, (16, length), alpha)


def bands(u: Array, v: Array) -> Array:
    """The vase's painted bands of diamonds, zigzags and dots."""
    row, s, t = np.floor(v * 8.0), (v * 8.0) % 1.0 - 0.5, (u * 8.0) % 1.0 - 0.5
    diamond, dots = np.abs(t) + np.abs(s) < 0.42, t**2 + s**2 < 0.09
    zigzag = np.abs(s - (2.0 * np.abs(t) - 0.5) * 0.6) < 0.18
    mark = np.select([row % 3 == 0, row % 3 == 1], [diamond, zigzag], dots)
    return np.where(np.abs(s) > 0.44, 6, 2 * (row % 3) + mark)


def mosaic(u: Array, v: Array) -> Array:
    """Rings of tiles of about equal size in two alternating colours a ring; v runs from the rim to the centre."""
    ring = np.floor(v * 5.0)
    return 2 * (ring % 3) + np.floor(u * 2.0 * np.round(np.pi * 1.26 * (1.0 - (ring + 0.5) / 5.0) / 0.34)) % 2


def checks(u: Array, v: Array) -> Array:
    """Three by three checks on each side of a box, in another pair of colours on each pair of opposite sides."""
    return 2 * (np.floor(u * 6.0) // 2) + (np.floor((u * 6.0 % 1.0) * 3.0) + np.floor(v * 3.0)) % 2


def letters(rng: np.random.Generator) -> Pattern:
    """A book: glyph-like marks on its covers and striped pages at its sides."""
    glyphs = rng.random((12, 20)) < 0.62
    glyphs[::4] = glyphs[:, ::4] = False

    def pattern(u: Array, v: Array) -> Array:
        side, x = np.floor(u * 6.0), u * 6.0 % 1.0
        row, column = (np.clip((x - 0.08) / 0.84 * n, 0, n - 1).astype(int) for x, n in ((v, 12), (x, 20)))
        cover = (np.abs(x - 0.5) < 0.42) & (np.abs(v - 0.5) < 0.42) & glyphs[row, column]
        pages = np.where((v > 0.2) & (v < 0.8), 2 + np.floor(v * 10.0) % 2, 0)
        return np.select([side >= 4, side == 3], [cover, 0], pages)

    return pattern


def speckles(rng: np.random.Generator, count: int, radius: float) -> Pattern:
    """Round spots of two colours at random places of a sphere over two base colours."""
    centres = rng.normal(size=(count, 3))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def pattern(u: Array, v: Array) -> Array:
        phi, theta = 2.0 * np.pi * u, np.pi * v
        point = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), -np.cos(theta)], -1)
        picked = np.where(v + 0.06 * np.sin(4.0 * phi) > 0.55, 1, 0)
        for k, centre in enumerate(centres):
            picked[point @ centre > math.cos(radius * (0.7 + 0.6 * (k % 5) / 4.0))] = 2 + k % 2
        return picked

    return pattern


def turned_parts() -> list[Part]:
    """The table with its pedestal, the vase, the goblet and the stands."""
    top = np.stack([np.linspace(1.26, 0.0, 7), np.zeros(7)], -1)
    foot = [(0.78, -0.68), (0.84, -0.64), (0.84, -0.54), (0.8, -0.4), (0.92, -0.24), (1.2, -0.12)]
    pedestal = np.concatenate([[(0.0, -0.68)], spline(foot, 20), [(1.26, -0.09), (1.26, 0.0)]])
    outer = [(0.2, 0.0), (0.24, 0.08), (0.36, 0.4), (0.35, 0.76), (0.17, 1.14), (0.15, 1.27), (0.26, 1.48)]
    inner = [(0.23, 1.48), (0.12, 1.27), (0.14, 1.12), (0.31, 0.74), (0.2, 0.12), (0.0, 0.1)]
    vase = np.concatenate([[(0.0, 0.0)], spline(outer, 30), spline(inner, 12)])
    cup = [(0.19, 0.0), (0.19, 0.03), (0.05, 0.09), (0.035, 0.3), (0.08, 0.4), (0.23, 0.56), (0.25, 0.72), (0.2, 0.86)]
    hollow = [(0.18, 0.86), (0.22, 0.72), (0.19, 0.58), (0.0, 0.46)]
    goblet = np.concatenate([[(0.0, 0.0)], spline(cup, 28), spline(hollow, 8)])
    stand = np.array([(0.0, 0.0), (0.17, 0.0), (0.17, 0.03), (0.03, 0.06), (0.024, 0.5), (0.0, 0.5)])
    pole = np.array([(0.0, 0.0), (0.21, 0.0), (0.21, 0.04), (0.035, 0.06), (0.03, 1.3), (0.0, 1.33)])
    tiles = paint(mosaic, "e2cfa0 7d2e1a 1f6f78 e9a23b 20324f c9d3c0", (1024, 512))
    twist = paint(lambda u, v: np.floor(u * 20.0 + v * 6.0), "123c8c f2b705 c8201e 0b7a4b", (1024, 256))
    glaze = paint(bands, "f1ead6 1635a8 d9531e fbe3a6 0d6b5f f2c21a 1a1030", alpha=0.25)
    copper = {"type": "roughconductor", "alpha": 0.2}
    copper["specular_reflectance"] = {"type": "rgb", "value": [0.95, 0.62, 0.38]}
    return [
        lathe(top, 72).placed(tiles, (0, 0, 0)),
        lathe(pedestal, 72).placed(twist, (0, 0, 0)),
        lathe(vase, 40).placed(glaze, (-0.22, 0.3, 0)),
        lathe(goblet, 32).placed(copper, (-0.62, -0.52, 0)),
        lathe(stand, 24).placed(rings(8.0, "7a1fa2 f6e27a", 256), (0.98, -0.02, 0)),
        lathe(pole, 24).placed(rings(12.0, "e8e4d8 10131c", 512), (0.1, -0.16, 0)),
    ]


def swept_parts() -> list[Part]:
    """The striped torus knot, the wire helix around the pole and the ring on its stand."""
    t = np.linspace(0.0, 2.0 * np.pi, 151)
    c2, s2, c3, s3 = np.cos(2 * t), np.sin(2 * t), np.cos(3 * t), np.sin(3 * t)
    knot = np.stack([(2 + c3) * c2, s3, (2 + c3) * s2], -1) * 0.13 + [0.0, 0.0, 0.45]
    h = np.linspace(0.0, 1.0, 145)
    circle = np.stack([np.cos(12.0 * np.pi * h), np.sin(12.0 * np.pi * h), 0.0 * h], -1)
    helix = circle * (0.19 - 0.06 * h)[:, None] + [0.0, 0.0, 1.0] * (0.06 + 1.2 * h)[:, None]
    e = np.linspace(0.0, 2.0 * np.pi, 49)
    hoop = np.stack([np.cos(e), 0.0 * e, np.sin(e)], -1)
    candy, wire = rings(32.0, "e01f5a fcefd0 16a3c4", 1024, 0.3), rings(18.0, "19b35a f08a12", 1024)
    hoop_part = tube(hoop * 0.21 + [0.0, 0.0, 0.7], hoop, 0.036, 12, closed=True)
    return [
        tube(knot, np.stack([c3 * c2, s3, c3 * s2], -1), 0.068, 12, closed=True).placed(candy, (0.5, 0.5, 0), 30),
        tube(helix, circle, 0.024, 8, closed=False).placed(wire, (0.1, -0.16, 0)),
        hoop_part.placed(rings(9.0, "f5d327 c31432", 512), (0.98, -0.02, 0), 60),
    ]


def solid_parts(rng: np.random.Generator) -> list[Part]:
    """The checkered cube, the books, the fruit and the glossy ball."""
    cube = paint(checks, "f3efe4 1b1b2a ffd23f 0f5fa8 e8432e 143d2b", (768, 128))
    lower = paint(letters(rng), "8e1230 f4c542 f3e6c4 a98f5f", (1536, 256))
    upper = paint(letters(rng), "0d3b66 f7f0d8 f3e6c4 a98f5f", (1536, 256))
    swirl: Pattern = lambda u, v: np.floor(u * 8.0 + 1.2 * v) + 2 * (np.abs(v - 0.5) < 0.07)  # noqa: E731
    apple = paint(speckles(rng, 26, 0.22), "7fae1f c4172c f7e7a1 5a0f14", alpha=0.2)
    orange = paint(speckles(rng, 26, 0.22), "f07a12 ff9d1c a63c06 ffd98a")
    lemon = paint(speckles(rng, 18, 0.27), "f4dd1d f9ea5a 6d8b12 c98a10")
    pear = paint(speckles(rng, 24, 0.22), "b9c22b 6f9e1e 5b4a10 f2ee9a", alpha=0.3)
    body = spline([(0.0, 0.0), (0.12, 0.01), (0.18, 0.14), (0.11, 0.31), (0.06, 0.42), (0.0, 0.44)], 18)
    return [
        box(0.45, 0.45, 0.45).placed(cube, (0.56, -0.46, 0), 25),
        ball(0.17).placed(lemon, (0.56, -0.46, 0.45)),
        box(0.56, 0.42, 0.14).placed(lower, (-0.8, 0.06, 0), 75),
        box(0.48, 0.36, 0.12).placed(upper, (-0.79, 0.06, 0.14), 110),
        lathe(body, 28).placed(pear, (-0.8, 0.06, 0.26)),
        ball(0.26).placed(paint(swirl, "d3122a f6f1e7 143fb0", alpha=0.15), (-0.04, -0.78, 0), 40),
        ball(0.22, 0.25).placed(apple, (-0.62, 0.76, 0)),
        ball(0.2, 0.08).placed(orange, (0.06, 0.9, 0)),
    ]


def write_ply(path: Path, names: str, values: Array, faces: Array) -> None:
    """Writes a binary little-endian PLY with float vertex properties."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(values)}"]
    header += [f"property float {name}" for name in names.split()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    records = np.empty(len(faces), dtype=[("n", "u1"), ("i", "<i4", 3)])
    records["n"], records["i"] = 3, faces
    path.write_bytes("\n".join(header).encode() + values.astype("<f4").tobytes() + records.tobytes())


def write_mesh(path: Path, parts: list[Part]) -> None:
    """Writes all parts as one mesh with coincident vertices merged and collapsed faces dropped."""
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    vertices = np.concatenate([part.vertices for part in parts])
    first, group = weld(vertices)
    faces = group[np.concatenate([part.faces + k for part, k in zip(parts, starts, strict=False)])]
    write_ply(path, "x y z", vertices[first], faces[np.all(faces != np.roll(faces, 1, axis=1), axis=1)])


def load_scene(parts: list[Part]) -> mi.Scene:
    """Builds the Mitsuba scene: the parts, one large area light and a dim constant environment."""
    to_light = mi.ScalarTransform4f().look_at([2.6, -2.2, 4.9], [0, 0, 0], [0, 0, 1])
    light = {"type": "area", "radiance": {"type": "rgb", "value": [6.8, 6.4, 5.9]}}
    sky = {"type": "constant", "radiance": {"type": "rgb", "value": [0.32, 0.34, 0.38]}}
    scene: dict[str, Any] = {"type": "scene", "sky": sky}
    scene["light"] = {"type": "rectangle", "to_world": to_light @ mi.ScalarTransform4f().scale(1.9), "emitter": light}
    with tempfile.TemporaryDirectory() as folder:
        for k, part in enumerate(parts):
            path = Path(folder) / f"{k}.ply"
            write_ply(path, "x y z nx ny nz u v", np.hstack([part.vertices, part.normals(), part.uvs]), part.faces)
            scene[f"part{k}"] = {"type": "ply", "filename": str(path), "face_normals": part.flat, "bsdf": part.bsdf}
        return mi.load_dict(scene)


def camera_pose(azimuth: float, elevation: float) -> Array:
    """A camera-to-world matrix (OpenGL axes), looking at the origin from the hemisphere (angles in radians)."""
    level = math.cos(elevation)
    back = np.array([level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    return np.vstack([np.stack([right, np.cross(back, right), back, CAMERA_RADIUS * back], -1), [0.0, 0.0, 0.0, 1.0]])


def camera_poses(args: Args, rng: np.random.Generator) -> dict[str, list[Array]]:
    """The poses of the splits: an R2 low-discrepancy sequence, random ones, and two turns of a spiral."""
    low, high = math.sin(math.radians(5.0)), math.sin(math.radians(75.0))
    ratios = np.array([0.7548776662466927, 0.5698402909980532])
    t = (np.arange(args.num_test) + 0.5) / args.num_test
    unit = {"train": (rng.random(2) + ratios * np.arange(args.num_train)[:, None]) % 1.0}
    unit |= {"val": rng.random((args.num_val, 2)), "test": np.stack([2.0 * t % 1.0, t], -1)}
    return {
        split: [camera_pose(2.0 * math.pi * a, math.asin(low + (high - low) * b)) for a, b in values]
        for split, values in unit.items()
    }


def make_sensor(pose: Array, args: Args) -> mi.Sensor:
    """A pinhole sensor; Mitsuba's camera looks along +z with +x to the left."""
    film = {"type": "hdrfilm", "width": args.resolution, "height": args.resolution, "pixel_format": "rgba"}
    film |= {"component_format": "float32", "rfilter": {"type": "box"}}
    to_world = mi.ScalarTransform4f(pose @ np.diag([-1.0, 1.0, -1.0, 1.0]))
    sensor = {"type": "perspective", "fov": math.degrees(CAMERA_ANGLE_X), "fov_axis": "x", "near_clip": 0.1}
    sampler = {"type": "multijitter", "sample_count": args.samples_per_pixel}
    return mi.load_dict(sensor | {"to_world": to_world, "film": film, "sampler": sampler})


def encode(linear: Array) -> Array:
    """Turns linear premultiplied RGBA floats into 8-bit sRGB with straight alpha, in OpenCV's channel order."""
    alpha = np.clip(linear[..., 3:], 0.0, 1.0)
    colour = np.clip(linear[..., 2::-1] / np.maximum(alpha, 1e-6), 0.0, 1.0)
    colour = np.where(colour <= 0.0031308, 12.92 * colour, 1.055 * colour ** (1.0 / 2.4) - 0.055)
    image = np.round(255.0 * np.concatenate([colour, alpha], -1)).astype(np.uint8)
    return np.where(image[..., 3:] == 0, 0, image).astype(np.uint8)


def trace_depth(scene: mi.Scene, sensor: mi.Sensor, pose: Array, resolution: int) -> Array:
    """Distances from the camera centre along the rays through the pixel centres, as 16-bit integers (0: no hit)."""
    depth = np.zeros((resolution, resolution))
    for y, x in np.ndindex(resolution, resolution):
        position = mi.ScalarPoint2f((x + 0.5) / resolution, (y + 0.5) / resolution)
        ray, _ = sensor.sample_ray(0.0, 0.5, position, mi.ScalarPoint2f(0.5, 0.5))  # pyright: ignore[reportArgumentType]
        hit = scene.ray_intersect_preliminary(ray)
        if hit.is_valid():
            depth[y, x] = np.linalg.norm(np.array(ray.o) + hit.t * np.array(ray.d) - pose[:3, 3])
    return np.round(depth / DEPTH_UNIT).astype(np.uint16)


def save_png(path: Path, image: Array) -> None:
    """Writes a PNG under a temporary name and then renames it."""
    temporary = path.with_suffix(".tmp.png")
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
    if not cv2.imwrite(str(temporary), image, options):
        raise OSError(f"cannot write {temporary}")
    temporary.replace(path)


def main(args: Args) -> None:
    """Writes the mesh, the cameras and all views which are missing."""
    mi.set_variant("scalar_rgb")
    rng = np.random.default_rng(args.seed)
    parts = turned_parts() + swept_parts() + solid_parts(rng)
    scene, splits = load_scene(parts), camera_poses(args, rng)
    integrator = mi.load_dict({"type": "path", "max_depth": 5, "hide_emitters": True})
    for split, poses in splits.items():
        (args.output_dir / split).mkdir(parents=True, exist_ok=True)
        frames = [{"file_path": f"./{split}/r_{k}", "transform_matrix": pose.tolist()} for k, pose in enumerate(poses)]
        text = json.dumps({"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}, indent=1)
        (args.output_dir / f"transforms_{split}.json").write_text(text + "\n")
    write_mesh(args.output_dir / "mesh.ply", parts)
    views = [(split, k, pose) for split, poses in splits.items() for k, pose in enumerate(poses)]
    step = max(args.num_test // args.preview, 1) if args.preview > 0 else 1
    for number, (split, k, pose) in enumerate(views):
        if args.preview > 0 and (split != "test" or k % step):
            continue
        image_path, depth_path = (args.output_dir / split / f"r_{k}{end}.png" for end in ("", "_depth"))
        sensor = make_sensor(pose, args)
        if not image_path.exists():
            image = integrator.render(scene, sensor, args.seed + 1000 * (number + 1), args.samples_per_pixel)
            save_png(image_path, encode(np.array(image)))
        if split == "test" and not depth_path.exists():
            save_png(depth_path, trace_depth(scene, sensor, pose, args.resolution))
        print(f"{split}/r_{k}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
