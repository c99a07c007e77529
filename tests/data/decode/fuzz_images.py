"""Decodes files damaged at random: python -m tests.data.decode.fuzz_images.

Every file must be decoded or refused by `BadImage`, in time and within memory. The
decoding runs in a process of its own, which tells what it begins: where it crashes or
hangs, the file is named (and written with --keep), and the rest goes on.
"""

import argparse
import collections
import dataclasses
import io
import json
import pathlib
import re
import selectors
import subprocess
import sys
import time

import numpy as np
import tifffile
from PIL import Image

from dinov2_jax.data.decode import image_decoder, pillow_setup

MAX_PIXELS = 1_000_000
TIME_LIMIT = 10  # seconds per image
# KiB above what the process has before the first file: a decoded image of MAX_PIXELS
# in float32 with its copies, many times over.
MEMORY_LIMIT = 400 * 1024
DECODERS = [
    image_decoder.Decoder(MAX_PIXELS),
    image_decoder.Decoder(MAX_PIXELS, channels=1, exif_orientation=False),
    image_decoder.Decoder(MAX_PIXELS, channels=4, value_range=(0, 1000)),
    image_decoder.Decoder(MAX_PIXELS, channels=3, value_range=(-1, 1)),
]


# --- whole files ----------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    """Small good files of every kind that is read."""
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    rgb[::2] //= 2
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = image.convert("RGBA")
    rgba.putalpha(image.convert("L"))
    four = np.dstack([rgb, rgb[..., 0]])
    made = {}

    def pillow(name, picture, kind, **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        made[name] = stream.getvalue()

    def tiff(name, array, **options):
        stream = io.BytesIO()
        tifffile.imwrite(stream, array, **options)
        made[name] = stream.getvalue()

    def npy(name, array):
        stream = io.BytesIO()
        np.save(stream, array)
        made[name] = stream.getvalue()

    pillow("jpeg", image, "JPEG", exif=exif)
    pillow("jpeg progressive", image, "JPEG", progressive=True)
    pillow("jpeg cmyk", image.convert("CMYK"), "JPEG")
    pillow("jpeg gray", image.convert("L"), "JPEG")
    pillow("jpeg mpo", image, "MPO", save_all=True, append_images=[image])
    pillow("png", image, "PNG", exif=exif)
    pillow("png palette", image.quantize(9), "PNG", transparency=3)
    pillow("png rgba", rgba, "PNG")
    pillow("png 16", Image.fromarray(rgb[..., 0].astype(np.uint16) * 257), "PNG")
    pillow("png apng", image, "PNG", save_all=True, append_images=[image.rotate(9)])
    pillow("webp", image, "WEBP", exif=exif)
    pillow("webp lossless", rgba, "WEBP", lossless=True)
    pillow("webp animated", image, "WEBP", save_all=True, append_images=[rgba])
    pillow("gif", image, "GIF", save_all=True, append_images=[image.rotate(9)])
    pillow("bmp", image, "BMP")
    pillow("bmp palette", image.quantize(9), "BMP")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        pillow(f"tiff {compression}", image, "TIFF", compression=compression)
    pillow("tiff group4", image.convert("1"), "TIFF", compression="group4")
    pillow("tiff cmyk", image.convert("CMYK"), "TIFF")
    pillow("tiff ycbcr", image.convert("YCbCr"), "TIFF")
    tiff("tiff 16", rgb.astype(np.uint16) * 3, photometric="rgb")
    tiff("tiff float", rgb.astype(np.float32), photometric="rgb")
    tiff("tiff pages", np.moveaxis(four, 2, 0), photometric="minisblack")
    planes = np.moveaxis(four, 2, 0)
    tiff("tiff planes", planes, planarconfig="separate", photometric="rgb")
    tiff("tiff tiles", four, tile=(16, 16), compression="zlib", photometric="rgb")
    tiff("tiff big", four, bigtiff=True, byteorder=">", photometric="rgb")
    npy("npy", rgb)
    npy("npy float", np.moveaxis(four, 2, 0).astype(np.float32))
    return made


# --- damage ---------------------------------------------------------------------

# Of counts, sizes and offsets: what overflows, wraps round or asks for too much.
_NASTY = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def damage(rng: np.random.Generator, content: bytes, others: list[bytes]) -> bytes:
    """Returns the file with one to three kinds of damage."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        kind = rng.choice([flip, cut, splice, header, length, repeat])
        data = kind(rng, data, others) or bytearray(b"\0")
    return bytes(data)


def flip(rng, data, others):
    """Single bits."""
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return data


def cut(rng, data, others):
    """The end, or a piece of the middle."""
    start = int(rng.integers(len(data)))
    end = len(data) if rng.random() < 0.5 else start + int(rng.integers(1, 64))
    return data[:start] + data[end:]


def splice(rng, data, others):
    """A piece of another file."""
    other = others[rng.integers(len(others))]
    start, size = rng.integers(len(other)), rng.integers(1, 400)
    at = rng.integers(len(data))
    kept = at if rng.random() < 0.5 else at + size
    return data[:at] + other[start : start + size] + data[kept:]


def header(rng, data, others):
    """Any byte near the start, where the sizes are, or the end, where TIFF's are."""
    near = min(len(data), 256)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(near))
        data[at if rng.random() < 0.7 else -1 - at] = rng.integers(256)
    return data


