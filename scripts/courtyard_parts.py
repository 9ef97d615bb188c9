"""The paved middle of `make_courtyard.py`, within 2.1 units of the z axis, and what its geometry is made with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from make_still_life import Array, Part, Pattern, ball, lathe, paint, rings, spline, tube
from room_parts import Point, at, block, cushion, grain, moved, squares

Material = dict[str, Any]
FLOOR_RADIUS = 13.0


def middle_parts(rng: np.random.Generator) -> list[Part]:
    """The fountain and all that stands about it on the pavement; neighbours overlap where they touch."""
    groups = [
        fountain(),
        armillary_sphere(),
        railings(),
        trellis(rng),
        planters(rng),
        wheel(),
        small_things(),
        pavement(),
    ]
    return [part for group in groups for part in group]


def polar(radius: float, degrees: float, height: float = 0.0) -> Point:
    """A point by its distance from the z axis, its azimuth and its height."""
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees)), height


def merged(parts: Iterable[Part], bsdf: Material) -> Part:
    """Many parts as one with one material."""
    parts = list(parts)
    starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = np.concatenate([part.faces + k for part, k in zip(parts, starts, strict=True)])
    vertices, uvs = (np.concatenate([getattr(part, name) for part in parts]) for name in ("vertices", "uvs"))
    return Part(vertices, uvs, faces, parts[0].flat, bsdf)


def clad(part: Part, bsdf: Material, place: Point, turn: float = 0.0, tile: float = 2.0) -> Part:
    """A flat part whose texture repeats every `tile` units, seen along the axis that each face is most turned to."""
    corners = part.vertices[part.faces]
    axis = np.argmax(np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])), axis=1)
    kept = np.array([(1, 2), (0, 2), (0, 1)])[axis]
    uvs = np.take_along_axis(corners, kept[:, None, :].repeat(3, 1), axis=2).reshape(-1, 2) / tile
    faces = np.arange(3 * len(corners)).reshape(-1, 3)
    return at(Part(corners.reshape(-1, 3), uvs, faces, flat=True), bsdf, place, turn)


def rods(ends: Iterable[tuple[Any, Any]], radius: float, bsdf: Material) -> Part:
    """Thin round rods between pairs of points, as one part."""
    parts = []
    for start, end in ends:
        axis = np.subtract(end, start)
        across = np.cross(axis, [1.0, 0.0, 0.0] if abs(axis[0]) < 0.6 * np.linalg.norm(axis) else [0.0, 1.0, 0.0])
        parts.append(tube(np.linspace(start, end, 3), np.tile(across, (3, 1)), radius, 6, closed=False))
    return merged(parts, bsdf)


def hoop(radius: float, thickness: float, start: float = 0.0, end: float = 360.0) -> Part:
    """A level ring about the origin, or an arc of it between two azimuths in degrees."""
    angle = np.radians(np.linspace(start, end, 97))
    out = np.stack([np.cos(angle), np.sin(angle), 0.0 * angle], -1)
    return tube(radius * out, out, thickness, 8, closed=end - start == 360.0)


def tilted(part: Part, degrees: float, turn: float) -> Part:
    """A part turned about x and then about z."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    vertices = part.vertices @ np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])
    return at(Part(vertices, part.uvs, part.faces, part.flat), part.bsdf or {}, (0, 0, 0), turn)


def leaves(bases: Array, outwards: Array, length: float, width: float, rng: np.random.Generator) -> Part:
    """Flat pointed leaves, one a base, that point about `outwards`, never down, and have shades of the u axis."""
    n = len(bases)
    ahead = outwards + 0.7 * rng.normal(size=(n, 3))
    ahead[:, 2] = np.abs(ahead[:, 2])
    ahead *= length * rng.uniform(0.7, 1.3, (n, 1)) / np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.cross(ahead, rng.normal(size=(n, 3)))
    side *= 0.5 * width / np.linalg.norm(side, axis=1, keepdims=True)
    corners = np.stack([bases, bases + 0.45 * ahead + side, bases + ahead, bases + 0.45 * ahead - side], 1)
    uvs = np.stack([np.tile(rng.random((n, 1)), (1, 4)), np.tile([0.02, 0.5, 0.98, 0.5], (n, 1))], -1)
    faces = (4 * np.arange(n)[:, None, None] + [(0, 1, 2), (0, 2, 3)]).reshape(-1, 3)
    return Part(corners.reshape(-1, 3), uvs.reshape(-1, 2), faces, flat=True)


def foliage(palette: str) -> Material:
    """A material for `leaves`."""
    return paint(lambda u, v: np.floor(u * 64.0), palette, (64, 4))


