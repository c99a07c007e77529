"""A backbone and the settings of its evaluation."""

import dataclasses
import os
import pathlib
from typing import Any

from dinov2_jax import errors, pretrained
from dinov2_jax.data import preprocessing
from dinov2_jax.embed import extraction


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A trained model and how its features are computed.

    Attributes:
      source: What the user named as the model.
      model: The loaded model.
      digest: SHA-256 of its parameters.
      dtype: Dtype of the matmuls.
      batch_size: Images at a time over all devices; None for a default.
      workers: Threads that decode.
      cache: Folder for features.
    """

    source: str
    model: pretrained.Model
    digest: str
    dtype: str
    batch_size: int | None
    workers: int
    cache: pathlib.Path

    @property
    def identity(self) -> dict[str, Any]:
        """What its features depend on besides the images; JSON values."""
        prepare = self.model.preprocessing
        return {
            "weights": f"sha256 {self.digest}",
            "model": self.model.module.config.to_dict(),
            "dtype": self.dtype,
            "mean": list(prepare.mean),
            "std": list(prepare.std),
        }

    def prepare(self, resize: int, size: int) -> preprocessing.Preprocessing:
        """Return the evaluation transform with these sizes.

        Args:
          resize: Short side before the crop, px.
          size: Side of the crop, px.

        Raises:
          UserError: The sizes do not fit the model or each other.
        """
        patch = self.model.module.config.patch_size
        if size % patch:
            nearest = max(round(size / patch), 1) * patch
            raise errors.UserError(
                f"--size={size} is not a multiple of the patch size {patch}: use "
                f"--size={nearest}"
            )
        if resize < size:
            raise errors.UserError(
                f"--resize={resize} is less than --size={size}: use --resize={size} or "
                "more"
            )
        return dataclasses.replace(
            self.model.preprocessing, resize_size=resize, crop_size=size
        )

    def extractor(
        self, kind: str, prepare: preprocessing.Preprocessing, most: int
    ) -> extraction.Extractor:
        """Compile the extraction of features.

        Args:
          kind: Kind of features, as in `feature_extractor.features`.
          prepare: Transform of the images.
          most: Number of all images.
        """
        return extraction.Extractor(
            self.model.module,
            self.model.params,
            kind=kind,
            prepare=prepare,
            dtype=self.dtype,
            out_dtype="float32",
            batch_size=self.batch_size,
            most=most,
        )


def load(
    source: str,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    prefix: str = "",
    key: str = "",
    dtype: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    cache: str | os.PathLike,
) -> Backbone:
    """Load a model for evaluations.

    Args:
      source: Whatever `dinov2_jax.load` takes.
      which: "teacher" or "student" of a training checkpoint, or "ema".
      num_heads: Number of attention heads, if the weights do not tell.
      prefix: Prefix of the backbone's tensor names in a file of another project.
      key: Entry of such a file that holds the weights.
      dtype: Dtype of the matmuls; None for one that suits the devices.
      batch_size: Images at a time over all devices; None for a default.
      workers: Threads that decode; None for one a core.
      cache: Folder for features.

    Raises:
      UserError: The weights cannot be read, or take other images than RGB.
    """
    model = pretrained.load(
        source, which=which, num_heads=num_heads, prefix=prefix, key=key
    )
    if model.module.config.in_chans != 3:
        raise errors.UserError(
            f"{source} takes images of {model.module.config.in_chans} channels: "
            "evaluations read RGB"
        )
    return Backbone(
        source=source,
        model=model,
        digest=extraction.digest(model.params),
        dtype=dtype or extraction.default_dtype(),
        batch_size=batch_size,
        workers=workers or os.cpu_count() or 1,
        cache=pathlib.Path(cache),
    )
