"""What the report of `make reproduce` says: intervals, comparisons, the goal, learning curves."""

import math
import zlib

import numpy as np
import pytest
from scipy import stats

from benchmarks.reproduce.conclusion import conclude, points, tail_gain
from benchmarks.reproduce.intervals import difference, holm, mean_of
from benchmarks.reproduce.pictures import ava_curve
from benchmarks.reproduce.protocol import (
    BASELINES,
    CANDIDATES,
    REGIMES,
    UPSTREAM,
    Plan,
)
from benchmarks.reproduce.records import PARTS


def test_intervals_are_students():
    values = [0.21, 0.25, 0.19, 0.26, 0.22]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    mean = mean_of(values)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.226, low, high))
    # By hand: 2.776 standard errors at four degrees of freedom.
    assert mean.half == pytest.approx(2.7764 * np.std(values, ddof=1) / math.sqrt(5), rel=1e-4)


def test_differences_are_paired_by_seed_and_by_draw():
    ours, theirs = [0.30, 0.20, 0.40], [0.28, 0.19, 0.37]
    own = difference(ours, theirs, ([[0.3, 0.5]] * 3, [[0.1, 0.2]] * 3))
    assert own.each == pytest.approx((0.02, 0.01, 0.03))
    assert own.over_seeds.value == pytest.approx(0.02)
    assert own.p == pytest.approx(stats.ttest_1samp(own.each, 0).pvalue)
    # The draws are compared one by one: 0.3 with 0.1, 0.5 with 0.2. Their variance is added to that over seeds.
    error = math.hypot(0.01 / math.sqrt(3), np.std([0.2, 0.3], ddof=1))
    low, high = stats.t.interval(0.95, 2, loc=0.02, scale=error)
    assert own.over_both == pytest.approx((low, high))
    assert math.isnan(difference(ours, theirs).over_both[0])
    with pytest.raises(ValueError):
        difference([1.0], [1.0, 2.0])


