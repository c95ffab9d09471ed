"""The toy world's picture: boxes fit what is drawn, directions are what the labels say, and actions differ."""

from dataclasses import replace

import numpy as np
import pytest

from shard_tools.toy.actions import POSTURES, Space, Style
from shard_tools.toy.backdrop import Backdrop, paint
from shard_tools.toy.detector import detect
from shard_tools.toy.figure import Look, dress
from shard_tools.toy.interactions import hand_over_place
from shard_tools.toy.labels import EPISODES, SSV2
from shard_tools.toy.movie import Movie
from shard_tools.toy.movie_plan import keyframes, plan_movies
from shard_tools.toy.scene import SCALE, Actor, Camera, Scene
from shard_tools.toy.skeleton import JOINT, Body, solve
from shard_tools.toy.staging import ACTIONS, FPS, PAIRS, draw_things, stage

SIZE = (128, 96)
ONES = np.ones(3)


def a_figure(posture: str, seed: int = 0, frames: int = 30, style: Style | None = None):
    rng = np.random.default_rng(seed)
    t = np.arange(frames) / FPS
    motion = POSTURES[posture](t, style or Style.draw(rng), Space(frames / FPS, 0.4, 0.4))
    return dress(motion, Body.draw(rng), Look.draw(rng, np.zeros(3), ONES))


def grey() -> Backdrop:
    rng = np.random.default_rng(0)
    plain = paint(rng, SCALE * SIZE[0], SCALE * SIZE[1], 180)
    # Darker than any colour of a figure would be by chance: what is drawn stands out.
    blank = plain.image.point(lambda _: 1)
    return Backdrop(blank, plain.margin, np.ones(3), np.ones(3), ONES, outdoors=False)


@pytest.mark.parametrize("posture", ["walk", "jump", "crouch", "spin", "dance", "kick"])
@pytest.mark.parametrize("zoom", [1.0, 1.06])
def test_boxes_are_tight(posture, zoom):
    """Within a pixel of the extent of what the figure changes in the picture, at every frame."""
    figure = a_figure(posture)
    frames = len(figure.joints)
    height = np.linspace(100, 110, frames)
    camera = Camera(np.arange(frames) % 5.0, -(np.arange(frames) % 3.0), np.full(frames, zoom))
    scene = Scene(SIZE, grey(), camera, [Actor(figure, 128.0, 176.0, height)])
    scene.backdrop.ground[:] = 1 / 0.68  # a shadow of the ground's colour
    boxes = scene.boxes()[:, 0] * np.tile(SIZE, 2)
    for image, box in zip(scene.frames(), boxes, strict=True):
        drawn = np.abs(np.asarray(image, int) - 1).sum(axis=2) > 12
        ys, xs = np.nonzero(drawn)
        extent = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(extent - np.clip(box, 0, np.tile(SIZE, 2))).max() <= 1.25


def test_camera_moves_people_and_background_alike():
    """A camera that shifts by some pixels takes the same picture, shifted."""
    still = stage("stand", 1, np.random.default_rng(3), SIZE, ())
    shift = (3, -2)
    camera = Camera(np.array([SCALE * shift[0]]), np.array([SCALE * shift[1]]), np.ones(1))
    first, second = (np.asarray(next(replace(still, camera=c).frames())) for c in (Camera.still(1), camera))
    assert (second[:-2, 3:] == first[2:, :-3]).all()
    assert not (second == first).all()


