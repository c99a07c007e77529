"""Where images come from: one small protocol, a folder and tensorflow-datasets.

Sources are cheap to pickle, because each loader worker gets a copy.
"""

import os
from typing import Protocol

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import images, photos

EXTENSIONS = (
    ".bmp .gif .jfif .jpe .jpeg .jpg .png .tif .tiff .webp"  # in any case
).split()
SET_DATA = (
    "set --config.data.path=/path/to/images, or --config.data.source=photos for the "
    "embedded photographs"
)


def _set_path(field: str) -> str:
    if field == "data.path":
        return SET_DATA
    return f"set --config.{field}=/path/to/images"


class Source(Protocol):
    """Images by index, the same at every call.

    Attributes:
      labels: int32 [length], or None where there are none.
      label_names: the names of the labels; empty where there are none.
    """

    labels: np.ndarray | None
    label_names: list[str]

    def __len__(self) -> int:
        """Returns the number of images."""

    def open(self, index: int) -> images.OpenedImage:
        """Reads an image's file and header; raises `BadImage`."""

    def name(self, index: int) -> str:
        """Returns what to call an image in messages."""


def make_source(config) -> Source:
    """Returns the source for pretraining that `config.data` names.

    Raises:
      UserError: nothing is set, or there is nothing where it points.
    """
    data, decoder = config.data, images.make_decoder(config)
    if data.source == "photos":
        return photos.PhotosSource("train")
    if data.source == "folder":
        if not data.path:
            raise errors.UserError(f"no training images are set: {SET_DATA}")
        return FolderSource(data.path, decoder)
    if data.source == "tfds":
        return TfdsSource(
            data.tfds_name, data.tfds_split, data_dir=data.path, decoder=decoder
        )
    raise errors.UserError(
        f"data.source = {data.source!r} is unknown: use folder, tfds or photos"
    )


class FolderSource:
    """All images below a folder, in the order of their paths.

    Sub-folders and links are followed; names that begin with a dot are passed over. If
    every image lies in a sub-folder, the names of the first level are the labels.

    Args:
      path: the folder.
      decoder: of the files.
      field: of the configuration, for messages.

    Attributes:
      path: the folder.
      labels: int32 [length], or None.
      label_names: names of the sub-folders that hold images, sorted.
      unreadable_folders: paths of folders that could not be listed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        decoder: images.Decoder,
        *,
        field: str = "data.path",
    ):
        self.path = os.path.expanduser(os.fspath(path))
        self._decoder = decoder
        self.unreadable_folders: list[str] = []
        if not os.path.isdir(self.path):
            what = "is not a folder" if os.path.exists(self.path) else "does not exist"
            raise errors.UserError(f"{field} = {self.path} {what}: {_set_path(field)}")
        found = sorted(self._walk())
        if not found:
            why = ""
            if self.unreadable_folders:
                why = f" (could not list {self.unreadable_folders[0]})"
            raise errors.UserError(
                f"no images below {field} = {self.path}{why}; looked for "
                f"{' '.join(EXTENSIONS)}: {_set_path(field)}"
            )
        # One block of bytes: a million paths as objects would be copied, slowly, to
        # every worker.
        self._paths = np.frombuffer(b"".join(found), np.uint8)
        self._ends = np.cumsum([len(path) for path in found])
        self.labels, self.label_names = _labels(found)

    def _walk(self) -> list[bytes]:
        """Returns the images' paths relative to the root, with / between names."""
        found = []
        seen = set()  # folders by identity, so that a link to a parent ends
        pending = [(self.path, b"")]
        while pending:
            folder, prefix = pending.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda e: e.name, reverse=True)
            except OSError:
                self.unreadable_folders.append(folder)
                continue
            for entry in entries:
                name = os.fsencode(entry.name)
                if name.startswith(b"."):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, prefix + name + b"/"))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    found.append(prefix + name)
        return found

    def _relative(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return self._paths[start : self._ends[index]].tobytes()

    def __len__(self) -> int:
        return len(self._ends)

    def open(self, index: int) -> images.OpenedImage:
        """Reads an image's file and header; raises `BadImage`."""
        path = os.path.join(os.fsencode(self.path), self._relative(index))
        return self._decoder.open(os.fsdecode(path), name=self.name(index))

    def name(self, index: int) -> str:
        """Returns the path relative to the folder."""
        return self._relative(index).decode("utf-8", "replace")


def _labels(paths: list[bytes]) -> tuple[np.ndarray | None, list[str]]:
    if not all(b"/" in path for path in paths):
        return None, []
    folders = [path.split(b"/", 1)[0] for path in paths]
    names = sorted(set(folders))
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[folder] for folder in folders], np.int32)
    return labels, [name.decode("utf-8", "replace") for name in names]


class TfdsSource:
    """A split of a prepared tensorflow-datasets data set in array_record files.

    Needs no TensorFlow: tfds reads the records, the images are decoded here.
    """

    def __init__(
        self, name: str, split: str, *, data_dir: str, decoder: images.Decoder
    ):
        self._args = (name, split, data_dir or None)
        self._decoder = decoder
        self._opened = None
        if not name:
            raise errors.UserError(
                "data.source=tfds needs a data set: set --config.data.tfds_name=NAME "
                "(for example imagenet2012:5.1.0)"
            )
        self._length = len(self._records())
        if self._length == 0:
            raise errors.UserError(f"split {split!r} of tfds data set {name} is empty")

    def __getstate__(self):
        return {**self.__dict__, "_opened": None}  # open files stay behind

    def _open(self):
        """Returns (records, features), opened once in each process."""
        if self._opened is None:
            name, split, data_dir = self._args
            try:
                import tensorflow_datasets as tfds
            except ImportError as error:
                raise errors.UserError(
                    "data.source=tfds needs: pip install tensorflow-datasets "
                    f"array_record importlib_resources ({error})"
                ) from error
            try:
                builder = tfds.builder(name, data_dir=data_dir)
                features = builder.info.features
                decoders = {}
                if "image" in (features or {}):
                    decoders["image"] = tfds.decode.SkipDecoding()
                records = builder.as_data_source(split=split, decoders=decoders)
            except Exception as error:  # of many kinds, by version of tfds
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                raise errors.UserError(
                    f"tfds data set {name!r}, split {split!r}, is not ready in "
                    f"{data_dir or 'the default data_dir'}: prepare it once with `tfds "
                    f"build {name.split(':')[0]} --file_format=array_record` and set "
                    f"--config.data.path=DATA_DIR ({type(error).__name__}: {reason})"
                ) from error
            if "image" not in features:
                raise errors.UserError(
                    f"tfds data set {name!r} has no feature called image, only "
                    f"{', '.join(features)}: choose an image data set"
                )
            self._opened = records, features
        return self._opened

    def _records(self):
        return self._open()[0]

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty where there are none."""
        label = dict(self._open()[1]).get("label")
        return list(getattr(label, "names", None) or [])

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None; reads the whole split."""
        if "label" not in self._open()[1]:
            return None
        records = self._records()
        return np.array([records[i]["label"] for i in range(len(self))], np.int32)

    def __len__(self) -> int:
        return self._length

    def open(self, index: int) -> images.OpenedImage:
        """Reads an image's record and header; raises `BadImage`."""
        content = self._records()[index]["image"]
        return self._decoder.open(bytes(content), name=self.name(index))

    def name(self, index: int) -> str:
        """Returns the data set, split and index."""
        name, split, _ = self._args
        return f"{name}/{split} record {index}"
