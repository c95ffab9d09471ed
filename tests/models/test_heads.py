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


def transparent_head(pool, roi_size=7, **options):
    """A head whose logits are the pooled vector itself."""
    head = LocalisationHead(dim=3, num_classes=3, roi_size=roi_size, pool=pool, **options)
    with torch.no_grad():
        head.fc.weight.copy_(torch.eye(3))
    return head


def boxes_within(low, high):
    """Corners in [low, high], of any extent."""
    pair = st.tuples(*[st.floats(low, high, width=32)] * 2).map(sorted)
    return st.tuples(pair, pair).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]])


@settings(deadline=None, max_examples=100)
@given(
    placed=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
    grid=st.tuples(st.integers(1, 3), st.integers(2, 16), st.integers(2, 16)),
    roi_size=st.integers(1, 9),
    temporal=st.sampled_from(["mean", "max", "roi"]),
    box_scale=st.sampled_from([1.0, 1.2, 1.5]),
)
def test_coordinates_come_back_as_the_boxes_centres(placed, grid, roi_size, temporal, box_scale):
    """With pool "mean" and any other options, for boxes anywhere and of any size, as long as the region stays clear of
    the half cell along the border, where the map is constant and no longer the coordinate."""
    margin = 0.5 / torch.tensor([grid[2], grid[1]])
    places = torch.tensor(placed, dtype=torch.float32)
    centres = margin + places[:, :2] * (1 - 2 * margin)
    halves = places[:, 2:] * torch.minimum(centres - margin, 1 - margin - centres).clamp(min=0) / box_scale
    head = transparent_head("mean", roi_size, temporal=temporal, box_scale=box_scale)
    clip = torch.arange(len(placed)) % 2
    out = head(coordinate_tokens(grid, clips=2), grid, torch.cat((centres - halves, centres + halves), dim=1), clip)
    torch.testing.assert_close(out[:, :2], centres, atol=1e-3, rtol=0)
    assert torch.equal(out[:, 2].round(), clip.float())


@pytest.mark.parametrize("temporal", ["mean", "max", "roi"])
@pytest.mark.parametrize("pool", ["mean", "max"])
@settings(deadline=None, max_examples=25)
@given(box=boxes_within(0.0, 1.0), roi_size=st.sampled_from([1, 4, 7]), box_scale=st.sampled_from([1.0, 1.3, 3.0]))
def test_everywhere_the_map_is_linear_and_constant_in_the_outer_half_cell(temporal, pool, box, roi_size, box_scale):
    """At the border too: samples in the outer half cell read its value, and an enlarged region ends with the view."""
    spans = []
    for low, high, cells in ((box[0], box[2], GRID[2]), (box[1], box[3], GRID[1])):
        grown = (high - low) * (box_scale - 1) / 2
        low, high = max(0.0, low - grown), min(1.0, high + grown)
        steps = (torch.arange(2 * roi_size) + 0.5) / (2 * roi_size)  # two samples a bin
        bins = (low + steps * (high - low)).clamp(0.5 / cells, 1 - 0.5 / cells).unflatten(0, (roi_size, 2)).mean(dim=1)
        spans.append(bins.mean() if pool == "mean" else bins.max())
    head = transparent_head(pool, roi_size, temporal=temporal, box_scale=box_scale)
    out = head(coordinate_tokens(GRID), GRID, torch.tensor([box]), torch.zeros(1, dtype=torch.int64))[0]
    torch.testing.assert_close(out[:2], torch.stack(spans), atol=1e-4, rtol=0)


def test_time_is_pooled_before_or_after_space():
    """One cell lights up at one of two times: the mean halves it, the maximum and the 3-D region keep it."""
    tokens = torch.zeros(1, *GRID, 3)
    tokens[0, 1, 2, 4] = 1.0
    box = torch.tensor([[4 / 8, 2 / 5, 5 / 8, 3 / 5]])
    got = {}
    for temporal in ("mean", "max", "roi"):
        head = transparent_head("max", 1, temporal=temporal)
        got[temporal] = head(tokens.flatten(1, 3), GRID, box, torch.tensor([0]))[0, 0].item()
    sample = 0.75**2  # of two samples an axis, a quarter of a cell from its centre
    assert got == pytest.approx({"mean": sample / 2, "max": sample, "roi": sample})
    # Of different cells at different times, the maximum before RoIAlign makes one bright region.
    tokens[0, 0, 2, 3], box = 1.0, torch.tensor([[3.5 / 8, 2 / 5, 4.5 / 8, 3 / 5]])
    for temporal, across in (("max", 1.0), ("roi", 0.5)):
        head = transparent_head("max", 1, temporal=temporal)
        out = head(tokens.flatten(1, 3), GRID, box, torch.tensor([0]))[0, 0].item()
        assert out == pytest.approx(across * 0.75)


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


