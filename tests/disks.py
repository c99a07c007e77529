"""Small disks that can be filled, in memory."""

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator


class Unavailable(Exception):
    """No disk can be mounted here; says why."""


class Disk:
    """A mounted one."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Takes what room there is, to the last byte."""
        with open(self._filler, "ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**16))

    def free(self) -> None:
        """Gives it back."""
        self._filler.unlink(missing_ok=True)

    def make_read_only(self, read_only: bool = True) -> None:
        """As a disk with errors is remounted."""
        _mount("-o", f"remount,{'ro' if read_only else 'rw'}", str(self.path))


@contextlib.contextmanager
def mounted(path: pathlib.Path, size: str) -> Iterator[Disk]:
    """A disk of a size such as "8m" at a folder that is made.

    Raises:
      Unavailable: As without the rights of root.
    """
    path.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unavailable("there is no command mount") from error
    if done.returncode:
        raise Unavailable(done.stderr.strip())
