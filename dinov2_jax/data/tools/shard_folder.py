"""The folder that `shard` fills: shards that appear when complete, and `shards.json`.

The latter lists the images of each shard, so that a stopped run can continue.
"""

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from dinov2_jax import errors, files
from dinov2_jax.data.sources import array_record


class Destination:
    """The folder of shards and its progress."""

    def __init__(self, path: pathlib.Path, source: Any, options: dict[str, Any]):
        self.path = path
        self.shards: list[dict[str, Any]] = []
        self._head = {
            "source_fingerprint": source.fingerprint,
            "source_images": len(source),
            "options": json.loads(json.dumps(options)),
        }
        self.finished = False
        note = path / array_record.SHARDS
        if not note.exists():
            others = [p.name for p in path.iterdir() if not p.name.startswith(".")]
            if others:
                raise errors.UserError(
                    f"{path} holds other files, such as {others[0]}: name a new folder"
                )
            return
        try:
            before = json.loads(note.read_text())
            same = {name: before[name] for name in self._head}
            shards, finished = before["shards"], before["finished"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"{note} is damaged ({error}): delete {path} or name another folder"
            ) from error
        if same != self._head:
            raise errors.UserError(
                f"{path} was started with other images or flags: delete it or name "
                "another folder"
            )
        for shard in shards:
            file = path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["file_bytes"]:
                break
            self.shards.append(shard)
        self.finished = finished and len(self.shards) == len(shards)

    @property
    def next_image(self) -> int:
        """The first image that is in no finished shard."""
        return self.shards[-1]["stop"] if self.shards else 0

    @property
    def records(self) -> int:
        """Number of records in the finished shards."""
        return sum(shard["records"] for shard in self.shards)

    @property
    def bad(self) -> list[list[str]]:
        """[name, reason] of the images that were left out."""
        return [entry for shard in self.shards for entry in shard["bad"]]

    def shard_name(self) -> str:
        """Return the name of the next shard's file."""
        return f"images-{len(self.shards):05d}.array_record"

    def note(self, finished: bool) -> None:
        """Write `shards.json`."""
        content = self._head | {"finished": finished, "shards": self.shards}
        files.write_text(self.path / array_record.SHARDS, json.dumps(content, indent=1))
        self.finished = finished


class Shard:
    """The shard that is being written."""

    def __init__(self, destination: Destination):
        self._destination = destination
        self.first = destination.next_image
        self.records = self.bytes = 0
        self.bad: list[list[str]] = []
        self._name = destination.shard_name()
        # Hidden, so that no reader opens it as a shard.
        self._temporary = destination.path / f".{self._name}.tmp"
        # One record per chunk, for random access; images do not compress.
        with self._failures():
            self._writer = array_record.module().ArrayRecordWriter(
                str(self._temporary), "group_size:1,uncompressed"
            )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn the writer's errors, all of them about the disk, into a UserError."""
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise errors.UserError(
                f"cannot write {self._destination.path / self._name} ({reason}): make "
                "room or repair the disk, then run the same command again to continue",
                exit_code=errors.TRY_AGAIN,
            ) from error

    def add(self, record: bytes) -> None:
        """Append a record."""
        with self._failures():
            self._writer.write(record)
        self.records += 1
        self.bytes += len(record)

    def close(self, stop: int) -> None:
        """Give the file its name and record it; delete a shard without records."""
        with self._failures():
            self._writer.close()
        if not self.records:
            self._temporary.unlink()
            return
        entry = {
            "file": self._name,
            "first": self.first,
            "stop": stop,
            "records": self.records,
            "file_bytes": self._temporary.stat().st_size,
            "bad": self.bad,
        }
        files.publish(self._temporary, self._destination.path / self._name)
        self._destination.shards.append(entry)
        self._destination.note(finished=False)


def lock(path: pathlib.Path) -> io.FileIO:
    """Create the folder, and lock it until the returned file is closed.

    Raises:
      UserError: Another process holds the lock, or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        return files.lock(path / ".lock", what=str(path), fix="wait for it to end")
    except OSError as error:
        raise errors.UserError(
            f"cannot write to {path} ({error.strerror}): name another folder"
        ) from error
