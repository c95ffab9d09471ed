"""Decodes chosen frames of an encoded video that lies in memory."""

import contextlib
import functools
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.counters import timed
from data.crop import Crop, CropRule
from data.errors import UserError
from data.thin_video import thin

MAX_CLIP_BYTES = 2**31
"""A clip that would take more memory than this once decoded is refused: a header can claim any size."""

_FRESH_MEMORY = 2**25
"""glibc takes larger blocks than this from the system, and gives them back."""

_SOURCE_LOCATION = re.compile(r"^\w+, \S+:\d+, ")


class DecodeError(ValueError):
    """A video that cannot be decoded; the text is the reason, on one line."""


def require_ffmpeg() -> None:
    """Loads the decoder. Raises UserError where FFmpeg's shared libraries are missing, or too old or too new."""
    try:
        import torchcodec.decoders

        # Since its version 0.17 the import succeeds without, and every clip fails instead.
        if torchcodec.ffmpeg_major_version is None:
            raise ImportError(f"torchcodec {torchcodec.__version__} could not load libavcodec and its kin")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            "videos cannot be decoded: torchcodec finds no FFmpeg that it can use; install FFmpeg with its shared"
            f" libraries (Debian, Ubuntu: apt-get install ffmpeg). It says: {' '.join(str(error).split())[:300]}"
        ) from error


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
    return _decode(video, indices, frames, None)


def decode_region(
    video: bytes, indices: np.ndarray, frames: int, rule: CropRule, size: tuple[int, int] | None = None
) -> tuple[Tensor, Crop]:
    """Decodes the rectangle of the frames that `rule` chooses: the same pixels as `rule(H, W).cut(decode(...))`.

    Args:
        size: height and width that the frames are said to have. Where the rectangle is cut in the decoder it has to
            be known beforehand; where it turns out wrong the frames are decoded whole.

    Returns:
        uint8 [T, 3, h, w], RGB, channels last in memory, and the crop.

    Raises:
        DecodeError: as `decode`.
    """
    if size is not None:
        crop = rule(*size)
        if cut_in_decoder(crop, len(np.unique(indices))):
            # Whatever is wrong, decoding whole frames says it better.
            with contextlib.suppress(DecodeError):
                return _decode(video, indices, frames, crop), crop
    whole = decode(video, indices, frames)
    crop = rule(*whole.shape[-2:])
    return crop.cut(whole), crop


def cut_in_decoder(crop: Crop, frames: int) -> bool:
    """Whether to have the decoder cut `crop` out of `frames` frames. Pixels are the same; it is a matter of time.

    The decoder then goes through a filter graph, which costs what it saves. But frames of a width that is no multiple
    of 32 go through one anyway (5 % of a clip of 340x256), and memory beyond the allocator's threshold comes from the
    system page by page, each time (a quarter of the time of a clip of 1280x720).
    """
    if crop.whole:
        return False
    return crop.frame_width % 32 != 0 or frames * 3 * crop.frame_height * crop.frame_width > _FRESH_MEMORY


@timed("decode_s")
def _decode(video: bytes, indices: np.ndarray, frames: int, crop: Crop | None) -> Tensor:
    distinct, places = np.unique(indices, return_inverse=True)
    clip = _decode_thin(video, distinct, frames, crop)
    if clip is None:
        clip = _decode_distinct(video, distinct, frames, crop)
    if len(distinct) == len(indices):
        return clip
    # Indexed as it lies in memory, the result has its channels last too.
    return clip.permute(0, 2, 3, 1)[torch.from_numpy(places)].permute(0, 3, 1, 2)


def _decode_thin(video: bytes, distinct: np.ndarray, frames: int, crop: Crop | None) -> Tensor | None:
    """Without the frames that no wanted one depends on; None where they cannot be told, or cannot be decoded."""
    thinned = thin(video, distinct, frames)
    if thinned is None:
        return None
    less, places = thinned
    # Whatever is wrong, decoding the video as it is says it better.
    with contextlib.suppress(DecodeError):
        return _decode_distinct(less, places, None, crop)
    return None


def _decode_distinct(video: bytes, distinct: np.ndarray, frames: int | None, crop: Crop | None) -> Tensor:
    # Here and not above: the import fails without FFmpeg, and `require_ffmpeg` says it better.
    from torchcodec.decoders import VideoDecoder

    try:
        # Exact seeking: the approximate mode returns wrong frames of videos whose frame rate varies.
        transforms = None if crop is None else [_decoder_crop(crop)]
        decoder = VideoDecoder(video, seek_mode="exact", num_ffmpeg_threads=1, transforms=transforms)
        if frames is not None and len(decoder) != frames:
            raise DecodeError(f"the video has {len(decoder)} frames, its record says {frames}")
        height, width = decoder.metadata.height or 0, decoder.metadata.width or 0
        if crop is not None and (height, width) != (crop.frame_height, crop.frame_width):
            raise DecodeError(f"frames are {width}x{height}, not {crop.frame_width}x{crop.frame_height}")
        if len(distinct) * 3 * height * width > MAX_CLIP_BYTES:
            raise DecodeError(f"{len(distinct)} frames of {width}x{height} take more than {MAX_CLIP_BYTES} bytes")
        clip: Tensor = decoder.get_frames_at(distinct.tolist()).data
    except DecodeError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, OSError) as error:
        raise DecodeError(f"cannot be decoded: {decoder_reason(error)}") from error
    return clip


@functools.cache
def _crop_class() -> type:
    from torchcodec.transforms import DecoderTransform

    class PlacedCrop(DecoderTransform):
        """A rectangle at a given place; torchcodec's own crops are centred, or draw from the global generator."""

        def __init__(self, crop: Crop) -> None:
            self.crop = crop

        def _make_transform_spec(self, input_dims: tuple[int | None, int | None]) -> str:
            return f"crop, {self.crop.height}, {self.crop.width}, {self.crop.left}, {self.crop.top}"

        def _get_output_dims(self) -> tuple[int | None, int | None] | None:
            return self.crop.height, self.crop.width

    return PlacedCrop


def _decoder_crop(crop: Crop) -> Any:
    return _crop_class()(crop)


def decoder_reason(error: Exception) -> str:
    """What the decoder says, on one line, without the place in its source that it starts with."""
    message = _SOURCE_LOCATION.sub("", " ".join(str(error).split()))
    return message[:200] or type(error).__name__
