"""Things: what people hold, push, throw and sit on, and what moves about behind them."""

from dataclasses import dataclass

import numpy as np

from shard_tools.toy.backdrop import Backdrop
from shard_tools.toy.figure import Colour, Part, lit
from shard_tools.toy.scene import Layer

COLOURS: dict[str, Colour] = {
    "red": (206, 52, 48),
    "yellow": (240, 200, 60),
    "blue": (50, 100, 200),
    "green": (60, 150, 80),
    "white": (238, 236, 230),
    "black": (44, 44, 50),
    "orange": (236, 130, 44),
    "purple": (130, 80, 170),
}


def _disc(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def _rect(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


# Polygons in [-0.5, 0.5], y down, with the brightness of each.
_BOX = [
    (_rect(-0.5, -0.36, 0.5, 0.5), 1.0),
    (np.array([[-0.5, -0.36], [-0.4, -0.5], [0.6, -0.5], [0.5, -0.36]]), 1.2),
    (_rect(-0.08, -0.36, 0.08, 0.5), 0.82),
]
_BALL = [(_disc(0, 0, 0.5, 0.5), 1.0), (_disc(0, 0, 0.46, 0.16), 0.8), (_disc(-0.17, -0.2, 0.12, 0.1), 1.35)]
_CASE = [
    (_rect(-0.14, -0.5, 0.14, -0.3), 0.6),
    (_rect(-0.4, -0.38, 0.4, 0.5), 1.0),
    (_rect(-0.4, -0.02, 0.4, 0.06), 0.75),
]
_BOOK = [
    (_rect(-0.36, -0.5, 0.36, 0.5), 1.0),
    (_rect(-0.36, -0.5, -0.24, 0.5), 0.7),
    (_rect(-0.12, -0.3, 0.24, -0.16), 1.3),
]
_POT = [(_rect(-0.32, -0.1, 0.32, 0.5), 1.0), (_rect(-0.4, -0.2, 0.4, 0.0), 0.85), (_disc(0, -0.34, 0.3, 0.18), 0.6)]
_CRATE = [(_rect(-0.5, -0.5, 0.5, 0.5), 1.0)] + [(_rect(-0.5, y, 0.5, y + 0.05), 0.7) for y in (-0.28, -0.02, 0.24)]
_STOOL = [(_rect(x, -0.4, x + 0.09, 0.5), 0.7) for x in (-0.42, 0.33)] + [(_rect(-0.5, -0.5, 0.5, -0.34), 1.0)]
_BIRD = [
    (np.array([[-0.5, -0.2], [-0.1, -0.05], [0, 0.1], [0.1, -0.05], [0.5, -0.2], [0.05, 0.22], [-0.05, 0.22]]), 1.0)
]
_CAR = [
    (np.array([[-0.26, -0.06], [-0.16, -0.24], [0.14, -0.24], [0.26, -0.06]]), 0.75),
    (_rect(-0.5, -0.06, 0.5, 0.14), 1.0),
    (_disc(-0.28, 0.15, 0.09, 0.09), 0.3),
    (_disc(0.28, 0.15, 0.09, 0.09), 0.3),
]
_BALLOON = [(_disc(0, -0.12, 0.28, 0.36), 1.0), (_rect(-0.01, 0.24, 0.01, 0.5), 0.6)]

SHAPES = {
    **{"box": _BOX, "ball": _BALL, "suitcase": _CASE, "book": _BOOK, "flower pot": _POT, "crate": _CRATE},
    **{"stool": _STOOL, "bird": _BIRD, "car": _CAR, "balloon": _BALLOON},
}
HANDY = ("box", "ball", "book", "flower pot")
HEAVY = ("crate", "suitcase", "box")


@dataclass(frozen=True)
class Thing:
    """A kind of thing and its colour by name, as a person would call it: "red box"."""

    kind: str
    colour: str

    @classmethod
    def draw(cls, rng: np.random.Generator, kinds: tuple[str, ...]) -> "Thing":
        return cls(kinds[rng.integers(len(kinds))], list(COLOURS)[rng.integers(len(COLOURS))])

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"

    def layer(
        self,
        centre: np.ndarray,
        size: np.ndarray | float,
        order: float,
        light: np.ndarray,
        shown: np.ndarray | None = None,
    ) -> Layer:
        """The thing along a path.

        Args:
            centre: [T, 2], canvas pixels.
            size: its larger side in canvas pixels, a number or [T].
            order: see scene.Layer.
            light: of the scene.
            shown: bool [T], or None for always.
        """
        scale = np.broadcast_to(size, len(centre))[:, None, None]
        base = lit(COLOURS[self.colour], light)
        parts = [
            Part(centre[:, None] + scale * polygon, lit(base, brightness), np.full(len(centre), float(i)), shown=shown)
            for i, (polygon, brightness) in enumerate(SHAPES[self.kind])
        ]
        return Layer(parts, order)


def distractions(
    rng: np.random.Generator, t: np.ndarray, size: tuple[int, int], ground: float, place: Backdrop
) -> list[Layer]:
    """Now and then a bird, a car, a balloon or a bouncing ball behind the people; `t` in seconds, `size` the canvas."""
    if rng.random() < 0.6:
        return []
    kinds = ("bird", "car", "ball") if place.outdoors else ("balloon", "ball")
    kind = kinds[rng.integers(len(kinds))]
    share, speed = {"bird": (0.07, 0.3), "car": (0.26, 0.35), "balloon": (0.13, 0.05), "ball": (0.08, 0.2)}[kind]
    way = rng.choice((-1, 1)) * rng.uniform(0.7, 1.3) * speed
    x = (rng.uniform(0.1, 0.9) + way * (t - t.mean())) * size[0]
    y = {
        "bird": (0.14 + 0.03 * np.sin(9 * t)) * size[1],
        "car": np.full(len(t), ground - 0.16 * size[1]),
        "balloon": (0.5 - 0.12 * t) * size[1],
        "ball": ground - (0.1 + 0.16 * np.abs(np.sin(4 * t))) * size[1],
    }[kind]
    side = share * size[1] * rng.uniform(0.8, 1.2)
    return [Thing.draw(rng, (kind,)).layer(np.stack([x, y], axis=1), side, -2e4, place.light)]