def masonry(columns: int, rows: int, shades: int, joint: float = 0.1, shift: float = 0.5) -> Pattern:
    """Stones in rows, in shades that look drawn at random and repeat with the texture; colour 0 is the joints'."""

    def pattern(u: Array, v: Array) -> Array:
        row = np.floor(v * rows)
        along = u * columns + shift * (row % 2)
        seam = (v * rows % 1.0 < joint) | (along % 1.0 < joint * columns / rows)
        return np.where(seam, 0, 1 + scattered(np.floor(along) % columns, row) % shades)

    return pattern


def scattered(i: Array, j: Array) -> Array:
    """Whole numbers that look drawn at random, from pairs of whole numbers."""
    return np.floor(9973.0 * np.abs(np.sin(12.9 * i + 78.2 * j + 1.7)))


def bricks(palette: str = "b89a84 a8543e 9c4a36 b05c46 964432 b06450") -> Material:
    """Brickwork for a tile of 2 units."""
    return paint(masonry(8, 20, 5, 0.14), palette, (1024, 1024))


def flags(palette: str) -> Material:
    """Blocks of cut stone for a tile of 2 units."""
    return paint(masonry(4, 8, len(palette.split()) - 1, 0.06), palette, (1024, 1024))


def fountain() -> list[Part]:
    """A mosaic basin, a fluted column that carries two bowls, and the water, in thin jets as well."""
    basin = [(0.0, 0.0), (0.97, 0.0), (0.97, 0.07), (0.89, 0.09), (0.89, 0.36), (0.98, 0.4), (0.98, 0.47), (0.83, 0.47)]
    stem = [(0.16, 0.0), (0.2, 0.3), (0.1, 0.42), (0.085, 0.8), (0.15, 0.9), (0.06, 0.98), (0.055, 1.2), (0.1, 1.27)]

    def tesserae(u: Array, v: Array) -> Array:
        row, column = np.floor(v * 24.0), np.floor(u * 72.0)
        wave = np.abs(row - 9.0 - 2.5 * np.sin(column * np.pi / 6.0)) < 1.6
        seam = (u * 72.0 % 1.0 < 0.08) | (v * 24.0 % 1.0 < 0.08)
        return np.select([seam, wave], [0, 4 + scattered(row, column) % 2], 1 + scattered(column, row) % 3)

    def shell(u: Array, v: Array) -> Array:
        return np.floor(u * 48.0) % 2 + 2 * (np.floor(v * 20.0) % 4 == 0)

    tiles = paint(tesserae, "a8b4b0 1f6f8f 2a7f98 1a6484 e8c84a d9902f", (2048, 1024))
    carved = paint(shell, "e6dcc4 b79f78 8f5a3a 6f4630", (1024, 512))
    ripples = paint(lambda u, v: np.floor(24.0 * v + 0.5 * np.sin(u * 8.0 * np.pi)), "3a8fa0 63b3bd", (512, 1024), 0.12)
    bowl = np.array([(0.05, 0.0), (0.2, 0.03), (0.4, 0.13), (0.44, 0.2), (0.41, 0.2), (0.36, 0.14), (0.0, 0.06)])
    t = np.linspace(0.0, 1.0, 13)[:, None]
    jets = []
    for reach, start, top, count in ((0.42, 0.28, 0.62, 18), (0.23, 0.6, 0.52, 12)):
        for angle in 360.0 / count * (np.arange(count) + 0.5):
            out = np.array(polar(1.0, angle))
            begin = 1.06 if count == 18 else 1.4
            curve = out * (reach - 0.2 + start * t) + [0.0, 0.0, 1.0] * (begin + 0.3 * t - (top + 0.42) * t**2)
            jets.append(tube(curve, np.tile(np.cross(out, [0.0, 0.0, 1.0]), (13, 1)), 0.006, 5, closed=False))
    return [
        lathe_at(np.array([*basin, (0.81, 0.1), (0.0, 0.1)]), 96, tiles),
        lathe_at(np.array([(0.82, 0.37), (0.0, 0.37)]), 96, ripples),
        lathe_at(spline(stem, 60), 48, paint(lambda u, v: np.floor(u * 24.0), "e2d6ba 9c8a68 c4b48e", (1024, 64))),
        lathe_at(bowl, 64, carved, (0, 0, 0.85)),
        lathe_at(bowl * [0.58, 0.8], 48, carved, (0, 0, 1.24)),
        lathe_at(np.array([(0.39, 1.02), (0.0, 1.02)]), 48, ripples),
        merged(jets, paint(squares(1.0), "d4ecf4", (4, 4))),
    ]


def lathe_at(profile: Array, sides: int, bsdf: Material, place: Point = (0, 0, 0)) -> Part:
    """A turned part at a place."""
    return at(lathe(profile, sides), bsdf, place)


