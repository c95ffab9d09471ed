"""Ideas on the bench of `make reproduce`: what may be changed, what it changes, and against what it is told."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reproduce import __main__ as program
from benchmarks.reproduce.gradients import gradient_rows
from benchmarks.reproduce.ideas import against_rows, idea_plan, mark_results
from benchmarks.reproduce.protocol import FULL, QUICK, REGIMES, TRIAL_SEED, Plan, Setting, identity, overrides_of
from benchmarks.reproduce.records import Record, final_metric, tuned_score
from benchmarks.reproduce.report import write_report
from benchmarks.reproduce.runs import Laboratory
from benchmarks.reproduce.trials import run_all
from data.errors import UserError
from tests.benchmarks.test_reproduce import MACHINE, Pretender

SINCOS = "model.pos_embed=sincos"
PLAIN = Plan("small", 20, (0, 1, 2), (("transfer_joint", "weighted", "kinetics_only"),), tuned=False)


def bench(folder: Path, plan: Plan, world: int = 0) -> Laboratory:
    return Pretender(folder, folder / "runs", lambda: folder / "shards", {"seed": world}, plan, MACHINE)


def runs_of(lab: Laboratory) -> dict[str, list[Record]]:
    found = lab.records_found()
    return {name: [r for r in found if r["regime"] == name and not r["trial"]] for name in lab.plan.regimes}


def test_an_idea_changes_what_it_names_and_nothing_else():
    for plan in (QUICK, FULL):
        assert idea_plan(plan) == dataclasses.replace(plan, idea=True)
    changed = idea_plan(FULL, ["weighted", "ava_only"], 2, 1800, Setting(1e-3, "constant"), [SINCOS])
    assert changed == Plan(
        *("full", 1800, (0, 1), (("weighted", "ava_only"),)),
        tuned=False,
        setting=Setting(1e-3, "constant"),
        idea=True,
        overrides=(SINCOS,),
    )
    assert idea_plan(FULL, ["accumulate", "with_kinetics"]).tuned


@pytest.mark.parametrize(
    ("idea", "message"),
    [
        ({"regimes": ["weigthed"]}, "there is no 'weigthed'; there are ava_only"),
        ({"regimes": ["with_kinetics"]}, "the trials of accumulate choose"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": TRIAL_SEED + 1}, "--seeds 101"),
        ({"rounds": 30}, "multiple of 20"),
        ({"setting": Setting(0.0)}, "above 0"),
        ({"setting": Setting(float("nan"))}, "above 0"),
        ({"overrides": ["model.pos_embed"]}, "expected key=value"),
        ({"overrides": ["model.pos_embedding=sincos"]}, "pos_embed"),
        ({"overrides": ["tasks.ava.view.stride=0"]}, "stride: must be a whole number"),
        ({"overrides": ["tasks.ucf.loss_weight=1"]}, "no regime of this plan has a task of that name"),
        ({"regimes": ["kinetics_only"], "overrides": ["tasks.ava.loss_weight=1"]}, "no regime of this plan"),
        ({"overrides": ["steps=7"]}, "steps is the protocol's"),
        ({"overrides": ["optim={lr: 1}"]}, "holds optim.lr, which is the protocol's"),
        ({"overrides": ["tasks.moments=null"]}, "holds tasks.moments.kind"),
        ({"overrides": ["ema=0.99"]}, "ema is the protocol's"),
        ({"overrides": ["tasks.ava.view.eval_boxes=groundtruth"]}, "eval_boxes is the protocol's"),
        ({"overrides": ["tasks.ava.view={eval_boxes: groundtruth}"]}, "holds tasks.ava.view.eval_boxes"),
        ({"overrides": ["model.pos_embed=sincs"]}, "sincs"),
        ({"overrides": ["model.num_heads=3"]}, "num_heads"),
        ({"overrides": ["tasks.ava.head.pool=avg"]}, "avg"),
        ({"overrides": ["tasks.ava.shards=/nowhere/ava-train"]}, "/nowhere/ava-train"),
        # Trials go below the rate that all begin with.
        ({"overrides": ["optim.min_lr=1e-4"]}, "min_lr"),
        ({"overrides": ["optim[lr]=1"]}, "expected key=value"),
        ({"overrides": ["model.init.source=x"]}, "model.init is the protocol's"),
        ({"overrides": ["tasks.ava.val_shards=x"]}, "tasks.ava.val_shards is the protocol's"),
    ],
)
def test_an_idea_that_cannot_be_tried_is_refused_before_anything_is_made(idea, message):
    with pytest.raises(UserError, match=message):
        idea_plan(FULL, **idea)


def test_overrides_go_to_the_trainings_that_have_their_task():
    own = [SINCOS, "tasks.ava.loss_weight=5"]
    upstream, downstream = REGIMES["transfer_joint"].trainings
    assert overrides_of(upstream, own) == [SINCOS] and overrides_of(downstream, own) == own

    def named(name: str, *overrides: str) -> str:
        return identity(REGIMES[name], 20, Setting(1e-3), 0, {}, overrides)

    # A run that an override says nothing of is the protocol's own run.
    assert named("kinetics_only", "tasks.ava.loss_weight=5") == named("kinetics_only")
    names = [named("weighted", *overrides) for overrides in ((), own[:1], own[1:], own)]
    assert len(set(names)) == 4


def test_an_idea_is_told_against_the_runs_of_the_same_regime_and_seed(tmp_path):
    plan = idea_plan(dataclasses.replace(PLAIN, seeds=(0, 2)), setting=Setting(4e-3), overrides=[SINCOS])
    plain, idea = bench(tmp_path / "plain", PLAIN), bench(tmp_path / "idea", plan)
    run_all(plain)
    run_all(idea)
    here, there = runs_of(idea), runs_of(plain)
    head, *rows = against_rows(here, tmp_path / "plain")
    assert [row[0] for row in rows] == [REGIMES[name].title for name in PLAIN.regimes]

    def gain(score: Callable[[Record], float]) -> str:
        ours, theirs = ([score(run) for run in side["weighted"] if run["seed"] != 1] for side in (here, there))
        return f"{100 * np.mean(np.subtract(ours, theirs)):+.1f}"

    row = dict(zip(head, rows[1], strict=True))
    assert row["there"] == "2 seeds, 0.002 cosine, 1,600 clips"
    assert row["on tune"].startswith(gain(tuned_score))
    assert row["kinetics top-1"].startswith(gain(lambda run: final_metric(run, "kinetics", "top1")))
    # Transfer from all upstream sets is told by the test before AVA, which the pretender always passes with 50 %.
    assert dict(zip(head, rows[0], strict=True))["kinetics top-1"] == "+0.0 ± 0.0"
    # The pretender's best rate is 8e-3: 4e-3 is one step of 5 points above 2e-3, for every seed.
    assert row["AVA mAP, each seed"] == "+5.0 +5.0" and row["AVA mAP"].startswith("+5.0 ± 0.0")
    assert row["tail"].startswith("+5.0")
    # Kinetics alone has no AVA, but a score on `tune`.
    assert rows[2][2].startswith("+5.0") and rows[2][3:7] == ["-"] * 4
    told = write_report(tmp_path / "idea", idea.plan, idea.records_found(), "a command", tmp_path / "plain")
    report = (tmp_path / "idea" / "report.md").read_text()
    assert " | ".join(rows[1]) in told and " | ".join(rows[1]) in report and f"`{SINCOS}`" in report
    assert "An idea on the bench" in report and "Goal" not in report
    with pytest.raises(UserError, match="no run of"):
        against_rows({"transfer": here["weighted"]}, tmp_path / "plain")
    # Of other training sets head, mid and tail are other classes.
    for run in here["weighted"]:
        run["test"]["ava"]["training_counts"] = {"11": 500, "7": 8}
    row = dict(zip(head, against_rows(here, tmp_path / "plain")[2], strict=True))
    assert row["tail"] == "-" and row["AVA mAP"].startswith("+5.0")
    here["weighted"][0]["test"]["kinetics"]["counts"] = {"examples": 8}
    with pytest.raises(UserError, match="weighted, seed 0, was tested on another world"):
        against_rows(here, tmp_path / "plain")
    # Planted: a run of another setting among those that are compared with.
    path = tmp_path / "plain" / "runs" / "transfer_joint-seed2.json"
    path.write_text(path.read_text().replace('"lr": 0.002', '"lr": 0.001'))
    with pytest.raises(UserError, match=r"transfer_joint are of several settings: 0\.001 cosine; 0\.002 cosine"):
        against_rows(here, tmp_path / "plain")


def test_an_idea_takes_the_setting_that_each_regime_has_there(tmp_path):
    there = {"transfer_joint": Setting(4e-3, "constant"), "weighted": Setting(1e-3, ava_rate=0.25)}
    for name, setting in there.items():
        run_all(bench(tmp_path / "plain", idea_plan(PLAIN, [name], setting=setting)))
    plan = idea_plan(FULL, list(there), 3, 20, overrides=[SINCOS], same_as=tmp_path / "plain")
    assert not plan.tuned and {name: plan.setting_of(name) for name in there} == there
    idea = bench(tmp_path / "idea", plan)
    run_all(idea)
    assert {r["regime"]: Setting(**r["setting"]) for r in idea.records_found()} == there
    rows = against_rows(runs_of(idea), tmp_path / "plain")[1:]
    # The pretender's scores go by regime, setting and seed: all the same.
    assert [row[-1] for row in rows] == ["+0.0 +0.0 +0.0"] * 2
    write_report(tmp_path / "idea", plan, idea.records_found(), "a command", tmp_path / "plain")
    report = (tmp_path / "idea" / "report.md").read_text()
    assert "0.004 constant |" in report and "0.001 cosine, AVA x 0.25 |" in report and "Left out" not in report
    # A later call for one of them says nothing of the other.
    alone = idea_plan(FULL, ["weighted"], 3, 20, overrides=[SINCOS], same_as=tmp_path / "plain")
    write_report(tmp_path / "idea", alone, idea.records_found(), "a command", tmp_path / "plain")
    assert "Left out" not in (tmp_path / "idea" / "report.md").read_text()

    # Regimes may come later; what is there has the settings that it was begun with.
    world = {"seed": 0}
    for name in (*there, "weighted"):
        own = idea_plan(FULL, [name], 3, 20, overrides=[SINCOS], same_as=tmp_path / "plain")
        mark_results(tmp_path / "marked", own, world)
    marked = (tmp_path / "marked" / "plan.json").read_text()
    assert json.loads(marked)["settings"] == {name: vars(setting) for name, setting in there.items()}
    for path in (tmp_path / "plain" / "runs").glob("weighted-*"):
        path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    changed = idea_plan(FULL, ["weighted"], 3, 20, overrides=[SINCOS], same_as=tmp_path / "plain")
    with pytest.raises(UserError, match=r"runs of weighted at 0\.001 .* they are now at 0\.002 cosine"):
        mark_results(tmp_path / "marked", changed, world)
    with pytest.raises(UserError, match="another idea"):
        mark_results(tmp_path / "marked", idea_plan(FULL, ["weighted"], 3, 20, Setting(1e-3), [SINCOS]), world)
    assert (tmp_path / "marked" / "plan.json").read_text() == marked
    with pytest.raises(UserError, match="no run of accumulate with a seed of these"):
        idea_plan(FULL, ["weighted", "accumulate"], same_as=tmp_path / "plain")
    for broken in ("{", "[]", '{"settings": null}'):
        (tmp_path / "marked" / "plan.json").write_text(broken)
        with pytest.raises(UserError, match=r"plan\.json cannot be read"):
            mark_results(tmp_path / "marked", changed, world)
    stray = tmp_path / "plain" / "runs" / "weighted-seed2.json"
    stray.write_text(stray.read_text().replace('"setting": {', '"setting": null, "was": {'))
    with pytest.raises(UserError, match="a record of weighted has no setting"):
        idea_plan(FULL, ["weighted"], same_as=tmp_path / "plain")
    # Of another seed it does not matter.
    assert idea_plan(FULL, ["weighted"], 2, same_as=tmp_path / "plain").setting_of("weighted").lr == 2e-3


def test_gradients_are_told_where_a_recipe_asks_for_them():
    curves = {
        # Of the first half nothing is told.
        "gradients/backbone/kinetics": [[10, 90.0], [11, 3.0], [20, 3.0]],
        "gradients/backbone/ava": [[10, 90.0], [11, 1.0], [15, 1.0], [18, 1.0], [20, 1.0]],
        "gradients/cosine/kinetics/ava": [[10, -1.0], [11, 0.0], [20, 0.5]],
        "gradients/cosine/kinetics/ssv2": [[10, -1.0], [11, -0.5]],
        "gradients/backbone": [[15, 4.0]],
        "gradients/head/ava": [[15, 7.0]],
        "loss/ava": [[15, 7.0]],
    }
    run = {"seed": 3, "steps": [10, 20], "curves": [{}, curves]}
    plain = {"seed": 4, "steps": [20], "curves": [{"loss/ava": [[15, 7.0]]}]}
    alone = {"seed": 0, "steps": [20], "curves": [{"gradients/backbone/kinetics": [[15, 2.0]]}]}
    head, *rows = gradient_rows({"with_kinetics": [run, plain], "accumulate": [run], "kinetics_only": [alone]})
    assert head[2:6] == ["kinetics", "moments", "ssv2", "ava"]
    assert rows == [
        ["accumulate, AVA + Kinetics", "3", "3.00", "-", "-", "1.00", "10", "-0.50 to 0.25"],
        # Two of its tasks were not looked at.
        ["co-finetuning, accumulate", "3", "3.00", "-", "-", "1.00", "-", "-0.50 to 0.25"],
        ["kinetics only", "0", "2.00", "-", "-", "-", "-", "-"],
    ]


def call(monkeypatch, folder: Path, *arguments: str) -> int:
    """The program in `folder`, with the pretender for a laboratory and a world that costs nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(program, "Laboratory", Pretender)
    monkeypatch.setattr(program, "make_world", lambda *_: folder)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--jobs", "1", *arguments])
    return program.main()


