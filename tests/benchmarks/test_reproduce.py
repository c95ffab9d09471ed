"""`make reproduce`: regimes see the same clips from the same first weights; the report says what the files say."""

import dataclasses
import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.reproduce import runs as runs_module
from benchmarks.reproduce.gradients import gradient_rows
from benchmarks.reproduce.intervals import mean_of
from benchmarks.reproduce.protocol import (
    CANDIDATES,
    CORE,
    DOWNSTREAM,
    FULL,
    HEAD,
    LAST,
    LEARNING_RATES,
    QUICK,
    REGIMES,
    ROUND,
    TAIL,
    TASKS,
    TRIAL_SEED,
    UPSTREAM,
    Plan,
    Regime,
    Setting,
    Training,
    make_recipe,
)
from benchmarks.reproduce.records import PARTS, RESAMPLES, final_metric, mean_ap, part_masks
from benchmarks.reproduce.report import write_report
from benchmarks.reproduce.runs import Laboratory, Machine, Run
from benchmarks.reproduce.trials import beyond, chosen_settings, run_all
from benchmarks.reproduce.world import _rows_of_movies, in_part
from data.errors import UserError
from data.schedule import Schedule
from models import create_model
from tests.tiny_shards import make_classification_set, make_localisation_set
from train.checkpoint_files import State
from train.recipe import load_recipe
from train.whole_files import write_atomically

MIXED = [name for name, regime in REGIMES.items() if set(regime.seen(20, 0)) == set(TASKS)]
PLAN = Plan("small", 20, (0, 1, 2), (CORE, ("kinetics_only", "with_kinetics"), LAST), tuned=True)
MACHINE = Machine("a machine", 2, 1, 0)


def recipes(name: str, tmp_path: Path, rounds: int = 20, seed: int = 0):
    """The recipes of a regime's trainings, as the trainer reads them."""
    result, before = [], None
    for number, training in enumerate(REGIMES[name].trainings):
        out = tmp_path / f"{name}-{number}"
        recipe = make_recipe(
            training,
            out=out,
            shards=tmp_path / "shards",
            rounds=rounds,
            setting=Setting(1e-3, "constant", 0.25),
            seed=seed,
            workers=0,
            init=before,
        )
        OmegaConf.save(recipe, tmp_path / "recipe.yaml")
        result.append(load_recipe(tmp_path / "recipe.yaml"))
        before = out
    return result


@pytest.mark.parametrize("name", REGIMES)
def test_a_regimes_recipes_take_the_clips_it_is_said_to_see(name, tmp_path):
    taken: Counter[str] = Counter()
    for recipe in recipes(name, tmp_path, rounds=40, seed=3):
        tasks = list(recipe.tasks.values())
        batches = [task.batch for task in tasks]
        schedule = Schedule(recipe.schedule, batches, recipe.steps, recipe.seed, [task.share for task in tasks])
        for step in range(recipe.steps):
            for part in schedule.plan(step):
                taken[list(recipe.tasks)[part.task]] += part.clips
    assert dict(taken) == REGIMES[name].seen(40, 3)


@pytest.mark.parametrize("name", [name for name in MIXED if name != "uniform"])
def test_mixed_regimes_see_the_same_clips(name):
    assert REGIMES[name].seen(60, 1) == {task: clips * 60 for task, clips in ROUND.items()}


def test_uniform_sees_them_on_average():
    seen = [REGIMES["uniform"].seen(300, seed) for seed in range(20)]
    for task, clips in ROUND.items():
        assert np.mean([own[task] for own in seen]) == pytest.approx(300 * clips, rel=0.03)


@pytest.mark.parametrize("name", ["ava_only", "with_kinetics", "with_kinetics_moments"])
def test_regimes_without_some_sets_see_as_many_clips_in_all(name):
    assert REGIMES[name].total_clips(60, 0) == 60 * sum(ROUND.values())


