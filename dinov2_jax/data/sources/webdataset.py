"""WebDataset shards: images inside uncompressed tar files, read in place.

The members are indexed once (shard, offset, size); reading one is a `pread`.
"""

import concurrent.futures
import os
import threading

import numpy as np

from dinov2_jax import errors, progress_bar
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    base,
    extensions,
    index_cache,
    manifest,
    messages,
    shard_files,
    tar_index,
)

_VERSION = "3"
_THREADS = 8  # network file systems are slow to answer
_MOST_OPEN = 256  # files; beyond that, every read opens its shard


class TarSource(base.Source):
    """All images inside tar files, ordered by file and then by member.

    The label of an image is the content of its `.cls`, or the field `label`, `cls` or
    `class` of its `.json`, if every image has one.

    Args:
      path: A file, a folder or a pattern.
      decoder: Decoder of the images.
      field: The configuration field to name in messages.
    """

    def __init__(
        self, path: str, decoder: image_decoder.Decoder, *, field: str = "data.path"
    ):
        if shard_files.is_compressed_tar(path):
            raise errors.UserError(_compressed(path))
        shards = shard_files.find(path, shard_files.TAR, what=".tar files", field=field)
        for shard in shards:
            try:
                compressed = _is_compressed(shard)
            except OSError as error:
                raise errors.UserError(
                    f"cannot read {shard} of {field} = {path} ({error.strerror}): "
                    "change its permissions or leave it out"
                ) from error
            if shard_files.is_compressed_tar(shard) or compressed:
                raise errors.UserError(_compressed(shard))
        self._given, self._decoder = os.path.expanduser(path), decoder
        self._left_out = shard_files.left_out(path, shard_files.TAR)
        self._index = _find_members(os.path.abspath(self._given), shards)
        self._load()
        if not len(self):
            problems = self._index.header["problems"]
            why = f" ({problems[0][0]}: {problems[0][1]})" if problems else ""
            raise errors.UserError(
                f"no images inside {messages.counted(len(shards), 'tar file')} of "
                f"{field} = {self._given}{why}; looked for members called "
                f"{' '.join(extensions.IMAGES)}"
                f"{''.join(f'; {line}' for line in self.warnings())}: choose other "
                "shards"
            )

    def _load(self) -> None:
        self._names = index_cache.Texts(self._index, "names")
        self._shards = index_cache.Texts(self._index, "shards")
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        kept = ("_given", "_decoder", "_left_out", "_index")
        return {k: self.__dict__[k] for k in kept}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._load()

    def __del__(self):
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None if there are none."""
        return self._index["labels"] if "labels" in self._index else None

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty if there are none."""
        return list(self._index.header["label_names"])

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the members and the shards' sizes and times."""
        return self._index.header["fingerprint"]

    def __len__(self) -> int:
        return len(self._names)

    def content(self, index: int) -> bytes:
        """Return the bytes of an image; raises `BadImage`."""
        shard = int(self._index["shard"][index])
        offset, size = int(self._index["offsets"][index]), self._index["sizes"][index]
        try:
            content = self._pread(shard, int(size), offset)
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise image_decoder.BadImage(self.name(index), reason) from error
        if len(content) < size:
            raise image_decoder.BadImage(self.name(index), "its shard was cut off")
        return content

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        if shard not in self._files:
            descriptor = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            with self._lock:
                keep = shard not in self._files and len(self._files) < _MOST_OPEN
                if keep:
                    self._files[shard] = descriptor
            if not keep:
                try:
                    return _pread_all(descriptor, size, offset)
                finally:
                    os.close(descriptor)
        return _pread_all(self._files[shard], size, offset)

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image and its header; raises `BadImage`."""
        return self._decoder.open(self.content(index), name=self.name(index))

    def name(self, index: int) -> str:
        """Return the shard and the member."""
        shard = self._index.header["shard_names"][int(self._index["shard"][index])]
        return f"{shard}/{self._names[index].decode('utf-8', 'replace')}"

    def left_out(self) -> dict[str, int]:
        """Return how many members and other files are not read, by extension."""
        return extensions.merged([self._left_out, *self._index.header["left_out"]])

    def skipped(self) -> dict[str, int]:
        """Return how many members called images hold none, by reason."""
        return extensions.merged(self._index.header["skipped"])

    def _where(self) -> str:
        problems = self._index.header["problems"]
        where = f"in {messages.counted(len(self._shards), 'tar file')} of {self._given}"
        if problems:
            shard, reason = problems[0]
            count = messages.counted(len(problems), "file")
            where += f" ({count} not read to the end, such as {shard}: {reason})"
        return where


def _pread_all(descriptor: int, size: int, offset: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    while 0 < len(content) < size:  # one call returns at most 2 GB
        more = os.pread(descriptor, size - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


def _compressed(path: str) -> str:
    return (
        f"{path} is compressed, so that images cannot be read from the middle of it: "
        "unpack it to .tar (gunzip, unxz, bunzip2 or zstd -d)"
    )


def _is_compressed(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(6)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _find_members(given: str, shards: list[str]) -> index_cache.Index:
    """Return the index of all members; only shards that changed are read."""
    key = index_cache.key("tar", _VERSION, given, *extensions.IMAGES)
    old = index_cache.newest(key)
    statuses = [os.stat(shard) for shard in shards]
    state = [[s.st_size, s.st_mtime_ns] for s in statuses]
    paths = [os.fsencode(shard) for shard in shards]
    if old is not None:
        known = index_cache.Texts(old, "shards").all()
        if known == paths and old.header["state"] == state:
            return old
    members = dict(_reused(old, dict(zip(paths, state))))
    fresh = [path for path in paths if path not in members]
    members |= dict(zip(fresh, _read_all([os.fsdecode(path) for path in fresh])))
    ordered = [members[path] for path in paths]
    joined = {
        name: [value for one in ordered for value in getattr(one, name)]
        for name in ("names", "offsets", "sizes", "labels")
    }
    arrays = index_cache.text_arrays("names", joined["names"])
    arrays |= index_cache.text_arrays("shards", paths)
    counts = [len(one.names) for one in ordered]
    arrays["shard"] = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
    arrays["offsets"] = np.array(joined["offsets"], np.int64)
    arrays["sizes"] = np.array(joined["sizes"], np.int64)
    labels, names = manifest.numbered_labels(joined["labels"])
    if labels is not None:
        arrays["labels"] = labels
    short = shard_files.names(shards)
    # Names below their common folder: moved files are the same files.
    identity = {k: v for k, v in arrays.items() if not k.startswith("shards")}
    identity |= index_cache.text_arrays("shorts", [os.fsencode(n) for n in short])
    identity["state"] = np.array(state, np.int64).ravel()
    header = {
        "fingerprint": index_cache.fingerprint(identity),
        "label_names": names,
        "shard_names": short,
        "some_labels": any(label is not None for label in joined["labels"]),
        "state": state,
        "left_out": [one.left_out for one in ordered],
        "skipped": [one.skipped for one in ordered],
        "problems": [[n, m.problem] for n, m in zip(short, ordered) if m.problem],
    }
    return index_cache.write(key, header["fingerprint"], header, arrays)


def _reused(old, state):
    """Yield (shard, members) of unchanged shards."""
    # An old index without labels does not record which images had one.
    if old is None or "labels" not in old and old.header["some_labels"]:
        return
    problems = dict(old.header["problems"])
    texts = index_cache.Texts(old, "names").all()
    ends = np.cumsum(np.bincount(old["shard"], minlength=len(old.header["state"])))
    shards = index_cache.Texts(old, "shards").all()
    names, start = old.header["label_names"], 0
    for shard, was, short, left_out, skipped, end in zip(
        shards,
        old.header["state"],
        old.header["shard_names"],
        old.header["left_out"],
        old.header["skipped"],
        ends.tolist(),
    ):
        rows = slice(start, end)
        start = end
        if state.get(shard) != was or short in problems:
            continue
        labels = [None] * len(texts[rows])
        if "labels" in old:
            labels = [names[label] for label in old["labels"][rows]]
        yield (
            shard,
            tar_index.Members(
                texts[rows],
                old["offsets"][rows].tolist(),
                old["sizes"][rows].tolist(),
                labels,
                left_out,
                skipped,
            ),
        )


def _read_all(shards: list[str]) -> list[tar_index.Members]:
    with progress_bar.Bar(
        len(shards), what="indexing tar files", unit="files", delay=2.0
    ) as bar:
        found = []
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for members in pool.map(tar_index.read, shards):
                found.append(members)
                bar.update()
        return found
