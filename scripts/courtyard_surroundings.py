"""What surrounds the fountain of `make_courtyard.py`: the court's walls 6 to 13 units away, and the land up to 330."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from courtyard_parts import (
    FLOOR_RADIUS,
    Material,
    bricks,
    clad,
    flags,
    foliage,
    grid_of,
    lathe_at,
    leaves,
    masonry,
    merged,
    polar,
    rods,
    scattered,
)
from make_still_life import Array, Part, ball, box, grid_part, lathe, paint, rings
from room_parts import Point, at, moved


def surroundings(rng: np.random.Generator) -> list[Part]:
    """The court's walls, with gaps between them, and the landscape, from near to far."""
    court = [arcade(), brick_wall(), house_front(), fence(), corner_tower(), lamp_posts(), trees(rng)]
    land = [terrain(), ridges(rng), village(rng), towers(), viaduct(), windmill(), woods(rng)]
    return [part for group in (*court, *land) for part in group]


def slab(size: Point, bsdf: Material, place: Point, turn: float = 0.0, tile: float = 2.0) -> Part:
    """A clad box by its width, depth and height."""
    return clad(box(*size), bsdf, place, turn, tile)


def gable(width: float, depth: float, height: float) -> Part:
    """A roof whose ridge runs along x."""
    part = box(width, depth, height)
    part.vertices[part.vertices[:, 2] > 0.5 * height, 1] = 0.0
    return part


def arch(width: float, height: float, opening: float, spring: float, depth: float) -> Part:
    """A piece of wall about x = 0 with a round-headed opening whose arch springs at the height `spring`."""
    corner = math.atan2(height - spring, 0.5 * width)
    angle = np.sort(np.concatenate([np.linspace(0.0, np.pi, 17), [corner, np.pi - corner]]))[::-1]
    c, s = np.cos(angle), np.sin(angle)
    reach = np.minimum(0.5 * width / np.maximum(np.abs(c), 1e-9), (height - spring) / np.maximum(s, 1e-9))
    inner, outer = (np.stack([r * c, spring + r * s], -1) for r in (0.5 * opening + 0.0 * c, reach))
    inner, outer = (np.concatenate([p[:1] * [1, 0], p, p[-1:] * [1, 0]]) for p in (inner, outer))
    y = 0.5 * depth
    loop = [
        np.insert(p, 1, side, axis=1) for p, side in ((inner, -y), (outer, -y), (outer, y), (inner, y), (inner, -y))
    ]
    return grid_part(np.stack(loop[::-1]))


def arcade() -> list[Part]:
    """Four arches towards +x, under a cornice."""
    stone, trim = flags("a4947a d2be94 c9b488 d8c69e c4ae82 cebb90"), flags("a07a5a c8a078 b88f68")
    bays = [clad(arch(2.2, 3.3, 1.56, 1.95, 0.5), stone, (2.2 * k - 3.3, 0, 0)) for k in range(4)]
    piers = [slab((0.78, 0.6, 0.2), trim, (2.2 * k - 4.4, 0, z)) for k in range(5) for z in (0.0, 1.85)]
    return moved(
        [merged(bays, stone), merged(piers, trim), slab((9.0, 0.74, 0.22), trim, (0, 0, 3.3))], (8.6, 0, 0), 90
    )


def brick_wall() -> list[Part]:
    """A brick wall towards +y with three barred windows that one sees through."""
    brick, stone, width = bricks(), flags("a89a84 d9ceb8 cfc2aa e2d8c4"), 2.7
    walls, stones, bars = [], [], []
    for x in (-width, 0.0, width):
        walls += [slab((0.8, 0.4, 3.0), brick, (x + side * 0.95, 0, 0)) for side in (-1, 1)]
        walls += [slab((1.1, 0.4, h), brick, (x, 0, z)) for h, z in ((0.95, 0.0), (0.65, 2.35))]
        stones += [slab((1.3, 0.5, 0.1), stone, (x, 0, z)) for z in (0.9, 2.3)]
        bars += [((x + d, 0, 0.95), (x + d, 0, 2.35)) for d in np.linspace(-0.46, 0.46, 7)]
        bars += [((x - 0.55, 0, z), (x + 0.55, 0, z)) for z in np.linspace(1.2, 2.1, 4)]
    stones.append(slab((8.3, 0.6, 0.14), stone, (0, 0, 3.0)))
    parts = [merged(walls, brick), merged(stones, stone), rods(bars, 0.016, rings(1.0, "2c3438", 4))]
    return moved(parts, (-0.6, 8.2, 0), 0)