@pytest.mark.parametrize("task", UPSTREAM)
def test_a_set_alone_is_trained_on_as_often_as_in_the_mixture(task):
    assert REGIMES[f"{task}_only"].seen(60, 0) == {task: 60 * ROUND[task]}


def test_all_regimes_have_the_toy_recipes_model_views_and_losses_and_differ_in_nothing_else(tmp_path):
    toy = load_recipe()
    for name in REGIMES:
        for number, recipe in enumerate(recipes(name, tmp_path)):
            init = recipe.model.init.source
            assert (init is None) == (number == 0)
            recipe.model.init.source = None
            assert recipe.model == toy.model
            assert (recipe.optim.weight_decay, recipe.optim.clip_grad) == (toy.optim.weight_decay, toy.optim.clip_grad)
            for task, own in recipe.tasks.items():
                assert (own.view, own.head) == (toy.tasks[task].view, toy.tasks[task].head)
                assert own.loss_weight == toy.tasks[task].loss_weight
                assert own.lr_scale == (0.25 if task == DOWNSTREAM else 1.0)
                assert own.val_shards == str(tmp_path / "shards" / f"{task}-tune")


def test_the_backbone_starts_from_the_same_weights_in_every_regime(tmp_path):
    first = {}
    for name in REGIMES:
        recipe = recipes(name, tmp_path)[0]
        config = OmegaConf.to_container(OmegaConf.structured(recipe.model))
        backbone = {k: v for k, v in config.items() if v is not None and k not in ("init", "attention", "compile")}
        for key in ("mean", "std", "subtract_mean_frame", "grad_checkpointing"):
            backbone.pop(key)
        torch.manual_seed(recipe.seed)
        heads = {task: {"kind": own.kind, "num_classes": 5} for task, own in recipe.tasks.items()}
        model = create_model({"backbone": backbone, "heads": heads, "mean": [0.5] * 3, "std": [0.5] * 3})
        first[name] = model.backbone.state_dict()
    for name, weights in first.items():
        for key, value in weights.items():
            assert torch.equal(value, first["accumulate"][key]), (name, key)


def test_all_regimes_run_with_five_seeds_and_are_tuned_with_one_that_does_not_count():
    assert all(REGIMES[regime.tuned].tuned == regime.tuned for regime in REGIMES.values())
    assert TRIAL_SEED not in (*FULL.seeds, *QUICK.seeds)
    assert set(FULL.regimes) == set(REGIMES) and len(FULL.seeds) >= 5


def test_the_parts_of_a_validation_set_are_disjoint_and_whole():
    assert [number for number in range(8) if in_part(number, "tune")] == [0, 4]
    assert [number for number in range(8) if in_part(number, "heldout")] == [1, 2, 3, 5, 6, 7]
    text = "".join(f"movie{number},0902,0.1,0.1,0.9,0.9,{number + row},1\n" for number in range(6) for row in range(3))
    parts = [_rows_of_movies(text, part) for part in ("tune", "heldout")]
    assert sorted("".join(parts).splitlines()) == sorted(text.splitlines())
    movies = [{line.partition(",")[0] for line in part.splitlines()} for part in parts]
    assert movies == [{"movie0", "movie4"}, {"movie1", "movie2", "movie3", "movie5"}]


