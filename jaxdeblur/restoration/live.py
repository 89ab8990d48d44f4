"""Frames from a pipe, restored as they come, to a pipe."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from jaxdeblur.data.video_io import TimedFrame, VideoFormat, VideoReader
from jaxdeblur.data.video_writer import to_picture
from jaxdeblur.restoration.clip import restore_stream
from jaxdeblur.restoration.gate import Gate
from jaxdeblur.restoration.steps import pad_frame
from jaxdeblur.types import Variables

BUCKET_PX = 32
"""Frames are padded to multiples of this, so that few sizes have to be compiled."""


@dataclasses.dataclass
class Delays:
    """How long frames took.

    Attributes:
        frames_behind: a frame comes out when so many after it have come in.
        seconds: of each of the last 100,000 frames, from when the last frame it needs was there to when it was written.
        frames: how many there were.
    """

    frames_behind: int
    seconds: collections.deque[float] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=100_000))
    frames: int = 0

    def percentile_ms(self, percent: float) -> float:
        """Of the frames but the first, before which the network is compiled, and the last, which wait for no other."""
        seconds = list(self.seconds)
        running = seconds[1 : len(seconds) - self.frames_behind]
        return float(1000 * np.percentile(running or seconds, percent))


def deblur_pipe(
    source: IO[bytes],
    target: IO[bytes],
    model: Any,
    variables: Variables,
    *,
    raw_size: tuple[int, int] | None = None,
    do_no_harm: bool = True,
    say: Callable[[str], None] | None = None,
) -> Delays:
    """Restores frames as they come: YUV4MPEG2 to YUV4MPEG2 of the same kind, or packed 8-bit RGB to the same.

    What a YUV4MPEG2 header says of the shape of pixels is lost: PyAV has no way to write it there.

    A frame is written as soon as the frames after it that the model looks at have come and it is computed; nothing
    waits longer, in no buffer.

    Args:
        source: open for reading, not buffered (a buffer would wait until it is full).
        target: open for writing.
        model: a deblurring model of this package.
        variables: its Flax variables.
        raw_size: height and width of frames of RGB; None for YUV4MPEG2, which tells.
        do_no_harm: leave frames that are sharp already as they are, see `restoration.gate`.
        say: called with a line about the delay, once the size is known.

    Raises:
        ValueError: `source` holds no such frames; or, of RGB, a part of one at its end: the whole ones before it come
            out. (Of YUV4MPEG2 FFmpeg leaves such a part out.)
        BrokenPipeError: nobody reads `target` any more.
    """
    if raw_size is None:
        kind: tuple[str, dict[str, str]] = ("yuv4mpegpipe", {})
    else:
        height, width = raw_size
        kind = ("rawvideo", {"video_size": f"{width}x{height}", "pixel_format": "rgb24", "framerate": "25"})
    delays = Delays(model.future_frames)
    gate = Gate() if do_no_harm else None
    arrived: collections.deque[float] = collections.deque()
    waiting: collections.deque[TimedFrame] = collections.deque()
    with VideoReader(source, of_kind=kind, strict=True) as reader:
        form = reader.format
        height, width = (side + -side % BUCKET_PX for side in (form.height, form.width))
        if say is not None:
            many = "s" * (delays.frames_behind != 1)
            say(f"{form.width}x{form.height}: {delays.frames_behind} frame{many} behind, and the time of computing one")

        damage: list[ValueError] = []

        def padded() -> Iterator[np.ndarray]:
            try:
                for frame in reader:
                    arrived.append(time.perf_counter())
                    waiting.append(frame)
                    yield pad_frame(frame.rgb, height, width, model.padding)
            except ValueError as error:  # raised when the whole frames before it are out
                damage.append(error)

        with _Writer(target, form, kind[0]) as writer:
            for number, restored in enumerate(restore_stream(padded(), model, variables, in_flight=0)):
                frame = waiting.popleft()
                rgb = restored[: form.height, : form.width]
                if gate is not None:
                    rgb = gate(frame.rgb, rgb)
                writer.write(dataclasses.replace(frame, rgb=rgb, pts=number))
                delays.seconds.append(time.perf_counter() - arrived[min(delays.frames_behind, len(arrived) - 1)])
                arrived.popleft()
                delays.frames += 1
        if damage:
            raise damage[0]
    return delays


class _Writer:
    """Frames to a pipe, each there before the next is begun."""

    def __init__(self, target: IO[bytes], form: VideoFormat, kind: str) -> None:
        self._target = target
        self._form = dataclasses.replace(form, time_base=1 / form.average_rate)
        self._reformatter = VideoReformatter()
        raw = kind == "rawvideo"
        self._pixels = "rgb24" if raw else f"yuv{form.chroma}p" + ("10le" if form.bits > 8 else "")
        self._container = av.open(target, "w", format=kind, container_options={"flush_packets": "1", "strict": "-1"})
        self._stream = self._container.add_stream("rawvideo" if raw else "wrapped_avframe", rate=form.average_rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = form.width, form.height, self._pixels
        self._stream.codec_context.time_base = self._form.time_base
        if not raw:
            self._stream.codec_context.color_range = form.color_range

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.nullcontext() if error is None else contextlib.suppress(av.FFmpegError):
            self._container.close()

    def write(self, frame: TimedFrame) -> None:
        picture = to_picture(frame, self._form, self._pixels, self._reformatter)
        self._container.mux(self._stream.encode(picture))
        self._target.flush()