def panes(frame: str) -> Material:
    """A window of eight panes, for a tile of the window's own size."""

    def pattern(u: Array, v: Array) -> Array:
        border = (np.abs(u % 1.0 * 2.0 % 1.0 - 0.5) > 0.42) | (np.abs(v % 1.0 * 4.0 % 1.0 - 0.5) > 0.42)
        return np.where(border, 0, 1 + scattered(np.floor(u * 2.0), np.floor(v * 4.0)) % 3)

    return paint(pattern, frame + " 3a5a78 5a7f9c 86a8bc", (128, 256))


def house_front() -> list[Part]:
    """A plastered house towards -x with a tiled roof, windows with shutters, and a door."""
    plaster = paint(masonry(2, 3, 3, 0.012), "d0a878 e6c898 e2c28e dfbe8a", (512, 512))
    roof = paint(masonry(10, 10, 4, 0.2), "803c28 a8543a a04c32 b05c40 984630", (1024, 1024))
    slats = paint(lambda u, v: np.floor(v * 40.0), "2f6a5a 4f8f7a", (16, 512))
    parts = [slab((7.4, 3.0, 3.9), plaster, (0, 1.5, 0)), clad(gable(7.9, 3.7, 1.5), roof, (0, 1.5, 3.9))]
    parts.append(slab((7.44, 3.04, 0.5), flags("6f675c 9a9080 a89c8a 8a8072"), (0, 1.5, 0)))
    glass, shutters = [], []
    for x in (-2.7, -0.9, 0.9, 2.7):
        for z in (0.95, 2.5):
            if x == 0.9 and z < 1.0:
                continue
            pane = box(0.7, 0.1, 1.05)
            pane.uvs = pane.uvs * [6.0, 1.0]
            glass.append(at(pane, {}, (x, 0, z)))
            shutters += [slab((0.34, 0.12, 1.09), slats, (x + side * 0.53, 0, z - 0.02)) for side in (-1, 1)]
    door = paint(lambda u, v: np.floor(u * 48.0) % 8 == 0, "8a3a2c 5a2018", (1024, 64))
    parts += [merged(glass, panes("f4efe2")), merged(shutters, slats), at(box(0.9, 0.12, 1.9), door, (0.9, 0, 0))]
    return moved(parts, (-8.0, 0.6, 0), 90)


def fence() -> list[Part]:
    """An iron fence towards -y between stone posts."""
    iron, stone = rings(1.0, "31413f", 4), flags("8f8676 cfc4ae c2b69e d8cfba")
    bars = [((x, 0, 0.0), (x, 0, 1.5)) for x in np.arange(-5.3, 5.31, 0.16)]
    tip = lathe(np.array([(0.0, 0.0), (0.035, 0.02), (0.0, 0.16)]), 6)
    tips = merged([at(tip, iron, (bar[1][0], 0, 1.48)) for bar in bars], rings(1.0, "d0a030", 4))
    rails = [((-5.4, 0, z), (5.4, 0, z)) for z in (0.18, 1.2, 1.38)]
    posts = [slab((0.42, 0.42, 1.75), stone, (x, 0, 0)) for x in (-5.4, -1.8, 1.8, 5.4)]
    knobs = merged([at(ball(0.2), stone, (x, 0, 1.72)) for x in (-5.4, -1.8, 1.8, 5.4)], flags("c2b69e cfc4ae d8cfba"))
    parts = [rods(bars, 0.014, iron), rods(rails, 0.02, iron), tips, merged(posts, stone), knobs]
    return moved(parts, (0.3, -8.4, 0), 0)


