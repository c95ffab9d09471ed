"""The toy world's classes: each dataset's own names for what people do, as the originals name them."""

from dataclasses import dataclass

KINETICS: dict[str, str] = {
    "bowing from the waist": "bend",
    "clapping": "clap",
    "dancing on the spot": "dance",
    "high kick": "kick",
    "jogging": "run",
    "jumping in place": "jump",
    "jumping jacks": "jumping jack",
    "passing object (to person)": "hand over",
    "pushing person (not wheelchair)": "push person",
    "spinning around": "spin",
    "squat": "squat",
    "waving hand": "wave",
}
"""Class name -> staging.ACTIONS. As in the original, in alphabetical order, with spaces and brackets."""

MOMENTS: dict[str, str] = {
    "clapping": "clap",
    "bowing": "bend",
    "jumping": "jump",
    "crouching": "crouch",
    "handing+over": "hand over",
    "walking": "walk",
    "waving": "wave",
    "dancing": "dance",
    "pushing": "push person",
    "running": "run",
}
"""Class name -> staging.ACTIONS, in the order of their indices, which is not alphabetical."""

SSV2: dict[str, str] = {
    "Moving [something] and [something] away from each other": "take apart",
    "Moving [something] and [something] closer to each other": "bring together",
    "Moving [something] down": "lower thing",
    "Moving [something] up": "lift thing",
    "Pulling [something] from left to right": "pull thing right",
    "Pulling [something] from right to left": "pull thing left",
    "Pushing [something] from left to right": "push thing right",
    "Pushing [something] from right to left": "push thing left",
    "Throwing [something] in the air and catching it": "throw and catch",
}
"""Template -> staging.ACTIONS. In the original's wording; the labels file has it without the brackets."""

AVA: dict[int, str] = {
    1: "bend/bow (at the waist)",
    3: "crouch/kneel",
    4: "dance",
    7: "jump/leap",
    10: "run/jog",
    11: "sit",
    12: "stand",
    14: "walk",
    17: "carry/hold (an object)",
    65: "give/serve (an object) to (a person)",
    67: "hand clap",
    69: "hand wave",
    76: "push (another person)",
    78: "take (an object) from (a person)",
    79: "talk to (e.g., self, a person, a group)",
}
"""AVA's own ids (with gaps) and names of the classes that the toy movies show."""


@dataclass(frozen=True)
class Episode:
    """What one person of a movie does for some seconds, and its AVA ids.

    Attributes:
        posture: see actions.POSTURES; for a pair, see staging.PAIRS.
        gesture: see actions.GESTURES.
        ids: AVA classes; of the one who acts, for a pair.
        partner_ids: AVA classes of the one who is acted on; empty unless it takes two.
        share: part of all the time that is left by the rare ones; 0 marks a rare one.
        times: of a rare one: how often it happens in the training movies.
    """

    posture: str
    gesture: str | None
    ids: tuple[int, ...]
    partner_ids: tuple[int, ...] = ()
    share: float = 0.0
    times: int = 0


EPISODES = (
    Episode("stand", None, (12,), share=0.16),
    Episode("stand", "talk", (12, 79), share=0.14),
    Episode("walk", None, (14,), share=0.16),
    Episode("sit", None, (11,), share=0.09),
    Episode("sit", "talk", (11, 79), share=0.07),
    Episode("stand", "carry", (12, 17), share=0.09),
    Episode("walk", "carry", (14, 17), share=0.06),
    Episode("sit", "carry", (11, 17), share=0.03),
    Episode("run", None, (10,), share=0.08),
    Episode("stand", "wave", (12, 69), share=0.05),
    Episode("sit", "wave", (11, 69), share=0.02),
    Episode("crouch", None, (3,), share=0.05),
    Episode("stand", "clap", (12, 67), times=10),
    Episode("sit", "clap", (11, 67), times=4),
    Episode("jump", None, (7,), times=10),
    Episode("dance", None, (4,), times=7),
    Episode("bend", None, (1,), times=5),
    Episode("push person", None, (12, 76), (12,), times=5),
    Episode("hand over", None, (12, 17, 65), (12, 78), times=4),
)
"""The long tail: the rare ones happen as often in a large set of movies as in a small one."""


def class_names(dataset: str) -> list[str]:
    """The class names of "kinetics", "moments", "ssv2" (without brackets) or "ava", in the order of their numbers.

    Raises:
        KeyError: another name.
    """
    return {
        "kinetics": list(KINETICS),
        "moments": list(MOMENTS),
        "ssv2": [template.replace("[", "").replace("]", "") for template in SSV2],
        "ava": list(AVA.values()),
    }[dataset]
