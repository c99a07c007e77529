"""Type of a file, detected from its first bytes and not from its name."""

from dinov2_jax.data.decode import tga_file

HEAD = 512  # bytes that `name_kind` needs

HEIC, AVIF, JPEG_XL, DICOM = "a HEIC file", "an AVIF file", "a JPEG XL file", "DICOM"
JPEG_2000, TGA = "a JPEG 2000 file", "a TGA file"
_NO_IMAGE = ", not an image"
_CONVERT = ", which is not read: convert it to PNG or JPEG"
_RAW = "a camera's raw file" + _CONVERT
_DAMAGED = ", but damaged"

# (offset, bytes, kind, what to do)
_SIGNATURES = (
    (0, b"\xff\x0a", JPEG_XL, ""),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", JPEG_XL, ""),
    (128, b"DICM", DICOM, ""),
    (0, b"\xff\xd8\xff", "a JPEG file", _DAMAGED),
    (0, b"\x89PNG", "a PNG file", _DAMAGED),
    (0, b"GIF8", "a GIF file", _DAMAGED),
    (8, b"WEBP", "a WebP file", _DAMAGED),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", JPEG_2000, ""),
    (0, b"\xff\x4f\xff\x51", JPEG_2000, ""),
    (0, b"8BPS", "a Photoshop file", _CONVERT),
    (0, b"%!PS", "a PostScript file", _CONVERT),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file", _CONVERT),
    (0, b"v/1\x01", "an OpenEXR file", _CONVERT),
    (0, b"#?RADIANCE", "a Radiance HDR file", _CONVERT),
    (0, b"\0\0\1\0", "an icon file", _CONVERT),
    (0, b"SIMPLE  =", "a FITS file", ", which is not read: convert it to .npy"),
    (0, b"\x89HDF\r\n", "an HDF5 file", ", which is not read: convert it to .npy"),
    (344, b"n+1\0", "a NIfTI file", ", which is not read: convert it to .npy"),
    (0, b"FUJIFILMCCD-RAW", _RAW, ""),
    (0, b"IIRO", _RAW, ""),
    (0, b"IIU\0", _RAW, ""),
    (0, b"%PDF", "a PDF", _NO_IMAGE),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video", _NO_IMAGE),
    (8, b"AVI ", "an AVI video", _NO_IMAGE),
    (0, b"\0\0\1\xba", "an MPEG video", _NO_IMAGE),
    (0, b"PK\3\4", "a ZIP archive", _NO_IMAGE),
    (0, b"\x1f\x8b", "a gzip archive", _NO_IMAGE),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _NO_IMAGE),
    (257, b"ustar", "a tar archive", _NO_IMAGE),
    (0, b"PAR1", "a Parquet file", _NO_IMAGE),
    (0, b"\0\5\x16\7", "metadata of macOS (AppleDouble)", _NO_IMAGE),
    (
        *(0, b"version https://git-lfs", "a git-LFS pointer"),
        ": fetch the image with git lfs pull",
    ),
    (
        *(0, b"/annex/objects/", "a git-annex pointer"),
        ": fetch the image with git annex get",
    ),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MARKUP = (
    ((b"<!doctype html", b"<html", b"<head", b"<body"), "an HTML page", _NO_IMAGE),
    ((b"<svg",), "an SVG drawing", _CONVERT),
    ((b"<?xml", b"<!doctype"), "an XML document", _NO_IMAGE),
    ((b"{", b"["), "a JSON document", _NO_IMAGE),
)


def name_kind(head: bytes) -> tuple[str, str] | None:
    """Return the kind of a file and a fix, or None if it is unknown.

    Args:
      head: The first `HEAD` bytes of the file.
    """
    if head[4:8] == b"ftyp":
        return _media_kind(head)
    for at, magic, kind, advice in _SIGNATURES:
        if head.startswith(magic, at):
            return kind, advice
    if not any(head):
        zeros = f"{len(head)} or more zero bytes"
        return zeros, ": the file was not copied or downloaded as a whole"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        text = b"<svg"
    for starts, kind, advice in _MARKUP:
        if text.startswith(starts):
            return kind, advice
    return (TGA, "") if tga_file.is_tga(head) else None


def _media_kind(head: bytes) -> tuple[str, str]:
    """Return the kind of a file of ISO base media boxes, by its brands."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    brands = (major, *(head[i : i + 4] for i in range(16, end, 4)))
    for brand in (major, *brands):
        if brand in (b"avif", b"avis"):
            return AVIF, ""
        if brand in _HEIC_BRANDS[:6]:
            return HEIC, ""
    if major in _HEIC_BRANDS:
        return HEIC, ""
    if major == b"crx ":
        return _RAW, ""
    if major == b"qt  ":
        return "a QuickTime video", _NO_IMAGE
    return "an MP4 video", _NO_IMAGE
