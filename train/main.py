"""Entry point of training: `deepspeed train/main.py --ds ds_configs/zero2.json [--recipe R.yaml] [key=value ...]`."""

import argparse
import logging
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

from data.decode import require_ffmpeg
from data.errors import UserError
from data.loader import train_loader
from models.flops import task_cost
from train.checkpoint import Checkpoints
from train.checkpoint_files import read_state
from train.device_rate import mean_rate
from train.ds_config import deepspeed_config
from train.ema import EMA_PREFIX, WeightAverage
from train.engine import build_engine
from train.environment import describe_environment, environment, write_environment
from train.eval_board import EvalBoard
from train.evaluators import check_metrics, evaluate_all, evaluate_tasks, metrics_of
from train.launch import Rank, Stopped, StopSignal, command, init_distributed, parse_args
from train.loop import StepPlan, evaluates, train
from train.model import build_model, describe_init, fetches_weights, model_config
from train.optim import build_optimizer
from train.plan import PEAK_TFLOPS, UTILISATION, describe_plan, make_plan
from train.recipe import Recipe, dump_recipe, load_recipe
from train.resume import recipe_changes, resume
from train.run_log import RunLog, describe
from train.tasks import mixture, open_tasks
from train.whole_files import write_atomically


def open_log(
    recipe: Recipe, rank: Rank, start: int, found: dict[str, Any], flops: dict[str, float], device_rate: float | None
) -> RunLog:
    """Begins the log in the run's folder, and leaves recipe and environment there."""
    log = RunLog(recipe.out, rank, recipe.steps, recipe.log_every, start, flops, device_rate)
    if rank.first:
        write_atomically(Path(recipe.out) / "recipe.yaml", dump_recipe(recipe))
        write_environment(recipe.out, found)
    return log


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="deepspeed train/main.py",
        description="Trains one video transformer on all tasks of a recipe. Also starts under torchrun, or under plain "
        "python as one process.",
        epilog="Example: deepspeed train/main.py --ds ds_configs/zero2.json --recipe train/recipes/toy.yaml "
        "optim.lr=5e-4 tasks.ava.batch=32",
    )
    p.add_argument("--recipe", metavar="YAML", help="what to train (default: train/recipes/toy.yaml)")
    p.add_argument("--ds", metavar="JSON", help="DeepSpeed's configuration (default: none, plain PyTorch, one process)")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest intact checkpoint of the recipe's `out`, on any number of processes and with or "
        "without --ds, or start where there is none; a recipe that would change the run is refused (default: an `out` "
        "that holds checkpoints is refused)",
    )
    p.add_argument(
        "--plan",
        action="store_true",
        help="print what the run takes (epochs, steps, memory, operations, hours) and end; reads no video, and goes "
        "without shards too",
    )
    p.add_argument("--plan-ranks", type=int, metavar="N", help="ranks to plan for (default: those started)")
    p.add_argument(
        "--plan-tflops",
        type=float,
        default=PEAK_TFLOPS,
        metavar="X",
        help="peak of a rank's device, 10^12 operations a second (default: %(default)g, an H100 SXM in dense bf16)",
    )
    p.add_argument(
        "--plan-utilisation",
        type=float,
        default=UTILISATION,
        metavar="SHARE",
        help="share of the peak that training reaches (default: %(default)g, an assumption)",
    )
    p.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    p.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe, as in optim.lr=1e-4")
    return p