class Pretender(Laboratory):
    """Writes records without training: AVA's mAP is a function of regime, setting and seed."""

    def _do(self, run: Run) -> None:
        gain = {"accumulate": 0.05, "weighted": 0.02}.get(run.regime.name, 0.0)
        score = 0.2 + gain - 0.05 * abs(math.log2(run.setting.lr / 8e-3)) - 0.05 * (run.setting.schedule == "constant")
        score -= 0.05 * (run.setting.ava_rate != 1)
        score += 0.001 * (zlib.crc32(f"{run.regime.name} {run.seed}".encode()) % 7)
        tasks = run.regime.tasks
        metric = "ava/mAP" if DOWNSTREAM in tasks else f"{tasks[0]}/top1"
        steps = [training.steps(self.plan.rounds) for training in run.regime.trainings]
        record = {
            **{"identity": self._identity(run), "regime": run.regime.name, "seed": run.seed, "trial": run.trial},
            **{
                "setting": dataclasses.asdict(run.setting),
                "clips": run.regime.seen(self.plan.rounds, run.seed),
            },
            **{"steps": steps, "seconds": 100.0, "cpu_seconds": 90.0, "machine": self.machine.name, "commits": ["abc"]},
            "curves": [{metric: [[count // 2, 0.1], [count, score]]} for count in steps],
        }
        if not run.trial:
            ava = {
                "mAP": score,
                "mAP/head (> 1000)": 0.5,
                "mAP/mid (100 to 1000)": 0.3,
                "mAP/tail (< 100)": score - 0.1,
            }
            own = {
                "metrics": ava,
                "chance": {"mAP": 0.125},
                "per_class": {"sit": 0.5, "jump": score},
                "training_counts": {"11": 2000, "7": 30},
            }
            record["test"] = {task: own if task == DOWNSTREAM else {"metrics": {"top1": score}} for task in tasks}
            record["test_before_transfer"] = {task: {"metrics": {"top1": 0.5}} for task in UPSTREAM}
            if DOWNSTREAM in tasks:
                record["resamples"] = {"movies": 3, "mAP": {part: [score, score] for part in ("all", *PARTS)}}
        self.records.mkdir(parents=True, exist_ok=True)
        write_atomically(self.records / f"{run.name}.json", json.dumps(record))


def laboratory(tmp_path: Path, plan: Plan = PLAN, kind=Pretender, world: int = 0) -> Laboratory:
    return kind(tmp_path, tmp_path / "runs", lambda: tmp_path / "shards", {"seed": world}, plan, MACHINE)


def test_the_report_says_what_the_records_say(tmp_path, capsys):
    lab = laboratory(tmp_path)
    run_all(lab)
    records = lab.records_found()
    # The pretended best rate is 8e-3, one beyond those that all try; then 1.6e-2, the other schedule, AVA's own rate.
    tuned = [name for name in PLAN.regimes if REGIMES[name].tuned == name]
    mixed = [name for name in tuned if REGIMES[name].has_ava_beside_others]
    assert set(tuned) - set(mixed) == {"ava_only", "ava_as_often", "kinetics_only"}
    assert len(records) == len(tuned) * (len(LEARNING_RATES) + 3) + len(mixed) + len(PLAN.regimes) * len(PLAN.seeds)
    assert chosen_settings(records) == dict.fromkeys(tuned, Setting(8e-3))
    told = write_report(tmp_path, PLAN, records, "a command")
    report = (tmp_path / "report.md").read_text()
    assert told in report and told.count("is above") == 2 * len(CANDIDATES)
    # This plan trains on Kinetics alone, but not on the two other sets.
    assert (
        told.count("keep their accuracy: **not asked by this plan**") == 2
        and "schedule: **not asked by this plan**" in told
    )
    values = [final_metric(r, "ava", "mAP") for r in records if r["regime"] == "accumulate" and not r["trial"]]
    row = next(line for line in report.splitlines() if line.startswith("| co-finetuning, accumulate | 3 |"))
    assert "| guessing |  |  | 12.5 |" in report
    assert f"| {100 * np.mean(values):.1f} ± {100 * mean_of(values).half:.1f} |" in row and "0.008 cosine" in row
    # A rate of AVA's own is told with the others.
    for record in records:
        if record["regime"] == "weighted":
            record["setting"] = {**record["setting"], "ava_rate": 0.25}
    write_report(tmp_path, PLAN, records, "a command")
    assert "| co-finetuning, weighted | 3 | 0.008 cosine, AVA x 0.25 |" in (tmp_path / "report.md").read_text()
    write_report(tmp_path, PLAN, records := lab.records_found(), "a command")
    report = (tmp_path / "report.md").read_text()
    assert all((tmp_path / name).stat().st_size > 10_000 for name in re.findall(r"\((\w+\.png)\)", report))
    # Planted: a run whose setting is not the chosen one is not averaged in.
    path = lab.records / "weighted-seed1.json"
    changed = json.loads(path.read_text())
    changed["setting"]["lr"] = 1e-3
    changed["identity"] = lab._identity(runs_module.run_of(changed))
    path.write_text(json.dumps(changed))
    write_report(tmp_path, PLAN, lab.records_found(), "a command")
    report = (tmp_path / "report.md").read_text()
    assert "weighted-seed1" in report and "| co-finetuning, weighted | 2 |" in report


def test_goes_on_with_what_has_no_record_and_never_takes_one_of_another_world(tmp_path, monkeypatch, capsys):
    lab = laboratory(tmp_path)
    run_all(lab)
    (lab.records / "accumulate-seed2.json").unlink()
    done, really = [], Pretender._do

    def note(self, run: Run) -> None:
        done.append(run.name)
        really(self, run)

    monkeypatch.setattr(Pretender, "_do", note)
    run_all(lab)
    assert done == ["accumulate-seed2"]
    assert laboratory(tmp_path, world=1).records_found() == []
    (lab.records / "accumulate-seed1.json").write_text("{")
    with pytest.raises(UserError, match=r"accumulate-seed1.json is no record"):
        lab.records_found()


def test_a_run_that_stood_still_does_not_lengthen_the_time_left(tmp_path, capsys):
    lab = laboratory(tmp_path)
    lab.do([Run(REGIMES["accumulate"], Setting(2e-3), seed) for seed in (0, 1, 2)], "runs")
    path = lab.records / "accumulate-seed1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1e6}))
    capsys.readouterr()
    # 100 s a run of 1,600 clips, two at a time.
    lab.tell("now", 320_000)
    assert re.search(r"now  left (\S+)\n", capsys.readouterr().out)[1] == "2:46:40"


def test_the_search_of_a_rate_goes_on_beyond_an_edge_and_ends():
    def trials(*scores: tuple[float, float]):
        setting = [dataclasses.asdict(Setting(rate)) for rate, _ in scores]
        curves = [[{"ava/mAP": [[100, score]]}] for _, score in scores]
        return [
            {"regime": "transfer", "trial": True, "setting": own, "curves": curve}
            for own, curve in zip(setting, curves, strict=True)
        ]

    inside = trials((1e-3, 0.1), (2e-3, 0.3), (4e-3, 0.2))
    below = trials((1e-3, 0.3), (2e-3, 0.2), (4e-3, 0.1))
    assert beyond(inside, "transfer") is None
    assert beyond(below, "transfer") == Setting(5e-4)
    assert beyond([*below, *trials((5e-4, 0.2))], "transfer") is None
    assert beyond([*below, *trials((5e-4, 0.4))], "transfer") == Setting(2.5e-4)
    ever = [(5e-4, 0.4), (2.5e-4, 0.5), (1.25e-4, 0.6), (6.25e-5, 0.7)]
    assert beyond([*below, *trials(*ever[:-1])], "transfer") == Setting(6.25e-5)
    assert beyond([*below, *trials(*ever)], "transfer") is None
    assert beyond(trials((1e-3, 0.1), (2e-3, 0.2), (4e-3, 0.3)), "transfer") == Setting(8e-3)


def test_a_training_that_was_asked_to_stop_is_no_finished_run(tmp_path):
    folder = tmp_path / "checkpoints" / "step-000007"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(State(step=7, world=1, recipe="").to_json())
    (folder.parent / "latest").write_text("step-000007\n")
    runs_module._check_whole(tmp_path, 7)
    with pytest.raises(UserError, match="stopped after step 7 of 20"):
        runs_module._check_whole(tmp_path, 20)
    with pytest.raises(UserError, match="no records"):
        write_report(tmp_path, PLAN, [], "a command")


def test_a_run_that_fails_ends_all_with_its_log(tmp_path, monkeypatch):
    lab = laboratory(tmp_path, kind=Laboratory)
    run = Run(REGIMES["ava_only"], Setting(1e-3), 0)
    with pytest.raises(
        UserError, match=r"train/main.py ended with exit code 1; .*log.txt ends with:\n(.*\n)*.*ava-train"
    ):
        lab.do([run], "runs")
    assert lab.record_of(run) is None


def test_a_real_run_is_scored_on_the_held_out_split_and_recorded(tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    for split, samples in (("train", 8), ("tune", 6), ("heldout", 10)):
        make_classification_set(shards, "kinetics", split, samples=samples)
        make_localisation_set(shards, "ava", split, samples=samples)
    manifest = shards / "ava-train.manifest.json"
    # Of the classes 1, 3 and 7 the first is tail, the second mid, the third head.
    settings = {"settings": {"per_class": [[TAIL - 1] * 2, [TAIL] * 2, [HEAD + 1] * 2]}}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | settings))
    few = {"kinetics": 2, "ava": 2}
    first = Training(("kinetics",), "accumulate", {"kinetics": 2}, {"kinetics": 2})
    regime = Regime("both", "both", (first, Training(("kinetics", "ava"), "accumulate", few, few)))
    monkeypatch.setitem(REGIMES, "both", regime)
    checked, really = [], runs_module._check_whole

    def check(training: Path, steps: int) -> None:
        checked.append((training.name, steps))
        really(training, steps)

    monkeypatch.setattr(runs_module, "_check_whole", check)
    idea = ("model.pos_embed=sincos", "tasks.ava.loss_weight=5", "gradients_every=5")
    plan = Plan("small", 20, (0,), (("both",),), tuned=False, overrides=idea)
    lab = Laboratory(tmp_path, tmp_path / "runs", lambda: shards, {}, plan, MACHINE)
    run = Run(regime, Setting(1e-3), 0)
    (record,) = lab.do([run], "runs")
    assert record == lab.record_of(run) and lab.records_found() == [record]
    assert record["clips"] == {"kinetics": 80, "ava": 40} and record["steps"] == [20, 20]
    # Ten samples are held out, of two keyframes each; six tune.
    assert [record["test"][task]["counts"]["examples"] for task in ("kinetics", "ava")] == [10, 20]
    assert record["test_before_transfer"]["kinetics"]["counts"]["examples"] == 10
    assert [step for step, _ in record["curves"][1]["ava/mAP"]] == [4, 8, 12, 16, 20]
    # The report's table of gradients finds the trainer's own names.
    (row,) = gradient_rows({"both": [record]})[1:]
    assert "-" not in (row[2], row[5], row[6], row[7]) and row[3:5] == ["-", "-"]
    assert {part: len(names) for part, names in part_masks(record).items()} == {
        "head": 1,
        "mid": 1,
        "tail": 1,
        "all": 3,
    }
    parts = {part: mean_ap(record, names) for part, names in part_masks(record).items()}
    for part in PARTS:
        assert parts[part] == pytest.approx(final_metric(record, "ava", part))
        assert len(record["resamples"]["mAP"][part]) == RESAMPLES
        # Every movie holds one class alone: a draw without it says nothing of the class, and any other draw the same.
        assert set(np.round(record["resamples"]["mAP"][part], 3)) & {round(parts[part], 3)}
    assert record["resamples"]["movies"] == 10 and 0 < record["cpu_seconds"] < 1000
    assert checked == [("training-0", 20), ("training-1", 20)]
    (folder,) = tmp_path.glob("both-seed0-*")
    sources = [load_recipe(folder / f"training-{number}.yaml").model.init.source for number in (0, 1)]
    trained = [load_recipe(folder / f"training-{number}" / "recipe.yaml") for number in (0, 1)]
    assert {recipe.model.pos_embed for recipe in trained} == {"sincos"} and trained[1].tasks["ava"].loss_weight == 5
    assert sources == [None, str(folder / "training-0")] and "left over" in (folder / "log.txt").read_text()
