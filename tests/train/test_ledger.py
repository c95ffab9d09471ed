"""The ledger of bad clips: each listed once with key, reason and step, and a budget with a clear end."""

import json

import pytest
import torch

from data.batch import Batch, Substitute
from data.errors import UserError
from tests.train.tiny_runs import run_tiny, tiny_recipe
from train.launch import Rank
from train.loop import BUDGET_FLOOR, Ledger
from train.run_log import RunLog


def batch(clips: int, *bad: str) -> Batch:
    substitutes = [Substitute(key, f"{key} cannot be decoded") for key in bad]
    return Batch("look", torch.zeros(0), ["key"] * clips, torch.zeros(0), torch.zeros(0), substitutes=substitutes)


def ledger(out, share: float = 0.01, start: int = 0, world: int = 1) -> Ledger:
    rank = Rank(0, world, torch.device("cpu"))
    log = RunLog(out, rank, 20, 5, 0)
    log.close()  # which frees the folder for the next
    return Ledger(tiny_recipe(out, f"max_bad_share={share}"), rank, log, start)


def test_each_bad_clip_is_listed_once_also_after_an_interruption(tmp_path, capsys):
    first = ledger(tmp_path)
    first.add(3, [batch(4, "a"), batch(4)])
    first.add(4, [batch(4, "a", "b")])
    with first.path.open("a") as file:
        file.write("a note of the user\n")
    ledger(tmp_path).add(4, [batch(4, "a", "b", "c")])
    lines = [line for line in first.path.read_text().splitlines() if line.startswith("{")]
    assert [(e["step"], e["task"], e["key"], e["reason"]) for e in map(json.loads, lines)] == [
        (step, "look", key, f"{key} cannot be decoded") for step, key in ((3, "a"), (4, "b"), (4, "c"))
    ]
    assert capsys.readouterr().err.count("clip a cannot be read, another one takes its place") == 1


def test_the_budget_ends_the_run(tmp_path):
    spent = ledger(tmp_path, 0.01)
    most = int(0.01 * BUDGET_FLOOR)
    spent.add(0, [batch(4, *(f"bad{n}" for n in range(most)))])  # early, but within what 1000 clips may have
    with pytest.raises(UserError, match=rf"{most + 1} of 5 clips .* max_bad_share=0.01 .*bad_clips.jsonl.*verify.py"):
        spent.add(1, [batch(1, "one more")])
    many = ledger(tmp_path / "many", 0.01)
    for step in range(100):
        many.add(step, [batch(100, f"bad{step}")])  # 1 %: just within


def test_no_bad_clip_is_no_file(tmp_path):
    good = ledger(tmp_path, 0)
    good.add(0, [batch(4)])
    good.close()
    assert not good.path.exists()
    with pytest.raises(UserError, match="1 of 8 clips"):
        good.add(1, [batch(4, "a")])


def test_the_counts_go_on_over_interruptions(tmp_path):
    first = ledger(tmp_path, 0.01)
    first.add(0, [batch(2000, *(f"bad{n}" for n in range(12)))])
    first.keep(1)
    first.add(1, [batch(2000, *(f"bad{n}" for n in range(12, 20)))])
    first.keep(2)
    first.add(2, [batch(2000, "after the checkpoint")])

    second = ledger(tmp_path, 0.01, start=2)
    second.add(2, [batch(1)] * 3)
    second.keep(3)
    assert json.loads(second.totals_path.read_text()) == {"1": [2000, 12], "2": [4000, 20], "3": [4003, 20]}
    with pytest.raises(UserError, match="41 of 4004 clips"):
        second.add(3, [batch(1, *(f"more{n}" for n in range(21)))])
    # From an older checkpoint, and on two ranks, each of which has half of what went before.
    older = ledger(tmp_path, 0.01, start=1, world=2)
    older.add(1, [batch(1, *(f"new{n}" for n in range(4)))])
    with pytest.raises(UserError, match="11 of 1001 clips"):
        older.add(2, [batch(0, "one more")])
    first.totals_path.write_text("not what we wrote")
    assert ledger(tmp_path, 0.01, start=2).bad_before == 0


def test_the_counts_go_on_from_a_checkpoint_of_an_evaluation(tmp_path):
    """One that is kept for being the best, at a step at which none is due."""
    run_tiny(str(tmp_path), None, ["steps=8", "eval_every=2"], until=6)
    totals = json.loads((tmp_path / "bad_clips.totals.json").read_text())
    assert list(totals) == ["2", "4", "6"] and totals["2"][0] < totals["4"][0] < totals["6"][0]
    assert ledger(tmp_path, start=4).seen_before == totals["4"][0]
    assert ledger(tmp_path, start=5).seen_before == totals["4"][0], "the last that is known before"
