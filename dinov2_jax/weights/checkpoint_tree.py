"""Backbone and heads in a training checkpoint, found by their prefixes.

The reference writes {"teacher": {"backbone.blocks.0.0...": ...}} for evaluation and
{"model": {"student.backbone...", "teacher.backbone...", ...}} to resume; DINO and
related code add `module.`. A hub file is the backbone alone.
"""

from collections.abc import Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, state_dict

SUBMODULES = ("backbone", "dino_head", "ibot_head")
WHICH = ("teacher", "student")
_CONTAINERS = ("model", "state_dict", "module")
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
_BUFFERS = ("dino_loss.", "ibot_patch_loss.")  # the centres
# torch's weight norm as a parametrization.
_PARAMETRIZED = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}

Submodules = dict[str, dict[str, lazy_tensor.LazyTensor]]


def submodules(
    tree: Any, which: str | None, source: str
) -> tuple[Submodules, str | None]:
    """Return a file's tensors by submodule, without prefixes and block chunks.

    Args:
      tree: Content of the file: nested dicts with `LazyTensor` leaves.
      which: "teacher" or "student"; None takes the teacher if the file holds both.
      source: Name of the file in errors.

    Returns:
      {"backbone": {name: tensor}, "dino_head": ..., ...}, only what is there, and
      "teacher", "student" or, if the file does not say, None. Unknown names are left in
      "backbone", where `architecture.check` reports them.

    Raises:
      UserError: There are no tensors, none of `which`, or one is there twice.
    """
    tensors, owner = _flat(tree, which, source)
    tensors = {_unwrapped(key): tensor for key, tensor in tensors.items()}
    owners = [w for w in WHICH if any(k.startswith(f"{w}.") for k in tensors)]
    if owners:
        owner = _choose(which, owners, source)
        tensors = {
            _unwrapped(key.removeprefix(f"{owner}.")): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{owner}.")
        }
    if which and owner is None:
        raise errors.UserError(
            f"{source} does not say whether its model is the teacher or the student: "
            f"leave out which={which!r}"
        )
    found: Submodules = {}
    for key, tensor in tensors.items():
        if key.startswith(_BUFFERS):
            continue
        name, _, rest = key.partition(".")
        if name not in SUBMODULES:
            name, rest = "backbone", key
        rest = state_dict.unchunked(_PARAMETRIZED.get(rest, rest))
        if rest in found.setdefault(name, {}):
            raise errors.UserError(
                f"{source} holds {name}.{rest} twice, with and without a prefix or a "
                "block chunk: save it again with only one of them"
            )
        found[name][rest] = tensor
    return found, owner


def _flat(tree, which, source) -> tuple[dict[str, lazy_tensor.LazyTensor], str | None]:
    """Return the flat dict of tensors inside nested dicts, and its owner if stated."""
    owner = None
    while isinstance(tree, Mapping):
        nested = [k for k, v in tree.items() if isinstance(v, Mapping) and v]
        owners = [w for w in WHICH if w in nested]
        if owners:
            owner = _choose(which, owners, source)
            tree = tree[owner]
            continue
        containers = [k for k in _CONTAINERS if k in nested]
        if containers:
            tree = tree[containers[0]]
            continue
        tensors = {
            key: value
            for key, value in tree.items()
            if isinstance(value, lazy_tensor.LazyTensor) and isinstance(key, str)
        }
        if not tensors:
            break
        return tensors, owner
    content = list(tree)[:5] if isinstance(tree, Mapping) else type(tree).__name__
    raise errors.UserError(
        f"{source} holds no weights that could be a DINOv2 backbone (found {content}): "
        'expected tensors by name, alone or under "teacher", "student" or "model"'
    )


def _choose(which: str | None, owners: list[str], source: str) -> str:
    if which is None:
        return owners[0]
    if which not in owners:
        raise _missing_owner(which, owners, source)
    return which


def _missing_owner(which: str, owners: list[str], source: str) -> errors.UserError:
    return errors.UserError(
        f"{source} has no {which}, only the {' and the '.join(owners)}: use "
        f"which={owners[0]!r}"
    )


def _unwrapped(key: str) -> str:
    """Remove from the key what wrappers such as DDP and FSDP add to it."""
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper)
        key = key.replace(f".{wrapper}", ".")
    return key
