"""The synthetic world: scenes of coloured shapes on patterned grounds, with exact truth.

A class name is composed ("red circle", "striped blue ground"), so a combination can be held out
("unseen") while its colour, shape and texture all occur elsewhere. A scene is one ground that
fills the picture and two to six things on it, with occlusion, shading, shadows, specks and noise.

Everything is a function of (seed, index). Seeds are split by purpose: `TRAIN_SEEDS` for learning,
`VALIDATION_SEED` for choosing settings, `TEST_SEED` for reported figures only.

Dimension key: H height, W width, 3 RGB, N corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TRAIN_SEEDS = range(0, 1000)
VALIDATION_SEED = 1000
TEST_SEED = 2000

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (242, 132, 30),
    "yellow": (240, 214, 50),
    "green": (52, 160, 60),
    "cyan": (64, 200, 208),
    "blue": (40, 76, 212),
    "purple": (128, 50, 170),
    "pink": (246, 142, 190),
}
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
TEXTURES = ("striped", "dotted", "checkered")
GROUND = "ground"

UNSEEN = (
    "red star",
    "red cross",
    "orange ring",
    "yellow cross",
    "green triangle",
    "cyan square",
    "blue circle",
    "blue triangle",
    "purple ring",
    "pink star",
    "dotted red ground",
    "checkered yellow ground",
    "striped green ground",
    "dotted cyan ground",
    "striped purple ground",
)

VOCABULARY = (
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"{texture} {colour} {GROUND}" for texture in TEXTURES for colour in COLOURS),
)
NUM_THINGS = len(COLOURS) * len(SHAPES)

MIN_VISIBLE = 0.6  # a thing of which less can be seen is placed again
SHORT_EDGES = (128, 161)  # drawn from this half-open range
MAX_ASPECT = 1.3


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and its truth: every pixel holds an index into `VOCABULARY`."""

    image_HW3: NDArray[np.uint8]
    label_map_HW: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Thing:
    """One placed shape. `centre` is (y, x) in pixels, `angle` in radians."""

    class_index: int
    centre: tuple[float, float]
    radius: float
    angle: float


def class_names() -> tuple[str, ...]:
    """Return the ordered class names; label maps hold positions in it."""
    return VOCABULARY


def seen_flags() -> tuple[bool, ...]:
    """Return for every class whether it may occur in training."""
    return tuple(name not in UNSEEN for name in VOCABULARY)


def make_scene(seed: int, index: int, *, classes: Literal["all", "seen"] = "all") -> Scene:
    """Draw scene number `index` of a seed; with "seen" it shows no held-out combination."""
    rng = np.random.default_rng([seed, index])
    short = int(rng.integers(*SHORT_EDGES))
    long = int(short * rng.uniform(1.0, MAX_ASPECT))
    size = (short, long) if rng.random() < 0.7 else (long, short)

    allowed = [i for i, seen in enumerate(seen_flags()) if seen or classes == "all"]
    ground = int(rng.choice([i for i in allowed if i >= NUM_THINGS]))
    # A thing in its ground's colour would be a puzzle rather than a picture.
    ground_colour = VOCABULARY[ground].split()[1]
    names = [i for i in allowed if i < NUM_THINGS and VOCABULARY[i].split()[0] != ground_colour]

    image_HW3 = _ground(rng, size, VOCABULARY[ground])
    label_map_HW = np.full(size, ground, np.uint8)
    for thing, coverage_HW in _place(rng, size, names):
        _shadow(rng, image_HW3, coverage_HW)
        _paint(rng, image_HW3, coverage_HW, thing)
        label_map_HW[coverage_HW >= 0.5] = thing.class_index
    return Scene(_photograph(rng, image_HW3), label_map_HW)


def _place(
    rng: np.random.Generator, size: tuple[int, int], names: list[int]
) -> list[tuple[Thing, Floats]]:
    """Place two to six things, back to front, each with its coverage (H, W) in [0, 1]."""
    short = min(size)
    placed: list[tuple[Thing, Floats]] = []
    wanted = int(rng.integers(2, 7))
    for _ in range(40 * wanted):
        if len(placed) == wanted:
            break
        radius = float(short * rng.uniform(0.12, 0.26))
        thing = Thing(
            class_index=int(rng.choice(names)),
            centre=(
                float(rng.uniform(0.5 * radius, size[0] - 0.5 * radius)),
                float(rng.uniform(0.5 * radius, size[1] - 0.5 * radius)),
            ),
            radius=radius,
            angle=float(rng.uniform(-0.35, 0.35)),
        )
        candidate = [*placed, (thing, coverage(thing, size))]
        if _all_visible(candidate):
            placed = candidate
    return placed


