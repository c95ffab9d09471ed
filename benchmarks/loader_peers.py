"""What people use today to load clips of plain video files, each decoder as its own documentation shows it.

All of them give the same: uint8 [3, T, S, S] of a random span at a stride, a torchvision RandomResizedCrop of it,
mirrored or not.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

SCALE = (0.5, 1.0)
"""Share of the frame's area that a crop covers: the loader's default."""


@dataclass(frozen=True)
class ClipShape:
    """`frames` frames at `stride`, cut to `size` x `size` pixels."""

    frames: int
    stride: int
    size: int

    def indices(self, total: int) -> np.ndarray:
        """int64 [frames]: a random span of a video of `total` frames."""
        start = int(torch.randint(max(total - (self.frames - 1) * self.stride, 1), ()))
        return np.minimum(start + self.stride * np.arange(self.frames), total - 1)

    def transform(self) -> v2.Transform:
        """uint8 [T, 3, H, W] -> uint8 [T, 3, size, size]."""
        return v2.Compose([v2.RandomResizedCrop(self.size, scale=SCALE, antialias=True), v2.RandomHorizontalFlip()])


def read_pyav(path: str, shape: ClipShape) -> Tensor:
    """PyAV: seek to the key frame before the span, decode on, convert the frames that are wanted."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None and stream.time_base is not None
        indices = shape.indices(stream.frames)
        wanted = set(indices.tolist())
        first = stream.start_time or 0
        container.seek(first + int(indices[0] / stream.average_rate / stream.time_base), stream=stream)
        found: dict[int, np.ndarray] = {}
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round((frame.pts - first) * stream.time_base * stream.average_rate)
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= indices[-1]:
                break
    return torch.from_numpy(np.stack([found[number] for number in indices.tolist()])).permute(0, 3, 1, 2)


def read_decord(path: str, shape: ClipShape) -> Tensor:
    """decord: a reader of the file, one batch of frames. A single thread, as is usual inside of DataLoader workers."""
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    frames = reader.get_batch(shape.indices(len(reader))).asnumpy()
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def read_opencv(path: str, shape: ClipShape) -> Tensor:
    """OpenCV: set the position, then read what is wanted and grab what is not."""
    import cv2

    cv2.setNumThreads(0)
    capture = cv2.VideoCapture(path)
    try:
        indices = shape.indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        wanted = set(indices.tolist())
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(indices[0]))
        found = {}
        for number in range(int(indices[0]), int(indices[-1]) + 1):
            if number not in wanted:
                capture.grab()
                continue
            good, frame = capture.read()
            assert good, f"{path}: frame {number} cannot be read"
            found[number] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
    return torch.from_numpy(np.stack([found[number] for number in indices.tolist()])).permute(0, 3, 1, 2)


READERS: dict[str, tuple[str, Callable[[str, ClipShape], Tensor]]] = {
    "PyAV": ("av", read_pyav),
    "decord": ("decord", read_decord),
    "OpenCV": ("cv2", read_opencv),
}
"""Name -> (module, reader)."""


class VideoFiles(Dataset[Tensor]):
    """Clips of video files, through one of READERS."""

    def __init__(self, paths: list[str], reader: Callable[[str, ClipShape], Tensor], shape: ClipShape) -> None:
        self.paths, self.reader, self.shape, self.transform = paths, reader, shape, shape.transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        clip: Tensor = self.transform(self.reader(self.paths[number], self.shape))
        return clip.transpose(0, 1).contiguous()


class DecodeSample:
    """What a plain webdataset pipeline maps over its samples: the whole of the file's bytes to torchcodec."""

    def __init__(self, shape: ClipShape) -> None:
        self.shape, self.transform = shape, shape.transform()

    def __call__(self, sample: tuple[bytes]) -> tuple[Tensor]:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(sample[0])
        frames = decoder.get_frames_at(self.shape.indices(len(decoder)).tolist()).data
        clip: Tensor = self.transform(frames)
        return (clip.transpose(0, 1).contiguous(),)


def peers(videos: list[Path], tars: str, shape: ClipShape, workers: int, batch: int, clips: int) -> dict[str, Any]:
    """Name -> a function that gives an iterator over `clips` clips in batches; None where a package is missing.

    Args:
        videos: the original files.
        tars: the same files as plain webdataset tars, a brace pattern.
    """
    found: dict[str, Any] = {}
    for name, (module, reader) in READERS.items():
        found[name] = (
            _file_loader(videos, reader, shape, workers, batch, clips) if importlib.util.find_spec(module) else None
        )
    found["webdataset + torchcodec"] = _webdataset_loader(tars, shape, workers, batch, clips)
    return found


def _file_loader(
    videos: list[Path], reader: Callable[[str, ClipShape], Tensor], shape: ClipShape, workers: int, batch: int, n: int
) -> Callable[[], Iterator[Tensor]]:
    paths = [os.fspath(videos[number % len(videos)]) for number in range(n)]
    loader = DataLoader(
        VideoFiles(paths, reader, shape), batch, shuffle=True, num_workers=workers, persistent_workers=True
    )
    return lambda: iter(loader)


def _webdataset_loader(
    tars: str, shape: ClipShape, workers: int, batch: int, clips: int
) -> Callable[[], Iterator[Tensor]]:
    import webdataset as wds

    pipeline = (
        wds.WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node)
        .shuffle(16)
        .to_tuple("mp4")
        .map(DecodeSample(shape))
        .batched(batch)
    )
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers, persistent_workers=True)
    return lambda: iter(loader.with_epoch(clips // batch))
