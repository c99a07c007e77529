"""Files of heads: released ones and own ones, read strictly and written alike.

A file of mmcv holds {"meta", "state_dict", "optimizer"}; only the state_dict is read,
and nothing in the file is executed. Own heads have their settings under `meta`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.eval.heads import head_names
from dinov2_jax.weights import lazy_tensor, official, tensor_file, torch_writer

_SETTINGS = "dinov2_jax"  # the key in `meta` of own heads
_HUB_RANGE = (1e-3, 80.0)  # of NYU's linear heads in the reference's hub, by mistake
_MAX_LISTED = 4


@dataclasses.dataclass(frozen=True)
class Head:
    """A head with its weights.

    Attributes:
      spec: What it is for.
      params: Parameters by name, in torch's layout.
      class_names: Names of its classes; empty if unknown.
      name: Name or path that it was read from.
    """

    spec: head_names.Spec
    params: dict[str, jax.Array]
    class_names: tuple[str, ...] = ()
    name: str = ""


def load_head(
    source: str | os.PathLike,
    *,
    width: int | None = None,
    depth_range: tuple[float, float] | None = None,
    unknown_range: tuple[float, float] = (1e-3, 10.0),
    hub_range: bool = False,
) -> Head:
    """Load a head, strictly: every tensor is used, and none is missing.

    Args:
      source: Name of a released head such as "dinov2_vits14_nyu_dpt", which is
        downloaded once, or the path of a file of one, or of one trained here.
      width: Width of the backbone, if it is not a released one.
      depth_range: Least and largest depth in metres; None takes what the name or the
        file says.
      unknown_range: The same where they say nothing.
      hub_range: Whether to take 0.001 to 80 m for linear NYUd heads, as the
        reference's hub does by mistake: everything is about eight times too deep.

    Raises:
      UserError: There is no such head, or the file is not exactly a head.
    """
    path = pathlib.Path(os.path.expanduser(source))
    wanted = None
    if path.name.removesuffix(".pth").removesuffix("_head") in head_names.names():
        wanted = head_names.spec(path.name)
    if not path.exists():
        wanted = head_names.spec(os.fspath(source))
        path = official.cached(head_names.url(os.fspath(source)))
    tree = tensor_file.read(path)
    tensors = _tensors(tree, path)
    settings = _own_settings(tree)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if settings:
        wanted = settings["spec"]
    elif wanted is None:
        wanted = head_names.guess(shapes, width)
    if wanted is None:
        raise errors.UserError(
            f"{path} does not match any head of a single width ({_listed(shapes)}): "
            "pass a classification, segmentation or depth head, and the width of "
            "its backbone" + (f", which is not {width}" if width else "")
        )
    _check_shapes(shapes, head_names.shapes(wanted), path)
    if wanted.kind in ("depth", "dpt"):
        known = depth_range or wanted.depth_range or unknown_range
        if hub_range and (wanted.kind, wanted.dataset) == ("depth", "nyu"):
            known = _HUB_RANGE
        wanted = dataclasses.replace(wanted, depth_range=known)
    params = {name: _read(tensor, name, path) for name, tensor in tensors.items()}
    return Head(wanted, params, settings.get("class_names", ()), os.fspath(source))


def save_head(path: str | os.PathLike, head: Head) -> None:
    """Write a head under the keys of the released files, for torch and `load_head`.

    Args:
      path: Path of the `.pth`.
      head: The head.

    Raises:
      UserError: The file cannot be written.
    """
    prefix = "" if head.spec.kind == "classification" else head_names.PREFIX
    tensors = {
        prefix + name: np.asarray(
            head.params[name],
            np.int64 if name.endswith("num_batches_tracked") else np.float32,
        )
        for name in head_names.shapes(head.spec)
    }
    if head.spec.kind == "classification" and not head.class_names:
        torch_writer.write(path, tensors)  # flat, as the released ones
        return
    settings = dataclasses.asdict(head.spec) | {"class_names": list(head.class_names)}
    torch_writer.write(path, {"meta": {_SETTINGS: settings}, "state_dict": tensors})


def check_backbone(head: Head, width: int, depth: int) -> None:
    """Raise UserError if a head does not fit a backbone.

    Args:
      head: The head.
      width: Width of the backbone.
      depth: Number of blocks of the backbone.
    """
    if head.spec.width != width:
        released = {w: arch for arch, w in head_names.WIDTHS.items()}
        names = [
            f" ({released[w]})" if w in released else ""
            for w in (head.spec.width, width)
        ]
        raise errors.UserError(
            f"the head {head.name} is for a backbone {head.spec.width} wide{names[0]} "
            f"and the model is {width} wide{names[1]}: take the head or the weights of "
            "the other"
        )
    if head.spec.layers > depth:
        raise errors.UserError(
            f"the head {head.name} takes {head.spec.layers} blocks and the model has "
            f"{depth}: use a head for one block"
        )


def class_names(head: Head, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of a head's classes; numbers if they have no names.

    Args:
      head: The head.
      names: Names that replace those of the head's file.

    Raises:
      UserError: There are more or fewer names than classes.
    """
    count = head.spec.num_classes
    if names and len(names) != count:
        raise errors.UserError(
            f"--class-names has {len(names)} lines and the head {head.name} {count} "
            "classes: write a name on each line, in the order of the labels"
        )
    return tuple(names) or head.class_names or tuple(map(str, range(count)))