def length(rng, data, others):
    """A field of two, four or eight bytes becomes one of the nasty numbers."""
    size = int(rng.choice([2, 4, 8]))
    near = min(len(data), 400)
    at = int(rng.integers(near))
    if rng.random() < 0.4:
        at = len(data) - 1 - at
    number = _NASTY[rng.integers(len(_NASTY))] % 256**size
    data[at : at + size] = number.to_bytes(size, ["little", "big"][rng.integers(2)])
    return data


def repeat(rng, data, others):
    """A piece many times over."""
    start, size = int(rng.integers(len(data))), int(rng.integers(1, 40))
    times = int(rng.integers(2, 50))
    return data[:start] + data[start : start + size] * times + data[start + size :]


def damaged_file(seed: int, number: int, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """Returns the kind and the content of one damaged file, always the same."""
    rng = np.random.default_rng((seed, number))
    names = list(whole)
    name = names[number % len(names)]
    return name, damage(rng, whole[name], list(whole.values()))


# --- decoding in a process of its own -------------------------------------------


def decode_many(seed: int, start: int, stop: int) -> None:
    """Decodes files start .. stop - 1; a line of JSON before and after each."""
    whole = seeds()
    # Also loads what is loaded when first needed.
    fitting = {
        name: [d for d in DECODERS if not try_to_decode(d, content, 1)]
        for name, content in whole.items()
    }
    at_first = _peak()
    for number in range(start, stop):
        name, content = damaged_file(seed, number, whole)
        turn = number // len(whole)
        decoders = fitting[name] if turn % 4 else DECODERS
        decoder = decoders[turn // 4 % len(decoders)]
        reduce = 1 << turn % 4
        print(json.dumps({"begin": number}), flush=True)
        began = time.process_time()
        reason = try_to_decode(decoder, content, reduce)
        facts = {
            "end": number,
            "seconds": time.process_time() - began,
            "reason": reason,
            "grown": _peak() - at_first,
        }
        print(json.dumps(facts), flush=True)


def _peak() -> int:
    """KiB; not ru_maxrss, which begins with that of the parent."""
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s*(\d+)", file.read())[1])


def try_to_decode(decoder: image_decoder.Decoder, content: bytes, reduce: int) -> str:
    """Returns "" or the reason of a refusal; anything else is raised."""
    try:
        opened = decoder.open(content, name="x")
        pixels = opened.pixels(reduce)
    except image_decoder.BadImage as error:
        return error.reason
    sizes = (opened.height, opened.width)
    small = tuple(-(-size // reduce) for size in sizes)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == decoder.channels
    assert pixels.shape[:2] in (sizes, small), (pixels.shape, sizes)
    return ""


@dataclasses.dataclass
class Report:
    """What became of the files.

    Attributes:
      decoded: Files decoded.
      reasons: How often each reason for a refusal, shortened.
      seconds: CPU time of the slowest file.
      slowest: Its number.
      grown: KiB of memory beyond those before the first file.
      failures: Files that crashed, hung or raised: their number, kind and how.
      stderr: Bytes that libraries printed.
    """

    decoded: int = 0
    reasons: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    seconds: float = 0.0
    slowest: int = -1
    grown: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    stderr: int = 0

    def __str__(self) -> str:
        refused = sum(self.reasons.values())
        lines = [f"{self.decoded} decoded, {refused} refused, of these"]
        lines += [f"{n:7} {reason}" for reason, n in self.reasons.most_common(25)]
        lines.append(
            f"slowest {self.seconds:.2f} s (file {self.slowest}), memory grew by "
            f"{self.grown / 1024:.0f} MiB, {self.stderr} bytes on stderr"
        )
        lines.append(f"{len(self.failures)} failures")
        return "\n".join(lines + self.failures)


def run(seed: int, count: int, keep: pathlib.Path | None = None) -> Report:
    """Decodes `count` damaged files; starts again after each failure."""
    whole, report, start = seeds(), Report(), 0
    while start < count:
        command = [sys.executable, "-m", "tests.data.decode.fuzz_images", "--decode"]
        command += [f"--seed={seed}", f"--start={start}", f"--count={count}"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        current, how, stderr = _follow(process, report)
        report.stderr += len(stderr)
        if current is None and how == "exit 0":
            break
        if current is None:
            raise RuntimeError(f"{how} between files: {stderr.decode()[-2000:]}")
        kind, content = damaged_file(seed, current, whole)
        last = (stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        report.failures.append(f"file {current} ({kind}): {how} {last}")
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{current}-{kind.replace(' ', '_')}").write_bytes(content)
        start = current + 1
    return report


def _follow(process, report: Report) -> tuple[int | None, str, bytes]:
    """Returns the file that was in work at the end, how it ended, and stderr."""
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    selector.register(process.stderr, selectors.EVENT_READ)
    current, waiting, stderr, how = None, b"", b"", ""
    deadline = time.monotonic() + 60  # to start
    open_streams = 2
    while open_streams and not how:
        ready = selector.select(max(deadline - time.monotonic(), 0))
        if not ready:
            process.kill()
            how = f"longer than {TIME_LIMIT} s"
        for key, _ in ready:
            piece = key.fileobj.read(2**16)
            if not piece:
                selector.unregister(key.fileobj)
                open_streams -= 1
            elif key.fileobj is process.stderr:
                stderr += piece
            else:
                *lines, waiting = (waiting + piece).split(b"\n")
                for line in lines:
                    current = _take(json.loads(line), report)
                deadline = time.monotonic() + TIME_LIMIT
    process.wait()
    for stream in (process.stdout, process.stderr):
        stream.close()
    return current, how or f"exit {process.returncode}", stderr


def _take(fact: dict, report: Report) -> int | None:
    """Enters one line into the report; returns the file in work."""
    if "begin" in fact:
        return fact["begin"]
    if fact["reason"]:
        report.reasons[_shortened(fact["reason"])] += 1
    else:
        report.decoded += 1
    if fact["seconds"] > report.seconds:
        report.seconds, report.slowest = fact["seconds"], fact["end"]
    report.grown = max(report.grown, fact["grown"])
    return None


def _shortened(reason: str) -> str:
    """Without numbers, so that alike reasons are counted together."""
    return "".join("#" if c.isdigit() else c for c in reason)[:60]


def main() -> int:
    """Prints the report; 1 where a file was not dealt with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for what fails")
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        pillow_setup.configure()
        decode_many(args.seed, args.start, args.count)
        return 0
    report = run(args.seed, args.count, args.keep)
    print(report)
    return int(bool(report.failures) or report.grown > MEMORY_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
