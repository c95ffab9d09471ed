"""An exponential moving average of the weights, in fp32, evaluated beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data.errors import UserError

EMA_FILE = "ema.safetensors"
EMA_PREFIX = "ema/"
"""Of the names of metrics that the average has."""


def use_average(model: nn.Module, folder: Path) -> None:
    """Replaces the weights by the average that a checkpoint holds. Raises UserError where it holds none."""
    if not (folder / EMA_FILE).exists():
        raise UserError(f"{folder} holds no {EMA_FILE}: its run had no moving average (recipe key ema)")
    average = WeightAverage(model, 0.0)
    average.load(folder)
    average.take_over(model)


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights after every optimizer step, from the first weights on.

    Every rank holds and updates all of it, 4 bytes a parameter, without communication.

    Args:
        model: holds all its weights, so not under ZeRO's stage 3.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().float().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights after a step."""
        weights = [value.detach().float() for value in model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.decay)

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begins anew from the weights as they are."""
        for average, value in zip(self.average.values(), model.parameters(), strict=True):
            average.copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside of it the model's weights are the average; afterwards they are what they were, to the bit."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def take_over(self, model: nn.Module) -> None:
        """Makes the average the model's weights for good."""
        for average, value in zip(self.average.values(), model.parameters(), strict=True):
            value.copy_(average)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        # One after the other: a second copy of all weights may not fit beside them.
        for average, value in zip(self.average.values(), model.parameters(), strict=True):
            held = value.clone()
            value.copy_(average)
            average.copy_(held)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy in host memory."""
        return {name: value.to("cpu", copy=True) for name, value in self.average.items()}

    def load(self, folder: Path) -> None:
        """Fills the average from a checkpoint.

        Raises:
            UserError: it has none, or that of another model.
        """
        try:
            with safe_open(folder / EMA_FILE, framework="pt") as file, torch.no_grad():
                if set(file.keys()) != self.average.keys():
                    raise UserError(f"{folder / EMA_FILE} is of another model")
                for name, value in self.average.items():
                    value.copy_(file.get_tensor(name))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder / EMA_FILE} cannot be loaded ({' '.join(str(error).split())})") from error