IDEA = ("--quick", "--results", "idea", "--regimes", "weighted")


def test_no_call_overwrites_the_records_of_another(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path, *IDEA, "--seeds", "1", SINCOS) == 0
    before = {path: path.read_text() for path in tmp_path.rglob("*.json")}
    others = [
        ("--quick", "--results", "idea"),
        (*IDEA, "model.pos_embed=learned"),
        (*IDEA, "--lr", "1e-3", SINCOS),
        (*IDEA, "--rounds", "40", SINCOS),
        (*IDEA[1:], SINCOS),
        IDEA,
    ]
    for other in others:
        assert call(monkeypatch, tmp_path, *other) == 1, other
        assert "a --results of its own" in capsys.readouterr().err
    assert {path: path.read_text() for path in tmp_path.rglob("*.json")} == before
    # The same idea with more seeds goes on, keys before and behind options.
    assert call(monkeypatch, tmp_path, SINCOS, *IDEA, "--seeds", "2") == 0
    kept = {path: path.read_text() for path in tmp_path.rglob("*.json") if path in before}
    assert kept == before and (tmp_path / "idea" / "runs" / "weighted-seed1.json").exists()


def test_an_idea_is_no_guest_of_the_protocols_results(tmp_path, monkeypatch, capsys):
    """Not of those that were made before results were marked, either."""
    assert call(monkeypatch, tmp_path, "--quick", "--results", "plain") == 0
    for marked in (True, False):
        if not marked:
            (tmp_path / "plain" / "plan.json").unlink()
        report = (tmp_path / "plain" / "report.md").read_text()
        for own in (["--regimes", "weighted"], ["--seeds", "1"], ["--lr", "2e-3"]):
            assert call(monkeypatch, tmp_path, "--quick", "--results", "plain", *own) == 1
        assert (tmp_path / "plain" / "report.md").read_text() == report
    assert call(monkeypatch, tmp_path, "--quick", "--results", "plain") == 0
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, *IDEA, "--against", "plain", SINCOS) == 0
    assert "## Less those of plain" in capsys.readouterr().out
    same = ("--quick", "--results", "same", "--against", "plain", "--same-settings", SINCOS, "--regimes")
    assert call(monkeypatch, tmp_path, *same, "weighted,transfer_joint") == 0
    assert call(monkeypatch, tmp_path, *same, "accumulate") == 0
    report = (tmp_path / "same" / "report.md").read_text()
    assert "0.002 cosine" in report and "Left out" not in report
    assert call(monkeypatch, tmp_path, *same, "weighted,accumulate", "--report-only") == 0
    # Planted: gradients in a record reach the report.
    path = tmp_path / "same" / "runs" / "accumulate-seed0.json"
    record = json.loads(path.read_text())
    record["curves"][-1]["gradients/backbone/ava"] = [[record["steps"][-1], 2.5]]
    path.write_text(json.dumps(record))
    assert call(monkeypatch, tmp_path, *same, "weighted,accumulate", "--report-only") == 0
    assert (
        "| co-finetuning, accumulate | 0 | - | - | - | 2.50 | - | - |" in (tmp_path / "same" / "report.md").read_text()
    )


@pytest.mark.parametrize(
    ("against", "message"),
    [("nowhere", "no run of weighted"), ("idea", "the results themselves"), ("other", "another toy world")],
)
def test_what_cannot_be_compared_is_told_before_anything_is_trained(tmp_path, monkeypatch, capsys, against, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text('{"world": {"size": "full"}}')
    assert call(monkeypatch, tmp_path, *IDEA, "--against", against, SINCOS) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "idea").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SINCOS], "needs --results"),
        (["--regimes", "weighted"], "needs --results"),
        (["--results", "x", "--lr-schedule", "constant"], "needs --lr"),
        (["--results", "x", "--same-settings"], "needs --against"),
        (["--results", "x", "--same-settings", "--against", "y", "--lr", "1e-3"], "no --lr"),
        (
            ["--results", "x", "--same-settings", "--against", "y"],
            "no run of transfer_joint with a seed of these is in y",
        ),
        (["--results", "x", "--regimes", "weighted,nothing"], "there is no 'nothing'"),
    ],
)
def test_the_program_refuses_without_making_a_folder(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--quick", *arguments])
    assert program.main() == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
