"""The person detector: its weights from a file, the cache or the net, and words where they cannot be had."""

import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from data.errors import UserError
from train import detector
from train.detector import load_detector

CPU = torch.device("cpu")
SCORES = "roi_heads.box_predictor.cls_score.weight"


class Stub(nn.Module):
    """Has the weight that tells the number of classes, and finds a person and a dog of known boxes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.roi_heads = nn.ModuleDict({"box_predictor": nn.ModuleDict({"cls_score": nn.Linear(2, num_classes)})})

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        (image,) = images
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        boxes = torch.tensor([[16.0, 12, 32, 48], [0, 0, 64, 48]])
        return [{"boxes": boxes, "labels": torch.tensor([1, 18]), "scores": torch.tensor([0.9, 0.8])}]


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A stub's weights under a name with their digest, as torchvision names its files; the cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    torch.save(Stub(91).state_dict(), tmp_path / "stub.pth")
    digest = hashlib.sha256((tmp_path / "stub.pth").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "stub.pth").rename(tmp_path / f"stub-{digest}.pth")
    known(monkeypatch, f"http://127.0.0.1:1/{file.name}")
    return file


def known(monkeypatch, url: str) -> None:
    monkeypatch.setattr(detector, "_KNOWN", ((lambda num_classes, **_: Stub(num_classes), url),))


def cache(weights: Path) -> Path:
    return weights.parent / "home" / "hub" / "checkpoints" / weights.name


@pytest.fixture
def served(weights, monkeypatch) -> Iterator[Path]:
    """The weights behind a URL."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(weights.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        known(monkeypatch, f"http://127.0.0.1:{server.server_port}/{weights.name}")
        yield weights
        server.shutdown()


def test_persons_come_as_fractions_of_the_frame(weights):
    found = load_detector(str(weights), CPU)(torch.full((3, 48, 64), 255, dtype=torch.uint8))
    assert found == pytest.approx(np.array([[0.25, 0.25, 0.5, 1.0, 0.9]]))


def test_weights_of_a_file(weights, tmp_path):
    for classes in (91, 2):
        state = Stub(classes).state_dict()
        save_file(state, tmp_path / "w.safetensors")
        torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
        load_detector(str(tmp_path / "w.safetensors"), CPU)
        load_detector(str(tmp_path / "w.pth"), CPU)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save(Stub(91).state_dict() | {SCORES: torch.zeros(91, 3)}, tmp_path / "shapes.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("other.pth", "shapes.pth", "empty.pth", "none.pth"):
        with pytest.raises(UserError, match=name):
            load_detector(str(tmp_path / name), CPU)


def test_torchvisions_models_are_told_apart_by_their_weights():
    for build, scale in ((detection.fasterrcnn_resnet50_fpn_v2, nn.BatchNorm2d), (frozen, FrozenBatchNorm2d)):
        with torch.device("meta"):
            meant = build(weights=None, weights_backbone=None, num_classes=2)
            found = detector._build(meant.state_dict(), Path("w.pth"))
        assert [*found.state_dict()] == [*meant.state_dict()]
        assert isinstance(found.backbone.body.bn1, scale)


def frozen(num_classes: int, **_: None) -> Any:
    """fasterrcnn_resnet50_fpn as torchvision builds it for weights that it knows."""
    return detection.FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes)


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the published weights name them: they are from before some layers were wrapped."""
    return {
        re.sub(
            r"(fpn\.(?:inner|layer)_blocks\.\d)\.0", r"\1", name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        ): value
        for name, value in state.items()
    }


def test_published_weights_give_what_torchvision_makes_of_them(tmp_path, monkeypatch):
    torch.manual_seed(0)
    meant = frozen(91).eval()
    meant.backbone.body.bn1.running_var.uniform_(1e-5, 2e-5)  # against which an epsilon of 1e-5 is much
    state = meant.state_dict()
    names = old_names(state)
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.weight"} <= names.keys()
    torch.save(names, tmp_path / "published.pth")
    save_file(names, tmp_path / "trained.safetensors")
    digest = hashlib.sha256((tmp_path / "published.pth").read_bytes()).hexdigest()[:8]
    (v2, url), (v1, _) = detector._KNOWN
    monkeypatch.setattr(detector, "_KNOWN", ((v2, url), (v1, f"https://server/published-{digest}.pth")))
    image = torch.rand(1, 3, 64, 64)
    for file, epsilon in (("trained.safetensors", 1e-5), ("published.pth", 0.0)):
        overwrite_eps(meant, epsilon)
        found = built(monkeypatch, tmp_path / file)
        with torch.no_grad():
            expected, got = meant.backbone(image), found.backbone(image)
        assert all(torch.equal(got[level], expected[level]) for level in expected)
        assert all(torch.equal(found.state_dict()[name], value) for name, value in state.items())


def test_weights_that_were_trained_with_their_batch_norm_load_as_well(tmp_path, monkeypatch):
    torch.manual_seed(0)
    meant = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2).eval()
    meant.backbone.body.bn1.running_var.uniform_(0.5, 2)
    assert "backbone.body.bn1.num_batches_tracked" in meant.state_dict()
    torch.save(meant.state_dict(), tmp_path / "w.pth")
    found, image = built(monkeypatch, tmp_path / "w.pth"), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = meant.backbone(image), found.backbone(image)
    assert all(torch.allclose(got[level], expected[level], rtol=1e-3, atol=1e-4) for level in expected)


def built(monkeypatch, file: Path) -> Any:
    """The model with which `load_detector` detects."""
    with monkeypatch.context() as patch:
        patch.setattr(detector, "_detector", lambda model, device: model)
        return load_detector(str(file), CPU)


def test_weights_in_the_cache_are_used_without_a_net(weights):
    cache(weights).parent.mkdir(parents=True)
    weights.rename(cache(weights))
    load_detector(None, CPU)


def test_weights_that_are_not_there_are_downloaded_into_the_cache(served, capsys):
    load_detector(None, CPU)
    assert cache(served).read_bytes() == served.read_bytes()
    assert f"downloading torchvision's person detector to {cache(served)}" in capsys.readouterr().err


def test_a_download_that_is_not_what_it_should_be_leaves_nothing(served):
    served.write_bytes(b"Please log in to the hotel's network")
    with pytest.raises(UserError, match=r"cannot be downloaded \(invalid hash value"):
        load_detector(None, CPU)
    assert list(cache(served).parent.iterdir()) == []


def test_where_nothing_can_be_had_the_message_says_what_to_give(weights):
    with pytest.raises(UserError, match=r"cannot be downloaded .*refused.* Give --boxes CSV .* --detector FILE"):
        load_detector(None, CPU)


def test_a_server_that_does_not_answer_is_given_up(weights, monkeypatch):
    monkeypatch.setattr(detector, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        known(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/{weights.name}")
        with pytest.raises(UserError, match=r"timed out|no answer within"):
            load_detector(None, CPU)
    assert socket.getdefaulttimeout() is None
