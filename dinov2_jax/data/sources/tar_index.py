"""Positions of the images inside a tar file."""

import dataclasses
import json
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from dinov2_jax.data.sources import extensions

_EXTENSIONS = frozenset(extension.encode() for extension in extensions.IMAGES)
_LABEL_EXTENSIONS = (b"cls", b"json")
_LABEL_FIELDS = ("label", "cls", "class")  # in the .json of an image
_MOST_LABEL_BYTES = 1 << 20


@dataclasses.dataclass
class Members:
    """The images of a tar file, in its order.

    Attributes:
      names: Names of the members.
      offsets: Offsets of their contents in bytes.
      sizes: Sizes of their contents in bytes.
      labels: Labels from their `.cls` or `.json`; None where there is none.
      left_out: Numbers of members that are neither images nor labels, by extension.
      skipped: Numbers of members called images that hold none here, by reason.
      problem: The reason why the file, or its end, cannot be read; "" if all was read.
    """

    names: list[bytes] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    labels: list[str | None] = dataclasses.field(default_factory=list)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    problem: str = ""


def read(path: str) -> Members:
    """Read the headers of a tar file, and the labels."""
    found = Members()
    labels: dict[bytes, str] = {}
    keys = []
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for name, offset, length, reason in _files(file):
                if offset + length > size:
                    raise tarfile.ReadError("unexpected end of data")
                if name.rpartition(b"/")[2].startswith(b"."):
                    continue  # as in folders; macOS adds ._x.png to x.png
                key, extension = _split(name)
                is_image = os.path.splitext(name)[1].lower() in _EXTENSIONS
                if reason:
                    if is_image:
                        found.skipped[reason] = found.skipped.get(reason, 0) + 1
                elif is_image:
                    found.names.append(name)
                    found.offsets.append(offset)
                    found.sizes.append(length)
                    keys.append(key)
                elif extension in _LABEL_EXTENSIONS and length <= _MOST_LABEL_BYTES:
                    content = os.pread(file.fileno(), length, offset)
                    label = _label(content, extension)
                    if label is not None:
                        labels[key] = label
                else:
                    kind = extensions.of(name)
                    found.left_out[kind] = found.left_out.get(kind, 0) + 1
    except (tarfile.TarError, OSError, ValueError) as error:
        found.problem = " ".join(str(error).split()) or type(error).__name__
    found.labels = [labels.get(key) for key in keys]
    return found


def _files(file: BinaryIO) -> Iterator[tuple[bytes, int, int, str]]:
    """Yield (name, offset of the content, size, reason) of all members but folders.

    The content of a hard link is that of the member that it names. The reason says why
    a member cannot be read; it is "" for those that can.

    Plain headers are read here, in a third of the time of `tarfile`, which reads the
    others: long names, pax headers, sizes that are not octal.

    Raises:
      tarfile.TarError: The file is damaged; members before the damage come first.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
        offset, plain = 0, True
        while True:
            head = os.pread(file.fileno(), tarfile.BLOCKSIZE, offset)
            if not head.strip(b"\0"):
                return  # the end; some writers omit its zeros
            member = _plain_member(head) if plain else None
            if member is not None:
                name, length = member
                start = offset + tarfile.BLOCKSIZE
                blocks = -(-length // tarfile.BLOCKSIZE)
                offset = start + blocks * tarfile.BLOCKSIZE
                places[name] = start, length
                yield name, start, length, ""
                continue
            tar.offset = offset
            file.seek(offset)
            info = tarfile.TarInfo.fromtarfile(tar)
            offset, plain = tar.offset, not tar.pax_headers
            name = os.fsencode(info.name)
            if info.isreg() and not info.issparse():
                places[name] = info.offset_data, info.size
            elif info.islnk() and os.fsencode(info.linkname) in places:
                places[name] = places[os.fsencode(info.linkname)]
            else:
                if not info.isdir():
                    yield name, 0, 0, _reason(info)
                continue
            yield name, *places[name], ""


def _reason(info: tarfile.TarInfo) -> str:
    """Return why a member is not read."""
    if info.isreg():
        return "sparse file"
    if info.islnk():
        return "link to a missing member"
    return "symbolic link" if info.issym() else "not a regular file"


def _plain_member(head: bytes) -> tuple[bytes, int] | None:
    """Return (name, size) if a header fully describes a regular file, or None."""
    if len(head) < tarfile.BLOCKSIZE or head[156:157] not in (b"0", b"\0"):
        return None
    name = head[:100].partition(b"\0")[0]
    if head[257:263] == b"ustar\0":
        prefix = head[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    size, checksum = head[124:136].strip(b" \0"), head[148:156].strip(b" \0")
    if name.endswith(b"/") or not size.isdigit() or not checksum.isdigit():
        return None
    if int(checksum, 8) != sum(head) - sum(head[148:156]) + 8 * ord(" "):
        return None
    return name, int(size, 8)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Split a name at the first dot of its last part: a sample's key and the rest.

    The format of WebDataset: `a/b.seg.png` -> ("a/b", "seg.png").
    """
    folder, slash, last = name.rpartition(b"/")
    key, _, extension = last.partition(b".")
    return folder + slash + key, extension.lower()


def _label(content: bytes, extension: bytes) -> str | None:
    try:
        text = content.decode("utf-8").strip()
        if extension == b"json":
            fields = json.loads(text)
            if not isinstance(fields, dict):
                return None
            value = next((fields[n] for n in _LABEL_FIELDS if n in fields), None)
            return str(value) if isinstance(value, (int, str)) else None
        return text or None
    except (ValueError, RecursionError):
        return None
