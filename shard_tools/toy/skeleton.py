"""The articulated body: channels of motion over time, proportions, and joints in space by forward kinematics.

Lengths are in body heights (a standing adult is about 1), angles in degrees. The body frame is x to the person's left,
y up, z forward; a person of yaw 0 faces the viewer, and of yaw 90 faces the right edge of the picture. The direction of
a limb is (flex, abd): both 0 hang straight down, flex swings it forward, abd outwards. Limb directions belong to the
body frame, not to the parent limb, so an action can be read off its numbers.
"""

from dataclasses import dataclass

import numpy as np

SIDES = ("l", "r")
LIMBS = ("arm", "fore", "thigh", "shin")
CHANNELS = (
    *("x", "lift", "yaw", "lean", "tilt", "nod", "mouth"),
    *(f"{side}.{limb}.{angle}" for side in SIDES for limb in LIMBS for angle in ("flex", "abd")),
)
_COLUMN = {name: i for i, name in enumerate(CHANNELS)}

JOINTS = (
    *("pelvis", "neck", "head"),
    *(f"{side}.{j}" for side in SIDES for j in ("shoulder", "elbow", "hand", "hip", "knee", "ankle", "toe")),
)
JOINT = {name: i for i, name in enumerate(JOINTS)}


class Motion:
    """One person's channels over T frames: `values` is float64 [T, channels], read and set by channel name.

    `x` (way along the picture) and `lift` (height of the lowest point over the ground) are in body heights, `mouth` is
    how far it is open in [0, 1], everything else is in degrees.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @classmethod
    def still(cls, frames: int) -> "Motion":
        return cls(np.zeros((frames, len(CHANNELS))))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, channel: str) -> np.ndarray:
        return self.values[:, _COLUMN[channel]]

    def __setitem__(self, channel: str, value: np.ndarray | float) -> None:
        self.values[:, _COLUMN[channel]] = value

    def limb(self, name: str, flex: np.ndarray | float, abd: np.ndarray | float = 0.0) -> None:
        """Sets both angles of a limb, such as `l.thigh`."""
        self[f"{name}.flex"] = flex
        self[f"{name}.abd"] = abd

    def arm(self, side: str, flex: np.ndarray | float, bend: np.ndarray | float, abd: np.ndarray | float = 8.0) -> None:
        """An arm in its forward plane: the upper arm at `flex`, the forearm `bend` further."""
        self.limb(f"{side}.arm", flex, abd)
        self.limb(f"{side}.fore", flex + bend, abd)

    def leg(self, side: str, flex: np.ndarray | float, bend: np.ndarray | float, abd: np.ndarray | float = 3.0) -> None:
        """A leg in its forward plane: the thigh at `flex`, the shin bent back by `bend`."""
        self.limb(f"{side}.thigh", flex, abd)
        self.limb(f"{side}.shin", flex - bend, abd)


@dataclass(frozen=True)
class Body:
    """Proportions, in body heights; radii are half thicknesses."""

    head: float
    neck: float
    torso: float
    shoulders: float
    hips: float
    arm: float
    fore: float
    thigh: float
    shin: float
    foot: float
    girth: float
    """Scale of all limb thicknesses."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Body":
        """Draws a build: tall or short legs, broad or narrow, slim or stout."""
        legs, broad, girth = rng.uniform(0.94, 1.06), rng.uniform(0.88, 1.12), rng.uniform(0.85, 1.2)
        return cls(
            head=rng.uniform(0.078, 0.092),
            neck=0.035,
            torso=0.29 * (2 - legs),
            shoulders=0.105 * broad,
            hips=0.055 * (0.5 + girth / 2),
            arm=0.155,
            fore=0.15,
            thigh=0.235 * legs,
            shin=0.225 * legs,
            foot=0.075,
            girth=girth,
        )

    @property
    def hip_height(self) -> float:
        return self.thigh + self.shin


def solve(motion: Motion, body: Body) -> np.ndarray:
    """Puts the joints in space.

    Returns:
        float64 [T, joints, 3], in body heights, ordered as JOINTS: x to the right of the picture, y up from the ground
        under the person, z towards the viewer. The lowest point of the body is at height `lift`.
    """
    frames = len(motion)
    joints = np.zeros((frames, len(JOINTS), 3))

    def put(name: str, start: str, direction: np.ndarray, length: float) -> None:
        joints[:, JOINT[name]] = joints[:, JOINT[start]] + length * direction

    tilt = np.radians(motion["tilt"])
    across = np.stack([np.cos(tilt), -np.sin(tilt), np.zeros(frames)], axis=-1)
    level = np.tile([1.0, 0.0, 0.0], (frames, 1))
    put("neck", "pelvis", _upwards(motion["lean"], motion["tilt"]), body.torso)
    put("head", "neck", _upwards(motion["lean"] + motion["nod"], motion["tilt"]), body.neck + body.head)
    for side, sign in (("l", 1.0), ("r", -1.0)):
        put(f"{side}.shoulder", "neck", across * sign, body.shoulders)
        put(f"{side}.hip", "pelvis", level * sign, body.hips)
        chain = [
            ("elbow", "shoulder", "arm", body.arm),
            ("hand", "elbow", "fore", body.fore),
            ("knee", "hip", "thigh", body.thigh),
            ("ankle", "knee", "shin", body.shin),
        ]
        for joint, start, limb, length in chain:
            direction = _limb_direction(motion[f"{side}.{limb}.flex"], motion[f"{side}.{limb}.abd"], sign)
            put(f"{side}.{joint}", f"{side}.{start}", direction, length)
        # The foot is square to the shin.
        put(f"{side}.toe", f"{side}.ankle", _limb_direction(motion[f"{side}.shin.flex"] + 90, 0.0, sign), body.foot)

    yaw = np.radians(motion["yaw"])[:, None]
    x, z = joints[..., 0].copy(), joints[..., 2].copy()
    joints[..., 0] = x * np.cos(yaw) + z * np.sin(yaw) + motion["x"][:, None]
    joints[..., 2] = z * np.cos(yaw) - x * np.sin(yaw)
    joints[..., 1] += (motion["lift"] - _lowest(joints, body))[:, None]
    return joints


def _lowest(joints: np.ndarray, body: Body) -> np.ndarray:
    """Height of the lowest point of the body, float64 [T]."""
    sole = 0.024 * body.girth
    under = {"l.ankle": sole, "r.ankle": sole, "l.toe": sole, "r.toe": sole, "pelvis": 0.08, "head": body.head}
    return np.min([joints[:, JOINT[name], 1] - radius for name, radius in under.items()], axis=0)


def _upwards(lean: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    lean, tilt = np.radians(lean), np.radians(tilt)
    return np.stack([np.sin(tilt), np.cos(tilt) * np.cos(lean), np.cos(tilt) * np.sin(lean)], axis=-1)


def _limb_direction(flex: np.ndarray, abd: np.ndarray | float, sign: float) -> np.ndarray:
    flex, abd = np.radians(flex), np.broadcast_to(np.radians(abd), np.shape(flex))
    return np.stack([sign * np.sin(abd), -np.cos(abd) * np.cos(flex), np.cos(abd) * np.sin(flex)], axis=-1)
