"""Images inside Parquet and Arrow files, as Hugging Face's `datasets` writes them.

A column holds an image file each: a struct of `bytes` and `path`, or plain bytes. The
label is a column of `ClassLabel`, whose names the schema's metadata has, or one called
`label`. `save_to_disk` writes Arrow files, of which images are read in place. Of a
Parquet file a whole row group is read at a time, and the last ones are kept.
"""

import collections
import functools
import json
import os
import re
import threading
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    base,
    index_cache,
    manifest,
    messages,
    shard_files,
    table_files,
)

_CACHES = re.compile(r"^(cache|indices|tmp)")  # written by `datasets` into its folders
_SPLIT = re.compile(r"^(.+?)-\d+-of-\d+")
_SPLIT_FOLDERS = ("train", "test", "validation", "val", "valid", "dev")
_DICT, _INFO, _STATE = "dataset_dict.json", "dataset_info.json", "state.json"
_GROUP_BYTES = 2**28  # of row groups that a process keeps
_MOST_OPEN = 128  # files
_SLOW_ROWS = 32  # of a row group; with more, training should read shards


def is_table(path: str) -> bool:
    """Return whether a file holds images, or a pattern names Parquet or Arrow files."""
    if not table_files.EXTENSION.search(path):
        return False
    return not os.path.exists(path) or table_files.holds_images(path)


def is_folder(path: str) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    info, state = (os.path.exists(os.path.join(path, n)) for n in (_INFO, _STATE))
    return os.path.exists(os.path.join(path, _DICT)) or (info and state)


def is_member(path: str) -> bool:
    """Return whether a file in a folder holds images."""
    name = os.path.basename(path)
    return (
        bool(table_files.EXTENSION.search(name))
        and not _CACHES.search(name)
        and table_files.holds_images(path)
    )


