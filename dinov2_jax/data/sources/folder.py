"""Images that are files of their own: below a folder, or matched by a pattern."""

import os
import stat

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    folder_index,
    folder_walk,
    globbing,
    index_cache,
    messages,
    tfds_files,
)


class FilesSource:
    """Files by the index of their paths; pickled as the path of the index.

    Args:
      root: What the paths are relative to.
      index: With the texts `paths`, perhaps `labels`; its header has `fingerprint` and
        `label_names`.
      decoder: Of the files.
    """

    def __init__(
        self, root: str, index: index_cache.Index, decoder: image_decoder.Decoder
    ):
        self.path, self._index, self._decoder = root, index, decoder
        self._load()

    def _load(self) -> None:
        self._paths = index_cache.Texts(self._index, "paths")

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_paths"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._load()

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None where there are none."""
        return self._index["labels"] if "labels" in self._index else None

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty where there are none."""
        return list(self._index.header["label_names"])

    @property
    def fingerprint(self) -> str:
        """Changes with the images' names, sizes and times of change."""
        return self._index.header["fingerprint"]

    def __len__(self) -> int:
        return len(self._paths)

    def relative_path(self, index: int) -> bytes:
        """The path of an image as the file system has it, below the root."""
        return self._paths[index]

    def _checked_path(self, index: int) -> str:
        """The path of a regular file; opening a pipe would wait for ever."""
        path = os.path.join(os.fsencode(self.path), self._paths[index])
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:  # the latter: a zero byte in it
            reason = getattr(error, "strerror", None) or str(error)
            raise image_decoder.BadImage(self.name(index), reason) from error
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise image_decoder.BadImage(self.name(index), what)
        return os.fsdecode(path)

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Reads an image's file and header; raises `BadImage`."""
        return self._decoder.open(self._checked_path(index), name=self.name(index))

    def content(self, index: int) -> bytes:
        """The bytes of an image's file; raises `BadImage`."""
        try:
            with open(self._checked_path(index), "rb") as file:
                return file.read()
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise image_decoder.BadImage(self.name(index), reason) from error

    def name(self, index: int) -> str:
        """The path relative to the root; \\xff for what is not UTF-8."""
        return self._paths[index].decode("utf-8", "backslashreplace")

    def skipped(self) -> dict[str, int]:
        """How many things were passed over, by reason."""
        return {}

    def _where(self) -> str:
        return f"from {self.path}"

    def describe(self) -> str:
        """One line: how many, what was skipped, the first names."""
        first = [self.name(i) for i in range(min(3, len(self)))]
        return messages.described(
            len(self), self._where(), skipped=self.skipped(), first=first
        )


class FolderSource(FilesSource):
    """All images below a folder, in the order of their paths.

    Sub-folders and links are followed; names that begin with a dot are passed over. If
    every image lies in a sub-folder, the names of the first level are the labels.

    Args:
      path: the folder.
      decoder: of the files.
      field: of the configuration, for messages.

    Attributes:
      path: the folder, absolute.
      unreadable_folders: paths of folders that could not be listed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        decoder: image_decoder.Decoder,
        *,
        field: str = "data.path",
    ):
        said = os.path.expanduser(os.fspath(path))
        fix = messages.set_path(field)
        if not os.path.isdir(said):
            what = "is not a folder" if os.path.exists(said) else "does not exist"
            raise errors.UserError(f"{field} = {said} {what}: {fix}")
        root = os.path.abspath(said)
        try:
            index = folder_index.find_images(root)
        except OSError as error:
            raise errors.UserError(
                f"cannot list {field} = {said} ({error.strerror}): change its "
                "permissions or choose another folder"
            ) from error
        super().__init__(root, index, decoder)
        if not len(self):
            tfds_files.refuse(said, field)
            raise errors.UserError(
                f"no images below {field} = {said}{self._why()}; looked for "
                f"{' '.join(folder_walk.EXTENSIONS)} (for arrays, name "
                f"'{said}/**/*.npy'): {fix}"
            )

    def _why(self) -> str:
        """What stood in the way, in brackets, or nothing."""
        if self.unreadable_folders:
            return f" (could not list {self.unreadable_folders[0]})"
        skipped = self._index.header["skipped"]
        if skipped:
            return f" ({skipped[0][1]!r}: {skipped[0][2]})"
        return ""

    @property
    def unreadable_folders(self) -> list[str]:
        """Paths of folders that could not be listed."""
        found = self._index.header["unreadable"]
        return [os.path.join(self.path, path) for path in found]

    def skipped(self) -> dict[str, int]:
        """How many things were passed over, by reason."""
        header = self._index.header
        found = {"unreadable folder": len(header["unreadable"])}
        found |= header["reasons"]
        return {reason: count for reason, count in found.items() if count}

    def skipped_names(self) -> list[tuple[str, str]]:
        """(path below the folder, reason) of what was passed over."""
        found = self._index.header["unreadable"]
        return [(path, "unreadable folder") for path in found] + self.unusable_files()

    def unusable_files(self) -> list[tuple[str, str]]:
        """(path below the folder, reason) of links, pipes and the like."""
        folders = index_cache.Texts(self._index, "folder_paths")
        return [
            (os.fsdecode(folders[number]) + name, reason)
            for number, name, reason in self._index.header["skipped"]
        ]

    def _where(self) -> str:
        count = self._index.header["folder_count"]
        return f"in {messages.counted(count, 'folder')} below {self.path}"


class GlobSource(FolderSource):
    """The images whose paths match a pattern, in the order of their paths.

    Args:
      pattern: With wildcards as `patterns` has them.
      decoder: Of the files.
      field: Of the configuration, for messages.
    """

    def __init__(
        self, pattern: str, decoder: image_decoder.Decoder, *, field: str = "data.path"
    ):
        self.pattern = os.path.abspath(os.path.expanduser(pattern))
        rule = globbing.Rule(self.pattern)
        try:
            index = folder_index.find_images(rule.root, rule, self.pattern)
        except OSError as error:
            raise errors.UserError(
                f"{field} = {pattern} matches nothing, because {rule.root} cannot be "
                f"listed ({error.strerror}): correct the pattern"
            ) from error
        FilesSource.__init__(self, rule.root, index, decoder)
        if not len(self):
            looked = ""
            if not rule.names_extensions:
                looked = f"; looked for {' '.join(folder_walk.EXTENSIONS)}"
            raise errors.UserError(
                f"no images match {field} = {pattern}{self._why()}{looked}: correct "
                "the pattern (** stands for any folders, * for part of a name) and "
                "quote it, so that the shell leaves it alone"
            )
