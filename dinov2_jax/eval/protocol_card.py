"""What a number stands for: the protocol card that goes with every result."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

from dinov2_jax.data import preprocessing
from dinov2_jax.eval import features


@dataclasses.dataclass(frozen=True)
class Card:
    """The protocol of an evaluation.

    Attributes:
      task: Name of the task.
      protocol: "reference" if all settings are those of the reference's code, "paper"
        if those that the paper states instead, else "ours"; "none" if nothing is
        measured.
      changed: Settings that differ from the reference's, {name: value}.
      fields: Everything else, {name: value}, in the order to print.
    """

    task: str
    protocol: str
    changed: dict[str, Any]
    fields: dict[str, Any]

    def lines(self) -> list[str]:
        """Return the card as lines of a terminal."""
        rows = {"task": self.task, "protocol": self.protocol_line()} | self.fields
        width = max(map(len, rows))
        return [f"{name:{width}}  {value}" for name, value in rows.items()]

    def protocol_line(self) -> str:
        """Return the protocol, and what differs from the reference's."""
        if not self.changed:
            return self.protocol
        changed = ", ".join(f"{name} {value}" for name, value in self.changed.items())
        return f"{self.protocol} ({changed})"


def make_card(
    task: str,
    backbone: features.Backbone,
    settings: Mapping[str, Any],
    *,
    reference: Mapping[str, Any] | None,
    paper: Mapping[str, Any] | None = None,
    prepare: preprocessing.Preprocessing | None = None,
    fields: Mapping[str, Any],
) -> Card:
    """Return the card of an evaluation.

    Args:
      task: Name of the task.
      backbone: The model.
      settings: The settings that were used, {name: value}.
      reference: The reference's settings, for the same names; {} if it has no such
        task; None for a task that measures nothing.
      paper: The settings in which the paper differs from them.
      prepare: Transform of the images.
      fields: Further fields, such as the data and what was selected on what.
    """
    changed, protocol = {}, "none"
    if reference is not None:
        changed = {k: settings[k] for k, v in reference.items() if settings[k] != v}
        protocol = "ours" if changed or not reference else "reference"
    if changed and paper and changed == dict(paper):
        protocol = "paper"
    module = backbone.model.module
    about = {
        "weights": backbone.source,
        "digest": f"sha256 {backbone.digest[:16]}",
        "backbone": f"{module.config.embed_dim} wide, {module.config.depth} blocks, "
        f"{module.config.num_heads} heads, patch {module.config.patch_size}, "
        f"{module.config.num_register_tokens} registers, matmuls in {backbone.dtype}",
    }
    if prepare:
        about["transform"] = (
            f"short side to {prepare.resize_size} px (bicubic, antialiased), central "
            f"crop of {prepare.crop_size} px, mean {_numbers(prepare.mean)}, deviation "
            f"{_numbers(prepare.std)}"
        )
    about |= settings | dict(fields)
    about["versions"] = versions()
    about["devices"] = f"{len(jax.devices())} {jax.devices()[0].device_kind}"
    return Card(task, protocol, changed, about)


def versions() -> str:
    """Return the versions of what computes the numbers."""
    names = ("dinov2-jax", "jax", "numpy", "scipy", "pillow")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed, but run from its folder
    return ", ".join([f"Python {platform.python_version()}", *found])


def _numbers(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)