def test_holms_correction():
    # By hand: 0.01 x 4, 0.02 x 3, then 0.025 x 2 which must not fall below what came before, and 0.5 x 1.
    assert holm([0.025, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert math.isnan(holm([float("nan"), 0.01])[0])
    # Of comparisons that are still to come each counts as well.
    assert holm([0.02, 0.01], 4) == pytest.approx([0.06, 0.04])


GOALS = Plan("small", 20, (0, 1, 2), ((*CANDIDATES, *BASELINES, *(f"{task}_only" for task in UPSTREAM)),), tuned=False)


def noise(regime: str, seed: int) -> float:
    return 0.001 * (zlib.crc32(f"{regime} {seed}".encode()) % 5)


def scored(regime: str, seed: int, tail: float = 0.1, rest: float = 0.4, top1: float = 0.5):
    """A run of one tail class and one other; seeds differ a little, and no two regimes by the same."""
    own = noise(regime, seed)
    ava = {
        "metrics": {"mAP": (tail + rest) / 2 + own},
        "per_class": {"jump": tail + own, "sit": rest + own / 2},
        "training_counts": {"7": 30, "11": 2000},
    }
    draws = {"movies": 3, "mAP": {part: [] for part in ("all", *PARTS)}}
    upstream = {task: {"metrics": {"top1": top1 + own}} for task in UPSTREAM}
    return {"regime": regime, "seed": seed, "test": {"ava": ava, **upstream}, "resamples": draws}


def test_the_goal_is_one_of_three_parts():
    def told(accumulate: dict[str, float], missing: str = "", **others: dict[str, float]) -> str:
        scores = {"accumulate": accumulate, **others}
        return conclude(
            {
                name: [scored(name, seed, **scores.get(name, {})) for seed in GOALS.seeds]
                for name in GOALS.regimes
                if name != missing
            },
            GOALS,
        )

    title = REGIMES["accumulate"].title
    whole = "all parts by one schedule: **"
    above, tail, kept = (f"{part}: **{{}}**" for part in ("transfer learning", "on the tail", "keep their accuracy"))

    def own(text: str) -> str:
        return next(line for line in text.splitlines() if line.startswith(f"- Goal, {title}"))

    good = {"tail": 0.3, "rest": 0.45}
    text = told(good)
    assert all(part.format("yes") in own(text) for part in (above, tail, kept)) and f"{whole}reached by {title}" in text
    # Each part alone does not reach it, nor parts of which either schedule has some.
    text = told({"tail": 0.15, "rest": 0.7})
    assert above.format("yes") in own(text) and tail.format("no") in own(text) and f"{whole}not reached" in text
    text = told({"tail": 0.12, "rest": 0.379}, weighted={**good, "top1": 0.3})
    assert above.format("not shown") in own(text) and tail.format("yes") in own(text) and f"{whole}not reached" in text
    # To lose less on the tail than elsewhere is no gain.
    text = told({"tail": 0.09, "rest": 0.3})
    assert above.format("no") in own(text) and tail.format("no") in own(text)
    assert tail.format("not shown") in own(told({"tail": 0.1, "rest": 0.3}))
    # An upstream set may lose 1 point, not 3.
    assert kept.format("yes") in own(told({**good, "top1": 0.49}))
    text = told({**good, "top1": 0.47})
    assert kept.format("no") in own(text) and f"{whole}not reached" in text
    # About as far below as is allowed, it is neither kept nor lost.
    assert kept.format("not shown") in own(told({**good, "top1": 0.479}))
    # One baseline that is as good is enough against it.
    text = told(good, transfer_joint=good)
    assert above.format("not shown") in own(text) and f"{whole}not reached" in text
    # Nothing is reached while runs are missing, nor is there any verdict.
    some = {name: [scored(name, seed) for seed in (0, 1)] for name in GOALS.regimes}
    some["accumulate"] = [scored("accumulate", seed, **good) for seed in (0, 1)]
    text = conclude(some, GOALS)
    assert f"{title}** against" in text and "is above" not in text and "corrected for 4 comparisons" in text
    assert above.format("open, as runs are missing") in own(text)
    text = told(good, missing="ssv2_only")
    assert above.format("yes") in own(text) and kept.format("open, as runs are missing") in own(text)
    assert f"{whole}still open" in text
    for base in BASELINES:
        text = told(good, missing=base)
        assert above.format("open, as runs are missing") in own(text) and f"{whole}still open" in text
    # What upstream sets are worth is told beside it, where the control is there.
    assert "worth" not in text
    runs = {"accumulate": {**good}, "transfer": {"tail": 0.12, "rest": 0.4}, "ava_as_often": {}}
    text = conclude({name: [scored(name, seed, **own) for seed in (0, 1, 2)] for name, own in runs.items()}, GOALS)
    worth = difference(
        [0.26 + noise("transfer", n) for n in range(3)], [0.25 + noise("ava_as_often", n) for n in range(3)]
    )
    assert f"worth to {REGIMES['transfer'].title}: {points(worth)} points of mAP" in text
    # What is clearly below is not above.
    text = told({"tail": 0.05, "rest": 0.3})
    assert text.count(f"{title}** is below") == len(BASELINES) and above.format("no") in own(text)


def test_the_tails_gain_is_over_that_of_the_other_classes():
    def run(seed: int, **aps: float):
        counts = {"stand": 2000, "walk": 500, "jump": 30, "clap": 40}
        ava = {"per_class": aps, "training_counts": dict(zip("abcd", counts.values(), strict=True))}
        return {"seed": seed, "test": {"ava": ava}}

    ours = [run(0, stand=0.6, walk=0.5, jump=0.4, clap=0.2), run(1, stand=0.6, walk=0.6, jump=0.3, clap=0.3)]
    theirs = [run(1, stand=0.5, walk=0.5, jump=0.1, clap=0.1), run(0, stand=0.5, walk=0.4, jump=0.1, clap=0.1)]
    # Seed 0: tail +0.2, the others +0.1; seed 1: tail +0.2, the others +0.1.
    assert tail_gain(ours, theirs).each == pytest.approx((0.1, 0.1))


def test_learning_curves_go_over_all_trainings():
    steps = [training.steps(20) for training in REGIMES["transfer_joint"].trainings]
    curves = [{"kinetics/top1": [[steps[0], 0.5]]}, {"ava/mAP": [[steps[1] // 2, 0.1], [steps[1], 0.2]]}]
    run = {"regime": "transfer_joint", "clips": REGIMES["transfer_joint"].seen(20, 0), "steps": steps, "curves": curves}
    assert ava_curve(run, 20) == [(960 + 320, 0.1), (1600, 0.2)]


def test_learning_curves_of_a_schedule_that_draws_have_common_places():
    """Seeds of `uniform` see other numbers of clips; one whole pass over the plan's is where all of them end."""
    (training,) = REGIMES["uniform"].trainings
    steps = training.steps(600)
    curves = [{"ava/mAP": [[steps // 2, 0.1], [steps, 0.2]]}]
    runs = [
        {"regime": "uniform", "clips": REGIMES["uniform"].seen(600, seed), "steps": [steps], "curves": curves}
        for seed in (0, 1)
    ]
    assert runs[0]["clips"] != runs[1]["clips"]
    assert [ava_curve(run, 600) for run in runs] == [[(24_000, 0.1), (48_000, 0.2)]] * 2
