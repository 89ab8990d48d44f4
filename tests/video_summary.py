"""Reads a video into plain values with PyAV alone, for comparing what was written with what it was made of."""

import hashlib
from fractions import Fraction

import av


def summary(path):
    """What a player, or ffprobe, finds in a file.

    Returns a dictionary:
        frames: times of the pictures as they are decoded, in seconds;
        sounds: of every sound stream, codec, hash of its packets, time of the first and last packet in seconds;
        subtitles: of every subtitle stream, codec and (time, bytes) of its packets;
        data: of every stream of data, the list of its packets;
        covers: bytes of pictures beside the video;
        chapters: (start, end, title), in seconds;
        tags: the file's, names in small letters;
        side_data: of the first frame, by its type's name.
    """
    with av.open(str(path)) as container:
        packets = {stream.index: [] for stream in container.streams}
        for packet in container.demux():
            if packet.size:
                packets[packet.stream.index].append((packet.pts and packet.pts * packet.time_base, bytes(packet)))
        found = {
            "format": container.format.name,
            "start_s": Fraction(container.start_time or 0, av.time_base),
            "sounds": [
                (
                    stream.codec_context.codec.canonical_name,
                    hashlib.sha256(b"".join(data for _, data in packets[stream.index])).hexdigest(),
                    packets[stream.index][0][0],
                    packets[stream.index][-1][0],
                )
                for stream in container.streams.audio
            ],
            "subtitles": [
                (stream.codec_context.codec.canonical_name, packets[stream.index])
                for stream in container.streams.subtitles
            ],
            # A time code's track and chapters as FFmpeg reads them are written anew, not copied.
            "data": [
                [data for _, data in packets[stream.index]]
                for stream in container.streams
                if stream.type == "data" and "timecode" not in stream.metadata and packets[stream.index]
            ],
            "covers": [
                packets[stream.index][0][1]
                for stream in container.streams.video
                if stream.disposition & av.stream.Disposition.attached_pic
            ],
            "chapters": [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"].get("title"))
                for c in container.chapters()
            ],
            "tags": {name.lower(): value for name, value in container.metadata.items()},
            "pictures_tags": {name.lower(): value for name, value in container.streams.video[0].metadata.items()},
        }
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        found["frames"] = [frame.pts * frame.time_base for frame in frames]
        found["side_data"] = {data.type.name: bytes(data) for data in frames[0].side_data}
    return found
