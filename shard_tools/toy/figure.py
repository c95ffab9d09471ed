"""From joints to a person's picture: filled limbs, clothes, hair and face as polygons in drawing order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shard_tools.toy.skeleton import JOINT, SIDES, Body, Motion, solve

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = (
    (255, 219, 186),
    (241, 194, 152),
    (224, 172, 125),
    (186, 128, 86),
    (133, 86, 56),
    (92, 58, 40),
)
HAIRS: tuple[Colour, ...] = ((35, 26, 22), (70, 44, 28), (120, 76, 40), (196, 152, 80), (150, 60, 34), (170, 170, 172))
CLOTHES: tuple[Colour, ...] = (
    *((214, 48, 49), (240, 128, 40), (246, 205, 62), (92, 172, 66), (30, 130, 90), (46, 168, 190), (40, 94, 190)),
    *((96, 66, 160), (196, 74, 140), (240, 240, 236), (60, 62, 70), (28, 40, 78), (140, 92, 60), (170, 178, 186)),
)
SHOES: tuple[Colour, ...] = ((30, 28, 30), (90, 58, 40), (235, 235, 235), (180, 40, 40))


@dataclass(frozen=True)
class Look:
    """Colours and clothes of one person."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    long_sleeves: bool
    garment: Literal["trousers", "shorts", "skirt"]
    hairdo: Literal["short", "long", "bun", "bald", "cap"]

    @classmethod
    def draw(cls, rng: np.random.Generator, behind: np.ndarray, light: np.ndarray) -> "Look":
        """Draws a look whose clothes stand out from the colour `behind` the person (float [3], 0..255).

        `light` (float [3], about 1) is the light of the scene, by channel.
        """
        order = rng.permutation(len(CLOTHES))
        contrast = [np.abs(np.multiply(CLOTHES[i], light) - behind).sum() for i in order]
        far = [i for i, c in zip(order, contrast, strict=True) if c > 130] + list(order)
        garment: Literal["trousers", "shorts", "skirt"] = rng.choice(["trousers", "shorts", "skirt"], p=[0.6, 0.2, 0.2])
        hairdo: Literal["short", "long", "bun", "bald", "cap"] = rng.choice(
            ["short", "long", "bun", "bald", "cap"], p=[0.42, 0.22, 0.12, 0.1, 0.14]
        )
        colours = (SKINS[rng.integers(len(SKINS))], HAIRS[rng.integers(len(HAIRS))], CLOTHES[far[0]], CLOTHES[far[1]])
        skin, hair, top, bottom = (lit(colour, light) for colour in colours)
        shoes = lit(SHOES[rng.integers(len(SHOES))], light)
        return cls(skin, hair, top, bottom, shoes, bool(rng.random() < 0.45), garment, hairdo)


def lit(colour: Colour, light: np.ndarray | float) -> Colour:
    """A colour under a light (float or float [3])."""
    r, g, b = (int(v) for v in np.clip(np.multiply(colour, light), 0, 255))
    return r, g, b


@dataclass(frozen=True)
class Part:
    """One polygon over time.

    Attributes:
        points: float64 [T, N, 2], x to the right and y up, in body heights, from the person's place on the ground.
        fill: its colour.
        depth: float64 [T]; parts of higher depth are drawn later.
        far: bool [T], where it lies on the far side of the body and is drawn darker; None for never.
        shown: bool [T]; None for always.
    """

    points: np.ndarray
    fill: Colour
    depth: np.ndarray
    far: np.ndarray | None = None
    shown: np.ndarray | None = None


@dataclass(frozen=True)
class Figure:
    """A person over T frames: joints (float64 [T, joints, 3], see skeleton.solve) and the polygons."""

    joints: np.ndarray
    parts: list[Part]

    def extents(self) -> np.ndarray:
        """float64 [T, 4]: left, bottom, right, top of all that is drawn, in body heights."""
        low = np.full((len(self.joints), 2), np.inf)
        high = -low
        for part in self.parts:
            shown = np.ones(len(low), bool) if part.shown is None else part.shown
            low[shown] = np.minimum(low, part.points.min(axis=1))[shown]
            high[shown] = np.maximum(high, part.points.max(axis=1))[shown]
        return np.concatenate([low, high], axis=1)


def dress(motion: Motion, body: Body, look: Look) -> Figure:
    """Builds the person's polygons for every frame of a motion."""
    joints = solve(motion, body)
    parts = _legs(motion, joints, body, look) + _trunk(motion, joints, body, look)
    parts += _arms(joints, body, look) + _head(motion, joints, body, look)
    return Figure(joints, parts)


