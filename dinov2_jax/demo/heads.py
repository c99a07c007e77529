"""Heads of segmentation, depth and classification, as tabs of the page show them."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax import pretrained
from dinov2_jax.eval.dense import predictions
from dinov2_jax.eval.heads import head_files

_TITLES = {"depth": "Depth", "dpt": "Depth", "segmentation": "Segmentation"}
_SHORT = 512  # short side for segmentation, px, as of `evaluate predict`


@dataclasses.dataclass(frozen=True)
class Tab:
    """A head that is ready for use.

    Attributes:
      title: What it predicts, and its name.
      predict: Function from an image, uint8 [H, W, 3], to a picture and a text.
    """

    title: str
    predict: Any


def load(model: pretrained.Model, sources: list[str]) -> list[Tab]:
    """Load heads for a model.

    Args:
      model: The backbone.
      sources: Names of released heads or paths of head files.

    Raises:
      UserError: A head cannot be read, or is for another backbone.
    """
    config = model.config
    tabs = []
    for source in sources:
        head = head_files.load_head(source, width=config.embed_dim)
        head_files.check_backbone(head, config.embed_dim, config.depth)
        names = head_files.class_names(head)
        predictor = predictions.make_predictor(model, head, names, short=_SHORT)
        title = _TITLES.get(head.spec.kind, "Classes")
        name = source.rpartition("/")[2].removesuffix(".pth")
        tabs.append(Tab(f"{title}: {name}", _make_predict(predictor)))
    return tabs


def _make_predict(predictor: predictions.Predictor) -> Any:
    def predict(pixels: np.ndarray) -> tuple[Image.Image, str]:
        found = predictor(pixels)
        return Image.open(io.BytesIO(found.picture)), predictions.one_line(
            found.summary
        )

    return predict
