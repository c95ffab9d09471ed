"""Stands in for a person detector: boxes with its errors, in SlowFast's CSV layout."""

import numpy as np

Detection = tuple[float, float, float, float, float]
"""x1, y1, x2, y2 in [0, 1], and the score."""

MISSED = 0.03
UNSURE = 0.07
DOUBLED = 0.06
FALSE_PER_KEYFRAME = 0.3


def detect(people: np.ndarray, rng: np.random.Generator) -> list[Detection]:
    """What a detector finds at a keyframe with these people (float [n, 4], boxes in [0, 1]).

    Most people get a box a little off with a score near 1; some are missed, some get a low score or a second, worse
    box. Boxes around nothing have low scores nearly always, so that a threshold of 0.8 does what it does on AVA.
    """
    found: list[Detection] = []
    for box in people:
        if rng.random() < MISSED:
            continue
        score = rng.uniform(0.3, 0.85) if rng.random() < UNSURE else 1 - min(rng.exponential(0.025), 0.18)
        found.append(_shaken(box, 0.03, score, rng))
        if rng.random() < DOUBLED:
            found.append(_shaken(box, 0.12, rng.uniform(0.05, 0.7), rng))
    for _ in range(rng.poisson(FALSE_PER_KEYFRAME)):
        width, height = rng.uniform(0.06, 0.2), rng.uniform(0.2, 0.6)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        score = rng.uniform(0.75, 0.92) if rng.random() < 0.06 else rng.uniform(0.05, 0.6)
        found.append((x, y, x + width, y + height, score))
    return found


def _shaken(box: np.ndarray, amount: float, score: float, rng: np.random.Generator) -> Detection:
    sides = np.tile(box[2:] - box[:2], 2)
    x1, y1, x2, y2 = (float(v) for v in np.clip(box + amount * sides * rng.standard_normal(4), 0, 1))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), float(score)