OPTIONS = [
    {},
    {"pool": "mean", "temporal": "roi"},
    {"temporal": "max", "roi_size": 3, "box_scale": 1.3},
    {"temporal": "roi", "context_heads": 3},
    {"pool": "mean", "context_heads": 1, "dropout": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_boxes_give_empty_logits_and_zero_gradients(options):
    backbone = torch.nn.Linear(3, 3)
    head = LocalisationHead(3, 4, **options)
    logits = head(backbone(torch.randn(2, 80, 3)), GRID, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert logits.shape == (0, 4)
    F.binary_cross_entropy_with_logits(logits, torch.zeros(0, 4), reduction="sum").backward()
    for param in (*backbone.parameters(), *head.parameters()):
        assert param.grad is not None and (param.grad == 0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_box_stands_alone_in_any_order_and_number(options):
    """200 boxes, none of them in the second clip: the same as one by one, and gradients for all parameters."""
    torch.manual_seed(0)
    head = LocalisationHead(3, 4, **options)
    head.dropout.p = 0.0
    with torch.no_grad():
        for param in head.parameters():
            param.normal_()
    tokens = torch.randn(4, 1 + 80, 3)
    corners = torch.rand(200, 2, 2).sort(dim=1).values.flatten(1)
    clip = torch.tensor([0, 2, 3])[torch.randint(0, 3, (200,))]
    together = head(tokens, GRID, corners, clip)
    assert together.shape == (200, 4)
    alone = [head(tokens[c, None], GRID, corners[k, None], torch.tensor([0])) for k, c in enumerate(clip.tolist())]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    together.square().sum().backward()
    for name, param in head.named_parameters():
        assert param.grad is not None and (param.grad.abs().sum() > 0 or name == "context.kv.bias"), name


def test_context_attention_is_the_formula():
    head = LocalisationHead(6, 4, context_heads=2, pool="mean").double()
    context, tokens = head.context, torch.randn(2, 1 + 80, 6, dtype=torch.float64)
    assert context is not None
    with torch.no_grad():
        for param in context.parameters():
            param.normal_()
    vectors, clip = torch.randn(3, 6, dtype=torch.float64), torch.tensor([1, 0, 1])
    out = context(vectors, tokens, clip)
    for k, c in enumerate(clip.tolist()):
        query = context.q(context.norm(vectors[k])).view(2, 3)
        key, value = context.kv(tokens[c]).chunk(2, dim=1)  # the class token counts
        heads = []
        for h in range(2):
            part = slice(3 * h, 3 * h + 3)
            weights = (key[:, part] @ query[h] / 3**0.5).softmax(dim=0)
            heads.append(weights @ value[:, part])
        torch.testing.assert_close(out[k], vectors[k] + context.proj(torch.cat(heads)))


def test_heads_run_in_bfloat16_and_under_autocast():
    tokens, boxes, clip = torch.randn(2, 80, 8), torch.tensor([[0.1, 0.2, 0.7, 0.9]] * 3), torch.tensor([1, 0, 1])
    for options in ({"temporal": "roi", "context_heads": 2}, {"pool": "mean"}):
        head = LocalisationHead(8, 4, **options)
        expected = head(tokens, GRID, boxes, clip)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(head(tokens, GRID, boxes, clip).float(), expected, atol=0.02, rtol=0.05)
        low = head.bfloat16()(tokens.bfloat16(), GRID, boxes, clip)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), expected, atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    "options", [{}, {"temporal": "roi", "box_scale": 1.4}, {"temporal": "max", "context_heads": 3}]
)
def test_gradients_are_those_of_finite_differences(options):
    torch.manual_seed(0)
    head = LocalisationHead(3, 2, roi_size=3, **options).double()
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
        (LocalisationHead, {"temporal": "rio"}, "nearest valid one is 'roi'"),
        (LocalisationHead, {"box_scale": 0.5}, r"box_scale must lie in \[1\.0, 10\.0\]"),
        (LocalisationHead, {"context_heads": 2}, "the width 3 is not a multiple of context_heads 2"),
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


def test_shapes_without_memory():
    """The meta device has no autocast."""
    tokens = torch.empty(2, 8, 16, device="meta")
    assert ClassificationHead(16, 5).to("meta")(tokens, (2, 2, 2)).shape == (2, 5)
