"""Checksums of the files of a finished checkpoint.

Orbax restores flipped bits silently. `write` seals a complete folder with a manifest;
`problem` describes what has changed since.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

from dinov2_jax import files

NAME = "manifest.json"
_CHUNK = 2**22  # bytes read at a time


def write(folder: pathlib.Path) -> None:
    """Write FOLDER/manifest.json atomically."""
    listed = {
        str(path.relative_to(folder)): {
            "size": path.stat().st_size,
            "sha256": _digest(path),
        }
        for path in _files(folder)
    }
    content = json.dumps({"digest": _digest_of(listed), "files": listed}, indent=1)
    files.write_text(folder / NAME, content + "\n")


def is_sealed(folder: pathlib.Path) -> bool:
    """Return whether `write` has finished in this folder."""
    return (folder / NAME).is_file()


def problem(folder: pathlib.Path) -> str | None:
    """Return the first problem of a sealed folder, None if it is unchanged.

    Reads every byte, several files at a time: hashing releases the GIL. Files that were
    added later are ignored.

    Raises:
      OSError: The disk or the file system fails, which is no damage.
    """
    try:
        described = json.loads((folder / NAME).read_text())
        files = described["files"]
        if described["digest"] != _digest_of(files):
            return f"{NAME} is damaged"
        for name, file in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != file["size"]:
                return f"{name} has {size:,} bytes, expected {file['size']:,}"
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = pool.map(_digest, [folder / name for name in files])
            for (name, file), digest in zip(files.items(), digests):
                if digest != file["sha256"]:
                    return f"{name} does not match its checksum"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        name = pathlib.Path(error.filename or folder).name
        return f"{name} is missing: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} is damaged"
    return None


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder) != pathlib.Path(NAME):
            yield path


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of(files: dict) -> str:
    text = json.dumps(files, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
