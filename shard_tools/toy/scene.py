"""A scene of people and things before a backdrop, filmed by a camera: its frames and the people's boxes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from shard_tools.toy.backdrop import Backdrop
from shard_tools.toy.figure import Colour, Figure, Part, lit
from shard_tools.toy.skeleton import JOINT

SCALE = 2
"""Scenes are drawn this many times larger than the frames, then reduced, which smooths the edges."""


@dataclass(frozen=True)
class Actor:
    """A person's figure at a place: `x` and `ground` in canvas pixels, `height` the pixels of a body height, [T]."""

    figure: Figure
    x: float
    ground: float
    height: np.ndarray

    def canvas(self, points: np.ndarray) -> np.ndarray:
        """Body-height points [T, ..., 2 or 3] (x right, y up) as canvas pixels [T, ..., 2] (y down)."""
        scale = self.height.reshape(-1, *[1] * (points.ndim - 1))
        return np.array([self.x, self.ground]) + points[..., :2] * np.array([1.0, -1.0]) * scale

    def joint(self, *names: str) -> np.ndarray:
        """Where a joint, or the middle of some, is: [T, 2] in canvas pixels."""
        return self.canvas(np.mean([self.figure.joints[:, JOINT[name]] for name in names], axis=0))

    def boxes(self) -> np.ndarray:
        """float64 [T, 4]: the tight (x1, y1, x2, y2) of all that is drawn of the person, in canvas pixels."""
        left, bottom, right, top = self.figure.extents().T
        low = self.canvas(np.stack([left, top], axis=1))
        return np.concatenate([low, self.canvas(np.stack([right, bottom], axis=1))], axis=1)


@dataclass(frozen=True)
class Layer:
    """Polygons in canvas pixels (see figure.Part, with y down); layers of higher `order` are drawn later."""

    parts: list[Part]
    order: float


