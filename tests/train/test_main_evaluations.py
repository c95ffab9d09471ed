"""Evaluations during training: the best checkpoint is kept, and one that was cut off is made up for."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest

from data.errors import UserError
from train import evaluators, main
from train.checkpoint_files import read_state, whole_checkpoints
from train.evaluators import common
from train.whole_files import write_atomically


def test_the_best_checkpoint_is_kept_and_a_missed_evaluation_is_made_up_for(world, train_here, capsys):
    options = ("out=best", "keep=1", "save_every=3", "eval_every=2", "keep_best=[ava/mAP]", "workers=0")
    with pytest.raises(UserError, match=r"keep_best: ava/map is no metric of .*: kinetics/top1, .*, ava/mAP"):
        train_here(*options, "keep_best=[ava/map]")
    with pytest.raises(UserError, match="needs evaluations during training: give eval_every"):
        train_here(*options, "eval_every=0")
    assert not (world / "best").exists()
    train_here(*options)
    folder = world / "best" / "checkpoints"
    best = json.loads((folder / "best.json").read_text())["ava/mAP"]
    kept = {path.name: read_state(path).metrics for path in whole_checkpoints(folder)}
    assert best["value"] == kept[best["checkpoint"]]["ava/mAP"] == max(m["ava/mAP"] for m in kept.values())
    assert set(kept) == {best["checkpoint"], "step-000004"}
    assert "checkpoint best/checkpoints/step-000002" in capsys.readouterr().out, "best so far, though none was due"

    last = folder / "step-000004"
    metrics, state = kept["step-000004"], replace(read_state(last), metrics=None)  # as if killed before the evaluation
    write_atomically(last / "state.json", state.to_json())
    with (world / "best" / "recipe.yaml").open() as before:  # who reads it meanwhile has it whole: it is replaced
        train_here(*options, "--resume", "log_every=1", "eval_keyframes=2")
        assert "eval_keyframes: 8\n" in before.read()
    out = capsys.readouterr().out
    assert (
        "step 4: kinetics/top1" in out
        and "changed since best/checkpoints/step-000004:\n  eval_keyframes: 8 -> 2\n" in out
    )
    assert read_state(last).metrics == metrics
    train_here(*options, "--resume")
    assert "step 4: kinetics/top1" not in capsys.readouterr().out


def test_an_evaluation_that_breaks_off_costs_no_checkpoint(world, train_here, monkeypatch, capsys):
    def break_off(*args, **options):
        raise KeyboardInterrupt

    options = ("out=cut-short", "save_every=2", "eval_every=2", "workers=0")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(main, "evaluate_tasks", break_off)
        train_here(*options)
    folder = world / "cut-short" / "checkpoints"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step-000002"]
    train_here(*options, "--resume")
    assert ", from step 2 on" in (out := capsys.readouterr().out) and "step 2: kinetics/top1" in out
    assert read_state(folder / "step-000002").metrics is not None


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGUSR1, nullcontext), (signal.SIGINT, lambda: pytest.raises(KeyboardInterrupt))]
)
def test_a_signal_during_an_evaluation_ends_the_run_with_a_checkpoint_to_evaluate(
    number, ends, world, train_here, monkeypatch, capsys
):
    """SLURM's warning leaves less time than an evaluation of the full sets takes."""

    def warned(batches, *others):
        for batch in batches:
            yield batch
            os.kill(os.getpid(), number)

    out = f"out=warned-{number}"
    options = (out, "save_every=100", "eval_every=2", "workers=0", "eval_batch=1")
    monkeypatch.setattr(common, "HEED_EVERY", 1)
    folder = world / out.partition("=")[2] / "checkpoints"
    for again in ([], ["--resume"]):  # also in the evaluation that this makes up for
        with monkeypatch.context() as patch, ends():
            patch.setattr(evaluators, "progress", warned)
            train_here(*options, *again)
        assert [path.name for path in whole_checkpoints(folder)] == ["step-000002"]
        assert read_state(folder / "step-000002").metrics is None
        assert f"stopped by {number.name} in the evaluation after step 2;" in capsys.readouterr().out
    train_here(*options, "--resume")
    out = capsys.readouterr().out
    assert "step 2: kinetics/top1" in out and "step 4: kinetics/top1" in out and "done: 4 steps" in out
    assert read_state(folder / "step-000002").metrics is not None