def armillary_sphere() -> list[Part]:
    """Thin graduated rings about a small globe, on top of the fountain."""
    iron = rings(2.0, "3f4a55 59646f", 64)
    brass = paint(lambda u, v: np.floor(u * 72.0), "e0b040 6f4a12", (1024, 4), 0.3)
    ring = [hoop(radius, 0.011) for radius in (0.33, 0.32, 0.31, 0.3)]
    turns = ((0.0, 0.0), (90.0, 0.0), (90.0, 90.0), (60.0, 30.0))
    globe = paint(squares(16.0), "2255a8 f0ead8", alpha=0.2)
    axis = rods([((-0.2, -0.1, -0.37), (0.2, 0.1, 0.37)), ((0.0, 0.0, -0.5), (0.0, 0.0, -0.3))], 0.012, iron)
    parts = [merged([tilted(part, *turn) for part, turn in zip(ring, turns, strict=True)], brass), axis]
    return moved([*parts, at(ball(0.1), globe, (0, 0, -0.1))], (0, 0, 1.78), 25)


def railings() -> list[Part]:
    """Two arcs of a thin railing about the fountain."""
    black, white = rings(24.0, "26313a 3d4c58", 256), rings(12.0, "efe9dc c0392b", 256)
    parts = []
    for start, end, bsdf in ((20.0, 84.0, black), (200.0, 264.0, white)):
        bars = [(polar(1.38, a), polar(1.38, a, 0.62)) for a in np.linspace(start, end, 28)]
        parts += [rods(bars, 0.009, bsdf), rods([bars[0], bars[9], bars[18], bars[-1]], 0.022, bsdf)]
        parts += [at(hoop(1.38, 0.014, start, end), bsdf, (0, 0, z)) for z in (0.1, 0.52, 0.62)]
    return parts


def trellis(rng: np.random.Generator) -> list[Part]:
    """A lattice of thin crossing slats in a frame, with a climbing plant."""
    width, height, step = 1.0, 1.45, 0.085
    slats = []
    for c in np.arange(step, width + height, step):
        low, high = max(0.0, c - height), min(width, c)
        slats += [
            ((low, 0.0, c - low), (high, 0.0, c - high)),
            ((width - low, 0, c - low), (width - high, 0, c - high)),
        ]
    posts = [((x, 0.0, 0.0), (x, 0.0, height + 0.06)) for x in (0.0, width)]
    beams = [((0.0, 0.0, z), (width, 0.0, z)) for z in (0.02, height)]
    t = rng.random(420)
    x = 0.75 - 0.35 * t + 0.13 * np.sin(9.0 * t) + 0.05 * rng.normal(size=420)
    bases = np.stack([x, rng.uniform(-0.04, 0.04, 420), height * t], -1)
    plant = leaves(bases, rng.normal(size=(420, 3)), 0.09, 0.05, rng)
    parts = [
        rods(slats, 0.0075, rings(2.0, "f2eee2 d8d2c2", 8)),
        rods(posts + beams, 0.022, rings(16.0, "5d8a6a 3f6a4c", 64)),
    ]
    return moved([*parts, at(plant, foliage("3f7a2f 6aa83f 2f5f28 c8385a 8cbf4a"), (0, 0, 0))], polar(1.62, 300), 47)


def planters(rng: np.random.Generator) -> list[Part]:
    """Patterned boxes and pots with bushes and grasses."""
    zigzag: Pattern = lambda u, v: np.floor(10.0 * v + 1.5 * np.abs(u * 12.0 % 1.0 - 0.5) * 2.0)  # noqa: E731
    boxes = [
        paint(grid_of(96.0, 16.0), "b5803f 5a3a1c", (1024, 256)),
        paint(grid_of(48.0, 8.0), "2c6e8a f2ead2", (1024, 256)),
    ]
    pots = [paint(zigzag, "c8613a f0d9a8 7a2f1c", (1024, 256)), paint(grid_of(24.0, 6.0), "efe6d0 33506f", (1024, 256))]
    greens = (
        "3f7b32 4f8a3a 62a044 356c2c",
        "4a7a30 6a9440 c8587a d888a0 3f6a2c",
        "7a963e a0aa50 8aa048",
        "4a7a3c d8bc3c 5a8c40",
    )
    parts = []
    pot = np.array([(0.0, 0.0), (0.13, 0.0), (0.19, 0.26), (0.21, 0.26), (0.21, 0.32), (0.17, 0.32), (0.0, 0.28)])
    for k, (angle, radius) in enumerate(((180.0, 1.5), (345.0, 1.45), (120.0, 1.45), (282.0, 1.42))):
        if k < 2:
            parts += moved([block((0.42, 0.42, 0.34), (0, 0, 0), boxes[k])], polar(radius, angle), angle)
        else:
            parts.append(lathe_at(pot, 40, pots[k - 2], polar(radius, angle)))
        out = rng.normal(size=(900, 3))
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        if k % 2:
            bases = out * [0.1, 0.1, 0.0] + [0.0, 0.0, 0.3]
            plant = leaves(bases[:260], out[:260] * [0.6, 0.6, 0.0] + [0.0, 0.0, 1.2], 0.5, 0.022, rng)
        else:
            plant = leaves(out * rng.uniform(0.12, 0.25, (900, 1)) + [0.0, 0.0, 0.5], out, 0.08, 0.04, rng)
        parts.append(at(plant, foliage(greens[k]), polar(radius, angle)))
    return parts


