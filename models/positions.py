"""Position embeddings: the sine-cosine table, and any of them for another grid of tubelets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(count: int, dim: int, device: torch.device | str | None = None) -> Tensor:
    """VideoMAE's fixed sine-cosine table over the flattened tubelets (Tong et al., arXiv 2203.12602, and its code).

    Row p holds sin(p / 10000^(2i / dim)) at column 2i and the cosine of the same angle at column 2i + 1: the table
    knows the place in the sequence, and rows, columns and times only through it.

    Returns:
        float32 [1, count, dim], computed in float64.
    """
    place = torch.arange(count, dtype=torch.float64, device=device)[:, None]
    column = torch.arange(dim, dtype=torch.float64, device=device)
    angle = place / 10_000.0 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()[None]


def resample_positions(
    positions: Tensor, old_grid: tuple[int, int, int], new_grid: tuple[int, int, int], num_prefix_tokens: int
) -> Tensor:
    """Interpolates a position embedding: bicubic with antialiasing over space, as timm does, and linear over time.

    Args:
        positions: [1, P + t h w, D], time slowest.
        old_grid: (t, h, w) that it was learned on.
        new_grid: (t', h', w').
        num_prefix_tokens: P; these are copied.

    Returns:
        [1, P + t' h' w', D], dtype and device unchanged.
    """
    prefix, grid = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    volume = grid[0].unflatten(0, old_grid).float()  # [t, h, w, D]
    if old_grid[1:] != new_grid[1:]:
        volume = F.interpolate(volume.permute(0, 3, 1, 2), size=new_grid[1:], mode="bicubic", antialias=True)
        volume = volume.permute(0, 2, 3, 1)
    if old_grid[0] != new_grid[0]:
        lines = volume.permute(1, 2, 3, 0).flatten(0, 1)  # [h w, D, t]
        volume = F.interpolate(lines, size=new_grid[0], mode="linear").permute(2, 0, 1)
    tubelets = volume.reshape(1, -1, positions.shape[-1]).to(positions.dtype)
    return torch.cat((prefix, tubelets), dim=1)