class HuggingFaceSource(base.Source):
    """The images inside Parquet or Arrow files, ordered by file and then by row.

    Args:
      path: A file, a folder or a pattern.
      decoder: Decoder of the images.
      field: The configuration field to name in messages.
    """

    def __init__(
        self, path: str, decoder: image_decoder.Decoder, *, field: str = "data.path"
    ):
        self._given, self._decoder = os.path.expanduser(path), decoder
        what = f"{field} = {self._given}"
        self._shards = _find(self._given, field)
        self._names = shard_files.names(self._shards)
        self._column, self._label = "", None
        self._label_names: list[str] = []
        self._row_group = 0  # rows that are read at a time
        shards, groups, rows = [], [], []
        for number, shard in enumerate(self._shards):
            try:
                table = table_files.open_table(shard)
                image = table_files.image_column(table.schema)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise errors.UserError(
                    f"cannot read {shard} of {what} ({reason}): repair it or leave it "
                    "out"
                ) from error
            if image is None or image != (self._column or image):
                columns = ", ".join(table.schema.names)[:200]
                raise errors.UserError(
                    f"{shard} of {what} has no column {self._column or 'of images'}, "
                    f"only {columns}: leave it out"
                )
            if not number:
                self._column = image
                self._label, self._label_names = table_files.label_column(table.schema)
            for group, count in enumerate(table.group_rows):
                shards.append(number)
                groups.append(group)
                rows.append(count)
            if table_files.is_parquet(shard):
                self._row_group = max(self._row_group, *table.group_rows, 0)
        self._group_shards = np.array(shards, np.int32)
        self._group_numbers = np.array(groups, np.int32)
        self._ends = np.cumsum(np.array(rows, np.int64))
        if not len(self):
            raise errors.UserError(f"no rows in the files of {what}: choose others")
        statuses = [os.stat(shard) for shard in self._shards]
        state = [[s.st_size, s.st_mtime_ns] for s in statuses]
        self._fingerprint = index_cache.key(
            "huggingface", json.dumps([self._names, state, self._column, len(self)])
        )
        self._load()

    def _load(self) -> None:
        self._lock = threading.Lock()
        self._open_shards: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._groups: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._group_bytes = 0  # of those

    def __getstate__(self):
        left = ("_lock", "_open_shards", "_groups", "_group_bytes", "_labels")
        return {k: v for k, v in self.__dict__.items() if k not in left}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._load()

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the files' names, sizes and modification times."""
        return self._fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _place(self, index: int) -> tuple[int, int]:
        """Return (group, row in it) of an image."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _shard(self, number: int) -> Any:
        if number not in self._open_shards:
            self._open_shards[number] = table_files.open_table(self._shards[number])
            while len(self._open_shards) > _MOST_OPEN:
                self._open_shards.popitem(last=False)
        return self._open_shards[number]

    def _group(self, group: int) -> Any:
        """Return the column of images of a row group."""
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        number = int(self._group_shards[group])
        column = self._shard(number).column(
            int(self._group_numbers[group]), self._column
        )
        if table_files.is_parquet(self._shards[number]):  # others lie in the file
            self._groups[group] = column
            self._group_bytes += column.nbytes
            while self._group_bytes > _GROUP_BYTES and len(self._groups) > 1:
                _, oldest = self._groups.popitem(last=False)
                self._group_bytes -= oldest.nbytes
        return column

    def content(self, index: int) -> bytes:
        """Return the bytes of an image file; raises `BadImage`."""
        group, row = self._place(index)
        try:
            with self._lock:
                value = self._group(group)[row].as_py()
            if not isinstance(value, dict):
                value = {"bytes": value}
            if value["bytes"] is None and value.get("path"):
                shard = self._shards[int(self._group_shards[group])]
                path = os.path.join(os.path.dirname(shard), value["path"])
                with open(path, "rb") as file:
                    return file.read()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:100]
            raise image_decoder.BadImage(
                self.name(index), f"its row cannot be read ({reason})"
            ) from error
        if value["bytes"] is None:
            raise image_decoder.BadImage(self.name(index), "its row has no image")
        return value["bytes"]

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image and its header; raises `BadImage`."""
        return self._decoder.open(self.content(index), name=self.name(index))

    def name(self, index: int) -> str:
        """Return the file and the row."""
        group, row = self._place(index)
        shard = int(self._group_shards[group])
        first = int(np.searchsorted(self._group_shards, shard))
        row = index - (int(self._ends[first - 1]) if first else 0)
        return f"{self._names[shard]} row {row}"

    @functools.cached_property
    def _labels(self) -> tuple[np.ndarray | None, list[str]]:
        if self._label is None:
            return None, []
        values: list[Any] = []
        for number in range(len(self._shards)):
            values += self._shard(number).values(self._label)
        if not self._label_names:
            return manifest.numbered_labels(
                None if value is None else str(value) for value in values
            )
        count = len(self._label_names)
        if any(v is None or not 0 <= v < count for v in values):
            return None, []  # -1 marks a split without labels
        return np.array(values, np.int32), self._label_names

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None if there are none; reads that column."""
        return self._labels[0]

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty if there are none."""
        return self._labels[1]

    def warnings(self) -> list[str]:
        """Warn that training reads more than it needs, if row groups are large."""
        if self._row_group <= _SLOW_ROWS:
            return []
        return [
            f"each image is read with its row group of up to {self._row_group:,} rows: "
            f"pack them first for speed (python -m dinov2_jax.data shard {self._given} "
            "DST) and name DST"
        ]

    def _where(self) -> str:
        count = messages.counted(len(self._shards), "file")
        return f"in column {self._column} of {count} of {self._given}"


def _find(given: str, field: str) -> list[str]:
    """Return the files of one split.

    Raises:
      UserError: There are none, or several splits.
    """
    found = shard_files.find(
        given, table_files.EXTENSION, what="Parquet or Arrow files", field=field
    )
    if not os.path.isdir(given):
        return found
    found = [p for p in found if not _CACHES.search(os.path.basename(p))]
    splits = {_split(path, given): path for path in reversed(found)}
    if len(splits) > 1:
        path = next(iter(splits.values()))
        one = os.path.dirname(path)
        match = _SPLIT.match(os.path.basename(path))
        if match and os.path.basename(one) not in _SPLIT_FOLDERS:
            ending = os.path.splitext(path)[1]
            one = os.path.join(one, f"{match[1]}-*{ending}")
        raise errors.UserError(
            f"{field} = {given} holds the splits {', '.join(sorted(splits))}: name "
            f"one, such as '{one}'"
        )
    return found


def _split(path: str, root: str) -> str:
    """Return the name of the split that a file belongs to, "" if unknown."""
    below = os.path.relpath(path, os.path.abspath(root)).split(os.sep)
    for folder in below[:-1]:
        if folder.lower() in _SPLIT_FOLDERS:
            return folder.lower()
    match = _SPLIT.match(below[-1])
    return match[1] if match and match[1] != "data" else ""
