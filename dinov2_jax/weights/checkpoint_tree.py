"""Backbone and heads in a training checkpoint, found by their prefixes.

The reference writes {"teacher": {"backbone.blocks.0.0...": ...}} for evaluation and
{"model": {"student.backbone...", "teacher.backbone...", ...}} to resume; DINO and
related code add `module.`. A hub file is only the backbone. For files of other projects
the error says which prefix or key to strip.
"""

import logging
from collections.abc import Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, state_dict

SUBMODULES = ("backbone", "dino_head", "ibot_head")
WHICH = ("teacher", "student")
EMA = "ema"
_CONTAINERS = ("model", "state_dict", "module")
# timm saves the moving average next to the weights.
_AVERAGES = ("state_dict_ema", "model_ema")
# The class token, in each naming scheme that says which prefix a backbone has.
_FIRST = ("cls_token", "embeddings.cls_token")
_OWN_PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
_BUFFERS = ("dino_loss.", "ibot_patch_loss.")  # the centres
# torch's weight norm as a parametrization.
_PARAMETRIZED = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}

Submodules = dict[str, dict[str, lazy_tensor.LazyTensor]]


def submodules(
    tree: Any,
    which: str | None,
    source: str,
    *,
    prefix: str = "",
    key: str = "",
) -> tuple[Submodules, str | None]:
    """Return a file's tensors by submodule, without prefixes and block chunks.

    Args:
      tree: Content of the file: nested dicts with `LazyTensor` leaves.
      which: "teacher", "student" or "ema"; None takes the teacher if the file holds
        both, and the weights themselves if it holds their moving average too.
      source: Name of the file in errors.
      prefix: Beginning of the names to take, and to strip; empty takes all.
      key: Name of the file's entry that holds the weights; empty finds it.

    Returns:
      {"backbone": {name: tensor}, "dino_head": ..., ...}, as far as present, and
      "teacher", "student" or, if unknown, None. Unknown names are left in
      "backbone", where `architecture.check` reports them.

    Raises:
      UserError: There are no tensors, none of `which`, `prefix` or `key`, or one is
        there twice.
    """
    if key:
        tree = _entry(tree, key, source)
    tree, which = _averaged(tree, which, source)
    tensors, owner = _flat(tree, which, source)
    tensors = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    if prefix:
        tensors = _below(tensors, _unwrapped(prefix), source)
    named = list(tensors)
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
    backbone = found.get("backbone", {})
    if not any(p + f in backbone for p in _OWN_PREFIXES for f in _FIRST):
        _check_prefixes(named, source)
    return found, owner


def _entry(tree: Any, key: str, source: str) -> Any:
    """Return the entry of a file, by its name or by names joined by dots."""
    for name in [key] if isinstance(tree, Mapping) and key in tree else key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            raise errors.UserError(
                f"{source} has no entry {key!r}: {_held(tree)}, so pass another key"
            )
        tree = tree[name]
    return tree


def _averaged(tree: Any, which: str | None, source: str) -> tuple[Any, str | None]:
    """Choose between weights and their moving average; return the remaining `which`."""
    held = tree if isinstance(tree, Mapping) else {}
    found = [k for k in _AVERAGES if isinstance(held.get(k), Mapping)]
    raw = [k for k in _CONTAINERS if isinstance(held.get(k), Mapping)]
    if which == EMA:
        if not found:
            raise errors.UserError(
                f"{source} holds no moving average ({' or '.join(_AVERAGES)}): leave "
                f"out which={EMA!r}"
            )
        logging.info("%s: read %s", source, found[0])
        return held[found[0]], None
    if found and raw:
        logging.warning(
            "%s: read %s, not its moving average %s: pass which=%r to read that",
            *(source, raw[0], found[0], EMA),
        )
    return tree, which


def _below(tensors, prefix: str, source: str) -> dict[str, lazy_tensor.LazyTensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    if not found:
        raise errors.UserError(
            f"{source} has no tensor that begins with prefix={prefix!r}: it holds "
            f"{', '.join(list(tensors)[:3])}"
        )
    return found


def _prefixes(names) -> list[str]:
    """Return the prefix of each backbone among the names."""
    ends = sorted(_FIRST, key=len, reverse=True)
    found = {}
    for name in names:
        for end in ends:
            if name == end or name.endswith(f".{end}"):
                found[name.removesuffix(end)] = None
                break
    return list(found)


def _check_prefixes(names, source: str) -> None:
    """Raise an error with the prefix to strip, if that would reveal a backbone."""
    prefixes = _prefixes(names)
    if prefixes:
        ways = " or ".join(f"prefix={prefix!r}" for prefix in prefixes)
        raise errors.UserError(
            f"{source} has a backbone under different names: pass {ways}"
        )


def _keys(tree: Any, path: str = "") -> list[str]:
    """Return the keys of nested dicts that hold a backbone."""
    if not isinstance(tree, Mapping):
        return []
    names = [k for k, v in tree.items() if isinstance(v, lazy_tensor.LazyTensor)]
    if path and _prefixes([name for name in names if isinstance(name, str)]):
        return [path]
    return [
        found
        for name, value in tree.items()
        if isinstance(name, str)
        for found in _keys(value, f"{path}.{name}" if path else name)
    ]


def _held(tree: Any) -> str:
    """Describe the content of a tree."""
    if not isinstance(tree, Mapping):
        return f"found {type(tree).__name__}"
    return f"found {list(tree)[:5]}"


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
        if not tensors or (nested and not _prefixes(tensors)):
            break
        return tensors, owner
    keys = _keys(tree)
    if keys:
        ways = " or ".join(f"key={key!r}" for key in keys)
        raise errors.UserError(f"{source} has a backbone under a key: pass {ways}")
    raise errors.UserError(
        f"{source} holds no weights that could be a DINOv2 backbone ({_held(tree)}): "
        'expected tensors by name, at the top or under "teacher", "student" or "model"'
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
    """Remove from the key the prefixes added by wrappers such as DDP and FSDP."""
    before = None
    while key != before:  # a model may be wrapped twice
        before = key
        for wrapper in _WRAPPERS:
            key = key.removeprefix(wrapper)
            key = key.replace(f".{wrapper}", ".")
    return key
