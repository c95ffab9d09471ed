"""Steps that are left out because their loss or gradient is not finite: counted, listed, and too many end the run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.batch import Batch
from train.launch import Rank, ToldError
from train.recipe import Recipe
from train.run_log import RunLog

SHOWN_CLIPS = 8


class SkippedSteps:
    """Lists them in RUN/skipped_steps.jsonl, a line for each task of a step, also over interruptions. Those that a
    resumed run takes again count once.

    Args:
        start: step at which this process begins.
    """

    def __init__(self, recipe: Recipe, rank: Rank, log: RunLog, start: int) -> None:
        self.path, self.most = Path(recipe.out) / "skipped_steps.jsonl", recipe.max_skipped_steps
        self.rank, self.log = rank, log
        self.listed = rank.gather(rank.together(lambda: _listed(self.path) if rank.first else set()))[0]
        self.count = sum(step < start for step in self.listed)

    def add(self, step: int, batches: Sequence[Batch], losses: Sequence[float]) -> None:
        """Takes in optimizer step `step`, which all ranks left out; called on every rank.

        Args:
            batches: this rank's micro-batches.
            losses: the loss of each. Where those of all ranks are finite it was their gradient that was not, and no
                telling whose.

        Raises:
            UserError: more steps were left out than the recipe's `max_skipped_steps`.
        """
        mine = [(batch.task, batch.keys, loss) for batch, loss in zip(batches, losses, strict=True)]
        told = [entry for part in self.rank.gather(mine) for entry in part]
        bad = [entry for entry in told if not math.isfinite(entry[2])]
        what = "loss" if bad else "gradient"
        lines: dict[str, dict[str, Any]] = {}
        for task, keys, loss in bad or told:
            line = lines.setdefault(task, {"step": step, "task": task, "not_finite": what, "losses": [], "keys": []})
            line["losses"].append(str(loss))
            line["keys"] += [key for key in keys if key]
        self.count += 1
        self.rank.together(lambda: self._list(step, what, list(lines.values())) if self.rank.first else None)
        if self.count > self.most:
            raise ToldError(
                f"{self.count} steps were left out because their loss or gradient was not finite, more than "
                f"max_skipped_steps={self.most} allows; their tasks and clips are in {self.path}. Where they are many "
                "in a row, training has diverged: start again (out=FOLDER) with a lower optim.lr, a longer "
                "optim.warmup_steps or a smaller optim.clip_grad; where it is the same clips each time, look at them"
            )

    def _list(self, step: int, what: str, lines: list[dict[str, Any]]) -> None:
        if step not in self.listed:
            self.listed.add(step)
            with self.path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            shown = ", ".join(line["keys"][:SHOWN_CLIPS]) + (" ..." if len(line["keys"]) > SHOWN_CLIPS else "")
            self.log.say(f"step {step} left out, its {what} is not finite: {line['task']}, clips {shown}")


def _listed(path: Path) -> set[int]:
    """The steps that a list names; a line that is none of its own is passed over."""
    found = set()
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.add(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