def _legs(motion: Motion, joints: np.ndarray, body: Body, look: Look) -> list[Part]:
    parts = []
    for side in SIDES:
        hip, knee, ankle, toe = (joints[:, JOINT[f"{side}.{j}"]] for j in ("hip", "knee", "ankle", "toe"))
        # A thigh that is raised lies before the shirt, otherwise the shirt hangs over it.
        raised = motion[f"{side}.thigh.flex"] > 45
        depth = np.where(raised, 0.3, 0.0) + 0.1 * np.clip(knee[:, 2], -1, 1)
        far = knee[:, 2] < -0.03
        g = body.girth
        shin = look.bottom if look.garment == "trousers" else look.skin
        thigh = look.bottom if look.garment != "skirt" else look.skin
        parts += [
            Part(_capsule(ankle, toe, 0.027 * g, 0.022 * g), look.shoes, depth, far),
            Part(_capsule(knee, ankle, 0.043 * g, 0.03 * g), shin, depth + 0.01, far),
            Part(_capsule(hip, knee, 0.058 * g, 0.045 * g), thigh, depth + 0.02, far),
        ]
    return parts


def _trunk(motion: Motion, joints: np.ndarray, body: Body, look: Look) -> list[Part]:
    neck, pelvis, head = (joints[:, JOINT[name]] for name in ("neck", "pelvis", "head"))
    up = neck[:, :2] - pelvis[:, :2]
    length = np.linalg.norm(up, axis=1, keepdims=True)
    up = up / np.maximum(length, 1e-6)
    across = np.stack([up[:, 1], -up[:, 0]], axis=1)
    yaw = np.radians(motion["yaw"])[:, None]
    thick = 0.068 * body.girth
    # Half widths of an ellipse seen from the side that faces us.
    shoulders = np.hypot((body.shoulders + 0.03) * np.cos(yaw), thick * np.sin(yaw))
    hips = np.hypot((body.hips + 0.05 * body.girth) * np.cos(yaw), thick * np.sin(yaw))

    def outline(rows: list[tuple[float, np.ndarray]]) -> np.ndarray:
        """Rows of (share of the way from pelvis to neck, half width), bottom to top."""
        right = [pelvis[:, :2] + up * length * at + across * half for at, half in rows]
        left = [pelvis[:, :2] + up * length * at - across * half for at, half in reversed(rows)]
        return np.stack(right + left, axis=1)

    still = np.zeros(len(motion))
    shirt = outline(
        [
            (-0.16, hips * 0.95),
            (0.0, hips),
            (0.45, hips * 0.5 + shoulders * 0.42),
            (0.88, shoulders),
            (1.04, shoulders * 0.55),
        ]
    )
    parts = [
        Part(_capsule(neck, head, 0.032, 0.032), look.skin, still + 0.15),
        Part(shirt, look.top, still + 0.2),
    ]
    if look.garment == "skirt":
        knees = (joints[:, JOINT["l.knee"]] + joints[:, JOINT["r.knee"]])[:, :2] / 2
        spread = np.abs(joints[:, JOINT["l.knee"], 0] - joints[:, JOINT["r.knee"], 0])[:, None] / 2 + 0.06
        down = knees - pelvis[:, :2]
        side = np.stack([-down[:, 1], down[:, 0]], axis=1) / np.maximum(
            np.linalg.norm(down, axis=1, keepdims=True), 1e-6
        )
        hem = pelvis[:, :2] + 0.92 * down
        waist = hips * 1.02
        top = pelvis[:, :2] - 0.12 * down
        skirt = np.stack([top - side * waist, top + side * waist, hem + side * spread, hem - side * spread], axis=1)
        parts.append(Part(skirt, look.bottom, np.where(motion["l.thigh.flex"] > 45, 0.45, 0.18)))
    return parts


def _arms(joints: np.ndarray, body: Body, look: Look) -> list[Part]:
    parts = []
    for side in SIDES:
        shoulder, elbow, hand = (joints[:, JOINT[f"{side}.{j}"]] for j in ("shoulder", "elbow", "hand"))
        behind = (elbow[:, 2] + hand[:, 2]) / 2 < -0.02
        depth = np.where(behind, -0.3, 0.9)
        g = body.girth
        sleeve = look.top if look.long_sleeves else look.skin
        reach = hand + 0.25 * (hand - elbow)
        parts += [
            Part(_capsule(hand, reach, 0.031, 0.026), look.skin, depth, behind),
            Part(_capsule(elbow, hand, 0.032 * g, 0.026 * g), sleeve, depth + 0.01, behind),
            Part(_capsule(shoulder, elbow, 0.042 * g, 0.034 * g), look.top, depth + 0.02, behind),
        ]
    return parts


