"""Export of weights: written, verified with the target's packages, then kept."""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors
from dinov2_jax import files as files_lib
from dinov2_jax.convert import destination as destination_lib
from dinov2_jax.convert import targets, verify
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import report as report_lib

_LOSSLESS = ("torch-hub", "safetensors", "huggingface", "orbax")


def export(
    owners: targets.Owners,
    destination: destination_lib.Destination,
    *,
    source: str,
    size: tuple[int, int] | None = None,
    heads: bool = False,
    skip: str = "",
) -> dict[str, Any]:
    """Write weights, check what was written, and keep it with a report if it is good.

    Args:
      owners: Weights by owner, "teacher", "student" or None.
      destination: Where to write, checked; its target is the format.
      source: Source of the weights, for the report.
      size: (height, width) px of the images that the export is made for and checked
        with; None is the model's own.
      heads: Whether to write the projection heads too.
      skip: Reason not to verify the export; empty verifies it.

    Returns:
      The report, as it is written beside the export.

    Raises:
      UserError: The target cannot hold such a model, or computes other features.
    """
    name, path = destination.target, destination.path
    weights = owners.get("teacher") or next(iter(owners.values()))
    size = size or (weights.module.config.image_size,) * 2
    # Write and verify in a temporary folder, and move the result only if it is good.
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as folder:
        written = pathlib.Path(folder) / path.name
        targets.WRITERS[name](written, owners, size, heads)
        checked: dict[str, Any] = {"skipped": skip}
        lost = targets.lost_interpolation(name, weights.module)
        if not skip:
            checked = _verify(name, written, owners, size, heads, lost)
        report = _report(name, written, owners, weights, source, checked)
        if lost:
            report["warning"] = _warning(lost, weights.module, checked)
        report_lib.path_of(written).write_text(json.dumps(report, indent=2) + "\n")
        destination.replace_from(pathlib.Path(folder))
    return report


def checked_params(
    params: dict[str, Any], module: vision_transformer.VisionTransformer
) -> dict[str, Any]:
    """Return parameters as float32 of NumPy, checked to be the module's and finite."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    m = module.config
    size = jax.ShapeDtypeStruct((1, m.image_size, m.image_size, m.in_chans), "float32")
    expected = jax.eval_shape(module.init, jax.random.key(0), size)["params"]
    wrong = _differences(params["backbone"], expected)
    if wrong:
        raise errors.UserError(
            f"the parameters are not those of the module: {wrong[0]} is missing, "
            "unknown or of another shape; save a model whose params have the structure "
            "of those that were loaded"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.sum(leaf, dtype=np.float64)):
            raise errors.UserError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')} has values "
                "that are not finite: save an earlier state"
            )
    return params


def _differences(found: Any, expected: Any) -> list[str]:
    """Return the paths of leaves that are in only one tree or differ in shape."""
    shapes = [
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (found, expected)
    ]
    names = dict.fromkeys([*shapes[0], *shapes[1]])
    return [name for name in names if shapes[0].get(name) != shapes[1].get(name)]


def _warning(
    lost: str, module: vision_transformer.VisionTransformer, checked: dict[str, Any]
) -> str:
    """Return one line: what is lost, how much that is, and what to do."""
    side, difference = module.config.image_size, ""
    if "other_size" in checked:
        height, width = checked["other_size"]["images"][1:3]
        worst = max(checked["other_size"]["relative_error"].values())
        difference = f" (by {worst:.1e} at {height}x{width})"
    return (
        f"{lost}: features agree at {side}x{side} px and differ at other "
        f"sizes{difference}; keep the report, which dinov2_jax.load reads; for other "
        "readers, convert with --size (load with image_size=) set to the size that you "
        "will use"
    )


def _verify(name, written, owners, size, heads, lost) -> dict[str, Any]:
    """Check every owner's features with the target's packages, and all tensors' bits.

    Features at another size than the model's own may differ if `lost` says so.
    """
    for which, weights in owners.items():
        checked = verify.run(
            name, written, weights, size=size, which=which, heads=heads
        )
        found = dict(checked.get("relative_error", {}))
        if "other_size" in checked and not lost:
            height, width = checked["other_size"]["images"][1:3]
            for feature, error in checked["other_size"]["relative_error"].items():
                found[f"{feature} at {height}x{width}"] = error
        bad = {k: v for k, v in found.items() if not v <= verify.TOLERANCE}
        if bad:
            worst = ", ".join(
                f"{feature} {error:.1e}" for feature, error in bad.items()
            )
            raise errors.UserError(
                f"the {name} export gives different features: relative error {worst}, "
                f"above {verify.TOLERANCE:.0e}; nothing was kept. Please report this "
                "with the source of the weights"
            )
        if name in _LOSSLESS:
            if not verify.same_tensors(written, weights, heads):
                raise errors.UserError(
                    f"the {name} export holds different values; nothing was kept. "
                    "Please report this with the source of the weights"
                )
            checked["tensors"] = "bit-identical"
    return checked


def _report(name, written, owners, weights, source, checked) -> dict[str, Any]:
    files = sorted(p for p in written.parent.rglob("*") if p.is_file())
    return {
        "source": source,
        "target": name,
        "which": "both" if len(owners) > 1 else weights.which,
        "model": weights.module.config.to_dict(),
        "preprocessing": dataclasses.asdict(weights.preprocessing),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {
            str(path.relative_to(written.parent)): files_lib.sha256(path)
            for path in files
        },
        "verified": checked,
    }
