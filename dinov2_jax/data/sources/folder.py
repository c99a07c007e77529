"""Images in separate files: those below a folder, or those that match a pattern."""

import os
import stat

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    base,
    extensions,
    folder_index,
    globbing,
    index_cache,
    messages,
    tfds_files,
)


class FilesSource(base.Source):
    """Image files listed in an index; pickled as the path of the index.

    Args:
      root: The folder that paths are relative to.
      index: Index with the texts `paths` and optional `labels`; its header has
        `fingerprint` and `label_names`.
      decoder: Decoder of the files.
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
        """int32 [length], or None if there are none."""
        return self._index["labels"] if "labels" in self._index else None

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty if there are none."""
        return list(self._index.header["label_names"])

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the images' names, sizes and modification times."""
        return self._index.header["fingerprint"]

    def __len__(self) -> int:
        return len(self._paths)

    def relative_path(self, index: int) -> bytes:
        """Return the path of an image below the root, as the file system's bytes."""
        return self._paths[index]

    def _checked_path(self, index: int) -> str:
        """Return the path of a regular file; opening a pipe would block forever."""
        path = os.path.join(os.fsencode(self.path), self._paths[index])
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:  # ValueError: a zero byte
            reason = getattr(error, "strerror", None) or str(error)
            raise image_decoder.BadImage(self.name(index), reason) from error
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise image_decoder.BadImage(self.name(index), what)
        return os.fsdecode(path)

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""
        return self._decoder.open(self._checked_path(index), name=self.name(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file; raises `BadImage`."""
        return self._decoder.content(self._checked_path(index), name=self.name(index))

    def name(self, index: int) -> str:
        """Return the path below the root, with \\xff for bytes that are not UTF-8."""
        return self._paths[index].decode("utf-8", "backslashreplace")

    def _where(self) -> str:
        return f"from {self.path}"


class FolderSource(FilesSource):
    """All images below a folder, in the order of their paths.

    Sub-folders and links are followed; names that begin with a dot are skipped. If
    every image is in a sub-folder, the names of the first level are the labels.

    Args:
      path: The folder.
      decoder: Decoder of the files.
      field: The configuration field to name in messages.

    Attributes:
      path: The absolute path of the folder.
      unreadable_folders: Paths of folders that could not be listed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        decoder: image_decoder.Decoder,
        *,
        field: str = "data.path",
    ):
        given = os.path.expanduser(os.fspath(path))
        fix = messages.set_path(field)
        if not os.path.isdir(given):
            what = "is not a folder" if os.path.exists(given) else "does not exist"
            raise errors.UserError(f"{field} = {given} {what}: {fix}")
        root = os.path.abspath(given)
        try:
            index = folder_index.find_images(root)
        except OSError as error:
            raise errors.UserError(
                f"cannot list {field} = {given} ({error.strerror}): change its "
                "permissions or choose another folder"
            ) from error
        super().__init__(root, index, decoder)
        if not len(self):
            tfds_files.refuse(given, field)
            raise errors.UserError(
                f"no images below {field} = {given}{self._why()}; looked for "
                f"{' '.join(extensions.IMAGES)}{self._advice()}: {fix}"
            )

    def _why(self) -> str:
        """Return a reason why nothing was found, in brackets, or ""."""
        if self.unreadable_folders:
            return f" (could not list {self.unreadable_folders[0]})"
        skipped = self._index.header["skipped"]
        if skipped:
            name, reason = self.unusable_files()[0]
            return f" ({name!r}: {reason})"
        return ""

    def _advice(self) -> str:
        """Return advice about the files that were left out, or ""."""
        return "".join(f"; {line}" for line in self.warnings())

    def left_out(self) -> dict[str, int]:
        """Return how many files are not read by their extension."""
        return folder_index.left_out(self._index)

    @property
    def unreadable_folders(self) -> list[str]:
        """Paths of folders that could not be listed."""
        found = self._index.header["unreadable"]
        return [os.path.join(self.path, path) for path in found]

    def skipped(self) -> dict[str, int]:
        """Return how many files or folders were skipped, by reason."""
        header = self._index.header
        found = {"unreadable folder": len(header["unreadable"])}
        found |= header["reasons"]
        return {reason: count for reason, count in found.items() if count}

    def skipped_names(self) -> list[tuple[str, str]]:
        """Return (path below the folder, reason) of everything that was skipped."""
        found = self._index.header["unreadable"]
        return [(path, "unreadable folder") for path in found] + self.unusable_files()

    def unusable_files(self) -> list[tuple[str, str]]:
        """Return (path below the folder, reason) of broken links, pipes and such."""
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
      pattern: A path with the wildcards of `globbing`.
      decoder: Decoder of the files.
      field: The configuration field to name in messages.
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
                looked = f"; looked for {' '.join(extensions.IMAGES)}{self._advice()}"
            raise errors.UserError(
                f"no images match {field} = {pattern}{self._why()}{looked}: correct "
                "the pattern (** stands for any folders, * for part of a name) and "
                "quote it, so that the shell does not expand it"
            )