@dataclass(frozen=True)
class Camera:
    """Per frame [T]: shift in canvas pixels, and zoom about the middle of the frame."""

    dx: np.ndarray
    dy: np.ndarray
    zoom: np.ndarray

    @classmethod
    def still(cls, frames: int) -> "Camera":
        return cls(np.zeros(frames), np.zeros(frames), np.ones(frames))

    @classmethod
    def handheld(cls, rng: np.random.Generator, t: np.ndarray, width: int, height: int) -> "Camera":
        """Shakes a little, drifts sometimes, zooms slowly sometimes; `t` in seconds."""
        shake = rng.uniform(0, 0.008) * width
        wobble = [sum(np.sin(t * rng.uniform(2, 11) + rng.uniform(0, 7)) for _ in range(3)) / 2 for _ in range(2)]
        drift = rng.uniform(-0.02, 0.02) * width * (t - t.mean()) if rng.random() < 0.4 else 0.0
        zoom = np.ones(len(t))
        if rng.random() < 0.25:
            zoom += rng.uniform(-0.05, 0.09) * np.linspace(0, 1, len(t))
        limit = 0.08 * max(width, height)
        dx, dy = (np.clip(np.round(v), -limit, limit) for v in (shake * wobble[0] + drift, shake * wobble[1]))
        return cls(dx, dy, zoom)

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Canvas pixels before the camera [T, ..., 2] as pixels of the canvas-sized picture."""
        shape = (-1, *[1] * (points.ndim - 2), 1)
        middle = np.array(size) / 2
        shift = np.stack([self.dx, self.dy], axis=1).reshape(-1, *[1] * (points.ndim - 2), 2)
        return (points - middle) * self.zoom.reshape(shape) + middle + shift


@dataclass(frozen=True)
class Scene:
    """All that a stretch of film shows.

    Attributes:
        size: (width, height) of the frames in pixels.
        backdrop: painted for SCALE x size.
        camera, actors: over T frames.
        layers: things that are not people, in canvas pixels.
        exposure: [T] gain of the light, or None for 1.
    """

    size: tuple[int, int]
    backdrop: Backdrop
    camera: Camera
    actors: Sequence[Actor]
    layers: Sequence[Layer] = ()
    exposure: np.ndarray | None = None

    @property
    def canvas_size(self) -> tuple[int, int]:
        return SCALE * self.size[0], SCALE * self.size[1]

    def boxes(self) -> np.ndarray:
        """float64 [T, actors, 4]: boxes in fractions of the frame, not clipped to it."""
        if not self.actors:
            return np.zeros((len(self.camera.dx), 0, 4))
        corners = np.stack([actor.boxes() for actor in self.actors], axis=1).reshape(-1, len(self.actors), 2, 2)
        seen = self.camera.project(corners, self.canvas_size) / np.array(self.canvas_size)
        return seen.reshape(-1, len(self.actors), 4)

    def frames(self) -> Iterator[Image.Image]:
        """Renders the RGB frames, one by one."""
        stacks = [self._prepare(layer) for layer in sorted(self._all_layers(), key=lambda layer: layer.order)]
        for frame in range(len(self.camera.dx)):
            image = self._background(frame)
            draw = ImageDraw.Draw(image)
            for stack in stacks:
                for polygon, fill, edge in stack[frame]:
                    draw.polygon(polygon, fill, edge)
            image = image.reduce(SCALE)
            if self.exposure is not None:
                gain = self.exposure[frame]
                image = image.point(np.clip(np.arange(256) * gain, 0, 255).astype(int).tolist() * 3)
            yield image

    def _all_layers(self) -> list[Layer]:
        layers = list(self.layers)
        for actor in self.actors:
            layers.append(self._shadow(actor))
            body = [
                Part(actor.canvas(part.points), part.fill, part.depth, part.far, part.shown)
                for part in actor.figure.parts
            ]
            layers.append(Layer(body, actor.ground))
        return layers

    def _shadow(self, actor: Actor) -> Layer:
        feet = actor.joint("l.ankle", "r.ankle")
        high = np.clip((actor.ground - feet[:, 1]) / actor.height, 0.05, 0.6)
        turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ring = (
            np.stack([np.cos(turn), 0.2 * np.sin(turn)], axis=1) * (0.24 * actor.height * (1.1 - high))[:, None, None]
        )
        points = np.stack([feet[:, 0], np.full(len(feet), actor.ground)], axis=1)[:, None] + ring
        r, g, b = (int(v) for v in self.backdrop.ground)
        return Layer([Part(points, lit((r, g, b), 0.68), np.zeros(len(feet)))], actor.ground - 1e4)

    def _prepare(self, layer: Layer) -> list[list[tuple[list[float], Colour, Colour]]]:
        """The layer's polygons of each frame, flat, in drawing order."""
        frames = len(self.camera.dx)
        order = np.argsort(np.stack([part.depth for part in layer.parts]), axis=0, kind="stable").T
        flat = [self.camera.project(part.points, self.canvas_size).reshape(frames, -1).tolist() for part in layer.parts]
        # Far limbs are darker; an edge keeps a sleeve apart from the shirt behind it.
        paints = [[(lit(part.fill, k), lit(part.fill, 0.7 * k)) for k in (1.0, 0.8)] for part in layer.parts]
        always, never = np.ones(frames, bool), np.zeros(frames, bool)
        shown = np.stack([always if part.shown is None else part.shown for part in layer.parts])
        far = np.stack([never if part.far is None else part.far for part in layer.parts]).astype(int)
        return [
            [(flat[p][frame], *paints[p][far[p, frame]]) for p in order[frame] if shown[p, frame]]
            for frame in range(frames)
        ]

    def _background(self, frame: int) -> Image.Image:
        (width, height), margin = self.canvas_size, self.backdrop.margin
        dx, dy, zoom = self.camera.dx[frame], self.camera.dy[frame], self.camera.zoom[frame]
        if zoom == 1:
            x, y = margin - int(dx), margin - int(dy)
            return self.backdrop.image.crop((x, y, x + width, y + height))
        left = margin + width / 2 - (width / 2 + dx) / zoom
        top = margin + height / 2 - (height / 2 + dy) / zoom
        box = (left, top, left + width / zoom, top + height / zoom)
        return self.backdrop.image.resize((width, height), Image.Resampling.NEAREST, box=box)