def _head(motion: Motion, joints: np.ndarray, body: Body, look: Look) -> list[Part]:
    head, neck, r = joints[:, JOINT["head"], :2], joints[:, JOINT["neck"], :2], body.head
    yaw, nod = np.radians(motion["yaw"]), np.radians(motion["nod"] + motion["lean"])
    away = np.cos(yaw) < -0.3
    still = np.zeros(len(motion))

    def at(right: np.ndarray | float, up: np.ndarray | float) -> np.ndarray:
        """A place on the head, in head radii before it nods."""
        right, up = np.broadcast_to(right, still.shape), np.broadcast_to(up, still.shape)
        turn = nod * np.sin(yaw)
        return head + r * np.stack(
            [right * np.cos(turn) + up * np.sin(turn), up * np.cos(turn) - right * np.sin(turn)], axis=1
        )

    ahead = np.sin(yaw)
    crown = look.skin if look.hairdo == "bald" else look.hair
    parts = [Part(_circle(at(-0.14 * ahead, 0.1), 1.0 * r), crown, still + 0.5)]
    parts.append(Part(_circle(at(0.2 * ahead, -0.24), 0.78 * r), look.skin, still + 0.55, shown=~away))
    if look.hairdo == "long":
        hair = _capsule(at(-0.3 * ahead, 0.1), neck - 0.03 * np.stack([ahead, still + 0.6], axis=1), 0.95 * r, 0.75 * r)
        parts.append(Part(hair, look.hair, np.where(np.cos(yaw) > 0.1, -0.4, 0.56)))
    elif look.hairdo == "bun":
        parts.append(Part(_circle(at(-0.75 * ahead, 0.75), 0.42 * r), look.hair, still + 0.49))
    elif look.hairdo == "cap":
        cap = [at(-0.95 * np.ones_like(still) - 0.1 * ahead, 0.25), at(-0.7 - 0.1 * ahead, 0.95), at(-0.1 * ahead, 1.2)]
        cap += [at(0.7 - 0.1 * ahead, 0.95), at(0.95 - 0.1 * ahead, 0.25)]
        parts.append(Part(np.stack(cap, axis=1), look.top, still + 0.6))
        brim = _capsule(at(0.2 * ahead, 0.34), at(1.35 * ahead, 0.3), 0.12 * r, 0.1 * r)
        parts.append(Part(brim, look.bottom, still + 0.61, shown=~away))
    for turn in (-0.42, 0.42):
        eye = _circle(at(0.82 * np.sin(yaw + turn), -0.1), 0.12 * r)
        parts.append(Part(eye, (25, 22, 24), still + 0.57, shown=np.cos(yaw + turn) > 0.15))
    open_ = motion["mouth"]
    shape = (
        _circle(still[:, None] + np.zeros(2), r) * np.stack([0.2 + 0.08 * open_, 0.05 + 0.22 * open_], axis=1)[:, None]
    )
    mouth = shape + at(0.78 * ahead, -0.58)[:, None]
    parts.append(Part(mouth, (120, 40, 44), still + 0.57, shown=np.cos(yaw) > 0.15))
    return parts


_ARC = np.linspace(0, np.pi, 6)
_TURN = np.linspace(0, 2 * np.pi, 14, endpoint=False)


def _circle(centre: np.ndarray, radius: float) -> np.ndarray:
    """[T, 2] -> [T, N, 2]."""
    return centre[:, None] + radius * np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def _capsule(start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float) -> np.ndarray:
    """A limb with round ends between two points ([T, 2 or 3] each) -> [T, N, 2]."""
    start, end = start[:, :2], end[:, :2]
    along = np.arctan2(end[:, 1] - start[:, 1], end[:, 0] - start[:, 0])[:, None]
    round_start, round_end = along + np.pi / 2 + _ARC, along - np.pi / 2 + _ARC
    return np.concatenate(
        [
            start[:, None] + start_radius * np.stack([np.cos(round_start), np.sin(round_start)], axis=-1),
            end[:, None] + end_radius * np.stack([np.cos(round_end), np.sin(round_end)], axis=-1),
        ],
        axis=1,
    )
