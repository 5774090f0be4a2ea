"""PNG and TIFF files byte by byte: what Pillow reads, but does not write."""

import struct
import zlib

Entry = tuple[int, int, int, bytes]  # tag, type, count and value


def png(size: tuple[int, int], depth: int, colour_type: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG whose rows each begin with their filter type, 0; the chunks stand before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG, with length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def short(tag: int, *values: int) -> Entry:
    """An entry of 16-bit numbers."""
    return (tag, 3, len(values), struct.pack(f"<{len(values)}H", *values))


def tiff(
    size: tuple[int, int], bits: tuple[int, ...], photometric: int, pixels: bytes, *more: Entry, deflate: bool = False
) -> bytes:
    """A TIFF of one strip, least significant byte first; `bits` has a number a channel."""
    stored = zlib.compress(pixels) if deflate else pixels
    width, height = size
    entries = [
        short(256, width), short(257, height), short(258, *bits), short(259, 8 if deflate else 1),
        short(262, photometric), (273, 4, 1, b""), short(277, len(bits)), short(278, height),
        (279, 4, 1, struct.pack("<I", len(stored))), *more,
    ]  # fmt: skip
    values_at = 8 + 2 + 12 * len(entries) + 4
    strip_at = values_at + sum(len(value) + 3 for *_, value in entries)
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in sorted(entries):
        inline = struct.pack("<I", strip_at) if tag == 273 else value.ljust(4, b"\0")
        if len(value) > 4:
            inline = struct.pack("<I", values_at + len(values))
            values += value + bytes(-len(value) % 2)
        directory += struct.pack("<HHI", tag, kind, count) + inline
    head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values
    return head.ljust(strip_at, b"\0") + stored
