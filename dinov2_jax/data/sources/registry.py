"""The table of all kinds of sources, and the source that a path or a config names."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    array_record,
    base,
    extensions,
    folder,
    folder_lists,
    globbing,
    huggingface,
    manifest,
    messages,
    mixture,
    photos,
    shard_files,
    tfds,
    webdataset,
)


def _never(path: str) -> bool:
    del path
    return False


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of source, with the functions that open and recognise it.

    Attributes:
      open: Function (path, decoder, field=) -> source; None if a path is not enough.
      make: Function (config, decoder) -> source, where `open` is None.
      is_path: Whether a file, or a pattern of files, is read this way.
      is_folder: Whether a folder is read this way, whatever else is in it.
      is_member: Whether a folder with this file is read this way.
    """

    open: Callable[..., base.Source] | None = None
    make: Callable[[Any, image_decoder.Decoder], base.Source] | None = None
    is_path: Callable[[str], bool] = _never
    is_folder: Callable[[str], bool] = _never
    is_member: Callable[[str], bool] = _never


# The first kind whose `is_path` holds is taken.
KINDS = {
    "folder": Kind(folder.FolderSource, is_member=extensions.is_image),
    "array_record": Kind(
        array_record.ArrayRecordSource,
        is_path=shard_files.is_array_record,
        is_member=shard_files.is_array_record,
    ),
    "webdataset": Kind(
        webdataset.TarSource,
        is_path=lambda path: (
            shard_files.is_tar(path) or shard_files.is_compressed_tar(path)
        ),
        is_member=shard_files.is_tar,
    ),
    "huggingface": Kind(
        huggingface.HuggingFaceSource,
        is_path=huggingface.is_table,
        is_folder=huggingface.is_folder,
        is_member=huggingface.is_member,
    ),
    "glob": Kind(folder.GlobSource, is_path=lambda path: not os.path.exists(path)),
    "manifest": Kind(manifest.ManifestSource, is_path=manifest.is_manifest),
    "tfds": Kind(make=tfds.make_source),
    "photos": Kind(make=photos.make_source),
}
CHOICES = ("auto", *KINDS)  # of `data.source`
_WITH_PATH = [name for name, kind in KINDS.items() if kind.open]


def make_source(config: Any) -> base.Source:
    """Return the source for pretraining that `config.data` names.

    Raises:
      UserError: No images are set, or none are found there.
    """
    data, decoder = config.data, image_decoder.make_decoder(config)
    if data.source not in CHOICES:
        raise errors.UserError(
            f"data.source = {data.source!r} is unknown: use {', '.join(CHOICES)}"
        )
    if data.mixture:
        return _mixture(config, decoder)
    name = data.source
    if name == "auto" and data.tfds_name:
        name = "tfds"
    make = KINDS[name].make if name in KINDS else None
    if make:
        return make(config, decoder)
    if not data.path:
        raise errors.UserError(f"no training images are set: {messages.SET_DATA}")
    return open_path(data.path, decoder, kind=name)


def _mixture(config: Any, decoder: image_decoder.Decoder) -> base.Source:
    data = config.data
    if data.path or data.tfds_name or data.source != "auto":
        raise errors.UserError(
            f"data.mixture is set with data.path = {data.path!r}, data.tfds_name = "
            f"{data.tfds_name!r}, data.source = {data.source!r}: name all images in "
            "data.mixture and set the others to '', '' and auto"
        )
    sources, weights, names = open_entries(data.mixture, decoder)
    return mixture.MixtureSource(sources, weights, names)


def open_entries(
    entries: Sequence[Any], decoder: image_decoder.Decoder
) -> tuple[list[base.Source], list[float], list[str]]:
    """Open the entries of `config.data.mixture`.

    Args:
      entries: (path, weight) or (path, weight, kind) of each source.
      decoder: Decoder of the images.

    Returns:
      The sources, their weights and their paths.

    Raises:
      UserError: An entry is written in another way, or cannot be read.
    """
    parsed = [_mixture_entry(entry) for entry in entries]
    sources = [
        open_path(path, decoder, kind=kind, field="data.mixture")
        for path, _, kind in parsed
    ]
    return sources, [weight for _, weight, _ in parsed], [path for path, _, _ in parsed]


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
            "optionally a kind, such as (('/data/a', 3.0), ('/data/b', 1.0, 'folder'))"
        )
    path, weight = entry[:2]
    kind = entry[2] if len(entry) == 3 else "auto"
    if kind not in ("auto", *_WITH_PATH):
        raise errors.UserError(
            f"data.mixture has the kind {kind!r} of {path}: use "
            f"{', '.join(_WITH_PATH)}; pack a data set of tensorflow-datasets first "
            "(python -m dinov2_jax.data shard DATA_DIR DST --tfds-name=NAME) and name "
            "DST"
        )
    return path, weight, kind


