"""Puts one action on a scene: the clips of the classification sets."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from shard_tools.toy import interactions
from shard_tools.toy.actions import GESTURES, POSTURES, Posture, Space, Style
from shard_tools.toy.backdrop import Backdrop, paint
from shard_tools.toy.figure import Figure, Look, dress
from shard_tools.toy.props import HANDY, HEAVY, Thing, distractions
from shard_tools.toy.scene import SCALE, Actor, Camera, Layer, Scene
from shard_tools.toy.skeleton import Body, Motion

FPS = 15

SOLO: dict[str, tuple[tuple[str, ...], str | None]] = {
    **{name: ((name,), None) for name in POSTURES},
    **{name: (("stand", "stand", "sit"), name) for name in GESTURES},
}
"""Action -> (the postures it is seen in, gesture)."""

PAIRS = {
    "hand over": (interactions.hand_over, interactions.HAND_OVER_GAP),
    "push person": (interactions.push_person, interactions.PUSH_GAP),
}
WITH_THINGS: dict[str, tuple[Posture, int]] = {
    "push thing right": (interactions.push_thing, 1),
    "push thing left": (interactions.push_thing, -1),
    "pull thing right": (interactions.pull_thing, 1),
    "pull thing left": (interactions.pull_thing, -1),
    "lift thing": (interactions.lift_thing, 0),
    "lower thing": (interactions.lower_thing, 0),
    "bring together": (interactions.bring_together, 0),
    "take apart": (interactions.take_apart, 0),
    "throw and catch": (interactions.throw_and_catch, 0),
}
"""Action -> (the motion, the way it goes: 1 right, -1 left, 0 either)."""

ACTIONS = (*SOLO, *PAIRS, *WITH_THINGS)


def draw_things(action: str, rng: np.random.Generator) -> tuple[Thing, ...]:
    """What an action is done with: none, one or two things."""
    if action.endswith(("right", "left")):
        return (Thing.draw(rng, HEAVY),)
    if action in ("bring together", "take apart"):
        return Thing.draw(rng, HANDY), Thing.draw(rng, HANDY)
    return (Thing.draw(rng, HANDY),) if action in (*WITH_THINGS, "hand over", "carry") else ()


def stage(
    action: str, frames: int, rng: np.random.Generator, size: tuple[int, int], things: tuple[Thing, ...]
) -> Scene:
    """Stages one of ACTIONS for `frames` frames of `size` (width, height) pixels at FPS, with `draw_things(action)`."""
    t = np.arange(frames) / FPS
    width, height = SCALE * size[0], SCALE * size[1]
    ground = rng.uniform(0.84, 0.95) * height
    backdrop = paint(rng, width, height, ground)
    tall = min(rng.uniform(0.52, 0.84) * height, (0.5 if action in PAIRS else 0.62) * width)
    # Half a body on either side stays for the arms.
    room = max((width / tall - 0.7) / 2, 0.2)
    space = Space(frames / FPS, room, room, one_way=bool(rng.random() < 0.4))
    motions, styles = _motions(action, t, rng, space)
    figures = [dress(motion, Body.draw(rng), Look.draw(rng, backdrop.behind, backdrop.light)) for motion in motions]
    actors = _place(figures, rng, tall, ground, (width, height), _room_for_things(action, styles[0]))
    layers = _thing_layers(action, t, rng, actors, styles, backdrop, things)
    layers += distractions(rng, t, (width, height), ground, backdrop)
    if rng.random() < 0.25:
        actors = [_passer_by(t, rng, backdrop, actors[0], width), *actors]
    exposure = None
    if rng.random() < 0.3:
        exposure = 1 + rng.uniform(0.03, 0.12) * np.sin(t * rng.uniform(1, 6) + rng.uniform(0, 7))
    camera = Camera.handheld(rng, t, width, height)
    return Scene(size, backdrop, camera, actors, layers, exposure)


def held(actor: Actor, thing: Thing, light: np.ndarray, shown: np.ndarray | None = None, size: float = 0.2) -> Layer:
    """A thing in both hands of a person."""
    return thing.layer(actor.joint("l.hand", "r.hand"), size * actor.height, actor.ground + 0.5, light, shown)


def handed(
    giver: Actor,
    taker: Actor,
    t: np.ndarray,
    style: Style,
    thing: Thing,
    light: np.ndarray,
    during: np.ndarray | bool = True,
) -> Layer:
    """What goes from hand to hand in interactions.hand_over."""
    along, seen = interactions.hand_over_place(t, style)
    hands = [actor.joint("l.hand", "r.hand") for actor in (giver, taker)]
    centre = hands[0] * (1 - along)[:, None] + hands[1] * along[:, None]
    order = max(giver.ground, taker.ground) + 0.5
    return thing.layer(centre, 0.2 * giver.height, order, light, seen & during)


def stool(actor: Actor, x: float, light: np.ndarray, thing: Thing) -> Layer:
    """A stool for a person who sits at `x` canvas pixels."""
    size = 0.42 * actor.height
    centre = np.stack([np.full(len(size), x), actor.ground - size / 2], axis=1)
    return thing.layer(centre, size, actor.ground - 0.5, light)


def _motions(action: str, t: np.ndarray, rng: np.random.Generator, space: Space) -> tuple[list[Motion], list[Style]]:
    first, second = Style.draw(rng), Style.draw(rng)
    if action in PAIRS:
        return list(PAIRS[action][0](t, (first, second))), [first, second]
    if action in WITH_THINGS:
        motion, way = WITH_THINGS[action]
        first = first.towards(way or first.facing)
        return [motion(t, first, space)], [first]
    postures, gesture = SOLO[action]
    posture = postures[rng.integers(len(postures))]
    motion_ = POSTURES[posture](t, first, space)
    if gesture:
        GESTURES[gesture](motion_, t, first)
    return [motion_], [first]


def _room_for_things(action: str, style: Style) -> tuple[float, float, float]:
    """How much to keep free left of, right of and above the people, in body heights."""
    if action == "throw and catch":
        return 0.0, 0.0, 0.25
    if not action.endswith(("right", "left")):
        return 0.0, 0.0, 0.0
    # A heavy thing lies before the one who pushes it, behind the way of one who pulls it.
    ahead = 0.45 * style.facing * (1 if action.startswith("push") else -1)
    return max(-ahead, 0.0), max(ahead, 0.0), 0.0


def _place(
    figures: list[Figure],
    rng: np.random.Generator,
    tall: float,
    ground: float,
    size: tuple[int, int],
    free: tuple[float, float, float],
) -> list[Actor]:
    """Makes the people as tall as fits, up to `tall` pixels, and puts them where all that they do is seen."""
    width, height = size
    extents = np.concatenate([figure.extents() for figure in figures])
    left, right, top = extents[:, 0].min() - free[0], extents[:, 2].max() + free[1], extents[:, 3].max() + free[2]
    tall = max(min(tall, 0.97 * width / (right - left), (ground - 3) / top), 0.42 * height)
    low, high = 3 - left * tall, width - 3 - right * tall
    x = rng.uniform(low, high) if low < high else (low + high) / 2
    growth = rng.uniform(-0.05, 0.05) if rng.random() < 0.3 else 0.0
    heights = tall * (1 + growth * np.linspace(-1, 1, len(figures[0].joints)))
    return [Actor(figure, x, ground + i, heights) for i, figure in enumerate(figures)]


def _thing_layers(
    action: str,
    t: np.ndarray,
    rng: np.random.Generator,
    actors: list[Actor],
    styles: list[Style],
    backdrop: Backdrop,
    things: tuple[Thing, ...],
) -> list[Layer]:
    actor, style, light = actors[0], styles[0], backdrop.light
    hips = actor.joint("pelvis")
    seated = action in ("sit", *GESTURES) and np.all(actor.ground - hips[:, 1] < 0.36 * actor.height)
    layers = [stool(actor, float(hips[:, 0].mean()), light, Thing.draw(rng, ("stool",)))] if seated else []
    front = actor.ground + 0.5
    if action == "hand over":
        layers.append(handed(actors[0], actors[1], t, style, things[0], light))
    elif action in ("carry", "lift thing", "lower thing"):
        layers.append(held(actor, things[0], light, size=rng.uniform(0.18, 0.26)))
    elif action == "throw and catch":
        centre = actor.joint("l.hand", "r.hand")
        centre[:, 1] -= interactions.throw_height(t, style) * actor.height
        layers.append(things[0].layer(centre, rng.uniform(0.14, 0.2) * actor.height, front, light))
    elif len(things) == 2:
        hands = zip(things, ("l.hand", "r.hand"), strict=True)
        layers += [thing.layer(actor.joint(hand), 0.15 * actor.height, front, light) for thing, hand in hands]
    elif things:
        pulled = action.startswith("pull")
        layers.append(_on_the_ground(things[0], actor, style, rng.uniform(0.34, 0.5), light, pulled))
    return layers


def _on_the_ground(thing: Thing, actor: Actor, style: Style, size: float, light: np.ndarray, pulled: bool) -> Layer:
    """A heavy thing before the hands of one who pushes it, or pulls it and so faces where it comes from."""
    reach = style.facing * (-1 if pulled else 1) * size / 2 * actor.height
    x = actor.joint("l.hand", "r.hand")[:, 0] + reach
    y = actor.ground - size / 2 * actor.height
    return thing.layer(np.stack([x, y], axis=1), size * actor.height, actor.ground + 0.5, light)


def _passer_by(t: np.ndarray, rng: np.random.Generator, backdrop: Backdrop, front: Actor, width: int) -> Actor:
    """Someone who stands or walks farther off and has no part in the action."""
    style = Style.draw(rng)
    posture: Callable[[np.ndarray, Style, Space], Motion] = POSTURES["walk" if rng.random() < 0.25 else "stand"]
    motion = posture(t, replace(style, rate=0.6), Space(len(t) / FPS, 0.5, 0.5))
    figure = dress(motion, Body.draw(rng), Look.draw(rng, backdrop.behind, 0.82 * backdrop.light))
    far = rng.uniform(0.5, 0.7)
    away = front.x + rng.choice((-1, 1)) * rng.uniform(0.3, 0.5) * width
    return Actor(
        figure, float(np.clip(away % width, 8, width - 8)), front.ground - 0.12 * width * far, far * front.height
    )
