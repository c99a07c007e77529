"""Images in ArrayRecord files, and the record format of the `shard` program.

A record is either the bytes of an image file, or those bytes after a small header:

    bytes 0 to 7    b"dinov2\\x00\\x01"
    bytes 8 to 11   n, unsigned, little-endian
    n bytes         JSON in ASCII: {"name": "cats/1.jpg", "label": "cats"}; the
                    label is optional. Bytes of a name that are not UTF-8 are lone
                    surrogates, as from Python's `os.fsdecode`.
    the rest        the bytes of the image file
"""

import collections
import functools
import json
import os
import struct
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
    tfds_files,
)

MAGIC = b"dinov2\x00\x01"
SHARDS = "shards.json"  # in a folder written by `shard`
_LENGTH = struct.Struct("<I")
_VERSION = "2"
_STARTS = (  # (offset, first bytes there) of image files
    *((0, start) for start in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")),
    *((0, start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (8, b"WEBP"),
)
# The reader keeps 8 bytes per record in memory. With more records than this it looks
# them up in the file instead, which takes 0.1 ms per image.
_MOST_IN_MEMORY = 10_000_000
_MOST_OPEN = 128  # files of one source and process
_LOOKED_AT = 10  # first records, of which at least one must be an image


def pack(content: bytes, *, name: str, label: str | None) -> bytes:
    """Return a record in the format of `shard`."""
    fields = {"name": name} | ({} if label is None else {"label": label})
    head = json.dumps(fields, separators=(",", ":")).encode("ascii")
    return MAGIC + _LENGTH.pack(len(head)) + head + content


def unpack(record: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the image file's bytes, and the header ({} if there is none).

    Raises:
      ValueError: The header is cut off, or is not what `pack` writes.
    """
    if not record.startswith(MAGIC):
        return record, {}
    start = len(MAGIC) + _LENGTH.size
    if len(record) < start:
        raise ValueError("the record is cut off")
    (length,) = _LENGTH.unpack(record[len(MAGIC) : start])
    if len(record) < start + length:
        raise ValueError("the record is cut off")
    try:
        fields = json.loads(record[start : start + length])
        names = {"name", "label"} & fields.keys()
        if isinstance(fields.get("label"), int):
            fields["label"] = str(fields["label"])
        for name in names:
            os.fsencode(fields[name])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header is not that of a record of `shard`") from error
    return record[start + length :], fields


def module():
    """Return the library that reads and writes the files.

    Raises:
      UserError: It is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise errors.UserError(
            f"ArrayRecord files need: pip install array_record ({error})"
        ) from error
    return array_record_module


class ArrayRecordSource(base.Source):
    """The images in ArrayRecord files, ordered by file and then by record.

    Args:
      path: A file, a folder or a pattern.
      decoder: Decoder of the images.
      field: The configuration field to name in messages.
    """

    def __init__(
        self, path: str, decoder: image_decoder.Decoder, *, field: str = "data.path"
    ):
        module()
        _check_finished(os.path.expanduser(path))
        shards = shard_files.find(
            path, shard_files.ARRAY_RECORD, what="ArrayRecord files", field=field
        )
        self._given, self._decoder = os.path.expanduser(path), decoder
        self._left_out = shard_files.left_out(path, shard_files.ARRAY_RECORD)
        self._index = _find_records(os.path.abspath(self._given), shards)
        self._load()
        if not len(self):
            raise errors.UserError(
                f"no records in {messages.counted(len(shards), 'ArrayRecord file')} of "
                f"{field} = {self._given}: recreate them or choose others"
            )
        self._check_first(field)

    def _load(self) -> None:
        self._shards = index_cache.Texts(self._index, "shards")
        self._ends = self._index["ends"]
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        kept = ("_given", "_decoder", "_left_out", "_index")
        return {k: self.__dict__[k] for k in kept}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._load()

    def _check_first(self, field: str) -> None:
        """Raise UserError if the first records that can be read hold no image."""
        reasons = []
        for index in range(min(len(self), _LOOKED_AT)):
            try:
                record = self._record(index)
            except image_decoder.BadImage:
                continue
            known = any(record.startswith(start, at) for at, start in _STARTS)
            if record.startswith(MAGIC) or known:
                return
            try:
                self._decoder.open(record, name=self.place_name(index))
            except image_decoder.BadImage as error:
                reasons += [error.reason] if record else []
                continue
            return
        if not reasons:  # damaged or empty, as others may not be
            return
        tfds_files.refuse(self._given, field)
        raise errors.UserError(
            f"the records of {self._given} are neither image files nor "
            f"written by `python -m dinov2_jax.data shard` ({reasons[0]}): for a data "
            "set of tensorflow-datasets set --config.data.source=tfds and "
            "--config.data.tfds_name"
        )

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the files' names, sizes and modification times."""
        return self._index.header["fingerprint"]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """Return (shard, record in it) of an image."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _record(self, index: int) -> bytes:
        shard, place = self._place(index)
        try:
            (record,) = self._opened(shard).read([place])
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:100]
            raise image_decoder.BadImage(
                self.place_name(index), f"its record cannot be read ({reason})"
            ) from error
        return record

    def _opened(self, shard: int) -> Any:
        """Return the reader of a shard; only the last `_MOST_OPEN` are kept."""
        with self._lock:
            reader = self._readers.get(shard)
            if reader is None:
                reader = _reader(self._shards[shard], len(self) > _MOST_IN_MEMORY)
                self._readers[shard] = reader
                if len(self._readers) > _MOST_OPEN:
                    # It closes its file once no thread reads from it any more.
                    self._readers.popitem(last=False)
            self._readers.move_to_end(shard)
            return reader

    def place_name(self, index: int) -> str:
        """Return the file and the record's number, without reading the record."""
        shard, place = self._place(index)
        return f"{self._index.header['shard_names'][shard]} record {place}"

    def _unpacked(self, index: int) -> tuple[bytes, dict[str, str]]:
        try:
            return unpack(self._record(index))
        except ValueError as error:
            raise image_decoder.BadImage(self.place_name(index), str(error)) from error

    def content(self, index: int) -> bytes:
        """Return the bytes of an image file; raises `BadImage`."""
        return self._unpacked(index)[0]

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image and its header; raises `BadImage`."""
        content, fields = self._unpacked(index)
        return self._decoder.open(content, name=self._name(index, fields))

    def name(self, index: int) -> str:
        """Return the name in the record, or else the file and the record's number."""
        try:
            return self._name(index, self._unpacked(index)[1])
        except image_decoder.BadImage as error:
            return error.name

    def _name(self, index: int, fields: dict[str, str]) -> str:
        name = fields.get("name")
        if name is None:
            return self.place_name(index)
        return os.fsencode(name).decode("utf-8", "backslashreplace")

    @functools.cached_property
    def _labels(self) -> tuple[np.ndarray | None, list[str]]:
        try:
            return manifest.numbered_labels(
                self._unpacked(i)[1].get("label") for i in range(len(self))
            )
        except image_decoder.BadImage as error:
            raise errors.UserError(
                f"the label of {error.name} in {self._given} cannot be read "
                f"({error.reason}): write that file again"
            ) from error

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None if there are none; reads all records.

        Raises:
          UserError: A record is damaged.
        """
        return self._labels[0]

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; reads all records."""
        return self._labels[1]

    def left_out(self) -> dict[str, int]:
        """Return how many other files with images the folder holds, by extension."""
        return self._left_out

    def _where(self) -> str:
        count = messages.counted(len(self._shards), "ArrayRecord file")
        return f"in {count} of {self._given}"


def _check_finished(folder: str) -> None:
    """Raise UserError if `shard` has not finished a folder."""
    try:
        with open(os.path.join(folder, SHARDS)) as file:
            unfinished = json.load(file)["finished"] is False
    except (OSError, ValueError, KeyError, TypeError):
        return  # not written by `shard`
    if unfinished:
        raise errors.UserError(
            f"{folder} is unfinished: run the same `python -m dinov2_jax.data shard` "
            "command again to complete it"
        )


def _reader(path: bytes | str, large: bool = False):
    options = "readahead_buffer_size:0,max_parallelism:0"
    if large:
        options += ",footer_prefetch_bytes:0,index_storage_option:offloaded"
    return module().ArrayRecordReader(os.fsdecode(path), options)


def _find_records(given: str, shards: list[str]) -> index_cache.Index:
    """Return the index of where each file's records end; files are counted once."""
    key = index_cache.key("array_record", _VERSION, given)
    statuses = [os.stat(shard) for shard in shards]
    state = [[s.st_size, s.st_mtime_ns] for s in statuses]
    paths = [os.fsencode(shard) for shard in shards]
    old = index_cache.newest(key)
    if old is not None and old.header["state"] == state:
        if index_cache.Texts(old, "shards").all() == paths:
            return old
    counts = []
    for shard in shards:
        try:
            reader = _reader(shard)
            count = reader.num_records() if reader.ok() else None
            reader.close()
        except (RuntimeError, ValueError):
            count = None
        if count is None:
            raise errors.UserError(
                f"{shard} is not a whole ArrayRecord file: recreate it or leave it out"
            )
        counts.append(count)
    arrays = index_cache.text_arrays("shards", paths)
    arrays["ends"] = np.cumsum(np.array(counts, np.int64))
    names = shard_files.names(shards)
    # Names below their common folder: moved files are the same files.
    identity = index_cache.text_arrays("names", [os.fsencode(name) for name in names])
    identity |= {"ends": arrays["ends"], "state": np.array(state, np.int64).ravel()}
    fingerprint = index_cache.fingerprint(identity)
    header = {
        "fingerprint": fingerprint,
        "shard_names": names,
        "state": state,
    }
    return index_cache.write(key, fingerprint, header, arrays)
