"""Stages the shots of an AVA-like movie, and says from the drawing who is where and does what at each keyframe."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from shard_tools.toy.actions import GESTURES, POSTURES, Space, Style, ramp
from shard_tools.toy.backdrop import paint
from shard_tools.toy.figure import Look, dress
from shard_tools.toy.movie_plan import MoviePlan, Role, Shot
from shard_tools.toy.props import HANDY, Thing, distractions
from shard_tools.toy.scene import SCALE, Actor, Camera, Layer, Scene
from shard_tools.toy.skeleton import Body, Motion
from shard_tools.toy.staging import FPS, PAIRS, handed, held, stool

MIN_VISIBLE = 0.3
"""A person of whom less than this share is inside the frame is not annotated."""


@dataclass(frozen=True)
class PersonAt:
    """A person at a keyframe: second into the file, box (x1, y1, x2, y2) in [0, 1], AVA ids, and an id in the movie."""

    second: int
    box: tuple[float, float, float, float]
    ids: tuple[int, ...]
    person: int


@dataclass(frozen=True)
class _Part:
    """One role of one person, with the seconds of the shot that it fills."""

    role: Role
    style: Style
    start: float
    end: float
    thing: Thing


class Movie:
    """A staged movie: the same rng state gives the same movie."""

    def __init__(self, plan: MoviePlan, rng: np.random.Generator) -> None:
        self._plan = plan
        self._scenes = [_stage(shot, plan.size, rng) for shot in plan.shots]

    def frames(self) -> Iterator[Image.Image]:
        for scene in self._scenes:
            yield from scene.frames()

    def people(self) -> list[PersonAt]:
        """Everyone at every keyframe, from the drawn figures."""
        found = []
        first = 0
        for shot, scene in zip(self._plan.shots, self._scenes, strict=True):
            boxes = scene.boxes()
            for second in self._plan.keyframes:
                if not shot.start <= second < shot.end:
                    continue
                for person, box in enumerate(boxes[second * FPS - round(shot.start * FPS)]):
                    clipped = np.clip(box, 0, 1)
                    if _area(clipped) < MIN_VISIBLE * _area(box):
                        continue
                    x1, y1, x2, y2 = (float(v) for v in clipped)
                    role = shot.roles[person][int(second > shot.turns[person])]
                    found.append(PersonAt(second, (x1, y1, x2, y2), role.ids, first + person))
            first += len(shot.roles)
        return sorted(found, key=lambda at: (at.second, at.person))


def _area(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def _stage(shot: Shot, size: tuple[int, int], rng: np.random.Generator) -> Scene:
    frames = round(shot.end * FPS) - round(shot.start * FPS)
    t = np.arange(frames) / FPS
    width, height = SCALE * size[0], SCALE * size[1]
    ground = rng.uniform(0.86, 0.94) * height
    backdrop = paint(rng, width, height, ground)
    tall = rng.uniform(0.58, 0.76) * height
    people = len(shot.roles)
    homes = (np.arange(people) + 0.5 + rng.uniform(-0.15, 0.15, people)) / people * width
    gap = _gap(shot) * tall
    if gap:
        middle = rng.uniform(0.25, 0.4) * width if people > 2 else rng.uniform(0.35, 0.65) * width
        facing = int(rng.choice((-1, 1)))
        homes[:2] = middle - facing * gap / 2, middle + facing * gap / 2
    actors, layers = [], []
    casts = [_parts(shot, person, rng) for person in range(people)]
    if gap:
        casts[:2] = [_facing(casts[0], facing), _facing(casts[1], -facing)]
    for person, parts in enumerate(casts):
        tallness = tall * (1 if gap and person < 2 else rng.uniform(0.9, 1.08))
        partner = casts[1 - person] if person < 2 else parts
        aside = -0.35 * parts[0].style.facing if gap and person < 2 else 0.0
        motion = _motion(t, parts, partner, homes[person] / tallness, width / tallness, aside)
        figure = dress(motion, Body.draw(rng), Look.draw(rng, backdrop.behind, backdrop.light))
        depth = rng.uniform(-0.03, 0.02) * height if person > 1 else person * 2.0
        actors.append(Actor(figure, float(homes[person]), ground + depth, np.full(frames, tallness)))
        layers += _things(t, parts, actors[-1], backdrop.light, rng)
    for first, second in zip(casts[0], casts[1], strict=True):
        if first.role.episode.posture == "hand over":
            during = (t >= first.start) & (t < first.end)
            layers.append(
                handed(actors[0], actors[1], t - first.start, first.style, second.thing, backdrop.light, during)
            )
    layers += distractions(rng, t, (width, height), ground, backdrop)
    exposure = None
    if rng.random() < 0.3:
        exposure = 1 + rng.uniform(0.03, 0.1) * np.sin(t * rng.uniform(0.5, 3))
    camera = Camera.handheld(rng, t, width, height)
    return Scene(size, backdrop, camera, actors, layers, exposure)


def _gap(shot: Shot) -> float:
    """How far apart two who act together stand, in body heights; 0 where nobody does."""
    gaps = [PAIRS[role.episode.posture][1] for role in shot.roles[0] if role.episode.partner_ids]
    return float(np.mean(gaps)) if gaps else 0.0


def _parts(shot: Shot, person: int, rng: np.random.Generator) -> list[_Part]:
    turn, end = shot.turns[person] - shot.start, shot.end - shot.start
    times = ((0.0, turn), (turn, end))
    return [
        _Part(role, Style.draw(rng), *time, Thing.draw(rng, HANDY))
        for role, time in zip(shot.roles[person], times, strict=True)
    ]


def _facing(parts: list[_Part], facing: int) -> list[_Part]:
    return [replace(part, style=part.style.towards(facing)) for part in parts]


def _motion(t: np.ndarray, parts: list[_Part], partner: list[_Part], home: float, width: float, aside: float) -> Motion:
    """Both roles one after the other, blended for half a second.

    `home` and `width` (of the picture) are in body heights, as is `aside`: how far one of a pair steps aside for what
    is not done together.
    """
    values = np.zeros_like(Motion.still(len(t)).values)
    for i, (part, other) in enumerate(zip(parts, partner, strict=True)):
        motion = _act(t - part.start, part, other, home, width, aside)
        turn = parts[0].end
        later = ramp(t, turn - 0.25, turn + 0.25)
        values += motion.values * (later if i else 1 - later)[:, None]
    return Motion(values)


def _act(t: np.ndarray, part: _Part, partner: _Part, home: float, width: float, aside: float) -> Motion:
    episode = part.role.episode
    if episode.partner_ids:
        styles = (part.style, partner.style) if part.role.acts else (partner.style, part.style)
        motion = PAIRS[episode.posture][0](t, styles)[0 if part.role.acts else 1]
        # From the middle of the act to this person's own place.
        motion["x"] = motion["x"] + part.style.facing * PAIRS[episode.posture][1] / 2
        return motion
    reach = 1.6
    space = Space(part.end - part.start, min(max(home - 0.3, 0.1), reach), min(max(width - home - 0.3, 0.1), reach))
    # Out to where there is more room.
    style = part.style
    if episode.posture in ("walk", "run") and min(space.left, space.right) < 0.7:
        style = style.towards(1 if space.right > space.left else -1)
    motion = POSTURES[episode.posture](t, style, space)
    if episode.gesture:
        GESTURES[episode.gesture](motion, t, style)
    motion["x"] = motion["x"] + aside
    return motion


def _things(
    t: np.ndarray, parts: list[_Part], actor: Actor, light: np.ndarray, rng: np.random.Generator
) -> list[Layer]:
    layers = []
    for part in parts:
        if part.role.episode.posture == "sit":
            # It stands there throughout, so that a stool is no sure sign of sitting.
            seat = actor.joint("pelvis")[(t >= part.start) & (t < part.end), 0]
            layers.append(stool(actor, float(np.median(seat)), light, Thing.draw(rng, ("stool",))))
        if part.role.episode.gesture == "carry":
            during = (t >= part.start) & (t < part.end)
            layers.append(held(actor, part.thing, light, during, size=0.24))
    return layers
