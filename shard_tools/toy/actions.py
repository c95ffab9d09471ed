"""What one person does: postures (the whole body) and gestures (arms and face, laid over a posture).

A posture is a function of time in seconds (float64 [T]), `Style` and `Space`; it may be asked for times outside
0..duration. Angles are in degrees, lengths in body heights; see skeleton.py for their sense.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shard_tools.toy.skeleton import SIDES, Motion


@dataclass(frozen=True)
class Style:
    """How this person does it this time."""

    rate: float
    """Scale of speed, about 1."""
    size: float
    """Scale of swing, about 1."""
    side: str
    """The arm or leg that is used where one is: "l" or "r"."""
    facing: int
    """1 acts towards the right of the picture, -1 towards the left."""
    turn: float
    """Degrees off the posture's plain yaw."""
    phase: float
    """Where in the cycle it starts, in [0, 1)."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Style":
        return cls(
            rate=rng.uniform(0.88, 1.15),
            size=rng.uniform(0.88, 1.12),
            side=SIDES[rng.integers(2)],
            facing=int(rng.choice((-1, 1))),
            turn=rng.uniform(-20, 20),
            phase=rng.uniform(),
        )

    def towards(self, facing: int) -> "Style":
        """The same style, facing the way of `facing` (1 or -1)."""
        return replace(self, facing=facing)

    @property
    def other(self) -> str:
        return "r" if self.side == "l" else "l"


@dataclass(frozen=True)
class Space:
    """The stretch of time (seconds) that the action fills, and how far the person may go, in body heights."""

    duration: float
    left: float
    right: float
    one_way: bool = False
    """Whether a walk crosses the space once; otherwise it goes out and comes home."""


Posture = Callable[[np.ndarray, Style, Space], Motion]
Gesture = Callable[[Motion, np.ndarray, Style], None]


def wave(
    t: np.ndarray, hertz: float, style: Style, low: float = -1.0, high: float = 1.0, shift: float = 0.0
) -> np.ndarray:
    """A sine between `low` and `high` at the style's rate; `shift` in cycles."""
    sine = np.sin(2 * np.pi * (hertz * style.rate * t + style.phase + shift))
    return low + (high - low) * (sine + 1) / 2


def cycle(t: np.ndarray, hertz: float, style: Style) -> np.ndarray:
    """Runs from 0 to 1, again and again."""
    return (hertz * style.rate * t + style.phase) % 1.0


