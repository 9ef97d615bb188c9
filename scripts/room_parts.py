"""The furnished room of `make_room.py`: every part a closed triangle mesh with a material, in metres, z up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from make_still_life import TABLE_Z, Array, Part, Pattern, ball, box, grid_part, lathe, paint, spline, tube

Point = tuple[float, float, float]
HALF_X, HALF_Y, HEIGHT = 2.5, 2.0, 2.6
"""The inside of the room: half its length and half its width, and its height."""
THICKNESS = 0.25
"""Of walls, floor and ceiling."""
SUNK = 0.005
"""How far things are sunk into what they stand on, so that the union of all solids has no gaps."""


def room_parts(seed: int) -> list[Part]:
    """The shell and all that stands in it; parts overlap where they touch."""
    rng = np.random.default_rng(seed)
    chairs = [moved(chair(), place, turn) for place, turn in CHAIRS]
    furniture = [dining_table(), sofa(), shelf(rng), sideboard(), lamps(), round_things()]
    return [part for group in (shell(), *furniture, on_the_walls(), *chairs) for part in group]


CHAIRS: list[tuple[Point, float]] = [((1.0, -0.25, 0), 8), ((1.05, 1.3, 0), 187), ((0.1, 0.6, 0), -80)]


def at(part: Part, bsdf: dict[str, Any], place: Point, turn: float = 0.0) -> Part:
    """A part standing at a place of the room."""
    return part.placed(bsdf, (place[0], place[1], place[2] - TABLE_Z), turn)


def moved(parts: Iterable[Part], place: Point, turn: float) -> list[Part]:
    """Parts turned together about z and moved."""
    return [at(part, part.bsdf or {}, place, turn) for part in parts]


def block(size: Point, place: Point, bsdf: dict[str, Any]) -> Part:
    """A box by its width, depth and height, standing at a place."""
    return at(box(*size), bsdf, place)


def cushion(width: float, depth: float, height: float, roundness: float = 0.35) -> Part:
    """A superquadric standing on z = 0: a box for `roundness` towards 0, an ellipsoid for 1."""
    polar, azimuth = np.linspace(0.0, np.pi, 25), np.linspace(0.0, 2.0 * np.pi, 49)

    def power(x: Array) -> Array:
        x = np.where(np.abs(x) < 1e-9, 0.0, x)
        return np.sign(x) * np.abs(x) ** roundness

    ring = np.stack([power(np.cos(azimuth)), power(np.sin(azimuth)), np.ones_like(azimuth)], -1)
    level = np.stack([power(np.sin(polar)), power(np.sin(polar)), power(-np.cos(polar))], -1)
    centred = 0.5 * level[:, None] * ring * [width, depth, height]
    return grid_part(centred + np.array([0.0, 0.0, 0.5 * height]))


def per_side(pattern: Pattern) -> Pattern:
    """A pattern over each side of a box, from one over the unit square."""
    return lambda u, v: pattern(u * 6.0 % 1.0, v)


def plain(palette: str, pattern: Pattern) -> dict[str, Any]:
    """A matt material whose pattern covers every side of a box."""
    return paint(per_side(pattern), palette, (1536, 256))


def planks(across: float, along: float) -> Pattern:
    """Floor boards in shades that look drawn at random, each row shifted against the last."""

    def pattern(u: Array, v: Array) -> Array:
        row = np.floor(v * across)
        column = np.floor(u * along + 0.37 * row)
        seam = (v * across % 1.0 < 0.06) | ((u * along + 0.37 * row) % 1.0 < 0.02)
        return np.where(seam, 0, 1 + np.floor(977.0 * np.abs(np.sin(12.9 * row + 78.2 * column))) % 3)

    return pattern


def grain(count: float) -> Pattern:
    """Wood: wavering lines."""
    return lambda u, v: np.floor(count * (v + 0.03 * np.sin(9.0 * u) + 0.01 * np.sin(31.0 * u))) % 3


def wallpaper(across: float, up: float) -> Pattern:
    """Stripes with diamonds between them."""

    def pattern(u: Array, v: Array) -> Array:
        s, t = u * across % 1.0 - 0.5, v * up % 1.0 - 0.5
        return np.select([np.abs(s) + 0.7 * np.abs(t) < 0.2, np.abs(s) > 0.44], [2, 1], 0)

    return pattern


def squares(count: float) -> Pattern:
    """A chess board."""
    return lambda u, v: np.floor(u * count) + np.floor(v * count)


def painting(kind: int) -> Pattern:
    """A picture: a frame around rings or waves."""

    def pattern(u: Array, v: Array) -> Array:
        x, y = u - 0.5, v - 0.5
        inside = (np.abs(x) < 0.43) & (np.abs(y) < 0.43)
        rings = 1 + np.floor(14.0 * np.hypot(x - 0.1, y + 0.05))
        waves = 1 + np.floor(7.0 * (v + 0.09 * np.sin(11.0 * u)))
        return np.where(inside, (rings, waves)[kind] % 5, 0)

    return pattern


def wood() -> dict[str, Any]:
    return plain("8a5a33 7d4f2b 95653b", grain(26.0))


def shell() -> list[Part]:
    """Floor, ceiling and four walls, which reach into each other at the edges."""
    x, y, t = HALF_X, HALF_Y, THICKNESS
    floor = plain("4b3420 a77b4d 96693f b58a5b", planks(14.0, 4.0))
    white = plain("e9e6df e2ded4", squares(6.0))
    long_wall = plain("d9d4c3 b9c4b1 8fa38a", wallpaper(22.0, 9.0))
    short_wall = plain("cfd6dc aebfcb 7d96a8", wallpaper(18.0, 9.0))
    return [
        block((2 * x + 2 * t, 2 * y + 2 * t, t), (0, 0, -t), floor),
        block((2 * x + 2 * t, 2 * y + 2 * t, t), (0, 0, HEIGHT), white),
        *(block((2 * x + 2 * t, t, HEIGHT + t), (0, s * (y + t / 2), -t / 2), long_wall) for s in (-1, 1)),
        *(block((t, 2 * y + 2 * t, HEIGHT + t), (s * (x + t / 2), 0, -t / 2), short_wall) for s in (-1, 1)),
    ]


def dining_table() -> list[Part]:
    """A table with a bowl of fruit, a vase, a mug and a book on it."""
    x, y, top = 1.0, 0.55, 0.75 - SUNK
    legs = [(x + sx * 0.57, y + sy * 0.32) for sx in (-1, 1) for sy in (-1, 1)]
    bowl = spline([(0.06, 0.0), (0.07, 0.015), (0.15, 0.06), (0.19, 0.12)], 12)
    hollow = spline([(0.175, 0.12), (0.135, 0.065), (0.06, 0.03), (0.0, 0.028)], 10)
    outer = [(0.06, 0.0), (0.09, 0.06), (0.1, 0.14), (0.045, 0.25), (0.06, 0.3)]
    inner = [(0.05, 0.3), (0.035, 0.25), (0.08, 0.14), (0.0, 0.03)]
    vase = np.concatenate([[(0.0, 0.0)], spline(outer, 24), spline(inner, 10)])
    mug = np.array([(0.0, 0.0), (0.045, 0.0), (0.045, 0.1), (0.038, 0.1), (0.038, 0.012), (0.0, 0.012)])
    turn = np.linspace(0.0, 2.0 * np.pi, 25)
    hoop = np.stack([np.cos(turn), 0.0 * turn, np.sin(turn)], -1)
    handle = tube(hoop * 0.03 + [0.055, 0.0, 0.052], hoop, 0.008, 8, closed=True)
    clay, blue = paint(squares(12.0), "c9623f e9d8b4", alpha=0.3), paint(squares(10.0), "244a86 f0ede4", alpha=0.3)
    fruit = ("e0a32a f2c14b", "b3261e d8574a", "7fa32e a9c64f")
    spots = ((-0.055, -0.02), (0.05, -0.045), (0.015, 0.065))
    return [
        block((1.3, 0.8, 0.04), (x, y, 0.71), wood()),
        *(block((0.06, 0.06, 0.73 + SUNK), (*leg, -SUNK), wood()) for leg in legs),
        at(lathe(np.concatenate([[(0.0, 0.0)], bowl, hollow]), 40), clay, (x, y, top)),
        *(
            at(ball(0.055), paint(squares(8.0), palette), (x + spot[0], y + spot[1], top + 0.026))
            for palette, spot in zip(fruit, spots, strict=True)
        ),
        at(lathe(vase, 36), blue, (x + 0.42, y + 0.18, top)),
        *moved([at(lathe(mug, 28), clay, (0, 0, 0)), at(handle, clay, (0, 0, 0))], (x - 0.4, y - 0.2, top), 35),
        *moved([block((0.24, 0.17, 0.035), (0, 0, 0), blue)], (x - 0.38, y + 0.15, top), 20),
    ]


def chair() -> list[Part]:
    """A chair about the origin whose back is towards -y."""
    legs = [block((0.04, 0.04, 0.45 + SUNK), (0.19 * s, 0.19, -SUNK), wood()) for s in (-1, 1)]
    posts = [block((0.04, 0.04, 0.92 + SUNK), (0.19 * s, -0.19, -SUNK), wood()) for s in (-1, 1)]
    cloth = paint(squares(9.0), "7a2f38 c9a86a")
    seat = [block((0.42, 0.42, 0.03), (0, 0, 0.43), wood()), at(cushion(0.4, 0.4, 0.06, 0.4), cloth, (0, 0, 0.445))]
    return legs + posts + seat + [block((0.4, 0.02, 0.09), (0, -0.19, z), wood()) for z in (0.6, 0.8)]


def sofa() -> list[Part]:
    """A sofa with two seats, two arms and two loose cushions, its back to the wall at -y."""
    grey = paint(lambda u, v: np.floor(u * 40.0) + np.floor(v * 20.0), "5d6b7a 6a7887")
    warm = paint(squares(7.0), "d98f2b f0d9a0 b5501f")
    parts = [
        at(cushion(1.9, 0.85, 0.34, 0.12), grey, (0, 0, 0.06)),
        at(cushion(1.9, 0.26, 0.82, 0.2), grey, (0, -0.32, 0.06)),
        *(at(cushion(0.22, 0.85, 0.6, 0.25), grey, (0.88 * s, 0.0, 0.06)) for s in (-1, 1)),
        *(at(cushion(0.8, 0.62, 0.2, 0.3), grey, (0.4 * s, 0.1, 0.33)) for s in (-1, 1)),
        at(cushion(0.42, 0.16, 0.4, 0.5), warm, (-0.55, -0.12, 0.49), 12),
        at(cushion(0.4, 0.16, 0.38, 0.5), warm, (0.6, -0.1, 0.49), -20),
        *(block((0.06, 0.06, 0.14), (0.85 * s, 0.35 * t, -SUNK), wood()) for s in (-1, 1) for t in (-1, 1)),
    ]
    return moved(parts, (-0.75, -1.53, 0), 0)


def shelf(rng: np.random.Generator) -> list[Part]:
    """Four boards against the wall at -x, with rows of books, a ball, a ring and a jar."""
    x, y, width, depth = -2.34, 0.5, 1.3, 0.34
    levels = (0.08, 0.5, 0.92, 1.34, 1.76)
    sides = [block((depth, 0.03, 1.8), (x, y + 0.5 * s * width, -SUNK), wood()) for s in (-1, 1)]
    boards = [block((depth, width, 0.03), (x, y, z), wood()) for z in levels]
    books: list[Part] = []
    colours = ("a33b2e f0e2c0", "2f5d8a f0e2c0", "3f7a4f f0e2c0", "d9a441 6b3a1d", "5a4a7a e8d8f0", "303030 d0b070")
    stripes: Pattern = lambda u, v: (np.abs(v - 0.8) < 0.04) | (np.abs(v - 0.2) < 0.03)  # noqa: E731
    for z, start, end in ((0.08, -0.6, 0.2), (0.5, -0.35, 0.6), (0.92, -0.6, 0.05), (1.34, -0.1, 0.6)):
        place = start
        while place < end:
            thick, tall, deep = rng.uniform(0.03, 0.055), rng.uniform(0.2, 0.31), rng.uniform(0.17, 0.22)
            size, middle = (deep, thick, tall + SUNK), (x - 0.02, y + place + 0.5 * thick, z + 0.03 - SUNK)
            books.append(block(size, middle, plain(colours[int(rng.integers(len(colours)))], stripes)))
            place += thick + 0.004
    e = np.linspace(0.0, 2.0 * np.pi, 49)
    hoop = np.stack([0.0 * e, np.cos(e), np.sin(e)], -1)
    ring = tube(hoop * 0.11 + [0.0, 0.0, 0.14], hoop, 0.03, 16, closed=True)
    jar = [(0.0, 0.0), (0.09, 0.0), (0.11, 0.08), (0.1, 0.2), (0.06, 0.24), (0.06, 0.27), (0.0, 0.27)]
    bright = paint(squares(10.0), "e8432e f3efe4", alpha=0.2)
    return [
        *(sides + boards + books),
        block((0.02, width, 1.8), (x - 0.5 * depth, y, -SUNK), wood()),
        at(ball(0.13), bright, (x, y + 0.42, 0.11 - SUNK)),
        at(ring, bright, (x, y - 0.48, 0.53 - SUNK)),
        at(lathe(np.array(jar), 32), bright, (x, y + 0.3, 0.95 - SUNK)),
        at(ball(0.12), paint(squares(14.0), "0f5fa8 ffd23f", alpha=0.2), (x, y - 0.4, 1.37 - SUNK)),
    ]


def sideboard() -> list[Part]:
    """A low cupboard against the wall at +y, with a globe and a bush in a pot."""
    x, y, top = -1.1, 1.78, 0.66 - SUNK
    doors = plain("5a3d24 d8c7a3 c9b68f", lambda u, v: np.where(np.abs(u * 3.0 % 1.0 - 0.5) > 0.46, 0, 1 + (v > 0.5)))
    pot = np.array([(0.0, 0.0), (0.1, 0.0), (0.13, 0.22), (0.0, 0.22)])
    polar, azimuth = np.meshgrid(np.linspace(0.0, np.pi, 33), np.linspace(0.0, 2.0 * np.pi, 49), indexing="ij")
    polar_sine = np.where(np.sin(polar) < 1e-9, 0.0, np.sin(polar))
    bumps = 0.2 + 0.03 * polar_sine**2 * np.sin(5.0 * azimuth) * np.sin(6.0 * polar)
    axes = np.stack([polar_sine * np.cos(azimuth), polar_sine * np.sin(azimuth), -np.cos(polar)], -1)
    leaves = paint(squares(24.0), "2f6b2f 4f8f3a 1f4f24")
    stand = np.array([(0.0, 0.0), (0.09, 0.0), (0.09, 0.02), (0.015, 0.03), (0.015, 0.12), (0.0, 0.12)])
    return [
        block((1.2, 0.44, 0.66 + SUNK), (x, y, -SUNK), doors),
        at(lathe(pot, 32), paint(squares(8.0), "b5532d c9683f"), (x - 0.38, y, top)),
        at(grid_part(bumps[..., None] * axes), leaves, (x - 0.38, y, top + 0.36)),
        at(lathe(stand, 24), wood(), (x + 0.3, y, top)),
        at(ball(0.15), paint(squares(12.0), "2a6fb0 7fb069 e8e4d8", alpha=0.15), (x + 0.3, y, top + 0.1)),
    ]


def lamps() -> list[Part]:
    """A standing lamp in a corner and a ball hanging over the table."""
    pole = np.array([(0.0, 0.0), (0.16, 0.0), (0.16, 0.03), (0.018, 0.05), (0.018, 1.45), (0.0, 1.45)])
    shade = np.array([(0.0, 0.0), (0.24, 0.0), (0.15, 0.32), (0.0, 0.32)])
    rod = np.array([(0.0, 0.0), (0.012, 0.0), (0.012, 0.6), (0.0, 0.6)])
    metal, cloth = paint(squares(2.0), "3a3a40 45454c"), paint(squares(16.0), "f0e0b8 e2c98f")
    return [
        at(lathe(pole, 24), metal, (2.05, -1.55, -SUNK)),
        at(lathe(shade, 40), cloth, (2.05, -1.55, 1.36)),
        at(lathe(rod, 12), metal, (1.0, 0.55, 2.05)),
        at(ball(0.16), paint(squares(6.0), "f2efe6 e8b84a", alpha=0.2), (1.0, 0.55, 1.78)),
    ]


def round_things() -> list[Part]:
    """A pouf and a ball on the floor, and a torus knot on a pedestal."""
    t = np.linspace(0.0, 2.0 * np.pi, 151)
    c2, s2, c3, s3 = np.cos(2 * t), np.sin(2 * t), np.cos(3 * t), np.sin(3 * t)
    knot = np.stack([(2 + c3) * c2, s3, (2 + c3) * s2], -1) * 0.075 + [0.0, 0.0, 0.26]
    candy = paint(lambda u, v: np.floor(v * 32.0), "e01f5a fcefd0 16a3c4", (16, 512), 0.3)
    profile = [(0.0, 0.0), (0.19, 0.0), (0.19, 0.06), (0.12, 0.1), (0.11, 0.7), (0.18, 0.74), (0.18, 0.8), (0.0, 0.8)]
    return [
        at(cushion(0.55, 0.55, 0.42, 0.5), paint(squares(10.0), "3f6f6a d9c9a0"), (0.72, -1.45, -0.01)),
        at(ball(0.15), paint(squares(6.0), "d3122a f6f1e7", alpha=0.15), (-1.75, -0.75, -SUNK)),
        at(lathe(np.array(profile), 40), paint(squares(12.0), "c9c3b5 b5ad9c"), (2.1, 1.6, -SUNK)),
        at(tube(knot, np.stack([c3 * c2, s3, c3 * s2], -1), 0.04, 12, closed=True), candy, (2.1, 1.6, 0.775), 30),
    ]


def on_the_walls() -> list[Part]:
    """Two pictures and a door with its knob."""
    first = plain("3a2a1a d9a441 2f5d8a e8e0c8 a33b2e", painting(0))
    second = plain("20242a 7fb069 e8d8a0 2a6fb0 d9622b", painting(1))
    door = plain("efe9dc d8cfbb", lambda u, v: (np.abs(u - 0.5) < 0.36) & (np.abs(v * 2.0 % 1.0 - 0.5) < 0.4))
    return [
        block((0.8, 0.08, 0.55), (0.6, HALF_Y, 1.3), first),
        block((0.08, 1.0, 0.65), (HALF_X, -0.2, 1.25), second),
        block((0.9, 0.1, 2.05 + SUNK), (1.2, -HALF_Y, -SUNK), door),
        at(ball(0.035), paint(squares(2.0), "b08d3a c9a552", alpha=0.2), (1.55, -HALF_Y + 0.075, 0.98)),
    ]


def volume(part: Part) -> float:
    """The signed volume of a part, positive where its faces turn outwards."""
    a, b, c = part.vertices[part.faces].swapaxes(0, 1)
    return math.fsum(np.sum(a * np.cross(b, c), axis=1) / 6.0)