def turret(radius: float, height: float, palette: str, roof: str, across: float, up: float) -> list[Part]:
    """A round tower of chequered stones with a row of windows, an overhang and a pointed roof."""

    def pattern(u: Array, v: Array) -> Array:
        s, t = u * 8.0 % 1.0 - 0.5, v * 4.0 % 1.0 - 0.5
        hole = (np.abs(s) < 0.16) & (np.abs(t) < 0.22) & (np.floor(u * 8.0) % 2 == np.floor(v * 4.0) % 2)
        return np.where(hole, 0, masonry(int(across), int(up), 4, 0.08)(u, v) + 1)

    wall = paint(pattern, "3a4048 " + palette, (1024, 1024))
    tiles = paint(grid_of(32.0, 16.0), roof, (512, 512))
    cone = np.array([(0.0, 0.0), (1.25, 0.0), (0.7, 0.75), (0.0, 2.0)]) * radius + [0.0, height]
    body = np.array([(1.0, -0.3), (1.0, 0.85), (1.15, 0.9), (1.15, 1.0), (0.0, 1.0)]) * [radius, height]
    return [lathe_at(body, 48, wall), lathe_at(cone, 48, tiles)]


def corner_tower() -> list[Part]:
    """The court's own tower, in the gap between the arcade and the brick wall."""
    return moved(turret(1.25, 5.2, "8a7d6a c9b894 d8c8a4 b8a680 e0d4b4", "3f5f78 557a94", 16, 24), polar(11.2, 46), 0)


def lamp_posts() -> list[Part]:
    """Two lamp posts inside the court."""
    pole = np.array([(0.16, 0.0), (0.14, 0.1), (0.05, 0.25), (0.035, 2.3), (0.1, 2.36), (0.0, 2.36)])
    shade = np.array([(0.0, 0.0), (0.1, 0.0), (0.2, 0.36), (0.23, 0.38), (0.05, 0.5), (0.0, 0.56)])
    glass = paint(lambda u, v: (u * 6.0 % 1.0 < 0.14) | (v > 0.62), "f2e6bc 2f3d3a", (256, 128))
    post = [lathe_at(pole, 16, rings(12.0, "2f3d3a 3f524e", 128)), lathe_at(shade, 24, glass, (0, 0, 2.34))]
    return [part for place in (polar(6.6, 205), polar(6.4, 66)) for part in moved(post, place, 10)]


