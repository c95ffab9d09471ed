"""DeepSpeed's JSON: what it may say, what the recipe says in its place, and what the loop needs it to be."""

import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from train.recipe import Recipe, project_path

STAGES = (1, 2, 3)
OWNED = {
    "train_batch_size": "tasks.NAME.batch",
    "train_micro_batch_size_per_gpu": "tasks.NAME.micro_batch",
    "gradient_accumulation_steps": "tasks.NAME.batch and micro_batch",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
}
"""Keys of DeepSpeed's JSON that say what the recipe says, and the recipe's key for each."""


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
    _agree(where, config, "gradient_allreduce_op", "mean", "the loop, which has multiplied by the number of ranks")
    zero = config["zero_optimization"]
    _agree(where, zero, "compute_grad_norm", True, "the loop, which leaves out steps whose norm is not finite")
    _agree(where, zero, "round_robin_gradients", False, "checkpoints, which know ZeRO's partitions in the usual order")
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
        # Gradients of the modules named here, by default all linear layers, are rounded to bf16 before ranks sum them
        # up. What runs in bf16 does not depend on it.
        autocast.setdefault("lower_precision_safe_modules", [])
    stage = zero.get("stage", 0)
    if stage not in STAGES:
        raise UserError(f"{where}: zero_optimization.stage={stage}; supported are {', '.join(map(str, STAGES))}")
    if stage == 3 and recipe.ema:
        raise UserError(f"{where}: ema={recipe.ema} of the recipe needs whole weights on every rank: take stage 1 or 2")
    _check_offload(where, zero)
    # Batches are ours; DeepSpeed only wants numbers that fit each other.
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    # Its list of tested optimizers goes by class name, and ours is a subclass of AdamW.
    config |= {"zero_allow_untested_optimizer": True}
    # Offloaded, the optimizer steps fp32 partitions in host memory: PyTorch's fused kernels do that as they are.
    config |= {"zero_force_ds_cpu_optimizer": False}
    config.setdefault("steps_per_print", 10**9)
    return config


def _check_offload(where: Path, zero: dict[str, Any]) -> None:
    """Raises UserError for an offload that does not work with an optimizer of ours."""
    for key in ("offload_optimizer", "offload_param"):
        options = zero.get(key)
        if options is None:
            continue
        name = f"zero_optimization.{key}"
        if not isinstance(options, dict):
            raise UserError(f"{where}: {name} must be an object, not {json.dumps(options)}")
        device = options.get("device", "none")
        if device not in ("none", "cpu"):
            raise UserError(f"{where}: {name}.device={json.dumps(device)}; supported are none and cpu")
        if device == "cpu" and key == "offload_param" and zero["stage"] != 3:
            raise UserError(f"{where}: {name} needs zero_optimization.stage=3, not {zero['stage']}")
        if options.get("ratio", 1) != 1 or options.get("super_offload"):
            raise UserError(f"{where}: {name}: ratio and super_offload need DeepSpeed's own optimizer; delete them")
    if zero.get("zenflow") is not None:
        raise UserError(f"{where}: zero_optimization.zenflow needs DeepSpeed's own optimizer; delete it")


def _agree(where: Path, config: dict[str, Any], key: str, ours: Any, source: str) -> None:
    if config.get(key, ours) != ours:
        raise UserError(
            f"{where}: {key}={json.dumps(config[key])} contradicts {json.dumps(ours)} of {source}; "
            f"delete {key} from the JSON"
        )
    config[key] = ours
