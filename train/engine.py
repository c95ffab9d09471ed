"""Engines: forward, accumulate, step, save and load, under DeepSpeed's ZeRO or in plain PyTorch.

The only file that knows DeepSpeed. Both engines take per-rank sums that are already divided by global counts, so both
give the gradient of the same loss; the plain one, on one process, is the reference for the other.
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import UserError
from models import CofinetuneModel
from train.launch import Rank
from train.optim import ActiveAdamW, set_step
from train.optim_state import Piece, held_state, load_state, load_weights, whole_pieces
from train.recipe import Recipe, project_path

STAGES = (1, 2)
OWNED = {
    "train_batch_size": "tasks.NAME.batch",
    "train_micro_batch_size_per_gpu": "tasks.NAME.micro_batch",
    "gradient_accumulation_steps": "tasks.NAME.batch and micro_batch",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
}
"""Keys of DeepSpeed's JSON that say what the recipe says, and the recipe's key for each."""


DAMAGE = (RuntimeError, ValueError, LookupError, OSError, TypeError, SafetensorError)
"""What loading a damaged checkpoint raises, or one of another model."""
State = dict[str, Tensor]


class Engine(Protocol):
    """What the loop asks of an engine. `module` is the bare model, for evaluation and export."""

    module: CofinetuneModel

    def __call__(self, *args: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the step's loss; the sum over ranks is the step's gradient."""

    def step(self, lr: float, lr_scales: dict[str, float]) -> float | None:
        """Updates the backbone and the heads of `lr_scales`' tasks. Returns the gradient's norm before clipping, or
        None when it was not finite and the step was left out."""

    def snapshot(self) -> tuple[State, State]:
        """Copies in host memory of the model's weights, on the first rank alone (elsewhere nothing), and of this rank's
        part of the optimizer's state (see train/optim_state.py); called on every rank."""

    def load(self, folder: Path) -> None:
        """Goes on from what the snapshots of any engine on any number of ranks were written to; called on every rank.

        Raises:
            UserError: a checkpoint that does not fit.
        """


class PlainEngine:
    """One process, plain PyTorch."""

    def __init__(self, model: CofinetuneModel, optimizer: ActiveAdamW, recipe: Recipe, rank: Rank) -> None:
        if rank.world != 1:
            raise UserError(f"{rank.world} processes need DeepSpeed: add --ds ds_configs/zero2.json")
        self.module, self.optimizer, self.rank = model.to(rank.device), optimizer, rank
        self.clip, self.bf16 = recipe.optim.clip_grad, recipe.precision == "bf16"

    def __call__(self, *args: Any) -> Tensor:
        with torch.autocast(self.rank.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.module(*args)
        return logits

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, lr_scales: dict[str, float]) -> float | None:
        set_step(self.optimizer.param_groups, lr, lr_scales)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip or float("inf"))
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm) if finite else None

    def snapshot(self) -> tuple[State, State]:
        return _copy(self.module), held_state(self.module, whole_pieces(self.optimizer))

    def load(self, folder: Path) -> None:
        try:
            load_weights(self.module, folder)
            load_state(self.module, whole_pieces(self.optimizer), folder)
        except DAMAGE as error:
            raise _damaged(folder, error) from error


class DeepSpeedEngine:
    """DeepSpeed with ZeRO stage 1 or 2, on any number of processes."""

    def __init__(
        self, model: CofinetuneModel, optimizer: ActiveAdamW, recipe: Recipe, rank: Rank, config: dict[str, Any]
    ) -> None:
        deepspeed = _import_deepspeed()
        _check_values(deepspeed, config)
        self.rank = rank
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.module = self.engine.module

    def __call__(self, *args: Any) -> Tensor:
        logits: Tensor = self.engine(*args)
        return logits

    def backward(self, loss: Tensor) -> None:
        # ZeRO averages over ranks what is to be summed. Nothing is divided by micro-steps: the loss already is.
        self.engine.backward(loss * self.rank.world, scale_wrt_gas=False)

    def step(self, lr: float, lr_scales: dict[str, float]) -> float | None:
        set_step(self.engine.optimizer.param_groups, lr, lr_scales)
        skipped = self.engine.skipped_steps
        self.engine.step()
        if self.engine.skipped_steps != skipped:
            return None
        return float(self.engine.get_global_grad_norm())

    def snapshot(self) -> tuple[State, State]:
        return _copy(self.module) if self.rank.first else {}, held_state(self.module, self._pieces())

    def load(self, folder: Path) -> None:
        try:
            load_weights(self.module, folder)
            self.engine.optimizer.refresh_fp32_params()
            load_state(self.module, self._pieces(), folder)
        except DAMAGE as error:
            raise _damaged(folder, error) from error

    def _pieces(self) -> list[Piece]:
        """This rank's part of every parameter in ZeRO's flat partitions (stages 1 and 2)."""
        zero, pieces = self.engine.optimizer, []
        for params, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            for parameter in params:
                part = parameter._hp_mapping
                place = None
                if part is not None:
                    inside, here = part.lp_fragment_address, part.get_hp_fragment_address()
                    place = (inside.start, here.start, here.numel)
                pieces.append(Piece(parameter, parameter.shape, flat, zero.optimizer.state, place))
        return pieces


