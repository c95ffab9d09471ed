"""What two people do with one another, and what one person does with a thing.

All run over time in seconds (float64 [T]); the motions' `x` is in body heights from the middle of the act. Where two
act, the first is the one who acts on the second, and stands on the left if the style faces right.
"""

import numpy as np

from shard_tools.toy.actions import Space, Style, carry, cycle, ramp, stand, walk
from shard_tools.toy.skeleton import SIDES, Motion

HAND_OVER_GAP = 0.6
PUSH_GAP = 0.46
"""How far apart the two stand, in body heights."""

_SHOWN_UNTIL = 0.9


def hand_over(t: np.ndarray, styles: tuple[Style, Style]) -> tuple[Motion, Motion]:
    """The first gives thing after thing to the second, who puts each away."""
    giver, taker = _face_each_other(t, styles, HAND_OVER_GAP)
    p = _hand_over_phase(t, styles[0])
    reach = ramp(p, 0.12, 0.36) * (1 - ramp(p, 0.5, 0.66))
    held = 1 - ramp(p, 0.5, 0.66) + ramp(p, 0.86, 1.0)
    giver["lean"] = 8 * reach
    wait = ramp(p, 0.1, 0.36) * (1 - ramp(p, 0.76, 0.95))
    drawn = ramp(p, 0.52, 0.72)
    away = ramp(p, 0.76, 0.92)
    taker["lean"] = 8 * wait * (1 - drawn)
    for side in SIDES:
        giver.arm(side, held * (12 + 62 * reach), 8 + held * (72 - 66 * reach), abd=6)
        bend = 8 + wait * (1 - drawn) * 2 + drawn * (1 - away) * 72
        taker.arm(side, wait * (74 - 62 * drawn) - 30 * away * (1 - ramp(p, 0.93, 1.0)), bend, abd=6)
    return giver, taker


def hand_over_place(t: np.ndarray, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Where the thing is: in [0, 1] from the giver's hands to the taker's, and whether it is seen (bool), both [T]."""
    p = _hand_over_phase(t, style)
    return ramp(p, 0.42, 0.52), p < _SHOWN_UNTIL


def _hand_over_phase(t: np.ndarray, style: Style) -> np.ndarray:
    return cycle(t, 0.55, style)


def push_person(t: np.ndarray, styles: tuple[Style, Style]) -> tuple[Motion, Motion]:
    """The first shoves the second, who staggers back and comes again."""
    pusher, pushed = _face_each_other(t, styles, PUSH_GAP)
    p = cycle(t, 0.7, styles[0])
    thrust = ramp(p, 0.28, 0.42) * (1 - ramp(p, 0.6, 0.8))
    fly = ramp(p, 0.36, 0.56) * (1 - ramp(p, 0.66, 0.96))
    sign = styles[0].facing
    pusher["lean"] = 16 * thrust
    pusher["x"] = pusher["x"] + sign * 0.06 * thrust
    pushed["lean"] = -26 * fly
    pushed["x"] = pushed["x"] + sign * 0.26 * fly
    for side in SIDES:
        pusher.arm(side, 18 + 64 * thrust, 92 - 86 * thrust)
        pushed.arm(side, 55 * fly, 12 + 20 * fly, abd=9 + 45 * fly)
    pusher.leg(styles[0].side, 38 * thrust, 40 * thrust)
    pusher.leg(styles[0].other, -26 * thrust, 6)
    pushed.leg(styles[1].side, 34 * fly, 14 * fly)
    pushed.leg(styles[1].other, -12 * fly, 20 * fly)
    return pusher, pushed


def _face_each_other(t: np.ndarray, styles: tuple[Style, Style], gap: float) -> tuple[Motion, Motion]:
    still = Space(1.0, 0.0, 0.0)
    first, second = (stand(t, style, still) for style in styles)
    sign = styles[0].facing
    first["yaw"], second["yaw"] = sign * (82 + styles[0].turn / 4), -sign * (82 + styles[1].turn / 4)
    first["x"], second["x"] = -sign * gap / 2, sign * gap / 2
    return first, second


def push_thing(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Walks across once, arms out, behind what it pushes; `style.facing` is the way that the thing goes."""
    m = walk(t, style, Space(space.duration, space.left, space.right, one_way=True))
    m["lean"] = 24
    for side in SIDES:
        m.arm(side, 62, 10)
    return m


def pull_thing(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Walks backwards across once, in front of what it pulls; `style.facing` is the way that the thing goes."""
    m = walk(t, style, Space(space.duration, space.left, space.right, one_way=True))
    m["yaw"] = -m["yaw"]
    m["lean"] = -20
    for side in SIDES:
        m.arm(side, 50, 6)
    return m


def lift_thing(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Raises what both hands hold from the knees to over the head, once."""
    return _raise(t, style, space, ramp(t, 0.12 * space.duration, 0.85 * space.duration))


def lower_thing(t: np.ndarray, style: Style, space: Space) -> Motion:
    """The way back of `lift_thing`."""
    return _raise(t, style, space, 1 - ramp(t, 0.12 * space.duration, 0.85 * space.duration))


def _raise(t: np.ndarray, style: Style, space: Space, up: np.ndarray) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = style.facing * 35 + style.turn
    m["lean"] = 30 * (1 - up) ** 2
    for side in SIDES:
        m.limb(f"{side}.arm", 8 + 150 * up, 6)
        m.limb(f"{side}.fore", 22 + 148 * up, -14)
    return m


def bring_together(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Brings what the two hands hold from far apart to before the chest, once."""
    return _spread(t, style, space, 1 - ramp(t, 0.1 * space.duration, 0.85 * space.duration))


def take_apart(t: np.ndarray, style: Style, space: Space) -> Motion:
    """The way back of `bring_together`."""
    return _spread(t, style, space, ramp(t, 0.1 * space.duration, 0.85 * space.duration))


def _spread(t: np.ndarray, style: Style, space: Space, apart: np.ndarray) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = 0.5 * style.turn
    for side in SIDES:
        m.limb(f"{side}.arm", 52 - 20 * apart, 14 + 66 * apart)
        m.limb(f"{side}.fore", 84 - 30 * apart, -22 + 104 * apart)
    return m


def throw_and_catch(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Throws a thing straight up from both hands and catches it, again and again."""
    m = stand(t, style, space)
    carry(m, t, style)
    m["yaw"] = style.facing * 30 + style.turn
    phase = cycle(t, 0.85, style)
    swing = 34 * (np.exp(-(((phase - 0.1) / 0.08) ** 2)) - np.exp(-(((phase - 0.95) / 0.08) ** 2)))
    m["nod"] = -14 * np.sin(np.pi * np.clip((phase - 0.1) / 0.8, 0, 1))
    for side in SIDES:
        m[f"{side}.fore.flex"] = m[f"{side}.fore.flex"] + swing
    return m


def throw_height(t: np.ndarray, style: Style) -> np.ndarray:
    """How high the thrown thing is over the hands, in body heights, [T]."""
    air = np.clip((cycle(t, 0.85, style) - 0.1) / 0.8, 0, 1)
    return 0.62 * 4 * air * (1 - air)
