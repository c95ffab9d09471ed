"""Position embeddings on other grids."""

import torch
from timm.layers import resample_abs_pos_embed

from models.positions import resample_positions


def test_the_same_grid_changes_nothing():
    positions = torch.randn(1, 1 + 24, 8)
    assert torch.equal(resample_positions(positions, (2, 3, 4), (2, 3, 4), 1), positions)


def test_space_is_interpolated_as_timm_does():
    positions = torch.randn(1, 1 + 5 * 5, 8)
    expected = resample_abs_pos_embed(positions, [4, 7], [5, 5], num_prefix_tokens=1)
    torch.testing.assert_close(resample_positions(positions, (1, 5, 5), (1, 4, 7), 1), expected)


def test_each_time_keeps_its_own_space():
    positions = torch.randn(1, 3 * 25, 8)
    out = resample_positions(positions, (3, 5, 5), (3, 7, 7), 0)
    for time in range(3):
        alone = resample_positions(positions[:, time * 25 : (time + 1) * 25], (1, 5, 5), (1, 7, 7), 0)
        torch.testing.assert_close(out[:, time * 49 : (time + 1) * 49], alone)


def test_time_is_interpolated_linearly_at_the_middles_of_the_tubelets():
    # One tubelet a second, each embedded as its middle in seconds.
    ramp = (torch.arange(4.0) + 0.5).view(1, 4, 1, 1).expand(1, 4, 6, 5).reshape(1, 24, 5)
    halves = resample_positions(ramp, (4, 2, 3), (8, 2, 3), 0).view(8, 6, 5)
    torch.testing.assert_close(halves[1:-1, 0, 0], torch.arange(0.75, 3.5, 0.5))
    assert (halves == halves[:, :1, :1]).all()
    places = torch.randn(1, 1, 6, 5)  # what differs in space and not in time stays where it is
    moved = resample_positions((ramp.view(1, 4, 6, 5) + places).flatten(1, 2), (4, 2, 3), (8, 2, 3), 0)
    torch.testing.assert_close(moved.view(8, 6, 5), halves + places[0])
    doubles = resample_positions(ramp, (4, 2, 3), (2, 2, 3), 0).view(2, 6, 5)
    torch.testing.assert_close(doubles[:, 0, 0], torch.tensor([1.0, 3.0]))
    assert resample_positions(ramp.bfloat16(), (4, 2, 3), (2, 2, 3), 0).dtype == torch.bfloat16