def _all_visible(placed: list[tuple[Thing, Floats]]) -> bool:
    """Tell whether every thing still shows `MIN_VISIBLE` of its whole area."""
    hidden_HW = np.zeros(placed[0][1].shape, bool)
    for thing, coverage_HW in reversed(placed):
        inside_HW = coverage_HW >= 0.5
        whole = _unit_area(VOCABULARY[thing.class_index].split()[1]) * thing.radius**2
        if (inside_HW & ~hidden_HW).sum() < MIN_VISIBLE * whole:
            return False
        hidden_HW |= inside_HW
    return True


@cache
def _unit_area(shape: str) -> float:
    """Return the area of a shape of radius one."""
    ys, xs = np.mgrid[-1:1:200j, -1:1:200j].astype(np.float32)
    return float((_distance(shape, xs, ys) < 0).mean() * 4)


# --- shapes -------------------------------------------------------------------------------------


def coverage(thing: Thing, size: tuple[int, int]) -> Floats:
    """Return the anti-aliased coverage (H, W) of a thing, in [0, 1]."""
    window, ys, xs = _around(thing, size)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    distance = _distance(
        VOCABULARY[thing.class_index].split()[1], cos * xs + sin * ys, cos * ys - sin * xs
    )
    out_HW = np.zeros(size, np.float32)
    out_HW[window] = np.clip(0.5 - distance * thing.radius, 0, 1)
    return out_HW


def _around(thing: Thing, size: tuple[int, int]) -> tuple[tuple[slice, slice], Floats, Floats]:
    """Return the window that holds a thing, and y and x from its centre in radii."""
    reach = thing.radius + 2
    rows, columns = (
        slice(max(0, int(centre - reach)), min(int(centre + reach) + 2, limit))
        for centre, limit in zip(thing.centre, size, strict=True)
    )
    ys, xs = np.mgrid[rows, columns].astype(np.float32)
    y, x = thing.centre
    return (rows, columns), (ys + 0.5 - y) / thing.radius, (xs + 0.5 - x) / thing.radius


def _distance(shape: str, xs: Floats, ys: Floats) -> Floats:
    """Return the signed distance to a shape of radius one (negative inside, y down)."""
    if shape == "circle":
        return (np.hypot(xs, ys) - 0.9).astype(np.float32)
    if shape == "ring":
        return (np.abs(np.hypot(xs, ys) - 0.72) - 0.24).astype(np.float32)
    return _polygon_distance(_corners(shape), xs, ys)


