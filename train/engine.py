"""Engines: forward, accumulate, step, save and load, under DeepSpeed's ZeRO or in plain PyTorch.

The only file that knows DeepSpeed. Both engines take per-rank sums that are already divided by global counts, so both
give the gradient of the same loss; the plain one, on one process, is the reference for the other.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import UserError
from models import CofinetuneModel
from train.ds_config import deepspeed_config
from train.launch import Rank
from train.optim import Optimizer, forget, set_step
from train.optim_state import Piece, held_state, load_state, load_weights, whole_pieces
from train.recipe import Recipe

DAMAGE = (RuntimeError, ValueError, LookupError, OSError, TypeError, SafetensorError)
"""What loading a damaged checkpoint raises, or one of another model."""
State = dict[str, Tensor]


class Engine(Protocol):
    """What the loop asks of an engine. `module` is the bare model; ZeRO's stage 3 leaves a part of it on each rank."""

    module: CofinetuneModel

    def __call__(self, *args: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the step's loss; the sum over ranks is the step's gradient.

        What autograd computes for it on a rank is the number of ranks times that: the step's is the mean over ranks."""

    def step(self, lr: float, lr_scales: dict[str, float]) -> float | None:
        """Updates the backbone and the heads of `lr_scales`' tasks. Returns the gradient's norm before clipping, or
        None when it was not finite and the step was left out."""

    def whole(self) -> AbstractContextManager[CofinetuneModel]:
        """The model with all its weights on this rank's device, to evaluate; called on every rank."""

    def restart(self) -> None:
        """Forgets what the optimizer knows of earlier steps, and keeps the weights; called on every rank."""

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

    def __init__(self, model: CofinetuneModel, optimizer: Optimizer, recipe: Recipe, rank: Rank) -> None:
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

    def whole(self) -> AbstractContextManager[CofinetuneModel]:
        return nullcontext(self.module)

    def restart(self) -> None:
        forget(self.optimizer)

    def snapshot(self) -> tuple[State, State]:
        return _copy(self.module), held_state(self.module, whole_pieces(self.optimizer))

    def load(self, folder: Path) -> None:
        try:
            load_weights(self.module, folder)
            load_state(self.module, whole_pieces(self.optimizer), folder)
        except DAMAGE as error:
            raise _damaged(folder, error) from error


class DeepSpeedEngine:
    """DeepSpeed with ZeRO stage 1, 2 or 3, on any number of processes."""

    def __init__(
        self,
        model: CofinetuneModel,
        optimizer: Optimizer,
        recipe: Recipe,
        rank: Rank,
        config: dict[str, Any],
    ) -> None:
        deepspeed = _import_deepspeed()
        _check_values(deepspeed, config)
        zero = config["zero_optimization"]
        self.rank, self.stage = rank, zero["stage"]
        offloaded = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
        if rank.world == 1 and self.stage == 2 and not offloaded:
            # One process divides gradients with nobody: stage 2 would hold as much as stage 1, and copy every gradient
            # in every micro-step, a tenth of a step on a CPU.
            config = {**config, "zero_optimization": {**zero, "stage": 1, "overlap_comm": False}}
        self._gathered = deepspeed.zero.GatheredParameters
        # Stage 3 takes the module's weights apart. Its copy has none, until it is asked for.
        self._blank = copy.deepcopy(model).to("meta") if self.stage == 3 else None
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
        self._clear_gradients()
        if self.engine.skipped_steps != skipped:
            return None
        return float(self.engine.get_global_grad_norm())

    def _clear_gradients(self) -> None:
        """Stage 3, and stages 1 and 2 when offloaded, accumulate in buffers that they never clear: the first micro-step
        overwrites what it has gradients for, the others add. A head's first micro-step is not the step's first, so what
        its step before left would count again; under stage 3 also in the norm of all steps in between."""
        zero = self.engine.optimizer
        if self.stage == 3:
            zero.grad_partitions_flat_buffer.zero_()
        elif zero.cpu_offload:
            for parameter in self.module.heads.parameters():  # the backbone is in every micro-step
                buffer = zero.accumulated_grads_in_cpu.get(zero.get_param_id(parameter))
                if buffer is not None:
                    buffer.zero_()

    @contextmanager
    def whole(self) -> Iterator[CofinetuneModel]:
        # Not the module itself under stage 3: its hooks would gather every layer in inference mode, which spoils it for
        # training.
        yield self.module if self._blank is None else self._assemble(self._blank, self.rank.device)

    def _assemble(self, blank: CofinetuneModel, device: torch.device | str) -> CofinetuneModel:
        model = copy.deepcopy(blank).to_empty(device=device)
        with torch.no_grad():
            for target, source in zip(model.parameters(), self.module.parameters(), strict=True):
                with self._gathered([source]):
                    target.copy_(source)
            for buffer, held in zip(model.buffers(), self.module.buffers(), strict=True):
                buffer.copy_(held)
        return model

    def restart(self) -> None:
        forget(self.engine.optimizer.optimizer)

    def snapshot(self) -> tuple[State, State]:
        model = self.module if self._blank is None else self._assemble(self._blank, "cpu")
        return _copy(model) if self.rank.first else {}, held_state(self.module, self._pieces())

    def load(self, folder: Path) -> None:
        try:
            if self._blank is None:
                load_weights(self.module, folder)
            else:
                self._load_apart(copy.deepcopy(self._blank).to_empty(device="cpu"), folder)
            self.engine.optimizer.refresh_fp32_params()
            load_state(self.module, self._pieces(), folder)
        except DAMAGE as error:
            raise _damaged(folder, error) from error

    def _load_apart(self, model: CofinetuneModel, folder: Path) -> None:
        """The weights of stage 3, whose ranks hold parts; `model` is there to be filled with all of them."""

        def read() -> None:
            try:
                load_weights(model, folder)
            except DAMAGE as error:
                raise _damaged(folder, error) from error

        self.rank.together(read)  # or a rank that fails would leave the others waiting for it
        with torch.no_grad():
            for target, source in zip(self.module.parameters(), model.parameters(), strict=True):
                with self._gathered([target], modifier_rank=0):
                    if self.rank.first:
                        target.copy_(source)

    def _pieces(self) -> list[Piece]:
        """This rank's part of every parameter in ZeRO's flat partitions."""
        zero, pieces = self.engine.optimizer, []
        if self.stage == 3:
            for params, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
                for parameter in params:
                    _, here, most = zero.grad_position[zero.get_param_id(parameter)]
                    inside = self.rank.index * most
                    count = min(most, parameter.ds_numel - inside)  # the last rank's part is padded, or all padding
                    place = (inside, here, count) if count > 0 else None
                    pieces.append(Piece(parameter, parameter.ds_shape, flat, zero.optimizer.state, place))
            return pieces
        for params, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            for parameter in params:
                part = parameter._hp_mapping
                place = None
                if part is not None:
                    inside, here = part.lp_fragment_address, part.get_hp_fragment_address()
                    place = (inside.start, here.start, here.numel)
                pieces.append(Piece(parameter, parameter.shape, flat, zero.optimizer.state, place))
        return pieces


def build_engine(model: CofinetuneModel, optimizer: Optimizer, recipe: Recipe, rank: Rank, ds: str | None) -> Engine:
    """The engine of a run: DeepSpeed's with the JSON file `ds`, else the plain one."""
    if ds is None:
        return PlainEngine(model, optimizer, recipe, rank)
    return DeepSpeedEngine(model, optimizer, recipe, rank, deepspeed_config(ds, recipe))


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
