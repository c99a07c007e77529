"""Sources of images: their protocol, and the source that a path or a config names.

Sources are cheap to pickle, because each loader worker gets a copy.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    array_record,
    folder,
    folder_walk,
    globbing,
    manifest,
    messages,
    mixture,
    photos,
    shard_files,
    tfds,
    webdataset,
)

EXTENSIONS = folder_walk.EXTENSIONS
FolderSource = folder.FolderSource
TfdsSource = tfds.TfdsSource


class Source(Protocol):
    """Images by index, the same at every call.

    A source may also have `pass_length` and `resolve`; see `places` and `at_place`.
    """

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None if there are none."""

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty if there are none."""

    @property
    def fingerprint(self) -> str:
        """Hex string that differs if the images differ."""

    def __len__(self) -> int:
        """Return the number of images."""

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""

    def describe(self) -> str:
        """Return one line: how many images, where, and what was skipped."""


def places(source: Any) -> int:
    """Return how many images a pass shows: by default, each image once."""
    return getattr(source, "pass_length", None) or len(source)


def at_place(source: Any, pass_number: int, place: int) -> int:
    """Return the image at a place in [0, `places`) of a pass."""
    resolve = getattr(source, "resolve", None)
    return resolve(pass_number, place) if resolve else place


_BY_PATH: dict[str, Callable[..., Source]] = {
    "folder": folder.FolderSource,
    "manifest": manifest.ManifestSource,
    "glob": folder.GlobSource,
    "array_record": array_record.ArrayRecordSource,
    "webdataset": webdataset.TarSource,
}
KINDS = ("auto", *_BY_PATH, "tfds", "photos")


def make_source(config: Any) -> Source:
    """Return the source for pretraining that `config.data` names.

    Raises:
      UserError: No images are set, or none are found there.
    """
    data, decoder = config.data, image_decoder.make_decoder(config)
    if data.source not in KINDS:
        raise errors.UserError(
            f"data.source = {data.source!r} is unknown: use {', '.join(KINDS)}"
        )
    if data.mixture:
        return _mixture(config, decoder)
    if data.source == "photos":
        return photos.PhotosSource("train", channels=config.model.in_chans)
    if data.source == "tfds" or (data.source == "auto" and data.tfds_name):
        return tfds.TfdsSource(
            data.tfds_name, data.tfds_split, data_dir=data.path, decoder=decoder
        )
    if not data.path:
        raise errors.UserError(f"no training images are set: {messages.SET_DATA}")
    return open_path(data.path, decoder, kind=data.source)


def _mixture(config: Any, decoder: image_decoder.Decoder) -> Source:
    data = config.data
    if data.path or data.tfds_name or data.source != "auto":
        raise errors.UserError(
            f"data.mixture is set beside data.path = {data.path!r}, data.tfds_name = "
            f"{data.tfds_name!r}, data.source = {data.source!r}: name all images in "
            "data.mixture and set the others to '', '' and auto"
        )
    entries = [_mixture_entry(entry) for entry in data.mixture]
    return mixture.MixtureSource(
        [
            open_path(path, decoder, kind=kind, field="data.mixture")
            for path, _, kind in entries
        ],
        [weight for _, weight, _ in entries],
        [path for path, _, _ in entries],
    )


def _mixture_entry(entry: Any) -> tuple[str, float, str]:
    """Return (path, weight, kind) of an entry of `config.data.mixture`."""
    if (
        not isinstance(entry, (tuple, list))
        or len(entry) not in (2, 3)
        or not all(isinstance(entry[i], str) for i in range(0, len(entry), 2))
        or isinstance(entry[1], bool)
        or not isinstance(entry[1], (int, float))
    ):
        raise errors.UserError(
            f"data.mixture has the entry {entry!r}: write a path and a weight, and "
            "perhaps a kind, such as (('/data/a', 3.0), ('/data/b', 1.0, 'folder'))"
        )
    path, weight = entry[:2]
    kind = entry[2] if len(entry) == 3 else "auto"
    if kind not in ("auto", *_BY_PATH):
        raise errors.UserError(
            f"data.mixture has the kind {kind!r} of {path}: use {', '.join(_BY_PATH)}; "
            "pack a data set of tensorflow-datasets first (python -m dinov2_jax.data "
            "shard DATA_DIR DST --tfds-name=NAME) and name DST"
        )
    return path, weight, kind


def open_path(
    path: str,
    decoder: image_decoder.Decoder,
    *,
    kind: str = "auto",
    field: str = "data.path",
) -> Source:
    """Return the source at a path.

    Args:
      path: A file, a folder or a pattern.
      decoder: Decoder of the images.
      kind: How to read it, one of `KINDS` that have a path; auto detects it.
      field: The configuration field to name in messages.

    Raises:
      UserError: There is nothing that can be read this way.
    """
    if kind == "auto":
        kind = sniff(path, field=field)
    return _BY_PATH[kind](path, decoder, field=field)


def sniff(path: str, *, field: str = "data.path") -> str:
    """Detect what is at a path: folder, manifest, glob, array_record or webdataset.

    Raises:
      UserError: There is nothing, or something unknown or ambiguous.
    """
    said = os.path.expanduser(path)
    if os.path.isdir(said):
        return _sniff_folder(said, field)
    exists = os.path.exists(said)
    if not exists and messages.is_url(said):
        raise errors.UserError(messages.url_problem(said, field))
    if not exists and not globbing.is_pattern(said):
        what = "is a broken link" if os.path.islink(said) else "does not exist"
        raise errors.UserError(f"{field} = {said} {what}: {messages.set_path(field)}")
    if shard_files.ARRAY_RECORD.search(said):
        return "array_record"
    if shard_files.TAR.search(said) or shard_files.COMPRESSED_TAR.search(said):
        return "webdataset"
    if not exists:
        return "glob"
    extension = os.path.splitext(said)[1].lower()
    if extension in manifest.EXTENSIONS:
        return "manifest"
    if extension in EXTENSIONS:
        raise errors.UserError(
            f"{field} = {said} is one image: name its folder, a pattern, or a list "
            "of images (.txt)"
        )
    if ".tfrecord" in os.path.basename(said):
        raise errors.UserError(
            f"{field} = {said} is a TFRecord file, which has no random access: write "
            "ArrayRecord files instead (tfds build --file_format=array_record)"
        )
    raise errors.UserError(
        f"{field} = {said} is not a folder and of no kind that is known: name a folder "
        f"of images, a list ({' '.join(manifest.EXTENSIONS)}), a pattern, .tar or "
        ".array_record files"
    )


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _sniff_folder(said: str, field: str) -> str:
    """Detect the kind of a folder from the names in its first level."""
    found = set()
    try:
        with os.scandir(said) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    found.add("folder")
                elif shard_files.ARRAY_RECORD.search(entry.name):
                    found.add("array_record")
                elif shard_files.TAR.search(entry.name):
                    found.add("webdataset")
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    found.add("folder")
    except OSError as error:
        raise errors.UserError(
            f"cannot list {field} = {said} ({error.strerror}): change its permissions "
            "or choose another folder"
        ) from error
    if len(found) > 1:
        kinds = " or ".join(sorted(found))
        raise errors.UserError(
            f"{field} = {said} holds images or folders beside shards: "
            + (
                f"say which to read with --config.data.source={kinds}"
                if field == "data.path"
                else f"say which to read, ({said!r}, WEIGHT, 'KIND') with {kinds}"
                if field == "data.mixture"
                else "name the shards by a pattern, such as x-{00..99}.tar"
            )
        )
    return found.pop() if found else "folder"
