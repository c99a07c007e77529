"""A prepared data set of tensorflow-datasets as a source."""

import json
import os
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, index_cache, tfds_files


class TfdsSource(base.Source):
    """A split of a prepared tensorflow-datasets data set in array_record files.

    Needs no TensorFlow: tfds reads the records, the images are decoded here.
    """

    _shown_names = 0  # they are numbers

    def __init__(
        self, name: str, split: str, *, data_dir: str, decoder: image_decoder.Decoder
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
        state = json.dumps(tfds_files.state(self._opened[2]))
        self._fingerprint = index_cache.key(
            "tfds", name, split, str(self._length), state
        )

    def __getstate__(self):
        return {**self.__dict__, "_opened": None}  # open files are not pickled

    def _open(self):
        """Return (records, features, folder), opened once in each process."""
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
            except Exception as error:  # kinds vary with the version of tfds
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
            self._opened = records, features, os.fspath(builder.data_path)
        return self._opened

    def _records(self):
        return self._open()[0]

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty if there are none."""
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

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the split and its files' names, sizes and times."""
        return self._fingerprint

    def content(self, index: int) -> bytes:
        """Return the bytes of an image; raises `BadImage`."""
        records = self._records()
        try:
            return bytes(records[index]["image"])
        except Exception as error:  # kinds vary with the version of tfds
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise image_decoder.BadImage(
                self.name(index), f"its record cannot be read ({reason})"
            ) from error

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's record and header; raises `BadImage`."""
        return self._decoder.open(self.content(index), name=self.name(index))

    def name(self, index: int) -> str:
        """Return the data set, split and index."""
        name, split, _ = self._args
        return f"{name}/{split} record {index}"

    def _where(self) -> str:
        name, split, data_dir = self._args
        return f"in split {split} of {name}" + (f" in {data_dir}" if data_dir else "")


def make_source(config: Any, decoder: image_decoder.Decoder) -> TfdsSource:
    """Return the data set that `config.data` names."""
    data = config.data
    return TfdsSource(
        data.tfds_name, data.tfds_split, data_dir=data.path, decoder=decoder
    )