def open_path(
    path: str,
    decoder: image_decoder.Decoder,
    *,
    kind: str = "auto",
    field: str = "data.path",
) -> base.Source:
    """Return the source at a path.

    Args:
      path: A file, a folder or a pattern; or several files or folders, separated by
        commas; or a text file that lists folders.
      decoder: Decoder of the images.
      kind: How to read it, one of `KINDS` with `open`; auto detects it.
      field: The configuration field to name in messages.

    Raises:
      UserError: There is nothing that can be read this way.
    """
    paths: list[str] = []
    if kind in ("auto", "manifest"):
        paths = folder_lists.separated(path) or folder_lists.listed(path)
    if paths:  # each image once a pass
        paths = folder_lists.without_repeats(paths, f"{field} = {path}")
        sources = [open_path(path, decoder, field=field) for path in paths]
        lengths = [source.pass_length for source in sources]
        return mixture.MixtureSource(sources, lengths, paths)
    if kind == "auto":
        kind = detect(path, field=field)
    open_kind = KINDS[kind].open
    if open_kind is None:
        raise ValueError(f"a source of kind {kind} cannot be opened by path")
    return open_kind(path, decoder, field=field)


def detect(path: str, *, field: str = "data.path") -> str:
    """Detect the type of a path: the name of a kind with `open`.

    Raises:
      UserError: The path does not exist, or its type is unknown or ambiguous.
    """
    given = os.path.expanduser(path)
    if os.path.isdir(given):
        return _detect_folder(given, field)
    exists = os.path.exists(given)
    if not exists and messages.is_url(given):
        raise errors.UserError(messages.url_problem(given, field))
    if not exists and not globbing.is_pattern(given):
        what = "is a broken link" if os.path.islink(given) else "does not exist"
        if "," in given and not messages.is_url(given):
            what += ", nor do all the paths between its commas"
        raise errors.UserError(f"{field} = {given} {what}: {messages.set_path(field)}")
    for name, kind in KINDS.items():
        if kind.is_path(given):
            return name
    if extensions.is_slide(given):
        raise errors.UserError(
            f"{field} = {given} is a whole slide: {extensions.TILE_SLIDES}"
        )
    if extensions.is_image(given):
        raise errors.UserError(
            f"{field} = {given} is one image: name its folder, a pattern, or a list "
            "of images (.txt)"
        )
    if ".tfrecord" in os.path.basename(given):
        raise errors.UserError(
            f"{field} = {given} is a TFRecord file, which has no random access: write "
            "ArrayRecord files instead (tfds build --file_format=array_record)"
        )
    raise errors.UserError(
        f"{field} = {given} is neither a folder nor a known type of file: name a "
        f"folder of images, a list ({' '.join(manifest.EXTENSIONS)}), a pattern, .tar, "
        f".array_record, .parquet or .arrow files{_advice(given)}"
    )


def _advice(path: str) -> str:
    fix = extensions.fix(extensions.of(os.fsencode(path)))
    return f"; {fix}" if fix else ""


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _detect_folder(given: str, field: str) -> str:
    """Detect the kind of a folder from the names in its first level."""
    for name, kind in KINDS.items():
        if kind.is_folder(given):
            return name
    found = set()
    try:
        with os.scandir(given) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    found.add("folder")
                    continue
                found.update(
                    name
                    for name, kind in KINDS.items()
                    if name not in found and kind.is_member(entry.path)
                )
    except OSError as error:
        raise errors.UserError(
            f"cannot list {field} = {given} ({error.strerror}): change its permissions "
            "or choose another folder"
        ) from error
    if len(found) > 1:
        kinds = " or ".join(sorted(found))
        raise errors.UserError(
            f"{field} = {given} holds both shards and images or folders: "
            + (
                f"choose which to read with --config.data.source={kinds}"
                if field == "data.path"
                else f"choose which to read, ({given!r}, WEIGHT, 'KIND') with {kinds}"
                if field == "data.mixture"
                else "name what to read by a pattern, such as "
                f"'{os.path.join(given, '**')}' for the images or x-{{00..99}}.tar"
            )
        )
    return found.pop() if found else "folder"
