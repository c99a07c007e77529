"""Recursive listing of a folder: its images, and entries that cannot be used.

Links are followed. A folder that was visited before (a link to a parent) is skipped.
Unusable entries are recorded with a reason and never opened: broken links, pipes,
sockets, devices, folders without permission, and outputs of runs. Files with other
extensions are counted.
"""

import concurrent.futures
import dataclasses
import os
import stat
import time
from collections.abc import Iterator
from typing import Any, Protocol

from dinov2_jax.data.sources import extensions, globbing

_EXTENSIONS = frozenset(extension.encode() for extension in extensions.IMAGES)
THREADS = 8  # more than cores: network file systems are slow to answer
# A folder that changed less than this before it was listed may change again without
# its time changing, as some file systems count in steps of two seconds.
_SETTLED_SECONDS = 3.0

LISTED, UNSETTLED, UNREADABLE, SEEN = range(4)

_LOCK, _CONFIG, _CHECKPOINTS = b"run.lock", b"config.json", b"checkpoints"
# Outputs of a run that may contain images.
_OUTPUTS = (
    *(_CHECKPOINTS, b"damaged_checkpoints", b"preflight", b"profile"),
    *(b"tensorboard", b"pca.png"),
)
_OUTPUT = "output of a run"


@dataclasses.dataclass
class Folder:
    """The listing of a folder; all names are bytes."""

    path: bytes  # relative to the root, ending with / unless it is the root
    parent: int
    state: Any  # the pattern's, for names in this folder
    mtime: int = 0  # ns
    inode: int = 0
    how: int = LISTED
    old: int = -1  # its number in the old index, if its listing is unchanged
    images: list[tuple[bytes, int, int]] = dataclasses.field(default_factory=list)
    folders: list[bytes] = dataclasses.field(default_factory=list)
    skipped: list[tuple[bytes, str]] = dataclasses.field(default_factory=list)
    # How many files are not read, by extension.
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


class Known(Protocol):
    """Folders known from an earlier walk."""

    def find(self, folder: Folder) -> int:
        """Return the number of a folder that need not be listed again, or -1."""

    def folders(self, number: int) -> list[bytes]:
        """Return the names of the folders in a folder."""

    def count(self, number: int) -> int:
        """Return the number of images in a folder, without those of its sub-folders."""


def walk(
    root: str, rule: globbing.Rule | None, known: Known | None, bar: Any
) -> list[Folder]:
    """Return the root and all folders below, level by level, by name within a level.

    Args:
      root: Absolute path of the root.
      rule: The rule of a pattern; None takes every image.
      known: Folders that need not be listed if they look unchanged.
      bar: Progress bar; its `update` is called with the number of images found.
    """
    root_bytes = os.fsencode(root)
    prefix = root_bytes + b"/"
    seen = set()  # (device, inode, pattern state), to end loops of links to parents
    found: list[Folder] = []
    level = [Folder(b"", -1, rule.start() if rule else None)]
    takes = rule is None or not rule.names_extensions

    def status(folder: Folder) -> os.stat_result | None:
        try:
            return os.stat(prefix + folder.path)
        except OSError:
            return None

    def fill(folder: Folder) -> int:
        if folder.how in (UNREADABLE, SEEN):
            return 0
        if known is not None:
            folder.old = known.find(folder)
            if folder.old >= 0:
                folder.folders = known.folders(folder.old)
                return known.count(folder.old)
        _list(prefix, folder, rule, takes)
        return len(folder.images)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while level:
            statuses = _in_chunks(pool, status, level)
            for folder, its in zip(level, statuses):
                if its is None:
                    folder.how = UNREADABLE
                    continue
                folder.mtime, folder.inode = its.st_mtime_ns, its.st_ino
                identity = (its.st_dev, its.st_ino, folder.state)
                if identity in seen:
                    folder.how = SEEN
                seen.add(identity)
            counts = _in_chunks(pool, fill, level)
            below = []
            for folder, count in zip(level, counts):
                number = len(found)
                found.append(folder)
                for name in folder.folders:
                    state = rule.enter(folder.state, name) if rule else None
                    if rule is None or state:
                        below.append(Folder(folder.path + name + b"/", number, state))
                bar.update(count)
            level = below
    return found


def _in_chunks(pool, function, folders: list[Folder]) -> Iterator[Any]:
    """Yield the results in order; threads get several folders at a time."""
    size = max(1, min(64, len(folders) // (4 * THREADS)))
    chunks = [folders[i : i + size] for i in range(0, len(folders), size)]
    for results in pool.map(lambda chunk: [function(f) for f in chunk], chunks):
        yield from results


def _is_output(names: set[bytes]) -> bool:
    """Return whether a folder with these names is the workdir of a run."""
    return _LOCK in names or {_CONFIG, _CHECKPOINTS} <= names


def _list(prefix: bytes, folder: Folder, rule, takes_extensions: bool) -> None:
    """Read a folder's names, and the sizes and times of the images among them."""
    try:
        started = time.time_ns()
        with os.scandir(prefix + folder.path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        unsettled, outputs = False, ()
        if _is_output({entry.name for entry in entries}):
            if folder.path:
                folder.skipped.append((b"", _OUTPUT))
                entries = []
            outputs = _OUTPUTS
        for entry in entries:
            name = entry.name
            hidden = name.startswith(b".")
            if hidden and rule is None:
                continue
            if name in outputs:
                folder.skipped.append((name, _OUTPUT))
                continue
            try:
                if entry.is_dir():
                    folder.folders.append(name)
                    continue
                if takes_extensions:
                    extension = os.path.splitext(name)[1].lower()
                    if extension not in _EXTENSIONS:
                        if rule is None or rule.takes(folder.state, name):
                            kind = extensions.of(name)
                            folder.left_out[kind] = folder.left_out.get(kind, 0) + 1
                        continue
                if rule is not None and not rule.takes(folder.state, name):
                    continue
                status = entry.stat()
            except FileNotFoundError:
                folder.skipped.append((name, "broken link"))
                unsettled = True  # its target may appear
                continue
            except OSError as error:
                folder.skipped.append((name, error.strerror or "cannot be read"))
                unsettled = True
                continue
            if not stat.S_ISREG(status.st_mode):
                folder.skipped.append((name, "not a regular file"))
                continue
            folder.images.append((name, status.st_size, status.st_mtime_ns))
    except OSError:
        folder.how = UNREADABLE
        folder.images, folder.folders, folder.left_out = [], [], {}
        return
    if unsettled or started - folder.mtime < _SETTLED_SECONDS * 1e9:
        folder.how = UNSETTLED