def thing_path(action: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first thing's place at the first and last frame, in canvas pixels."""
    rng = np.random.default_rng(seed)
    things = draw_things(action, rng)
    scene = stage(action, 30, rng, SIZE, things)
    front = max(scene.layers, key=lambda layer: layer.order)
    middle = front.parts[0].points.mean(axis=1)
    return middle[0], middle[-1]


@pytest.mark.parametrize("seed", range(4))
def test_directions_are_what_the_labels_say(seed):
    right, left = "from left to right", "from right to left"
    for template, action in SSV2.items():
        start, end = thing_path(action, seed)
        if right in template:
            assert end[0] > start[0] + 20, template
        elif left in template:
            assert end[0] < start[0] - 20, template
        elif template.endswith("up"):
            assert end[1] < start[1] - 20, template
        elif template.endswith("down"):
            assert end[1] > start[1] + 20, template
    assert sum(right in t for t in SSV2) == sum(left in t for t in SSV2) == 2


@pytest.mark.parametrize("seed", range(3))
def test_pushing_is_behind_and_pulling_before_the_thing(seed):
    for verb, sign in (("push", 1), ("pull", -1)):
        for way, direction in (("right", 1), ("left", -1)):
            rng = np.random.default_rng(seed)
            scene = stage(f"{verb} thing {way}", 30, rng, SIZE, draw_things(f"{verb} thing {way}", rng))
            thing = max(scene.layers, key=lambda layer: layer.order).parts[0].points.mean(axis=1)[:, 0]
            person, hands = (scene.actors[-1].joint(*names)[:, 0] for names in (("pelvis",), ("l.hand", "r.hand")))
            assert np.all(sign * direction * (thing - hands) > 0)
            assert np.all(sign * direction * (hands - person) > 0)


def test_yaw_turns_to_the_side_it_says():
    for facing in (-1, 1):
        style = Style(1.0, 1.0, "l", facing, 0.0, 0.0)
        motion = POSTURES["walk"](np.arange(15) / FPS, style, Space(1.0, 1.0, 1.0, one_way=True))
        joints = solve(motion, Body.draw(np.random.default_rng(0)))
        ahead = joints[:, JOINT["l.toe"], 0] - joints[:, JOINT["l.ankle"], 0]
        assert facing * np.median(ahead) > 0
        assert facing * (motion["x"][-1] - motion["x"][0]) > 0.3


def test_feet_are_on_the_ground_unless_in_the_air():
    body = Body.draw(np.random.default_rng(1))
    t = np.arange(45) / FPS
    style = Style.draw(np.random.default_rng(2))
    low = {name: solve(f(t, style, Space(3.0, 1.0, 1.0)), body)[..., 1].min(axis=1) for name, f in POSTURES.items()}
    for name, heights in low.items():
        assert heights.min() > 0
        assert (heights.max() > 0.15) == (name == "jump"), name
    # Crouching is lower than standing, sitting in between.
    heads = {
        name: solve(POSTURES[name](t, style, Space(3, 1, 1)), body)[:, JOINT["head"], 1].mean() for name in POSTURES
    }
    assert heads["crouch"] < heads["sit"] < heads["stand"]


def test_every_action_can_be_staged_and_differs_from_the_others():
    """Mean motion signatures of any two actions are farther apart than nothing; every frame has the asked size."""
    signatures = {}
    for action in ACTIONS:
        rng = np.random.default_rng(11)
        scene = stage(action, 24, rng, SIZE, draw_things(action, rng))
        frames = list(scene.frames())
        assert len(frames) == 24 and all(frame.size == SIZE for frame in frames)
        assert len(scene.actors) >= (2 if action in PAIRS else 1)
        actor = scene.actors[-1]
        joints = actor.figure.joints - actor.figure.joints[:, :1]
        signatures[action] = np.concatenate([joints.reshape(24, -1), np.diff(joints, axis=0, append=0).reshape(24, -1)])
    names = list(signatures)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(signatures[first] - signatures[second]).max() > 0.05, (first, second)


def test_what_is_handed_over_goes_one_way():
    t = np.linspace(0, 6, 400)
    along, shown = hand_over_place(t, Style.draw(np.random.default_rng(3)))
    steps = np.diff(along)[shown[1:] & shown[:-1]]
    assert (steps >= 0).all() and steps.sum() > 0.9


def test_people_of_a_movie_at_its_keyframes():
    (plan,) = plan_movies(np.random.default_rng(4), 1, seconds=12, shots=2, train=True)
    movie = Movie(plan, np.random.default_rng(4))
    people = movie.people()
    assert {at.second for at in people} == set(keyframes(12))
    shown = sum(1 for _ in movie.frames())
    assert shown == 12 * FPS
    poses = {number for episode in EPISODES for number in episode.ids if number <= 14}
    for at in people:
        x1, y1, x2, y2 = at.box
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
        assert len(poses & {*at.ids}) == 1  # one pose, and interactions beside it
    # Nobody of the first shot is in the second.
    cut = plan.shots[1].start
    before = {at.person for at in people if at.second < cut}
    assert before and not before & {at.person for at in people if at.second > cut}


def test_labels_change_when_the_drawn_action_does():
    """Whoever crouches or sits is lower than the same person upright: as seen in the boxes, by the label."""
    low, upright = [], []
    for plan in plan_movies(np.random.default_rng(8), 4, seconds=32, shots=4, train=True):
        people = Movie(plan, np.random.default_rng(9)).people()
        for person in {at.person for at in people}:
            heights: dict[bool, list[float]] = {False: [], True: []}
            for at in people:
                if at.person == person and {3, 11, 12, 14} & {*at.ids}:
                    heights[bool({3, 11} & {*at.ids})].append(at.box[3] - at.box[1])
            if heights[True] and heights[False]:
                low += [height / np.mean(heights[False]) for height in heights[True]]
                upright += [height / np.mean(heights[False]) for height in heights[False]]
    assert len(low) > 20
    assert max(low) < 0.95 < np.mean(upright)


def test_pairs_act_at_the_same_time():
    plans = plan_movies(np.random.default_rng(5), 25, seconds=32, shots=4, train=True)
    shots = [shot for plan in plans for shot in plan.shots]
    pairs = 0
    for shot in shots:
        for half in (0, 1):
            together = [roles[half] for roles in shot.roles if roles[half].episode.partner_ids]
            assert [role.acts for role in together] in ([], [True, False])
            pairs += bool(together)
            if together:
                assert shot.turns[0] == shot.turns[1] and together[0].episode == together[1].episode
    assert pairs == sum(episode.times for episode in EPISODES if episode.partner_ids)


def test_detector_errs_as_detectors_do():
    rng = np.random.default_rng(6)
    people = np.array([[0.1, 0.2, 0.3, 0.8], [0.5, 0.3, 0.7, 0.9]])
    found = [detect(people, rng) for _ in range(400)]
    kept = [sum(row[4] >= 0.8 for row in rows) for rows in found]
    assert 1.75 < np.mean(kept) < 2.0  # the threshold keeps most people and few of the rest
    assert np.mean([len(rows) for rows in found]) > 2.2
    assert detect(np.zeros((0, 4)), rng) is not None
    assert all(0 <= value <= 1 for rows in found for row in rows for value in row)
