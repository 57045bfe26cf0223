"""Small files that promise pictures of 100,000 x 100,000 pixels take no memory."""

import struct
import subprocess
import sys
import zlib

SIDE = 100_000
ROOM_MIB = 300

# address space is bounded to what the imports took and ROOM_MIB more; the peak in memory is told
CHILD = f"""
import resource, sys
from s2uniseg_d2.data.pictures import StoredPicture, UnreadablePictureError
from s2uniseg_d2.evaluation.png_maps import read_ids
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {ROOM_MIB} * 2**20,) * 2)
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        StoredPicture(path).read()
    except UnreadablePictureError as error:
        first = error
    try:
        read_ids(path)
    except ValueError as error:
        print(first, error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="|")
"""


def png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def tiff():
    tags = [(256, SIDE), (257, SIDE), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, SIDE), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def jp2():
    head = struct.pack(">IIHBBBB", SIDE, SIDE, 3, 7, 7, 0, 0)
    return b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x1ejp2h\0\0\0\x16ihdr" + head


REST = b"x" * 64
FRAME = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
BOMBS = {
    "png": png(),
    "tiff": tiff(),
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, *[0] * 6),
    "ppm": f"P6 {SIDE} {SIDE} 255\n".encode() + b"x",
    "gif": b"GIF89a" + FRAME + b"\2\0;",
    "hdr": f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {SIDE} +X {SIDE}\n".encode() + REST,
    # below OpenCV's own limit of 2^30 pixels, above ours: 11 GB of floating-point numbers
    "large.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + REST,
    "pfm": f"PF\n{SIDE} {SIDE}\n-1.0\n".encode() + REST,
    "ras": struct.pack(">IIIIIIII", 0x59A66A95, SIDE, SIDE, 24, 0, 1, 0, 0) + REST,
    "jp2": jp2(),
    "tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0) + REST,
}


def test_headers_take_no_memory(tmp_path):
    paths = [tmp_path / f"bomb.{kind}" for kind in BOMBS]
    for path, data in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-800:]
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) == len(BOMBS)
    for path, (first, second, peak_kib) in zip(paths, lines, strict=True):
        assert first.startswith(f"cannot read picture {path}")
        assert second.startswith(f"cannot read the panoptic map {path}")
        assert int(peak_kib) < 100 * 1024, path
