"""What HDR10 video says of the display it was made on, and how encoders are told."""

import dataclasses
import struct
from fractions import Fraction
from typing import Any

from av.sidedata.sidedata import Type as SideDataType


def _of_a_kind_unknown_here(kind: type[SideDataType], value: Any) -> SideDataType:
    member: Any = object.__new__(kind)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member  # type: ignore[no-any-return]


# A picture with one piece of side data of a kind that PyAV does not know would have none that can be read.
SideDataType._missing_ = classmethod(_of_a_kind_unknown_here)  # type: ignore[method-assign, assignment]

# AVMasteringDisplayMetadata: x and y of red, green, blue and white, least and greatest luminance as fractions of two
# ints; and which of both there are.
_MASTERING = struct.Struct("=20i2i")


@dataclasses.dataclass(frozen=True)
class MasteringDisplay:
    """Where a display's primaries and white lie in CIE xy, and its luminances in candela per square metre."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    least: Fraction
    greatest: Fraction

    def in_units(self, of_chromaticity: int, of_luminance: int) -> str:
        """As encoders take it, in such parts of one, rounded."""

        def number(value: Fraction, parts: int) -> str:
            return str(round(value * parts)) if parts > 1 else f"{float(value):.6f}"

        points = "".join(
            f"{letter}({','.join(number(value, of_chromaticity) for value in point)})"
            for letter, point in (("G", self.green), ("B", self.blue), ("R", self.red), ("WP", self.white))
        )
        return f"{points}L({number(self.greatest, of_luminance)},{number(self.least, of_luminance)})"


@dataclasses.dataclass(frozen=True)
class ContentLight:
    """The brightest pixel and the brightest mean of a frame, in candela per square metre."""

    most: int
    most_of_frame: int


@dataclasses.dataclass(frozen=True)
class Hdr10:
    """Static metadata of HDR10, as far as a video has it."""

    mastering: MasteringDisplay | None = None
    light: ContentLight | None = None

    def __bool__(self) -> bool:
        return self.mastering is not None or self.light is not None

    def options(self, codec: str) -> dict[str, str]:
        """FFmpeg's options of the encoder, by the names of `video_writer.CODECS`; none where it cannot be told."""
        if codec not in _OPTIONS:
            return {}
        option, mastering_name, light_name, parts = _OPTIONS[codec]
        settings = []
        if self.mastering is not None:
            settings.append(f"{mastering_name}={self.mastering.in_units(*parts)}")
        if self.light is not None:
            settings.append(f"{light_name}={self.light.most},{self.light.most_of_frame}")
        return {option: ":".join(settings)} if settings else {}


_OPTIONS = {
    "h264": ("x264-params", "mastering-display", "cll", (50_000, 10_000)),
    "hevc": ("x265-params", "master-display", "max-cll", (50_000, 10_000)),
    "av1": ("svtav1-params", "mastering-display", "content-light", (1, 1)),
}


def hdr10_of(frame: Any) -> Hdr10:
    """What a decoded frame says."""
    mastering = light = None
    data = frame.side_data.get(SideDataType.MASTERING_DISPLAY_METADATA)
    if data is not None and len(bytes(data)) >= _MASTERING.size:
        *numbers, has_primaries, has_luminance = _MASTERING.unpack(bytes(data)[: _MASTERING.size])
        if has_primaries and has_luminance and all(numbers[1::2]):
            values = [Fraction(above, below) for above, below in zip(numbers[::2], numbers[1::2], strict=True)]
            red, green, blue, white = zip(values[:8:2], values[1:8:2], strict=True)
            mastering = MasteringDisplay(red, green, blue, white, *values[8:])
    data = frame.side_data.get(SideDataType.CONTENT_LIGHT_LEVEL)
    if data is not None and len(bytes(data)) >= 8:
        most, of_frame = struct.unpack("=2I", bytes(data)[:8])
        light = ContentLight(most, of_frame) if most or of_frame else None
    return Hdr10(mastering, light)


_NOT_KEPT = {
    SideDataType.DOVI_METADATA: "Dolby Vision",
    SideDataType.DOVI_RPU_BUFFER: "Dolby Vision",
    SideDataType.DYNAMIC_HDR_PLUS: "HDR10+",
    SideDataType.DYNAMIC_HDR_VIVID: "HDR Vivid",
}


def dynamic_hdr_of(frame: Any) -> list[str]:
    """Names of what a frame says of its own light, which no encoder here takes."""
    return sorted({name for kind, name in _NOT_KEPT.items() if frame.side_data.get(kind) is not None})
