"""What cameras and programs do to frames before anybody restores them: H.264 and JPEG."""

import dataclasses
import io
from fractions import Fraction
from typing import Any

import av
import jax
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.data.streams import Stream
from jaxdeblur.data.video_io import TimedFrame, VideoFormat, to_rgb
from jaxdeblur.data.video_writer import to_picture
from jaxdeblur.types import Batch

_FRAME_RATE = Fraction(30)


@dataclasses.dataclass(frozen=True)
class Compression:
    """How clips are compressed; each draws anew whether, and how far.

    Args:
        h264_share: fraction of the clips that are H.264, 4:2:0.
        jpeg_share: fraction of which every frame is a JPEG, 4:2:0.
        least_crf, most_crf: range of the quality of H.264, from hardly visible at 18 to blocks at 30.
        least_jpeg_quality, most_jpeg_quality: of JPEG, where 95 is hardly visible.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    h264_share: float = 0.0
    jpeg_share: float = 0.0
    least_crf: int = 16
    most_crf: int = 28
    least_jpeg_quality: int = 60
    most_jpeg_quality: int = 95

    def __post_init__(self) -> None:
        if not (min(self.h264_share, self.jpeg_share) >= 0 and self.h264_share + self.jpeg_share <= 1):
            raise ValueError(
                f"h264_share, jpeg_share are {self.h264_share}, {self.jpeg_share}; expected fractions that add up to "
                "1 or less"
            )
        for least, most, low, high in (
            ("least_crf", "most_crf", 0, 51),
            ("least_jpeg_quality", "most_jpeg_quality", 1, 95),
        ):
            if not low <= getattr(self, least) <= getattr(self, most) <= high:
                raise ValueError(
                    f"{least}, {most} are {getattr(self, least)}, {getattr(self, most)}; expected {low} <= {least} <= "
                    f"{most} <= {high}"
                )


def compressed(batch: Batch, compression: Compression, *, seed: int, first_index: int) -> Batch:
    """A batch whose blurred frames have been compressed and read again; the truth stays as it is.

    Args:
        batch: blurred frames of 8-bit values in [0, 1], (B, T, H, W, 3), H and W even; sharded by its first axis, if
            at all.
        compression: how.
        seed: of the data set.
        first_index: the number in it of the batch's first clip; a clip's fate depends on nothing else.
    """
    blurred: Any = batch["blurred"]
    parts = []
    for shard in blurred.addressable_shards:
        first = first_index + (shard.index[0].start or 0)
        frames_u8 = np.rint(255 * np.asarray(shard.data)).astype(np.uint8)
        clips = [compressed_clip(clip, compression, _draw(seed, first + i)) for i, clip in enumerate(frames_u8)]
        parts.append(jax.device_put(np.stack(clips).astype(np.float32) / np.float32(255), shard.device))
    return {**batch, "blurred": jax.make_array_from_single_device_arrays(blurred.shape, blurred.sharding, parts)}


def compressed_clip(
    frames_u8: UInt8[np.ndarray, "_t _h _w 3"], compression: Compression, draw: np.random.Generator
) -> UInt8[np.ndarray, "_t _h _w 3"]:
    """One clip, gamma-encoded RGB of even sides, by lot as H.264, as JPEGs or as it is."""
    kind, quality = draw.random(2)
    if kind < compression.h264_share:
        span = compression.most_crf - compression.least_crf
        return through_h264(frames_u8, compression.least_crf + quality * span)
    if kind < compression.h264_share + compression.jpeg_share:
        span = compression.most_jpeg_quality - compression.least_jpeg_quality
        return through_jpeg(frames_u8, compression.least_jpeg_quality + round(quality * span))
    return frames_u8


def through_h264(frames_u8: UInt8[np.ndarray, "_t _h _w 3"], crf: float) -> UInt8[np.ndarray, "_t _h _w 3"]:
    """Encoded by x264 as 4:2:0 at a constant quality, and decoded."""
    _, height, width, _ = frames_u8.shape
    form = VideoFormat(height, width, 1 / _FRAME_RATE, _FRAME_RATE)
    converter = VideoReformatter()
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", form.time_base
    # One thread and no macroblock tree: the same bytes every time, see `video_writer`.
    encoder.options = {"crf": f"{crf:.2f}", "preset": "veryfast", "threads": "1", "mbtree": "0"}
    decoder: Any = av.CodecContext.create("h264", "r")
    packets = []
    for number, frame_u8 in enumerate(frames_u8):
        packets += encoder.encode(to_picture(TimedFrame(frame_u8, number, 1), form, "yuv420p", converter))
    packets += encoder.encode(None)
    pictures = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    return np.stack([to_rgb(picture, form, converter) for picture in pictures])


def through_jpeg(frames_u8: UInt8[np.ndarray, "_t _h _w 3"], quality: int) -> UInt8[np.ndarray, "_t _h _w 3"]:
    """Each frame written as a JPEG, 4:2:0, and read again."""
    read = []
    for frame_u8 in frames_u8:
        file = io.BytesIO()
        Image.fromarray(frame_u8).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        read.append(np.asarray(Image.open(file)))
    return np.stack(read)


def _draw(seed: int, index: int) -> np.random.Generator:
    # NumPy promises to keep the bits of Philox.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((Stream.COMPRESSION, seed, index))))