def trees(rng: np.random.Generator) -> list[Part]:
    """Cypresses in the gaps of the court, and one broad tree, of single leaves about darker cores."""
    needles, crown = foliage("345e30 3c6a36 2e542c 44743a"), foliage("58903a 649c40 72a848 4c8036 80b050")
    leafy, cores, trunks = [], [], []
    places = [(9.6, 128, 3.6), (10.8, 137, 4.6), (11.0, 222, 4.2), (9.8, 231, 3.2), (10.4, 313, 3.4), (11.8, 24, 4.4)]
    for radius, angle, height in places:
        t, around = 1.0 - np.sqrt(rng.random(2200)), 360.0 * rng.random(2200)
        wide = 0.62 * np.sqrt(t * (1.0 - t) ** 0.7 + 0.01)
        out = np.stack([np.cos(np.radians(around)), np.sin(np.radians(around)), 0.8 + 0.0 * t], -1)
        bases = out * [1.0, 1.0, 0.0] * wide[:, None] + [0.0, 0.0, 1.0] * (0.2 + height * t[:, None])
        leafy.append(at(leaves(bases, 0.6 * out, 0.24, 0.09, rng), needles, polar(radius, angle)))
        h = np.linspace(0.0, 1.0, 13)
        core = np.stack([0.5 * np.sqrt(h * (1.0 - h) ** 0.7), 0.2 + height * h], -1)
        cores.append(at(lathe(core, 16), needles, polar(radius, angle)))
    out = rng.normal(size=(5000, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    lobes = rng.normal(size=(9, 3)) * [0.7, 0.7, 0.4] + [0.0, 0.0, 3.3]
    bases = lobes[rng.integers(9, size=5000)] + 0.75 * out
    trunks += [((0, 0, 0), (0.0, 0.0, 2.2)), *(((0.0, 0.0, 1.8), tuple(lobe)) for lobe in lobes)]
    trunk = rods(trunks, 0.09, paint(grid_of(5.0, 24.0), "6a4e34 54402c", (64, 256)))
    broad = [at(leaves(bases, out, 0.2, 0.12, rng), crown, (0, 0, 0)), trunk]
    return [merged(leafy, needles), merged(cores, rings(1.0, "2c4f2a", 4)), *moved(broad, polar(10.6, 336), 0)]


def ground(x: Array | float, y: Array | float) -> Array:
    """The height of the land, flat about the court and rolling beyond."""
    ramp = np.clip((np.hypot(x, y) - FLOOR_RADIUS - 2.0) / 60.0, 0.0, 1.0)
    waves = 2.2 * np.sin(np.divide(x, 17.0) + 1.0) * np.sin(np.divide(y, 23.0)) + 1.4 * np.sin(
        np.add(x, y) / 31.0 + 2.0
    )
    return ramp * waves - 0.06


def terrain() -> list[Part]:
    """Patchwork fields from the court's floor outwards."""
    radius, angle = np.geomspace(420.0, FLOOR_RADIUS - 0.3, 70)[:, None], np.linspace(0.0, 2.0 * np.pi, 241)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    part = grid_part(np.stack([x, y, ground(x, y)], -1))
    part.uvs = part.vertices[:, :2] / 48.0

    def fields(u: Array, v: Array) -> Array:
        column = np.floor(u * 5.0)
        row = np.floor(v * 6.0 + 0.37 * column)
        kind = scattered(column % 5, row % 6) % 4
        furrow = np.floor(np.where(kind % 2, u, v) * 48.0) % 2
        lane = (u * 5.0 % 1.0 < 0.05) | ((v * 6.0 + 0.37 * column) % 1.0 < 0.05)
        return np.where(lane, 8, 2 * kind + furrow)

    palette = "7fa04a 94b45a b8a85a c8b868 5f8a44 6f9a4c a8b060 9aa454 c9b890"
    return [at(part, paint(fields, palette, (2048, 2048)), (0, 0, 0))]


def ridges(rng: np.random.Generator) -> list[Part]:
    """Three rings of hills and mountains, paler with their distance."""
    land = (
        (130.0, 7.0, 16.0, "6f9656 7ea45c 5f8850 8aac64 668c58"),
        (200.0, 16.0, 34.0, "7d9a78 88a480 71906e 94a888 8c9a80"),
        (300.0, 30.0, 74.0, "8fa0a0 98a8aa a4b0b4 b0babc dfe6ea eef2f4"),
    )
    parts, u, v = [], np.linspace(0.0, 1.0, 721), np.linspace(0.0, 1.0, 15)[:, None]
    for k, (radius, low, high, palette) in enumerate(land):
        counts = np.arange(2, 60)[:, None]
        sines = np.sin(2.0 * np.pi * (counts * u + rng.random((58, 1)))) / counts**0.9
        crest = np.abs(sines.sum(axis=0)) ** 0.8
        crest = low + (high - low) * crest / crest.max()
        folds = 0.05 * radius * v * (1.0 - v) * np.sin(2.0 * np.pi * (97.0 * u + 0.8 * np.sin(22.0 * np.pi * u) + v))
        away = radius + folds + 1.2 * crest * v
        angle = 2.0 * np.pi * u
        points = np.stack([away * np.cos(angle), away * np.sin(angle), -4.0 + (crest + 4.0) * v**0.9], -1)
        part = grid_part(points[:, ::-1])
        part.uvs[:, 1] = np.clip((points[..., 2] / high).reshape(-1), 0.0, 1.0)

        def cover(u: Array, v: Array, last: int = len(palette.split()) - 1, snow: bool = k == 2) -> Array:
            speck = scattered(np.floor(u * 900.0), np.floor(v * 40.0)) % (last + 1)
            level = v + 0.05 * np.sin(u * 300.0) + 0.04 * np.sin(u * 770.0)
            rock = np.where(speck > 3, 1, speck)
            return np.where(level > 0.52, 4 + speck % 2, rock) if snow else speck

        parts.append(at(part, paint(cover, palette, (4096, 256)), (0, 0, 0)))
    return parts


def village(rng: np.random.Generator) -> list[Part]:
    """Houses with windows and tiled roofs, in groups between 30 and 95 units away."""

    def front(u: Array, v: Array) -> Array:
        s, t = np.abs(u * 2.0 % 1.0 - 0.5), np.abs(v * 2.0 % 1.0 - 0.5)
        return np.select([(s < 0.17) & (t < 0.22), (s < 0.23) & (t < 0.28)], [1, 2], 0)

    walls = [paint(front, f"{shade} 3f5064 f6f2e8", (256, 256)) for shade in ("eadfc6", "dcae84", "c9ccc8", "d8b8a0")]
    roofs = [paint(grid_of(16.0, 16.0), shades, (512, 512)) for shades in ("a8502f c0643c", "7a4a3c 8f5a48")]
    houses: list[list[Part]] = [[] for _ in range(6)]
    for k in range(54):
        angle = (40.0, 88.0, 150.0, 196.0, 264.0, 312.0)[k % 6] + rng.uniform(-16.0, 16.0)
        radius, turn = rng.uniform(30.0, 95.0), rng.uniform(0.0, 180.0)
        x, y, _ = polar(radius, angle)
        width, depth, height = rng.uniform(4.0, 8.0), rng.uniform(3.5, 5.0), rng.uniform(3.0, 5.5)
        z = float(ground(x, y)) - 0.8
        houses[k % 4].append(slab((width, depth, height), walls[k % 4], (x, y, z), turn, 3.0))
        houses[4 + k % 2].append(
            clad(gable(width + 0.6, depth + 0.8, 2.0), roofs[k % 2], (x, y, z + height), turn, 4.0)
        )
    return [merged(group, bsdf) for group, bsdf in zip(houses, walls + roofs, strict=True)]


def towers() -> list[Part]:
    """A lighthouse, a castle, a bell tower, a lattice mast and a balloon, 55 to 120 units away."""
    body = np.array([(3.0, -2.0), (1.9, 15.0), (2.5, 15.4), (2.5, 16.0), (1.3, 16.0), (1.3, 18.4), (0.0, 20.0)])
    light = lathe_at(body, 40, rings(11.0, "f2ede2 c23a30", 512), polar(72, 102))
    castle = [
        part
        for radius, angle, size, height in ((118, 160, 5, 22), (112, 168, 4, 17), (122, 174, 6, 28), (112, 180, 4, 15))
        for part in moved(
            turret(size, height, "8f8a80 b8b2a4 c4beb0 aaa496 d0cabc", "6f4a50 84585c", 32, 32), polar(radius, angle), 0
        )
    ]
    wall = [slab((34, 2, 10), flags("a09a8c c4beb0 b8b2a4 aaa496"), polar(112, 169, -3), 79, 8)]
    bell = [
        slab((4.4, 4.4, 17), bricks(), (0, 0, -1), 0, 8),
        clad(gable(5.0, 5.0, 6.0), bricks("5a7a78 6a8f8a"), (0, 0, 16)),
    ]
    feet = [np.array([a, b, 0.0]) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
    legs = [(2.0 * foot, 0.1 * foot + [0.0, 0.0, 38.0]) for foot in feet]
    levels = np.linspace(0.0, 1.0, 13)
    braces = []
    for (a0, a1), (b0, b1) in zip(legs, legs[1:] + legs[:1], strict=True):
        for s, t in pairwise(levels):
            braces += [(a0 + s * (a1 - a0), b0 + t * (b1 - b0)), (b0 + s * (b1 - b0), a0 + t * (a1 - a0))]
    steel = [rods(legs, 0.16, rings(8.0, "e8e4da d03a2c", 64)), rods(braces, 0.08, rings(1.0, "c8ccd0", 4))]
    envelope = np.array(
        [(0.0, 0.0), (0.9, 0.2), (2.0, 2.0), (4.2, 5.0), (5.0, 8.0), (4.3, 11.0), (2.4, 13.0), (0.0, 13.8)]
    )
    balloon = lathe_at(envelope, 48, paint(grid_of(16.0, 8.0), "e84a3a f6d040 2f6fb0", (512, 512)), polar(86, 22, 12))
    return [light, *castle, *wall, *moved(bell, polar(58, 286), 20), *moved(steel, polar(92, 340, -2), 10), balloon]


def viaduct() -> list[Part]:
    """A railway on arches, 60 units away behind the arcade."""
    stone = flags("8f7a68 b89a84 c4a892 aa8c76")
    bays = [clad(arch(6.0, 9.0, 4.6, 5.4, 2.4), stone, (6.0 * k - 36.0, 0, -2.0), 0, 6.0) for k in range(13)]
    top = slab((79.0, 3.0, 0.6), flags("a08a78 d0b8a0 c4a892"), (0, 0, 7.0), 0, 6.0)
    return moved([merged(bays, stone), top], polar(60, -4), 80)


def windmill() -> list[Part]:
    """A windmill with lattice sails, 40 units away beyond the fence."""
    body = np.array([(2.4, -2.0), (1.6, 7.5), (1.8, 7.6), (1.2, 8.6), (0.0, 9.2)])
    sails = []
    for angle in (20.0, 110.0, 200.0, 290.0):
        along, across = (np.array([math.cos(a), 0.0, math.sin(a)]) for a in np.radians([angle, angle + 90.0]))
        hub = np.array([0.0, -2.3, 8.0])
        sails += [(hub, hub + 6.0 * along)] + [
            (hub + r * along, hub + r * along + 1.3 * across) for r in np.arange(1.2, 6.1, 0.4)
        ]
        sails += [(hub + 1.2 * along + w * across, hub + 6.0 * along + w * across) for w in (0.45, 0.9, 1.3)]
    sails.append((np.array([0.0, -2.4, 8.0]), np.array([0.0, 0.0, 8.0])))
    brick = paint(grid_of(24.0, 24.0), "f2ece0 d8cdb8 c05a44", (512, 512))
    return moved([lathe_at(body, 40, brick), rods(sails, 0.055, rings(1.0, "e8e0d0", 4))], polar(41, 249), 160)


def woods(rng: np.random.Generator) -> list[Part]:
    """Conifers and round trees, scattered between 17 and 125 units away."""
    cone = lathe(
        np.array([(0.0, 0.1), (0.3, 0.12), (0.13, 0.42), (0.24, 0.42), (0.09, 0.7), (0.17, 0.7), (0.0, 1.0)]), 12
    )
    crown = ball(0.3, 0.2)
    crown.vertices = crown.vertices * [1.0, 1.0, 1.2] + [0.0, 0.0, 0.28]
    stem = lathe(np.array([(0.04, -0.1), (0.03, 0.4), (0.0, 0.4)]), 6)
    groups: list[list[Part]] = [[], [], [], []]
    for k in range(620):
        radius, angle = math.sqrt(rng.uniform(17.0**2, 125.0**2)), rng.uniform(0.0, 360.0)
        height = rng.uniform(2.0, 4.0) + 0.03 * radius
        x, y, _ = polar(radius, angle)
        place = (x, y, float(ground(x, y)))
        for part, group in ((cone if k % 3 == 0 else crown, 0 if k % 3 == 0 else k % 3), (stem, 3)):
            groups[group].append(at(Part(part.vertices * height, part.uvs, part.faces), {}, place, 37.0 * k))
    shades = ("3f6a44 2f5838 4f7a4c", "6a9a44 5a8a3c 7aa850", "8aa050 76904a 9aae5c")
    greens = [paint(grid_of(16.0, 12.0), shade, (256, 256)) for shade in shades] + [rings(1.0, "6a5440", 4)]
    return [merged(group, bsdf) for group, bsdf in zip(groups, greens, strict=True)]