def run(args: argparse.Namespace, rank: Rank) -> None:
    """The steps of a run, on every rank."""
    if rank.first:  # the models say which attention kernel runs
        logging.basicConfig(format="%(message)s")
        logging.getLogger("models").setLevel(logging.INFO)
    recipe = rank.together(lambda: load_recipe(args.recipe, args.overrides))
    if args.plan:
        ranks = rank.world if args.plan_ranks is None else args.plan_ranks
        plan_of = rank.together(
            lambda: describe_plan(make_plan(recipe, ranks), args.plan_tflops, args.plan_utilisation)
        )
        if rank.first:
            print(plan_of)
        return
    checkpoints, stop = Checkpoints(recipe.out, recipe.keep, recipe.keep_best), StopSignal()

    def check() -> StepPlan:
        require_ffmpeg()
        if args.ds is not None:
            deepspeed_config(args.ds, recipe)
        if not args.resume and checkpoints.newest() is not None:
            raise UserError(f"{recipe.out} holds checkpoints: add --resume to go on, or out=FOLDER for another run")
        return StepPlan(recipe, rank.world)

    plan = rank.together(check)
    resumed = checkpoints.newest_intact(rank)
    changes = rank.together(lambda: recipe_changes(resumed, recipe))
    tasks = rank.together(lambda: open_tasks(recipe, check=rank.first, node=rank.node))
    rank.together(lambda: check_metrics("keep_best", recipe.keep_best, tasks, recipe.ema > 0))
    checkpoints.val_sets = {task.name: task.val.shards.manifest.fingerprint for task in tasks if task.val is not None}
    config = rank.together(lambda: model_config(recipe, tasks, resumed))
    fetched = resumed is None and fetches_weights(recipe)
    model = rank.first_alone(lambda: build_model(recipe, config, init=resumed is None), alone=fetched)
    flops = {name: float(task_cost(model, name).training_flops) for name in recipe.tasks}
    optimizer = build_optimizer(model, len(model.backbone.blocks), recipe.optim)
    engine = rank.together(lambda: build_engine(model, optimizer, recipe, rank, args.ds))
    average = WeightAverage(engine.module, recipe.ema) if recipe.ema else None
    start = rank.together(lambda: resume(resumed, engine, recipe, config, average))

    found, device_rate = environment(rank, start), mean_rate(rank, recipe.precision)
    log = rank.together(lambda: open_log(recipe, rank, start, found, flops, device_rate))
    log.say(describe(recipe, tasks, rank, args.ds, start))
    log.say(describe_environment(found))
    if device_rate:
        log.say(f"{device_rate / 1e12:.3g} TFLOP/s a rank in large matrix products, of which utilisation is the share")
    if changes:
        log.say(f"the recipe has changed since {resumed}:\n  " + "\n  ".join(changes))
    if told := describe_init(recipe, model):
        log.say(told)

    board = EvalBoard(tasks, recipe.eval_keyframes)

    def save(done: int) -> None:
        finish(wait=True)
        checkpoints.begin(done, engine, recipe, config, rank, average)

    def finish(wait: bool) -> None:
        if folder := checkpoints.finish(rank, wait):
            log.say(f"checkpoint {folder}")

    def evaluate(done: int) -> None:
        try:
            with engine.whole() as model:
                results = evaluate_tasks(model, tasks, rank, recipe, chance=False, stop=stop)
            metrics = metrics_of(results)
            if average is not None:
                with average.applied(engine.module):
                    averaged = evaluate_all(engine.module, tasks, rank, recipe, stop=stop)
                metrics |= {EMA_PREFIX + name: value for name, value in averaged.items()}
        except Stopped as asked:
            save(done)  # without metrics, so that --resume evaluates it
            finish(wait=True)
            log.say(f"stopped by {asked} in the evaluation after step {done}; --resume goes on with that")
            raise
        log.metrics(done, metrics)
        if rank.first:
            log.show(done, board.scalars(results), board.pictures(results))
        if checkpoints.is_best(metrics, rank):
            save(done)
        finish(wait=True)
        checkpoints.note(done, metrics, rank)

    def after_step(done: int, last: bool) -> None:
        finish(wait=False)
        if last or done % recipe.save_every == 0:
            save(done)
        stopped = last and done < recipe.steps  # whoever stops it wants it to end soon: --resume evaluates
        if evaluates(recipe, done) and not stopped:
            with log.pause():
                finish(wait=True)  # an evaluation takes long and can fail, which is to cost no checkpoint
                evaluate(done)
        if last:
            finish(wait=True)

    cut_off = resumed is not None and read_state(resumed).metrics is None
    try:
        if evaluates(recipe, start) and rank.gather(cut_off)[0]:
            stop.take_all()
            with log.pause():
                evaluate(start)
        # Closed however the run ends: its workers are gone before the reason is told.
        dataset, batches = mixture(tasks, recipe, rank.node), plan.batches(start, rank.index)
        with closing(train_loader(dataset, batches, recipe.workers)) as loader:
            done = train(recipe, tasks, engine, plan, iter(loader), rank, log, start, after_step, stop, average)
        if done == recipe.steps:
            log.say(f"done: {done} steps; weights, log and TensorBoard in {recipe.out}")
    except KeyboardInterrupt:
        log.close()
        raise
    except Stopped as asked:
        log.close()
        if asked.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        return
    log.close()


def main() -> None:
    args = parse_args(parser())
    run(args, init_distributed())


if __name__ == "__main__":
    command(main)