def grid_of(across: float, up: float) -> Pattern:
    """A chess board of oblong fields."""
    return lambda u, v: np.floor(u * across) + np.floor(v * up)


def wheel() -> list[Part]:
    """A spoked wheel that leans against the air, held by a strut."""
    angles = np.linspace(0.0, 360.0, 33)[:-1]
    spokes = rods([(polar(0.05, a + 20.0, 0.02), polar(0.42, a)) for a in angles], 0.004, rings(1.0, "c8ccd0", 4))
    tyre = paint(lambda u, v: np.floor(u * 60.0), "2a2a30 4a4a52 a8a8b0", (1024, 4))
    hub = lathe(np.array([(0.0, -0.05), (0.05, -0.05), (0.05, 0.06), (0.0, 0.06)]), 16)
    parts = [at(hoop(0.43, 0.022), tyre, (0, 0, 0)), at(hub, rings(1.0, "c0392b", 4), (0, 0, 0)), spokes]
    stand = rods(
        [((0.0, 0.0, 0.44), (0.0, 0.34, 0.0)), ((0.0, 0.0, 0.44), (0.0, -0.16, 0.0))], 0.012, rings(4.0, "6a4a2a", 8)
    )
    return moved([*moved([tilted(part, 78.0, 0.0) for part in parts], (0, 0, 0.44), 0), stand], polar(1.5, 150), 240)


def small_things() -> list[Part]:
    """A chequered ball, a striped ball and a patterned stool."""
    stripes: Pattern = lambda u, v: np.floor(u * 40.0 + 6.0 * v)  # noqa: E731
    seat = paint(squares(24.0), "b03a48 f2e2c0 2f4858", (512, 512))
    legs = [((0.13 * a, 0.13 * b, 0.0), (0.1 * a, 0.1 * b, 0.36)) for a in (-1, 1) for b in (-1, 1)]
    stool = [
        rods(legs, 0.014, paint(grain(12.0), "7a5430 946a40 5f4024", (64, 256))),
        at(cushion(0.34, 0.34, 0.09, 0.6), seat, (0, 0, 0.34)),
    ]
    return [
        at(ball(0.2), paint(squares(24.0), "f4f0e4 22222c", (1024, 1024), 0.2), polar(1.42, 0)),
        at(ball(0.13), paint(stripes, "e8a020 2a4a8a f4ead0", (1024, 512)), polar(1.62, 318)),
        *moved(stool, polar(1.5, 100), 20),
    ]


def pavement() -> list[Part]:
    """The paved floor, and rings of inlaid mosaic about the fountain."""

    def inlay(u: Array, v: Array) -> Array:
        ring, column = np.floor(v * 12.0), np.floor(u * 96.0)
        star = np.abs((u * 24.0) % 1.0 - 0.5) * 2.0 < np.abs(v * 24.0 % 8.0 - 4.0) / 4.0
        seam = (u * 96.0 % 1.0 < 0.06) | (v * 12.0 % 1.0 < 0.06)
        return np.where(seam, 0, 1 + np.where(star, 2 + scattered(column, ring) % 2, scattered(column, ring) % 2))

    def cobbles(u: Array, v: Array) -> Array:
        border = (u * 1.0 % 1.0 < 0.09) | (v % 1.0 < 0.09)
        return np.where(border, 6 + (np.floor(u * 32.0) + np.floor(v * 32.0)) % 2, masonry(16, 16, 5, 0.1)(u, v))

    mosaic = paint(inlay, "9a8672 d8c8a8 d0c09e 964e3c a05a44", (4096, 512))
    stones = paint(cobbles, "988c7c bcb09c c2b6a0 b6aa96 c4b8a4 beb29e 747c7e d0c6b2", (2048, 2048))
    disc = np.array([(FLOOR_RADIUS, -0.3), (FLOOR_RADIUS, 0.0), (0.0, 0.0)])
    annulus = np.array([(2.1, 0.0), (2.1, 0.004), (0.9, 0.004)])
    return [clad(lathe(disc, 96), stones, (0, 0, 0), 12), lathe_at(annulus, 128, mosaic)]
