"""Small charts as shapes with coordinates, which the page's template draws as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 380.0
HEIGHT: Final = 300.0
_LEFT: Final = 46.0
_RIGHT: Final = 366.0
_TOP: Final = 14.0
_BOTTOM: Final = 254.0


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A polyline; `style` is its number in the style sheet."""

    name: str
    style: int
    points: tuple[tuple[float, float, str], ...]  # x, y, what a pointer over it is told

    @property
    def path(self) -> str:
        """The points as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Bar:
    """A bar that stands on the x axis."""

    x: float
    y: float
    width: float
    height: float
    strength: float  # 0 to 1: how much evidence it stands on
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart of fractions over [0, 1] or over numbers."""

    title: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    has_diagonal: bool = False

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plot."""
        return _LEFT, _TOP, _RIGHT, _BOTTOM


@dataclass(frozen=True)
class Scale:
    """Values to positions along an axis, evenly or by their logarithms."""

    low: float
    high: float
    is_log: bool = False

    def x(self, value: float) -> float:
        """Return the position of a value on the x axis."""
        return _LEFT + (_RIGHT - _LEFT) * self._part(value)

    def y(self, value: float) -> float:
        """Return the position of a value on the y axis, which points up."""
        return _BOTTOM - (_BOTTOM - _TOP) * self._part(value)

    def _part(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


UNIT: Final = Scale(0, 1)
UNIT_TICKS: Final = tuple((step / 5, f"{step / 5:.0%}") for step in range(6))


def y_ticks() -> tuple[Tick, ...]:
    """Return the ticks of a y axis of fractions."""
    return tuple(Tick(UNIT.y(value), label) for value, label in UNIT_TICKS)


def x_ticks(scale: Scale, ticks: Iterable[tuple[float, str]]) -> tuple[Tick, ...]:
    """Return the ticks of an x axis."""
    return tuple(Tick(scale.x(value), label) for value, label in ticks)


def line(
    name: str, style: int, scale: Scale, values: Sequence[tuple[float, float]], told: str
) -> Line:
    """Return a line of (x, fraction) values; undefined ones are left out.

    `told` is a format string of x and y.
    """
    return Line(
        name,
        style,
        tuple(
            (scale.x(x), UNIT.y(y), f"{name}: {told.format(x=x, y=y)}")
            for x, y in values
            if not math.isnan(y)
        ),
    )


def bar(low: float, high: float, value: float, strength: float, title: str) -> Bar:
    """Return a bar from `low` to `high` on an x axis of fractions, as high as `value`."""
    left, right, top = UNIT.x(low), UNIT.x(high), UNIT.y(value)
    return Bar(left + 0.5, top, right - left - 1, _BOTTOM - top, strength, title)
