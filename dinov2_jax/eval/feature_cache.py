"""Features of images, extracted once and kept on the disk.

A file's name is a digest of weights, preprocessing, dtype and images, so another task
on the same images finds it, and a change of any of them does not. A killed extraction
resumes where it was.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import numpy as np

from dinov2_jax import errors, feature_extractor, files
from dinov2_jax.data import preprocessing
from dinov2_jax.embed import extraction, left_out, output, resumable_output
from dinov2_jax.eval import features as features_lib


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a set of images.

    Attributes:
      rows: Features of the images that can be read, memory-mapped, [N, ...].
      indices: Index of each row's image in its source, int [N].
      labels: Label of each row, int [N]; None without labels.
      skipped: {index: reason} of the images that cannot be read.
    """

    rows: np.ndarray
    indices: np.ndarray
    labels: np.ndarray | None
    skipped: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)


def extract(
    backbone: features_lib.Backbone,
    source: Any,
    *,
    kind: str,
    prepare: preprocessing.Preprocessing,
) -> Features:
    """Return features of all images of a source, from the cache if they are there.

    Args:
      backbone: The model, and the folder of the cache.
      source: Images, a `base.Source`.
      kind: Kind of features, as in `feature_extractor.features`.
      prepare: Transform of the images.

    Raises:
      UserError: No image can be read, or the cache cannot be written.
    """
    settings = json.loads(
        json.dumps(
            {
                "images": f"{len(source)} images, fingerprint {source.fingerprint}",
                "weights": f"sha256 {backbone.digest}",
                "model": backbone.model.module.config.to_dict(),
                "features": kind,
                "preprocessing": dataclasses.asdict(prepare),
                "dtype": backbone.dtype,
            }
        )
    )
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    out = backbone.cache / f"{kind}-{digest[:24]}.npy"
    complete = output.is_complete(out, settings)
    if complete and left_out.readable(
        lambda index: source.open(index).pixels(), list(_skipped(out))
    ):
        logging.warning(
            "images of %s that could not be read before can be now: extracting their "
            "features again",
            source.describe(),
        )
        complete = False
    if not complete:
        _compute(backbone, source, kind, prepare, settings, out)
    skipped = _skipped(out)
    indices = np.setdiff1d(np.arange(len(source)), list(skipped))
    labels = None if source.labels is None else np.asarray(source.labels)[indices]
    return Features(np.load(out, mmap_mode="r"), indices, labels, skipped)


def _skipped(out: pathlib.Path) -> dict[int, str]:
    """Return {index: reason} of the images that a complete file lacks."""
    description = json.loads(output.description_of(out).read_bytes())
    return {int(i): reason for i, reason in description["skipped"].items()}


def _compute(backbone, source, kind, prepare, settings, out: pathlib.Path) -> None:
    """Extract features, or the rest of them, and give the file its name."""
    if not len(source):
        raise errors.UserError("there are no images: name a folder that has some")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"cannot make the folder of the cache {out.parent} ({error.strerror}): "
            "choose another --cache"
        ) from error
    with resumable_output.Unfinished(
        out,
        settings,
        row_shape=feature_extractor.features_shape(
            backbone.model.module, kind, prepare.crop_size
        ),
        dtype="float32",
        count=len(source),
        overwrite=True,  # the name is a digest of the settings
    ) as rows:
        extractor = backbone.extractor(kind, prepare, len(source))
        extraction.compute(rows, source, extractor, prepare, backbone.workers)
        if not rows.rows:
            index = min(rows.bad)
            raise errors.UserError(
                f"none of {len(source)} images could be read, such as "
                f"{source.name(index)!r} ({rows.bad[index]}): name other images"
            )
        complete = rows.finish_rows()
        out.unlink(missing_ok=True)  # never beside another's description
        with files.open_new(output.description_of(out)) as file:
            fields = {
                "settings": settings,
                "bytes": complete.stat().st_size,
                "rows": rows.rows,
                "skipped": rows.bad,
            }
            file.write(json.dumps(fields, indent=1).encode())
        os.replace(complete, out)
    resumable_output.remove(out)