def ramp(t: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before `start`, 1 after `end`, smooth between."""
    s = np.clip((t - start) / (end - start), 0, 1)
    return s * s * (3 - 2 * s)


def stand(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = Motion.still(len(t))
    m["yaw"] = style.turn * 1.5
    sway = wave(t, 0.3, style)
    m["tilt"] = 1.5 * sway
    m["nod"] = 4 * wave(t, 0.23, style)
    for side in SIDES:
        m.arm(side, 2 * sway, 12, abd=9)
        m.leg(side, 0, 2)
    return m


def walk(t: np.ndarray, style: Style, space: Space) -> Motion:
    return _stride(t, style, space, speed=0.62, swing=25, knee=45, elbow=18, lean=3, bounce=0.0)


def run(t: np.ndarray, style: Style, space: Space) -> Motion:
    return _stride(t, style, space, speed=1.35, swing=46, knee=85, elbow=85, lean=17, bounce=0.05)


def _stride(
    t: np.ndarray,
    style: Style,
    space: Space,
    speed: float,
    swing: float,
    knee: float,
    elbow: float,
    lean: float,
    bounce: float,
) -> Motion:
    m = Motion.still(len(t))
    speed *= style.rate
    x, heading = _one_way(t, style, space, speed) if space.one_way else _there_and_back(t, style, space, speed)
    m["x"] = x
    m["yaw"] = (80 + 0.4 * style.turn) * heading
    m["lean"] = lean
    swing *= style.size
    steps = 2 * np.pi * (speed / 0.75 * t + style.phase)
    m["lift"] = bounce * np.abs(np.sin(steps))
    for side, sign in (("l", 1), ("r", -1)):
        m.arm(side, -0.9 * sign * swing * np.sin(steps), elbow)
        m.leg(side, lean / 2 + sign * swing * np.sin(steps), 6 + knee * np.clip(sign * np.cos(steps), 0, 1))
    return m


def _there_and_back(t: np.ndarray, style: Style, space: Space, speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Way from home and heading in [-1, 1] for round trips that end at home."""
    room = max(space.right if style.facing > 0 else space.left, 0.1)
    way = speed * space.duration / 2
    trips = int(np.ceil(way / room))
    trip = np.clip(t / space.duration, 0, 1 - 1e-9) * trips % 1.0
    x = style.facing * way / trips * (1 - np.abs(1 - 2 * trip))
    heading = style.facing * np.clip(5 * np.sin(2 * np.pi * trip) * np.sqrt(way / trips), -1, 1)
    return x, heading


def _one_way(t: np.ndarray, style: Style, space: Space, speed: float) -> tuple[np.ndarray, np.ndarray]:
    way = min(speed * space.duration, space.left + space.right)
    middle = (space.right - space.left) / 2
    return middle + style.facing * way * (t / space.duration - 0.5), np.full(len(t), float(style.facing))


def jump(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = stand(t, style, space)
    phase = cycle(t, 0.95, style)
    air = np.clip((phase - 0.35) / 0.5, 0, 1)
    flight = 4 * air * (1 - air)
    ready = np.exp(-(((phase - 0.22) / 0.1) ** 2)) + np.exp(-(((phase - 0.92) / 0.06) ** 2))
    m["lift"] = 0.3 * style.size * flight
    m["lean"] = 28 * ready
    arms = -35 * ready + 165 * np.sqrt(flight)
    for side in SIDES:
        m.arm(side, arms, 15, abd=18)
        m.leg(side, 55 * ready + 22 * flight, 85 * ready + 40 * flight, abd=6)
    return m


def jumping_jack(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = 0.6 * style.turn
    open_ = wave(t, 1.05, style, 0, 1)
    m["lift"] = 0.05 * np.sin(np.pi * open_)
    for side in SIDES:
        m.limb(f"{side}.arm", 0, 15 + 140 * open_)
        m.limb(f"{side}.fore", 0, 12 + 158 * open_)
        m.limb(f"{side}.thigh", 0, 3 + 27 * open_)
        m.limb(f"{side}.shin", 0, 3 + 27 * open_)
    return m


def spin(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = 360 * style.facing * (0.75 * style.rate * t + style.phase)
    for side in SIDES:
        m.limb(f"{side}.arm", 0, 80 * style.size)
        m.limb(f"{side}.fore", 0, 88 * style.size)
        m.leg(side, 0, 8, abd=8)
    return m


def crouch(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Down within half a second, and low from then on."""
    return _squat(t, style, space, 0.92 + 0.08 * wave(t, 0.5, style))


def squat(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Knee bends, arms forward."""
    return _squat(t, style, space, wave(t, 0.75, style, 0.02, 0.98))


def _squat(t: np.ndarray, style: Style, space: Space, down: np.ndarray) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = style.facing * 55 + style.turn
    m["lean"] = 32 * down
    for side in SIDES:
        m.arm(side, 8 + 62 * down, 12 + 10 * down)
        m.leg(side, 112 * down, 150 * down, abd=3 + 10 * down)
    return m


def sit(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = style.facing * 48 + style.turn
    m["lean"] = 4 + 3 * wave(t, 0.3, style)
    for side in SIDES:
        m.arm(side, 22, 48, abd=10)
        m.leg(side, 86, 88, abd=6)
    return m


def bend(t: np.ndarray, style: Style, space: Space) -> Motion:
    """Bows from the waist, deep, again and again."""
    m = stand(t, style, space)
    m["yaw"] = style.facing * 72 + style.turn
    down = np.clip(wave(t, 0.5, style, -0.25, 1.25), 0, 1)
    m["lean"] = 88 * down * style.size
    m["nod"] = 22 * down
    for side in SIDES:
        m.arm(side, 12 * down, 12)
        m.leg(side, -8 * down, 4)
    return m


def kick(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = stand(t, style, space)
    m["yaw"] = style.facing * 80 + 0.5 * style.turn
    phase = cycle(t, 0.95, style)
    out = np.exp(-(((phase - 0.5) / 0.13) ** 2))
    back = np.exp(-(((phase - 0.2) / 0.12) ** 2))
    m["lean"] = -20 * out + 8 * back
    for side in SIDES:
        m.arm(side, 45, 95)
        m.leg(side, 4, 10)
    m.leg(style.side, -28 * back + 98 * out * style.size, 65 * back + 8)
    m.arm(style.side, 25 - 60 * out, 60)
    return m


def dance(t: np.ndarray, style: Style, space: Space) -> Motion:
    m = stand(t, style, space)
    beat = wave(t, 1.0, style)
    m["tilt"] = 13 * beat * style.size
    m["yaw"] = style.turn + 30 * wave(t, 0.5, style)
    m["x"] = 0.07 * beat
    for side, sign in (("l", 1), ("r", -1)):
        up = 0.5 + 0.5 * sign * beat
        m.limb(f"{side}.arm", 0, 42 + 95 * up)
        m.limb(f"{side}.fore", 0, 95 + 95 * up)
        m.leg(side, 20 * (1 - up), 38 * (1 - up), abd=11)
    return m


def talk(m: Motion, t: np.ndarray, style: Style) -> None:
    m["mouth"] = np.clip(wave(t, 2.6, style) + 0.4 * wave(t, 4.1, style), 0, 1)
    m["nod"] = m["nod"] + 7 * wave(t, 1.1, style)
    m.limb(f"{style.side}.arm", 28, 14)
    m.limb(f"{style.side}.fore", 95 + 28 * wave(t, 1.5, style), 18 + 30 * wave(t, 1.5, style, shift=0.2))


def wave_hand(m: Motion, t: np.ndarray, style: Style) -> None:
    m["yaw"] = 0.4 * m["yaw"]
    m.limb(f"{style.side}.arm", 0, 118 * style.size)
    m.limb(f"{style.side}.fore", 0, 176 + 34 * wave(t, 1.7, style))


def clap(m: Motion, t: np.ndarray, style: Style) -> None:
    m["yaw"] = 0.5 * m["yaw"]
    apart = wave(t, 1.9, style, 0, 1)
    for side in SIDES:
        m.limb(f"{side}.arm", 38, 26 + 8 * apart)
        m.limb(f"{side}.fore", 100, -44 + 78 * apart)


def carry(m: Motion, t: np.ndarray, style: Style) -> None:
    """Both hands hold something before the belly."""
    for side in SIDES:
        m.limb(f"{side}.arm", 24, 12)
        m.limb(f"{side}.fore", 88 + 3 * wave(t, 0.7, style), -22)


POSTURES: dict[str, Posture] = {
    "stand": stand,
    "walk": walk,
    "run": run,
    "jump": jump,
    "jumping jack": jumping_jack,
    "spin": spin,
    "crouch": crouch,
    "squat": squat,
    "sit": sit,
    "bend": bend,
    "kick": kick,
    "dance": dance,
}
GESTURES: dict[str, Gesture] = {"talk": talk, "wave": wave_hand, "clap": clap, "carry": carry}
