"""What a file of sound is, by its first bytes.

Only what cannot be raw samples by chance is recognised: a mark of four bytes, or two frames of MPEG sound one behind the other.
"""

from __future__ import annotations

HEADER_BYTES = 1500
"""So many of the first bytes are enough: the longest frame of MPEG layer III and the head of the next one."""

_MARKS = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"riff": "Wave64",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"FORM": "AIFF",
    b"caff": "CAF",
    b".snd": "AU",
    b"\x1aE\xdf\xa3": "Matroska",
}
_KBIT_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # a second, by their place in a header of MPEG-1
_KBIT_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # of MPEG-2 and 2.5
_RATES_HZ = (44100, 48000, 32000)  # of MPEG-1; half of it in MPEG-2, a quarter in 2.5


def container_of(beginning: bytes) -> str | None:
    """The name of the format, or None where the bytes may be anything, raw samples included.

    Args:
        beginning: of the file; `HEADER_BYTES` of it, or less where there is less.
    """
    if beginning[4:8] == b"ftyp":
        return "MP4"
    if beginning[:3] == b"ID3":
        return "MP3"
    size = _mp3_frame_bytes(beginning[:4])
    if size and _mp3_frame_bytes(beginning[size : size + 4]):
        return "MP3"
    return _MARKS.get(beginning[:4])


def _mp3_frame_bytes(head: bytes) -> int:
    """Length of the frame of MPEG layer III that a header of four bytes begins, or 0 where it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer, speed, rate, padding = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer != 1 or rate == 3 or not 0 < speed < 15:
        return 0
    is_first = version == 3
    rate_hz = _RATES_HZ[rate] >> (0 if is_first else 1 if version == 2 else 2)
    kbit = (_KBIT_1 if is_first else _KBIT_2)[speed]
    return (144 if is_first else 72) * kbit * 1000 // rate_hz + padding
