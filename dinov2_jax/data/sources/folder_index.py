"""An index of the images below a folder, updated folder by folder.

A folder's modification time tells whether names were added or removed, so an unchanged
folder is not listed again. A second start checks the status of every folder, and of up
to `_SPOT_CHECKS` files, because overwriting a file in place does not change its folder.
"""

import concurrent.futures
import itertools
import os
from collections.abc import Iterable

import numpy as np

from dinov2_jax import progress_bar
from dinov2_jax.data.sources import extensions, folder_walk, globbing, index_cache

_VERSION = "2"  # version of the index's content
_SPOT_CHECKS = 10_000
_SKIPPED_NAMES = 10_000  # kept with their reasons; all are counted


def find_images(root: str, rule: globbing.Rule | None = None, pattern: str = ""):
    """Return the index of the images below a folder, in the order of their paths.

    Args:
      root: The absolute path of the folder.
      rule: The rule of the pattern; None takes every image.
      pattern: The pattern, for the key in the cache.

    Returns:
      `index_cache.Index` with the texts `paths` (relative, / between names), `sizes`
      (bytes) and `mtimes` (ns), one per image; and `labels` if every image is in a
      sub-folder: the first level's names are `header["label_names"]`.

    Raises:
      OSError: The root cannot be listed.
    """
    with os.scandir(root):  # raises
        pass
    key = index_cache.key("images", _VERSION, root, pattern, *extensions.IMAGES)
    old = index_cache.newest(key)
    if old is not None and (
        old.header["skipped_count"] > _SKIPPED_NAMES
        or not _sample_is_unchanged(root, old)
    ):
        old = None
    with progress_bar.Bar(None, what=f"indexing {root}", delay=2.0) as bar:
        known = _Known(old) if old is not None else None
        folders = folder_walk.walk(root, rule, known, bar)
    if old is not None and _unchanged(folders, old):
        return old
    return _write(key, folders, old)


def _sample_is_unchanged(root: str, old: index_cache.Index) -> bool:
    """Return whether a sample of the files still has the same sizes and times."""
    paths, sizes, mtimes = index_cache.Texts(old, "paths"), old["sizes"], old["mtimes"]
    count = len(paths)
    chosen = np.linspace(0, max(count - 1, 0), min(count, _SPOT_CHECKS)).astype(int)
    prefix = os.fsencode(root) + b"/"

    def same(numbers: Iterable[int]) -> bool:
        for number in numbers:
            try:
                status = os.stat(prefix + paths[number])
            except OSError:
                continue  # deleted: its folder has changed, and opening it fails
            if status.st_size != sizes[number] or status.st_mtime_ns != mtimes[number]:
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(folder_walk.THREADS) as pool:
        return all(pool.map(same, np.array_split(chosen, 4 * folder_walk.THREADS)))


class _Known:
    """The folders of an old index."""

    def __init__(self, old: index_cache.Index):
        self._paths = index_cache.Texts(old, "folder_paths").all()
        self._numbers = {path: number for number, path in enumerate(self._paths)}
        self._how = old["folder_how"].tolist()
        self._mtimes = old["folder_mtimes"].tolist()
        self._inodes = old["folder_inodes"].tolist()
        self._counts = np.bincount(old["folders"], minlength=len(self._paths)).tolist()
        self._folders: list[list[bytes]] = [[] for _ in self._paths]
        for path, parent in zip(self._paths, old["folder_parents"].tolist()):
            if parent >= 0:
                name = path[len(self._paths[parent]) : -1]
                self._folders[parent].append(name)

    def find(self, folder: folder_walk.Folder) -> int:
        """Return the number of a folder that need not be listed again, or -1."""
        number = self._numbers.get(folder.path, -1)
        if number < 0 or self._how[number] != folder_walk.LISTED:
            return -1
        same = (self._mtimes[number], self._inodes[number])
        return number if same == (folder.mtime, folder.inode) else -1

    def folders(self, number: int) -> list[bytes]:
        return self._folders[number]

    def count(self, number: int) -> int:
        return self._counts[number]


def _unchanged(folders: list[folder_walk.Folder], old: index_cache.Index) -> bool:
    """Return whether the old index agrees with every folder."""
    if len(folders) != len(old["folder_how"]):
        return False
    fresh = []
    columns = (old[f"folder_{n}"].tolist() for n in ("how", "mtimes", "inodes"))
    for number, (folder, *was) in enumerate(zip(folders, *columns)):
        if folder.old == number:
            continue
        if was != [folder.how, folder.mtime, folder.inode]:
            return False
        fresh.append(number)
    if not fresh:
        return True
    paths = index_cache.Texts(old, "folder_paths")
    rows = _Rows(old)
    skipped = {number: [] for number in fresh}
    for number, name, reason in old.header["skipped"]:
        if number in skipped:
            skipped[number].append((os.fsencode(name), reason))
    left_out = {number: {} for number in fresh}
    for number, kind, count in _known_left_out(old):
        if number in left_out:
            left_out[number][kind] = count
    return all(
        folders[number].path == paths[number]
        and folders[number].images == rows.images(number, len(paths[number]))
        and sorted(folders[number].skipped) == sorted(skipped[number])
        and folders[number].left_out == left_out[number]
        for number in fresh
    )


