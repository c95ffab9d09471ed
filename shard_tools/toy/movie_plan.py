"""Who does what when in the AVA-like movies: shots, people and episodes, with a long tail of rare actions."""

from dataclasses import dataclass

import numpy as np

from shard_tools.toy.labels import EPISODES, Episode

MOVIE_START = 900
"""Second of the film at which a movie file starts, as in AVA."""
FIRST_KEYFRAME = 2
"""Seconds into the file; the last keyframe is as far from its end, less one."""

SIZES = ((160, 96), (160, 96), (176, 96), (192, 112), (144, 96))
_PAIRED = tuple(episode for episode in EPISODES if episode.partner_ids)


@dataclass(frozen=True)
class Role:
    """What a person does in a part of a shot: an episode, and for a pair whether this is the one who acts."""

    episode: Episode
    acts: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        return self.episode.ids if self.acts else self.episode.partner_ids


@dataclass(frozen=True)
class Shot:
    """A part of a movie with one place and cast.

    Attributes:
        start, end: seconds into the file.
        turns: per person, the second at which the first role gives way to the second, half way between two keyframes.
        roles: per person, both roles. Where two act together they are the first two people, at the same time.
    """

    start: float
    end: float
    turns: tuple[float, ...]
    roles: tuple[tuple[Role, Role], ...]


@dataclass(frozen=True)
class MoviePlan:
    """A movie: its shots, seconds long and frame size (width, height) in pixels."""

    shots: tuple[Shot, ...]
    seconds: int
    size: tuple[int, int]

    @property
    def keyframes(self) -> range:
        """Seconds into the file."""
        return keyframes(self.seconds)


def keyframes(seconds: int) -> range:
    """The keyframes of a movie, in seconds into the file: each has some two seconds before and after it."""
    return range(FIRST_KEYFRAME, seconds - FIRST_KEYFRAME)


def plan_movies(rng: np.random.Generator, movies: int, seconds: int, shots: int, train: bool) -> list[MoviePlan]:
    """Plans a split so that every episode of labels.EPISODES happens as often as its share says.

    Rare ones happen `times` times in a training split and at least twice in a validation split, or less where the
    split is too small.
    """
    casts = [[2 + int(rng.random() < 0.5) for _ in range(shots)] for _ in range(movies)]
    slots = 2 * sum(map(sum, casts))
    left = {episode: _times(episode, slots, train) for episode in EPISODES if not episode.share}
    while sum(times * (2 if episode.partner_ids else 1) for episode, times in left.items()) > 0.6 * slots:
        left[max(left, key=lambda episode: left[episode])] -= 1

    # First the pairs, each in a shot of its own as long as there are enough, then all others into what is left.
    places = [(movie, shot) for movie in range(movies) for shot in range(shots)]
    order = [places[i] for i in rng.permutation(len(places))]
    pairs = [episode for episode in _PAIRED for _ in range(left[episode])]
    paired = {(*order[i % len(order)], int(i // len(order))): pair for i, pair in enumerate(pairs)}
    rest = iter(_others(rng, slots - 2 * len(pairs), left))
    plans = []
    for movie, cast in enumerate(casts):
        ends = _cuts(seconds, shots)
        parts = []
        for shot, people in enumerate(cast):
            together = [paired.get((movie, shot, half)) for half in (0, 1)]
            roles = []
            for person in range(people):
                both = [Role(pair, acts=person == 0) if pair and person < 2 else Role(next(rest)) for pair in together]
                roles.append((both[0], both[1]))
            turns = _turns(rng, ends[shot], ends[shot + 1], seconds, people, shared=any(together))
            parts.append(Shot(ends[shot], ends[shot + 1], turns, tuple(roles)))
        plans.append(MoviePlan(tuple(parts), seconds, SIZES[rng.integers(len(SIZES))]))
    return plans


def _times(episode: Episode, slots: int, train: bool) -> int:
    return episode.times if train else max(2, slots // 100)


def _others(rng: np.random.Generator, slots: int, rare: dict[Episode, int]) -> list[Episode]:
    """One episode for each slot that no pair takes, shuffled."""
    chosen = [episode for episode, times in rare.items() if not episode.partner_ids for _ in range(times)]
    common = [episode for episode in EPISODES if episode.share]
    free = slots - len(chosen)
    whole = sum(episode.share for episode in common)
    for episode in common[1:]:
        chosen += [episode] * round(free * episode.share / whole)
    # The commonest takes what rounding leaves; of too many, the last ones go.
    chosen += [common[0]] * (slots - len(chosen))
    return [chosen[i] for i in rng.permutation(slots)]


def _cuts(seconds: int, shots: int) -> list[float]:
    """Where shots begin and end: half way between two keyframes."""
    times = keyframes(seconds)
    return [0.0, *(times[len(times) * i // shots] - 0.5 for i in range(1, shots)), float(seconds)]


def _turns(
    rng: np.random.Generator, start: float, end: float, seconds: int, people: int, shared: bool
) -> tuple[float, ...]:
    """When each person's first role ends, about half way through the shot's keyframes."""
    times = [t for t in keyframes(seconds) if start <= t < end]
    halves = [times[len(times) // 2 + (len(times) % 2) * int(rng.integers(2))] - 0.5 for _ in range(people)]
    if shared:
        halves[1] = halves[0]
    return tuple(halves)
