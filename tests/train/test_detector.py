"""The person detector: its weights from a file, the cache or the net, and words where they cannot be had."""

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import detection

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
    for build in (detection.fasterrcnn_resnet50_fpn_v2, detection.fasterrcnn_resnet50_fpn):
        with torch.device("meta"):
            meant = build(weights=None, weights_backbone=None, num_classes=2)
            found = detector._build(meant.state_dict(), Path("w.pth"))
        assert [*found.state_dict()] == [*meant.state_dict()]


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
