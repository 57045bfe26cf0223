"""Textures of stuff, and shapes and surfaces of things, for generated scenes.

Pictures are float32 RGB in [0, 1]; positions are shares of the picture's side, x to the right and y down. Every draw
takes a numpy Generator.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of floats
Mask = NDArray[np.bool_]
_TURN = 2 * np.pi


def value_noise(height: int, width: int, cells: tuple[float, float], rng: np.random.Generator) -> Array:
    """Smooth noise in [0, 1] with about ``cells`` (rows, columns) bumps."""
    grid = rng.random((max(2, round(cells[0])) + 1, max(2, round(cells[1])) + 1), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _mix(low: tuple[float, float, float], high: tuple[float, float, float], share: Array) -> Array:
    first, second = np.array(low, np.float32), np.array(high, np.float32)
    return first + (second - first) * share[:, :, None]


def _plane(size: int) -> tuple[Array, Array]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]


def _sky(size: int, rng: np.random.Generator) -> Array:
    _, y = _plane(size)
    clouds = 0.65 * value_noise(size, size, (7, 4), rng) + 0.35 * value_noise(size, size, (18, 10), rng)
    share = np.clip(0.55 * y + 1.2 * np.clip(clouds - 0.45, 0, 1), 0, 1)
    return _mix((0.36, 0.58, 0.88), (0.86, 0.92, 0.97), share)


def _grass(size: int, rng: np.random.Generator) -> Array:
    blades = value_noise(size, size, (size / 9, size / 2.5), rng)
    meadow = value_noise(size, size, (5, 5), rng)
    return _mix((0.13, 0.33, 0.08), (0.45, 0.66, 0.22), 0.65 * blades + 0.35 * meadow)


def _water(size: int, rng: np.random.Generator) -> Array:
    _, y = _plane(size)
    swell = value_noise(size, size, (6, 4), rng)
    waves = 0.5 + 0.5 * np.sin(_TURN * (rng.uniform(11, 16) * y + 1.6 * swell))
    return _mix((0.03, 0.22, 0.34), (0.16, 0.52, 0.58), 0.7 * waves + 0.3 * swell)


def _sand(size: int, rng: np.random.Generator) -> Array:
    x, y = _plane(size)
    dunes = value_noise(size, size, (4, 4), rng)
    ripples = 0.5 + 0.5 * np.sin(_TURN * (rng.uniform(5, 8) * (x + 2 * y) + 2 * dunes))
    grain = rng.random((size, size), dtype=np.float32)
    return _mix((0.70, 0.58, 0.40), (0.93, 0.84, 0.66), 0.4 * ripples + 0.3 * dunes + 0.3 * grain)


def _rock(size: int, rng: np.random.Generator) -> Array:
    coarse, fine = value_noise(size, size, (9, 9), rng), value_noise(size, size, (34, 34), rng)
    cracks = np.clip(np.abs(value_noise(size, size, (7, 7), rng) - 0.5) * 12, 0, 1)
    return _mix((0.17, 0.17, 0.19), (0.60, 0.58, 0.56), (0.55 * coarse + 0.45 * fine) * (0.35 + 0.65 * cracks))


# in the order in which they lie from top to bottom
STUFF: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "sky": _sky,
    "rock": _rock,
    "water": _water,
    "grass": _grass,
    "sand": _sand,
}


def _disc(u: Array, v: Array, rng: np.random.Generator) -> Mask:
    return u**2 + v**2 <= 1


def _box(u: Array, v: Array, rng: np.random.Generator) -> Mask:
    half = rng.uniform(0.6, 0.95)
    return (np.abs(u) <= 0.95) & (np.abs(v) <= half)


def _triangle(u: Array, v: Array, rng: np.random.Generator) -> Mask:
    lean = rng.uniform(-0.25, 0.25)
    return (v <= 0.75) & (v >= -1 + 1.8 * np.abs(u - lean * v))


def _star(u: Array, v: Array, rng: np.random.Generator) -> Mask:
    # between tip and notch the edge is a straight line, in the sector of a tenth of a turn
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    notch, sector = rng.uniform(0.45, 0.55), _TURN / 10
    inside = np.abs((angle + sector) % (2 * sector) - sector)
    tip, corner = np.array([1.0, 0.0]), notch * np.array([np.cos(sector), np.sin(sector)])
    edge = corner - tip
    reach = (tip[0] * edge[1]) / (np.cos(inside) * edge[1] - np.sin(inside) * edge[0])
    return radius <= reach


def _ring(u: Array, v: Array, rng: np.random.Generator) -> Mask:
    radius = np.hypot(u, v / rng.uniform(0.7, 1.0))
    return (radius <= 1) & (radius >= rng.uniform(0.42, 0.55))


def _blob(u: Array, v: Array, rng: np.random.Generator) -> Mask:
    angle, edge = np.arctan2(v, u), np.full_like(u, 0.78)
    for lobes in (2, 3, 5):
        edge = edge + rng.uniform(0.03, 0.09) * np.cos(lobes * angle + rng.uniform(0, _TURN))
    return np.hypot(u, v) <= edge


def _smooth(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return 0.35 + 0.3 * value_noise(u.shape[0], u.shape[1], (3, 3), rng)


def _striped(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return 0.5 + 0.5 * np.tanh(4 * np.sin(_TURN * (rng.uniform(1.2, 1.8) * u + rng.uniform())))


def _dotted(u: Array, v: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(2.6, 3.4) * np.pi
    return 1 / (1 + np.exp(-7 * (np.sin(pitch * u) * np.sin(pitch * v) - 0.25)))


def _speckled(u: Array, v: Array, rng: np.random.Generator) -> Array:
    height, width = u.shape
    return value_noise(height, width, (height / 4, width / 4), rng)


def _banded(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return 0.5 + 0.5 * np.sin(3 * np.arctan2(v, u) + 5 * np.hypot(u, v) + rng.uniform(0, _TURN))


def _marbled(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return np.abs(2 * value_noise(u.shape[0], u.shape[1], (5, 5), rng) - 1) ** 0.7


Shape = Callable[[Array, Array, np.random.Generator], Mask]
Pattern = Callable[[Array, Array, np.random.Generator], Array]

# class -> shape, pattern, hue, and (saturation, brightness) of the pattern's two colours; one family each
THINGS: dict[str, tuple[Shape, Pattern, float, tuple[float, float], tuple[float, float]]] = {
    "disc": (_disc, _smooth, 0.995, (0.90, 0.72), (0.75, 0.98)),
    "box": (_box, _striped, 0.085, (0.95, 0.95), (0.92, 0.62)),
    "triangle": (_triangle, _dotted, 0.88, (0.65, 0.92), (0.85, 0.55)),
    "star": (_star, _speckled, 0.155, (0.95, 0.98), (0.90, 0.80)),
    "ring": (_ring, _banded, 0.76, (0.75, 0.42), (0.45, 0.85)),
    "blob": (_blob, _marbled, 0.02, (0.55, 0.10), (0.55, 0.32)),
}


def paint_thing(kind: str, size: int, rng: np.random.Generator) -> tuple[tuple[int, int], Mask, Array]:
    """Draw one thing of a class, somewhere in a picture of ``size`` x ``size`` pixels.

    Returns:
        The top left corner of its window in the picture, its shape ``(h, w)`` in the window, and its surface
        ``(h, w, 3)``. The window is cut at the picture's border, and may be empty of the shape.
    """
    shape, pattern, hue, dark, light = THINGS[kind]
    radius = size * rng.uniform(0.09, 0.20)
    x, y = rng.uniform(0.06 * size, 0.94 * size, 2)
    left, top = max(0, int(x - 1.5 * radius)), max(0, int(y - 1.5 * radius))
    right, bottom = min(size, int(x + 1.5 * radius) + 1), min(size, int(y + 1.5 * radius) + 1)
    columns = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / radius
    rows = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / radius
    turn = rng.uniform(0, _TURN)
    u = np.float32(np.cos(turn)) * columns[None, :] + np.float32(np.sin(turn)) * rows[:, None]
    v = np.float32(np.cos(turn)) * rows[:, None] - np.float32(np.sin(turn)) * columns[None, :]
    hue, fade = (hue + rng.uniform(-0.018, 0.018)) % 1, rng.uniform(0.88, 1.08)
    colours = [colorsys.hsv_to_rgb(hue, saturation, min(1, fade * value)) for saturation, value in (dark, light)]
    surface = _mix(colours[0], colours[1], np.clip(pattern(u, v, rng), 0, 1).astype(np.float32))
    # light from the upper left, whatever the thing's own turn
    shade = np.clip(1 - 0.20 * (columns[None, :] + rows[:, None]), 0.7, 1.25)
    return (left, top), shape(u, v, rng), surface * shade[:, :, None]