def _corners(shape: str) -> Floats:
    """Return the corners (N, 2) as (x, y) of a polygon of radius about one."""
    if shape == "square":
        corners = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif shape == "triangle":
        corners = [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    elif shape == "cross":
        a, b = 0.32, 0.95
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    else:  # star
        turns = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        return np.stack([radii * np.sin(turns), -radii * np.cos(turns)], 1).astype(np.float32)
    return np.asarray(corners, np.float32)


def _polygon_distance(corners_N2: Floats, xs: Floats, ys: Floats) -> Floats:
    """Return the signed distance to a polygon, inside by the even-odd rule."""
    nearest = np.full(xs.shape, np.inf, np.float32)
    inside = np.zeros(xs.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners_N2, np.roll(corners_N2, -1, 0), strict=True):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((xs - x0) * dx + (ys - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(xs - x0 - along * dx, ys - y0 - along * dy))
        if y0 != y1:
            crosses = (y0 > ys) != (y1 > ys)
            inside ^= crosses & (xs < dx * (ys - y0) / dy + x0)
    return np.where(inside, -nearest, nearest).astype(np.float32)


# --- paint --------------------------------------------------------------------------------------


def _colour(rng: np.random.Generator, name: str, *, jitter: float) -> Floats:
    """Return an RGB colour (3,) near the named one."""
    base = np.asarray(COLOURS[name], np.float32)
    near: Floats = np.clip(base * rng.uniform(0.88, 1.08) + rng.normal(0, jitter, 3), 0, 255)
    return near.astype(np.float32)


def _ground(rng: np.random.Generator, size: tuple[int, int], name: str) -> Floats:
    """Fill a picture with two shades of one colour in a texture, and scatter faint specks."""
    texture, colour, _ = name.split()
    base = _colour(rng, colour, jitter=5)
    light = base + rng.uniform(0.40, 0.55) * (255 - base)
    dark = base * rng.uniform(0.68, 0.82)
    if rng.random() < 0.5:
        light, dark = dark, light
    pattern_HW = _pattern(rng, size, texture)
    image_HW3 = light + (dark - light) * pattern_HW[..., None]
    for _ in range(int(rng.integers(5, 20))):
        _speck(rng, image_HW3)
    painted_HW3: Floats = image_HW3.astype(np.float32)
    return painted_HW3


def _pattern(rng: np.random.Generator, size: tuple[int, int], texture: str) -> Floats:
    """Return the texture (H, W) in [0, 1], rotated and shifted at random."""
    period = float(rng.uniform(15, 24))
    angle = float(rng.uniform(-0.35, 0.35)) + (np.pi / 2) * int(rng.integers(2))
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
    u = (np.cos(angle) * xs + np.sin(angle) * ys + rng.uniform(0, period)) / period
    v = (np.cos(angle) * ys - np.sin(angle) * xs + rng.uniform(0, period)) / period
    if texture == "striped":
        return _edge(np.abs(u % 1 - 0.5) - 0.25, period)
    if texture == "dotted":
        return _edge(np.hypot(u % 1 - 0.5, v % 1 - 0.5) - 0.28, period)
    # The product of two square waves: each factor changes sign twice per period.
    return _edge(np.sin(np.pi * u) * np.sin(np.pi * v) / np.pi, period)


def _edge(distance: Floats, period: float) -> Floats:
    """Turn a distance in periods into coverage with a one-pixel soft edge."""
    soft: Floats = np.clip(0.5 - distance * period, 0, 1).astype(np.float32)
    return soft


def _speck(rng: np.random.Generator, image_HW3: Floats) -> None:
    """Lighten or darken one small ellipse in place: clutter that belongs to the ground."""
    height, width = image_HW3.shape[:2]
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    ry, rx = rng.uniform(1.0, 3.2, 2)
    top, left = max(0, int(y - ry) - 1), max(0, int(x - rx) - 1)
    window = image_HW3[top : int(y + ry) + 2, left : int(x + rx) + 2]
    ys, xs = np.mgrid[top : top + window.shape[0], left : left + window.shape[1]]
    inside = ((ys - y) / ry) ** 2 + ((xs - x) / rx) ** 2 < 1
    window[inside] *= rng.uniform(0.84, 1.14)


def _shadow(rng: np.random.Generator, image_HW3: Floats, coverage_HW: Floats) -> None:
    """Darken what lies beneath a thing, a little down and to one side, in place."""
    dy, dx = int(rng.integers(1, 4)), int(rng.integers(-3, 4))
    shade_HW = np.zeros_like(coverage_HW)
    source = coverage_HW[: coverage_HW.shape[0] - dy]
    shade_HW[dy:] = np.roll(source, dx, axis=1)
    image_HW3 *= 1 - 0.28 * shade_HW[..., None]


def _paint(rng: np.random.Generator, image_HW3: Floats, coverage_HW: Floats, thing: Thing) -> None:
    """Paint a thing over the picture in place, shaded from one side."""
    colour = _colour(rng, VOCABULARY[thing.class_index].split()[0], jitter=8)
    height, width = coverage_HW.shape
    window, ys, xs = _around(thing, (height, width))
    direction = rng.uniform(0, 2 * np.pi)
    slope = np.clip(ys * np.sin(direction) + xs * np.cos(direction), -1, 1)
    shade = 1 + rng.uniform(0, 0.16) * slope[..., None]
    alpha = coverage_HW[window][..., None]
    image_HW3[window] += alpha * (colour * shade - image_HW3[window])


def _photograph(rng: np.random.Generator, image_HW3: Floats) -> NDArray[np.uint8]:
    """Add a lighting gradient and sensor noise, and round to uint8."""
    height, width = image_HW3.shape[:2]
    direction = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light_HW = 1 + rng.uniform(0, 0.14) * (ys * np.sin(direction) + xs * np.cos(direction))
    noise_HW3 = rng.normal(0, rng.uniform(2, 7), image_HW3.shape)
    exposed_HW3: Floats = np.clip(image_HW3 * light_HW[..., None] + noise_HW3, 0, 255)
    return exposed_HW3.round().astype(np.uint8)