class _Rows:
    """The images of an old index, grouped by folder."""

    def __init__(self, old: index_cache.Index):
        self._old, self._paths = old, index_cache.Texts(old, "paths")
        folders = old["folders"]
        self._order = np.argsort(folders, kind="stable")
        self._ends = np.cumsum(np.bincount(folders, minlength=len(old["folder_how"])))

    def images(self, number: int, prefix: int) -> list[tuple[bytes, int, int]]:
        rows = self._order[self._ends[number - 1] if number else 0 : self._ends[number]]
        sizes, mtimes = self._old["sizes"], self._old["mtimes"]
        return [(self._paths[r][prefix:], int(sizes[r]), int(mtimes[r])) for r in rows]


def _write(key: str, folders: list[folder_walk.Folder], old) -> index_cache.Index:
    paths: list[bytes] = []
    columns: dict[str, list[int]] = {"sizes": [], "mtimes": [], "folders": []}
    if old is not None:
        # The images of unchanged folders, still in order.
        renumbered = np.full(len(old["folder_how"]), -1, np.int64)
        for number, folder in enumerate(folders):
            if folder.old >= 0:
                renumbered[folder.old] = number
        numbers = renumbered[old["folders"]]
        kept = numbers >= 0
        every = index_cache.Texts(old, "paths").all()
        paths = list(itertools.compress(every, kept.tolist()))
        columns["sizes"] = old["sizes"][kept].tolist()
        columns["mtimes"] = old["mtimes"][kept].tolist()
        columns["folders"] = numbers[kept].tolist()
    for number, folder in enumerate(folders):
        for name, size, mtime in folder.images:
            paths.append(folder.path + name)
            columns["sizes"].append(size)
            columns["mtimes"].append(mtime)
            columns["folders"].append(number)
    order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
    paths.sort()
    arrays = index_cache.text_arrays("paths", paths)
    dtypes = {"sizes": np.int64, "mtimes": np.int64, "folders": np.int32}
    arrays |= {n: np.array(c, dtypes[n])[order] for n, c in columns.items()}
    labels, names = first_level_labels(paths)
    if labels is not None:
        arrays["labels"] = labels
    described = {n: a for n, a in arrays.items() if n != "folders"}
    arrays |= index_cache.text_arrays("folder_paths", [f.path for f in folders])
    for name, dtype in dict(
        how=np.int8, mtime=np.int64, inode=np.uint64, parent=np.int32
    ).items():
        plural = name if name == "how" else f"{name}s"
        values = [getattr(folder, name) for folder in folders]
        arrays[f"folder_{plural}"] = np.array(values, dtype)
    left_out = _left_out(folders, old)
    kinds = sorted({kind for _, kind, _ in left_out})
    for name, column in dict(
        folders=[number for number, _, _ in left_out],
        kinds=[kinds.index(kind) for _, kind, _ in left_out],
        counts=[count for _, _, count in left_out],
    ).items():
        arrays[f"left_out_{name}"] = np.array(column, np.int64)
    skipped = _skipped(folders, old)
    unreadable = [f.path for f in folders if f.how == folder_walk.UNREADABLE]
    header = {
        "fingerprint": index_cache.fingerprint(described),
        "label_names": names,
        "folder_count": len(np.unique(arrays["folders"])),
        "unreadable": [os.fsdecode(path) for path in unreadable],
        "skipped": skipped[:_SKIPPED_NAMES],
        "skipped_count": len(skipped),
        "reasons": {},
        "left_out_kinds": kinds,
    }
    for _, _, reason in skipped:
        header["reasons"][reason] = header["reasons"].get(reason, 0) + 1
    return index_cache.write(key, header["fingerprint"], header, arrays)


def _skipped(folders: list[folder_walk.Folder], old) -> list[tuple[int, str, str]]:
    """Return (folder, name, reason) of unusable entries."""
    found = []
    numbers = {f.old: number for number, f in enumerate(folders) if f.old >= 0}
    for number, name, reason in old.header["skipped"] if old is not None else ():
        if number in numbers:
            found.append((numbers[number], name, reason))
    for number, folder in enumerate(folders):
        found += [(number, os.fsdecode(name), why) for name, why in folder.skipped]
    return sorted(found)


def _known_left_out(old: index_cache.Index) -> Iterable[tuple[int, str, int]]:
    """Return (folder, extension, number of files) left out, from an old index."""
    names = old.header["left_out_kinds"]
    columns = (old[f"left_out_{n}"].tolist() for n in ("folders", "kinds", "counts"))
    return [(folder, names[kind], count) for folder, kind, count in zip(*columns)]


def _left_out(folders: list[folder_walk.Folder], old) -> list[tuple[int, str, int]]:
    """Return (folder, extension, number of files) of unread files, sorted."""
    found = []
    numbers = {f.old: number for number, f in enumerate(folders) if f.old >= 0}
    for number, kind, count in _known_left_out(old) if old is not None else ():
        if number in numbers:
            found.append((numbers[number], kind, count))
    for number, folder in enumerate(folders):
        found += [(number, kind, count) for kind, count in folder.left_out.items()]
    return sorted(found)


def left_out(index: index_cache.Index) -> dict[str, int]:
    """Return how many files of an index are not read, by extension."""
    total: dict[str, int] = {}
    for _, kind, count in _known_left_out(index):
        total[kind] = total.get(kind, 0) + count
    return total


def first_level_labels(
    paths: list[bytes],
) -> tuple[np.ndarray | None, list[str]]:
    """Return int32 labels by the first folder's name, and the names; or (None, [])."""
    if not all(b"/" in path for path in paths):
        return None, []
    folders = [path.split(b"/", 1)[0] for path in paths]
    names = sorted(set(folders))
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[folder] for folder in folders], np.int32)
    return labels, [name.decode("utf-8", "replace") for name in names]
