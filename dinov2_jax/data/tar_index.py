"""Where the images lie inside a tar file."""

import dataclasses
import json
import os
import tarfile
from typing import Any

from dinov2_jax.data import walking

_EXTENSIONS = frozenset(walking.EXTENSIONS)
_LABEL_FIELDS = ("label", "cls", "class")  # of a .json beside an image
_MOST_LABEL_BYTES = 1 << 20


@dataclasses.dataclass
class Members:
    """The images of a tar file, in its order.

    Attributes:
      names: of the members.
      offsets: bytes, of their contents.
      sizes: bytes.
      labels: from the `.cls` or `.json` beside them; None where there is none.
      problem: why the file, or its end, cannot be read; "" if all was.
    """

    names: list[bytes] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    labels: list[str | None] = dataclasses.field(default_factory=list)
    problem: str = ""


def read(path: str) -> Members:
    """Reads the headers of a tar file, and the labels."""
    found = Members()
    labels: dict[str, str] = {}
    keys = []
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # which would hold all of them
                    if not member.isreg() or member.issparse():
                        continue
                    end = member.offset_data + member.size
                    if end > size:
                        raise tarfile.ReadError("unexpected end of data")
                    key, extension = _split(member.name)
                    last = os.path.splitext(member.name)[1].lower()
                    if last in _EXTENSIONS:
                        found.names.append(os.fsencode(member.name))
                        found.offsets.append(member.offset_data)
                        found.sizes.append(member.size)
                        keys.append(key)
                    elif extension in ("cls", "json"):
                        if member.size > _MOST_LABEL_BYTES:
                            continue
                        # Not through a buffer, whose place tarfile relies on.
                        content = os.pread(
                            file.fileno(), member.size, member.offset_data
                        )
                        label = _label(content, extension)
                        if label is not None:
                            labels[key] = label
                if _ends_early(file, tar, size):
                    found.problem = "cut off or damaged"
    except (tarfile.TarError, OSError, ValueError) as error:
        found.problem = " ".join(str(error).split()) or type(error).__name__
    found.labels = [labels.get(key) for key in keys]
    return found


def _ends_early(file: Any, tar: tarfile.TarFile, size: int) -> bool:
    """Whether something else than zeros stands where tarfile saw the end."""
    block = os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset)
    return bool(block.strip(b"\0")) and tar.offset < size


def _split(name: str) -> tuple[str, str]:
    """A sample's key and the rest: the name is split at the first dot of its last part.

    The format of WebDataset: `a/b.seg.png` -> ("a/b", "seg.png").
    """
    folder, slash, last = name.rpartition("/")
    key, _, extension = last.partition(".")
    return folder + slash + key, extension.lower()


def _label(content: bytes, extension: str) -> str | None:
    try:
        text = content.decode("utf-8").strip()
        if extension == "json":
            fields = json.loads(text)
            if not isinstance(fields, dict):
                return None
            value = next((fields[n] for n in _LABEL_FIELDS if n in fields), None)
            return str(value) if isinstance(value, (int, str)) else None
        return text or None
    except ValueError:
        return None