def _tensors(tree: Any, path: pathlib.Path) -> dict[str, lazy_tensor.LazyTensor]:
    """Return the tensors of a head by name, without prefixes."""
    if isinstance(tree, Mapping) and isinstance(tree.get("state_dict"), Mapping):
        tree = tree["state_dict"]
    if not isinstance(tree, Mapping) or not tree:
        raise errors.UserError(f"{path} holds no tensors: pass a head file")
    wrong = [k for k, v in tree.items() if not isinstance(v, lazy_tensor.LazyTensor)]
    if wrong:
        raise errors.UserError(
            f"{path} holds {wrong[0]!r}, which is not a tensor: pass a head file"
        )
    prefix = head_names.PREFIX
    if any(name.startswith("backbone.") for name in tree):
        raise errors.UserError(
            f"{path} also contains a backbone: save only the tensors of {prefix}*"
        )
    if "blocks.0.norm1.weight" in tree or "cls_token" in tree:
        raise errors.UserError(
            f"{path} is a backbone, not a head: pass it as the model"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tree.items()}


def _own_settings(tree: Any) -> dict[str, Any]:
    """Return the settings that an own head has in its file, or {}."""
    meta = tree.get("meta") if isinstance(tree, Mapping) else None
    found = meta.get(_SETTINGS) if isinstance(meta, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    fields = dict(found)
    names = tuple(map(str, fields.pop("class_names", ())))
    if fields.get("depth_range"):
        low, high = fields["depth_range"]
        fields["depth_range"] = (float(low), float(high))
    return {"spec": head_names.Spec(**fields), "class_names": names}


def _check_shapes(
    found: Mapping[str, Sequence[int]],
    wanted: Mapping[str, Sequence[int]],
    path: pathlib.Path,
) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if problems:
        more = len(problems) - _MAX_LISTED
        tail = f" and {more} more" if more > 0 else ""
        raise errors.UserError(
            f"{path} is not the expected head: "
            f"{'; '.join(problems[:_MAX_LISTED])}{tail}: check the name of the file "
            "and the width of the backbone"
        )


def _listed(shapes: Mapping[str, Sequence[int]]) -> str:
    parts = [f"{name} {list(shape)}" for name, shape in shapes.items()]
    return ", ".join(parts[:_MAX_LISTED]) + (", ..." * (len(parts) > _MAX_LISTED))


def _read(tensor: lazy_tensor.LazyTensor, name: str, path: pathlib.Path) -> jax.Array:
    array = tensor.read()
    if name.endswith("num_batches_tracked"):
        return jnp.asarray(min(int(array), 2**31 - 1), jnp.int32)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise errors.UserError(
            f"{name} of {path} is not finite: download the file again, or retrain"
        )
    return jnp.asarray(array)
