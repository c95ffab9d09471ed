"""Decodes chosen frames of an encoded video that lies in memory."""

import re

import numpy as np
import torch
from torch import Tensor

from data.counters import timed
from data.errors import UserError

MAX_CLIP_BYTES = 2**31
"""A clip that would take more memory than this once decoded is refused: a header can claim any size."""

_SOURCE_LOCATION = re.compile(r"^\w+, \S+:\d+, ")


class DecodeError(ValueError):
    """A video that cannot be decoded; the text is the reason, on one line."""


def require_ffmpeg() -> None:
    """Loads the decoder. Raises UserError where FFmpeg's shared libraries are missing, or too old or too new."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            "videos cannot be decoded: torchcodec finds no FFmpeg that it can use; install FFmpeg with its shared"
            f" libraries (Debian, Ubuntu: apt-get install ffmpeg). It says: {' '.join(str(error).split())[:300]}"
        ) from error


@timed("decode_s")
def decode(video: bytes, indices: np.ndarray, frames: int) -> Tensor:
    """Decodes the frames `indices` of a video in one pass, each distinct frame once, on the calling thread.

    Args:
        video: an encoded video file.
        indices: int64 [T], in [0, frames), ascending; repetitions are free.
        frames: how many frames the video must have.

    Returns:
        uint8 [T, 3, H, W], RGB, as the decoder lays frames out (channels last in memory).

    Raises:
        DecodeError: no decodable video, another number of frames than `frames`, or a damaged frame.
    """
    # Here and not above: the import fails without FFmpeg, and `require_ffmpeg` says it better.
    from torchcodec.decoders import VideoDecoder

    distinct, places = np.unique(indices, return_inverse=True)
    try:
        # Exact seeking: the approximate mode returns wrong frames of videos whose frame rate varies.
        decoder = VideoDecoder(video, seek_mode="exact", num_ffmpeg_threads=1)
        if len(decoder) != frames:
            raise DecodeError(f"the video has {len(decoder)} frames, its record says {frames}")
        height, width = decoder.metadata.height or 0, decoder.metadata.width or 0
        if len(distinct) * 3 * height * width > MAX_CLIP_BYTES:
            raise DecodeError(f"{len(distinct)} frames of {width}x{height} take more than {MAX_CLIP_BYTES} bytes")
        clip: Tensor = decoder.get_frames_at(distinct.tolist()).data
    except DecodeError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, OSError) as error:
        raise DecodeError(f"cannot be decoded: {decoder_reason(error)}") from error
    return clip if len(distinct) == len(indices) else clip[torch.from_numpy(places)]


def decoder_reason(error: Exception) -> str:
    """What the decoder says, on one line, without the place in its source that it starts with."""
    message = _SOURCE_LOCATION.sub("", " ".join(str(error).split()))
    return message[:200] or type(error).__name__
