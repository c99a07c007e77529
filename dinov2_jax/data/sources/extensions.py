"""Extensions of image files, and advice about files that are left out."""

import importlib.util
import os
from collections.abc import Iterable, Mapping

from dinov2_jax.data.sources import messages

# The libraries that read further formats, and the extra that installs each.
_PLUGINS = {
    "pillow_heif": ("heif", (".heic", ".heif", ".hif")),
    "pillow_jxl": ("jxl", (".jxl",)),
    "pydicom": ("dicom", (".dcm", ".dicom")),
}
_INSTALLED = [name for name in _PLUGINS if importlib.util.find_spec(name)]
IMAGES = tuple(  # in upper or lower case
    ".avif .bmp .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .pbm .pgm "
    ".png .pnm .ppm .tga .tif .tiff .webp".split()
    + [extension for name in _INSTALLED for extension in _PLUGINS[name][1]]
)
SLIDES = ".bif .mrxs .ndpi .qptiff .scn .svs .svslide .vms .vmu .vsi".split()
TILE_SLIDES = (
    "cut whole slides into tiles first, such as with `vips dzsave SLIDE TILES "
    "--tile-size 512 --overlap 0` or openslide.deepzoom, and name the folder of "
    "tiles"
)
_CONVERT = "convert them to PNG or JPEG"
_FIXES = (  # of files that hold images but are not read
    *(
        (endings, f"pip install 'dinov2-jax[{extra}]' to read them")
        for name, (extra, endings) in _PLUGINS.items()
        if name not in _INSTALLED
    ),
    (SLIDES, TILE_SLIDES),
    (
        ".3fr .arw .cr2 .cr3 .dng .erf .nef .orf .pef .raf .raw .rw2 .srw".split(),
        "develop camera raw files to JPEG or TIFF, such as with darktable-cli",
    ),
    (
        ".eps .exr .hdr .ico .icns .pcx .pdf .psd .sgi .svg .xcf".split(),
        _CONVERT,
    ),
    ([".npy"], "name arrays by a pattern, such as '/data/**/*.npy'"),
    (
        ".h5 .hdf5 .mat .mha .mhd .nii .npz .nrrd .zarr".split(),
        "write their images as .npy files and name those by a pattern",
    ),
    (
        ".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split(),
        "write frames of videos as images, such as with ffmpeg",
    ),
    (
        ".7z .bz2 .gz .rar .tgz .xz .zip .zst".split(),
        "unpack archives",
    ),
    (
        [".tar", ".array_record", ".arrow", ".parquet"],
        "name shards by their own folder or pattern, such as /data/x-*.tar",
    ),
)
_FIX_OF = {ending: fix for endings, fix in _FIXES for ending in endings}
_NONE = "without extension"
_LONGEST = 13  # characters of `.array_record`


def of(name: bytes) -> str:
    """Return the extension of a file's name in lower case, as files are counted by it.

    The part after the last dot is no extension if it is a number or long.
    """
    ending = os.path.splitext(name)[1].lower()
    known = ending[1:].replace(b"_", b"").isalnum() and not ending[1:].isdigit()
    if len(ending) > _LONGEST or not known:
        return _NONE
    return ending.decode("ascii", "replace")


def is_image(name: str) -> bool:
    """Return whether a file's name has the extension of an image that is read."""
    return os.path.splitext(name)[1].lower() in IMAGES


def is_slide(name: str) -> bool:
    """Return whether a file's name has the extension of a whole slide."""
    return os.path.splitext(name)[1].lower() in SLIDES


def fix(ending: str) -> str:
    """Return advice about files that hold images and are not read, or ""."""
    return _FIX_OF.get(ending, "")


def counts(left_out: Mapping[str, int], most: int = 5) -> str:
    """Return numbers of files by extension, such as "40 .heic, 3 .txt and 2 others"."""
    ordered = sorted(left_out.items(), key=lambda item: (not fix(item[0]), -item[1]))
    text = ", ".join(f"{count:,} {ending}" for ending, count in ordered[:most])
    others = sum(count for _, count in ordered[most:])
    return text + (f" and {others:,} others" if others else "")


def warnings(left_out: Mapping[str, int], num_images: int) -> list[str]:
    """Return a line for each kind of files that were left out and hold images.

    Args:
      left_out: Number of files that were left out, by extension.
      num_images: Number of images that were found.
    """
    by_fix: dict[str, dict[str, int]] = {}
    for ending, count in left_out.items():
        if fix(ending):
            by_fix.setdefault(fix(ending), {})[ending] = count
    total = sum(sum(group.values()) for group in by_fix.values())
    lines = [
        f"{counts(group)} {_are(group)} left out: {todo}"
        for todo, group in by_fix.items()
    ]
    if total > num_images > 0:
        found = messages.counted(num_images, "image")
        lines.append(
            f"more such files are left out than read: {total:,} against {found}"
        )
    return lines


def _are(group: Mapping[str, int]) -> str:
    return "is" if sum(group.values()) == 1 else "are"


def merged(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up numbers of files by extension."""
    total: dict[str, int] = {}
    for part in parts:
        for ending, count in part.items():
            total[ending] = total.get(ending, 0) + count
    return total
