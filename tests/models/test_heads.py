"""Heads: pooling, the geometry of boxes, batches without boxes, and errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import ClassificationHead, LocalisationHead

GRID = (2, 5, 8)  # height and width differ, so a mixed-up axis shows


def coordinate_tokens(grid, clips=1):
    """[clips, t h w, 3]: x and y of the cell's centre in [0, 1], and the number of the clip."""
    time, height, width = grid
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    tokens = torch.stack((x, y, torch.zeros_like(x)), dim=-1).expand(clips, time, height, width, 3).clone()
    tokens[..., 2] = torch.arange(clips).view(-1, 1, 1, 1)
    return tokens.flatten(1, 3)


def transparent_head(pool, roi_size=7):
    """A head whose logits are the pooled vector itself."""
    head = LocalisationHead(dim=3, num_classes=3, roi_size=roi_size, pool=pool)
    with torch.no_grad():
        head.fc.weight.copy_(torch.eye(3))
    return head


def boxes_within(low, high):
    """Corners in [low, high], of any extent."""
    pair = st.tuples(*[st.floats(low, high, width=32)] * 2).map(sorted)
    return st.tuples(pair, pair).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]])


@settings(deadline=None, max_examples=60)
@given(boxes=st.lists(boxes_within(0.125, 0.875), min_size=1, max_size=5), roi_size=st.sampled_from([1, 2, 7]))
def test_coordinates_come_back_as_the_boxes_centres(boxes, roi_size):
    # Within half a cell of the border the map is constant, and no longer the coordinate.
    corners = torch.tensor(boxes, dtype=torch.float32)
    clip = torch.arange(len(boxes)) % 2
    out = transparent_head("mean", roi_size)(coordinate_tokens(GRID, clips=2), GRID, corners, clip)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    torch.testing.assert_close(out[:, :2], centres, atol=1e-3, rtol=0)
    assert torch.equal(out[:, 2].round(), clip.float())


@settings(deadline=None, max_examples=40)
@given(box=boxes_within(0.0, 1.0))
def test_everywhere_the_map_is_bilinear_and_constant_in_the_outer_half_cell(box):
    x1, y1, x2, y2 = box
    steps = (torch.arange(14) + 0.5) / 14  # 7 bins of 2 samples
    x = (x1 + steps * (x2 - x1)).clamp(0.5 / GRID[2], 1 - 0.5 / GRID[2])
    y = (y1 + steps * (y2 - y1)).clamp(0.5 / GRID[1], 1 - 0.5 / GRID[1])
    corners, clip = torch.tensor([box]), torch.zeros(1, dtype=torch.int64)
    mean = transparent_head("mean")(coordinate_tokens(GRID), GRID, corners, clip)[0]
    torch.testing.assert_close(mean[:2], torch.stack((x.mean(), y.mean())), atol=1e-4, rtol=0)
    highest = transparent_head("max")(coordinate_tokens(GRID), GRID, corners, clip)[0]
    torch.testing.assert_close(highest[:2], torch.stack((x[-2:].mean(), y[-2:].mean())), atol=1e-4, rtol=0)


def test_a_box_reads_only_the_cells_around_it_at_all_times_and_no_prefix_token():
    tokens = torch.randn(2, 1 + 80, 3, requires_grad=True)
    box = torch.tensor([[0.5, 0.2, 0.75, 0.6]])  # columns 4 and 5, rows 1 and 2
    (gradient,) = torch.autograd.grad(transparent_head("mean")(tokens, GRID, box, torch.tensor([1])).sum(), tokens)
    assert (gradient[:, 0] == 0).all() and (gradient[0] == 0).all()
    reached = gradient[1, 1:].unflatten(0, GRID).abs().sum(dim=-1)
    assert torch.equal(reached[0], reached[1])
    rows, columns = reached[0].nonzero().unbind(dim=1)
    assert rows.unique().tolist() == [0, 1, 2, 3] and columns.unique().tolist() == [3, 4, 5, 6]


def test_a_box_without_area_is_a_point():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    out = transparent_head("max")(coordinate_tokens(GRID), GRID, point, torch.tensor([0]))
    torch.testing.assert_close(out[0, :2], torch.tensor([0.5, 0.5]))


def test_boxes_keep_their_precision_under_bfloat16():
    tokens = coordinate_tokens(GRID).bfloat16()
    box = torch.tensor([[0.5019, 0.3, 0.5058, 0.7]])  # bfloat16 corners would make the centre 0.502, which rounds down
    pooled = transparent_head("mean").bfloat16().pool_boxes(tokens, GRID, box, torch.tensor([0]))
    assert pooled.dtype == torch.bfloat16
    assert pooled[0, 0].item() == 0.50390625  # 0.50385 to bfloat16's precision


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_no_boxes_give_empty_logits_and_zero_gradients(pool):
    backbone = torch.nn.Linear(3, 3)
    head = LocalisationHead(3, 4, pool=pool)
    logits = head(backbone(torch.randn(2, 80, 3)), GRID, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert logits.shape == (0, 4)
    F.binary_cross_entropy_with_logits(logits, torch.zeros(0, 4), reduction="sum").backward()
    for param in (*backbone.parameters(), *head.parameters()):
        assert param.grad is not None and (param.grad == 0).all()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    head = LocalisationHead(3, 2, roi_size=3).double()
    boxes, clip = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.3, 0.0, 1.0, 0.5]], dtype=torch.float64), torch.tensor([1, 0])
    tokens = torch.randn(2, 24, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head(x, (2, 3, 4), boxes, clip), tokens)


def test_classification_pools_tubelets_or_the_class_token():
    tokens = torch.randn(2, 1 + 80, 3)
    mean, class_token = ClassificationHead(3, 4), ClassificationHead(3, 4, pool="class_token")
    torch.testing.assert_close(mean(tokens, GRID), mean.fc(tokens[:, 1:].mean(dim=1)))
    torch.testing.assert_close(class_token(tokens, GRID), class_token.fc(tokens[:, 0]))


def test_dropout_works_in_training_only():
    for head in (ClassificationHead(3, 4, dropout=0.5), LocalisationHead(3, 4, dropout=0.5)):
        args = (torch.randn(2, 80, 3), GRID, torch.tensor([[0.1, 0.1, 0.9, 0.9]]), torch.tensor([0]))
        assert any(not torch.equal(head(*args), head(*args)) for _ in range(20))
        head.eval()
        assert torch.equal(head(*args), head(*args))


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (ClassificationHead, {"pool": "meen"}, "nearest valid one is 'mean'"),
        (ClassificationHead, {"num_classes": 0}, "num_classes must be a whole number from 1"),
        (ClassificationHead, {"dropout": 1.5}, "dropout must lie in"),
        (LocalisationHead, {"roi_size": 0}, "roi_size must be"),
        (LocalisationHead, {"pool": "class_token"}, "valid: max, mean"),
    ],
)
def test_wrong_options(head, options, message):
    with pytest.raises(ValueError, match=message):
        head(**{"dim": 3, "num_classes": 4, **options})


def test_wrong_inputs():
    tokens = torch.randn(2, 80, 3)
    with pytest.raises(ValueError, match="class_token=True"):
        ClassificationHead(3, 4, pool="class_token")(tokens, GRID)
    head = LocalisationHead(3, 4)
    with pytest.raises(ValueError, match="needs boxes and box_clip"):
        head(tokens, GRID)
    with pytest.raises(ValueError, match=r"not \[2, 5\] and \[2\]"):
        head(tokens, GRID, torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"not \[2, 4\] and \[3\]"):
        head(tokens, GRID, torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