def build_engine(model: CofinetuneModel, optimizer: ActiveAdamW, recipe: Recipe, rank: Rank, ds: str | None) -> Engine:
    """The engine of a run: DeepSpeed's with the JSON file `ds`, else the plain one."""
    if ds is None:
        return PlainEngine(model, optimizer, recipe, rank)
    return DeepSpeedEngine(model, optimizer, recipe, rank, deepspeed_config(ds, recipe))


def deepspeed_config(path: str, recipe: Recipe) -> dict[str, Any]:
    """Reads DeepSpeed's JSON and completes it from the recipe.

    Raises:
        UserError: no such file, not JSON, a ZeRO stage that is not supported, or a key that contradicts the recipe.
    """
    where = project_path(path)
    try:
        config = json.loads(where.read_text())
    except FileNotFoundError:
        raise UserError(f"no DeepSpeed configuration at {path}; the project's own are in ds_configs/") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a DeepSpeed configuration ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{where}: must hold a JSON object")
    for key, ours in OWNED.items():
        if key in config and config[key] != "auto":
            raise UserError(
                f"{where}: {key}={json.dumps(config[key])} contradicts the recipe, which says this with {ours}; "
                f"delete {key} from the JSON"
            )
        config.pop(key, None)
    for key in ("zero_optimization", "data_types", "torch_autocast", "fp16", "bf16"):
        if not isinstance(config.setdefault(key, {}), dict):
            raise UserError(f"{where}: {key} must be an object, not {json.dumps(config[key])}")
    _agree(where, config, "gradient_clipping", recipe.optim.clip_grad, "optim.clip_grad")
    _agree(where, config, "managed_gradient_accumulation", False, "the loop, which accumulates over tasks")
    _agree(where, config["data_types"], "grad_accum_dtype", "fp32", "the loop, which accumulates in fp32")
    for key in ("fp16", "bf16"):
        if config[key].get("enabled"):
            raise UserError(
                f"{where}: {key}.enabled contradicts precision={recipe.precision} of the recipe, under which "
                f"parameters stay in fp32; delete {key} from the JSON and choose precision=fp32 or precision=bf16"
            )
    autocast = config["torch_autocast"]
    _agree(where, autocast, "enabled", recipe.precision == "bf16", f"precision={recipe.precision}")
    if autocast["enabled"]:
        _agree(where, autocast, "dtype", "bfloat16", f"precision={recipe.precision}")
    stage = config["zero_optimization"].get("stage", 0)
    if stage not in STAGES:
        raise UserError(f"{where}: zero_optimization.stage={stage}; supported are {', '.join(map(str, STAGES))}")
    # Batches are ours; DeepSpeed only wants numbers that fit each other.
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    # Its list of tested optimizers goes by class name, and ours is a subclass of AdamW.
    config |= {"zero_allow_untested_optimizer": True}
    config.setdefault("steps_per_print", 10**9)
    return config


def _copy(module: nn.Module) -> State:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _check_values(deepspeed: Any, config: dict[str, Any]) -> None:
    """Raises UserError for what DeepSpeed itself does not accept in its configuration."""
    try:
        deepspeed.DeepSpeedConfig(dict(config))
    except Exception as error:  # pydantic's, its own, and what bad types happen to raise: it has no narrower class
        reason = " ".join(str(error).split()).partition(" For further information")[0]
        raise UserError(f"DeepSpeed does not accept its configuration (--ds): {reason}") from error


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"{folder} cannot be loaded ({type(error).__name__}: {reason}). It is of another model, or damaged: delete or "
        f"move {folder.name}, and --resume goes on from the checkpoint before it"
    )


def _agree(where: Path, config: dict[str, Any], key: str, ours: Any, source: str) -> None:
    if config.get(key, ours) != ours:
        raise UserError(
            f"{where}: {key}={json.dumps(config[key])} contradicts {json.dumps(ours)} of {source}; "
            f"delete {key} from the JSON"
        )
    config[key] = ours


def _import_deepspeed() -> Any:
    """Imports DeepSpeed late (it takes seconds), and on a CPU without its compiled collective."""
    if not torch.cuda.is_available():
        # It finds the CPU by itself, but with a warning from every rank.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed would compile its shared-memory all-reduce at first use: 40 s, a compiler, and a lock file that
        # hangs the next run when this one is interrupted. gloo does the same without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
