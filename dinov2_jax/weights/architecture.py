"""Architecture of a backbone from its tensors, and strict checks against it.

Uses only the tensors' names (the reference's) and shapes.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.models import model_config

Shapes = Mapping[str, tuple[int, ...]]

# (width, depth) of the released models -> number of heads.
_RELEASED = {(w, d): heads for w, d, heads in model_config.ARCHS.values()}
_MAX_ROWS = 12  # in a table of mismatches


def infer_backbone(
    shapes: Shapes, source: str, settings: Mapping[str, Any]
) -> model_config.ModelConfig:
    """Infer the architecture from the shapes of its tensors.

    Args:
      shapes: Shape of every tensor, by the reference's names without prefix or chunks.
      source: Name of the file in errors.
      settings: Known values of `model_config.NOT_IN_TENSORS`. Without `num_heads` the
        size must be a released one, and LayerScale and all biases are assumed; for the
        others the default is `model_config.assumed_interpolation`.

    Raises:
      UserError: Not a DINOv2 backbone, or the number of heads is unknown.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    missing = [name for name in needed if name not in shapes]
    blocks = {m[1] for m in (re.match(r"blocks\.(\d+)\.", k) for k in shapes) if m}
    depth = len(blocks)
    if blocks != {str(i) for i in range(depth)}:
        absent = next(i for i in range(depth) if str(i) not in blocks)
        raise errors.UserError(
            f"{source} has no blocks.{absent} but has later blocks: the file is "
            "damaged or partial"
        )
    if missing or not blocks:
        raise errors.UserError(
            f"{source} is not a DINOv2 backbone: it has no "
            f"{', '.join(missing) or 'blocks.*'} among {len(shapes)} tensors such as "
            f"{', '.join(list(shapes)[:3])}"
        )
    patch_shape, pos_shape = shapes["patch_embed.proj.weight"], shapes["pos_embed"]
    if len(patch_shape) != 4 or len(pos_shape) != 3:
        raise errors.UserError(
            f"{source} is not a DINOv2 backbone: patch_embed.proj.weight is "
            f"{list(patch_shape)} and pos_embed {list(pos_shape)}; expected "
            "[D, C, p, p] and [1, 1 + patches, D]"
        )
    width, in_chans, patch_size, _ = patch_shape
    side = math.isqrt(max(pos_shape[1] - 1, 0))
    if side * side != pos_shape[1] - 1 or not side:
        raise errors.UserError(
            f"{source}: pos_embed {list(pos_shape)} is not 1 + a square grid of patches"
        )
    if not width * in_chans * patch_size or patch_shape[2] != patch_shape[3]:
        raise errors.UserError(
            f"{source} is not a DINOv2 backbone: patch_embed.proj.weight is "
            f"{list(patch_shape)}"
        )
    num_heads = settings.get("num_heads")
    released = not num_heads
    num_heads = num_heads or _num_heads(width, depth, source)
    if num_heads < 0 or width % num_heads:
        raise errors.UserError(
            f"{source} has width {width}, not a multiple of {num_heads} heads: pass "
            "another num_heads"
        )
    num_registers = shapes.get("register_tokens", (1, 0))[1]
    ffn_layer, ffn_ratio = _ffn(shapes, width)
    return model_config.ModelConfig(
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=side * patch_size,
        in_chans=in_chans,
        ffn_layer=ffn_layer,
        ffn_ratio=ffn_ratio,
        qkv_bias=released or "blocks.0.attn.qkv.bias" in shapes,
        proj_bias=released or "blocks.0.attn.proj.bias" in shapes,
        ffn_bias=released
        or any(f"blocks.0.mlp.{n}.bias" in shapes for n in ("fc1", "w12")),
        layerscale=1e-5 if released or "blocks.0.ls1.gamma" in shapes else 0.0,
        num_register_tokens=num_registers,
        **{
            name: settings.get(name, assumed)
            for name, assumed in model_config.assumed_interpolation(
                bool(num_registers)
            ).items()
        },
    )


def released_heads(m: model_config.ModelConfig) -> int | None:
    """Return the number of heads of the released model of this width and depth."""
    return _RELEASED.get((m.embed_dim, m.depth))


def _num_heads(width: int, depth: int, source: str) -> int:
    if (width, depth) not in _RELEASED:
        raise errors.UserError(
            f"{source} has width {width} and {depth} blocks, unlike any released "
            "model, and the number of heads cannot be inferred from tensors: pass "
            "num_heads (--num-heads)"
        )
    return _RELEASED[width, depth]


def _ffn(shapes: Shapes, width: int) -> tuple[str, float]:
    """Return the kind of FFN and the ratio that gives its hidden width."""
    packed = [v for k, v in shapes.items() if k.endswith(".mlp.w12.weight")]
    plain = [v for k, v in shapes.items() if k.endswith(".mlp.fc1.weight")]
    if packed:
        hidden = packed[0][0] // 2
        if model_config.gated_width(4 * width) == hidden:
            return "swiglufused", 4.0
        return "swiglufused", _ratio(-(-hidden * 3 // 2), width)
    return "mlp", _ratio(plain[0][0], width) if plain else 4.0


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio for which int(width * ratio) is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def backbone_shapes(m: model_config.ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a model's reference `state_dict`, in its order."""
    width = m.embed_dim
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + m.grid_size**2, width)}
    if m.num_register_tokens:
        shapes["register_tokens"] = (1, m.num_register_tokens, width)
    shapes["mask_token"] = (1, width)
    shapes["patch_embed.proj.weight"] = (width, m.in_chans, m.patch_size, m.patch_size)
    shapes["patch_embed.proj.bias"] = (width,)

    def linear(name, rows, columns, bias):
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for i in range(m.depth):
        block = f"blocks.{i}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * width, width, m.qkv_bias)
        linear(f"{block}.attn.proj", width, width, m.proj_bias)
        if m.layerscale:
            shapes[f"{block}.ls1.gamma"] = (width,)
        norm(f"{block}.norm2")
        if m.ffn_layer == "mlp":
            linear(f"{block}.mlp.fc1", m.hidden_dim, width, m.ffn_bias)
            linear(f"{block}.mlp.fc2", width, m.hidden_dim, m.ffn_bias)
        else:
            linear(f"{block}.mlp.w12", 2 * m.gated_dim, width, m.ffn_bias)
            linear(f"{block}.mlp.w3", width, m.gated_dim, m.ffn_bias)
        if m.layerscale:
            shapes[f"{block}.ls2.gamma"] = (width,)
    norm("norm")
    return shapes


def check_head(found: Shapes, source: str, head: str, width: int) -> None:
    """Check that tensors are exactly one projection head, with prototypes or without.

    Args:
      found: Names and shapes of the head's tensors, without its prefix.
      source: Name of the file in errors.
      head: Name of the head in errors.
      width: Width D of the backbone.

    Raises:
      UserError: They are not; the message has a table of the differences.
    """
    layers = [k for k in found if re.fullmatch(r"mlp\.(\d\d?\.)?weight", k)]
    names = [f"mlp.{2 * i}" for i in range(len(layers))]
    if layers == ["mlp.weight"]:
        names = ["mlp"]
    expected: dict[str, tuple[int, ...]] = {}
    columns = width
    for name in names:
        rows = found.get(f"{name}.weight", (0,))[0]
        expected |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        columns = rows
    if not names or any(name.startswith("last_layer.") for name in found):
        prototypes = found.get("last_layer.weight_v", (0,))[0]
        expected["last_layer.weight_g"] = (prototypes, 1)
        expected["last_layer.weight_v"] = (prototypes, columns)
    check(found, expected, f"{head} of {source}", "a projection head")


def check_backbone(
    found: Shapes, config: model_config.ModelConfig, source: str, model: str
) -> None:
    """Check that tensors are exactly those of an architecture; arguments as in `check`.

    Raises:
      UserError: They are not; the message has the number of blocks, or a table of the
        differences and their likely cause.
    """
    depth = _depth(found)
    if depth != config.depth:  # no table: a config may claim a million blocks
        raise errors.UserError(
            f"{source} does not match {model or 'a single architecture'}: it has "
            f"{depth} blocks, not {config.depth}"
        )
    check(found, backbone_shapes(config), source, model)


def _depth(shapes: Shapes) -> int:
    return len({k.split(".")[1] for k in shapes if k.startswith("blocks.")})


def check(found: Shapes, expected: Shapes, source: str, model: str = "") -> None:
    """Check that tensors are exactly the expected ones.

    Args:
      found: Names (the reference's) and shapes of the tensors in the file.
      expected: Expected names and shapes, for example from `backbone_shapes`.
      source: Name of the file in errors.
      model: Name of the model in errors; empty if it was inferred from the file
        itself.

    Raises:
      UserError: They are not; the message has a table of the differences and their
        likely cause.
    """
    names = [*expected, *(name for name in found if name not in expected)]
    rows = [
        (name, _shape(expected.get(name)), _shape(found.get(name)))
        for name in names
        if expected.get(name) != found.get(name)
    ]
    if not rows:
        return
    more = len(rows) - _MAX_ROWS
    rows = [("tensor", "expected", "found"), *rows[:_MAX_ROWS]]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    table = "\n".join(
        f"  {name:{widths[0]}}  {wanted:{widths[1]}}  {got}"
        for name, wanted, got in rows
    )
    if more > 0:
        table += f"\n  ... and {more} more"
    raise errors.UserError(
        f"{source} does not match {model or 'a single architecture'}: "
        f"{_cause(found, expected)}\n{table}"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _prefix_to_ignore(name: str, expected: Shapes) -> str:
    """Return the shortest prefix, of whole parts, of a name but of no expected one."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if not any(other.startswith(prefix) for other in expected):
            return prefix
    return name


def _cause(found: Shapes, expected: Shapes) -> str:
    """Return the likely cause of a mismatch, and what to do."""

    def differ(name):
        return name in found and name in expected and found[name] != expected[name]

    def registers(shapes):
        return shapes.get("register_tokens", (1, 0))[1]

    def gated(shapes):
        return any(".mlp.w12." in name for name in shapes)

    def scaled(shapes):
        return any(name.endswith(".gamma") for name in shapes)

    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if differ("cls_token"):
        return (
            f"its width is {found['cls_token'][-1]}, not {expected['cls_token'][-1]}: "
            "it is a different model size"
        )
    if _depth(found) != _depth(expected):
        return f"it has {_depth(found)} blocks, not {_depth(expected)}"
    if registers(found) != registers(expected):
        return (
            f"it has {registers(found)} register tokens, not {registers(expected)}: "
            f"set num_register_tokens={registers(found)} or use the other file"
        )
    if gated(found) != gated(expected):
        kinds = {True: "swiglufused", False: "mlp"}
        return (
            f"its FFN is {kinds[gated(found)]}, not {kinds[gated(expected)]}: set "
            f"ffn_layer={kinds[gated(found)]!r}"
        )
    if scaled(found) != scaled(expected):
        return f"it has {'a' if scaled(found) else 'no'} LayerScale"
    if differ("patch_embed.proj.weight"):
        chans, patch = found["patch_embed.proj.weight"][1:3]
        return f"it has patches of {patch} px and {chans} channels"
    if differ("pos_embed"):
        have, want = (math.isqrt(s["pos_embed"][1] - 1) for s in (found, expected))
        return (
            f"its position embeddings are a {have}x{have} grid, not {want}x{want}: it "
            "was made for a different image size"
        )
    if missing and not extra:
        return f"{len(missing)} tensors are missing: the file is damaged or partial"
    if extra and not missing:
        ignore = tuple(sorted({_prefix_to_ignore(name, expected) for name in extra}))
        return (
            f"{len(extra)} tensors are not part of a backbone; to skip them, pass "
            f"ignore={ignore!r}"
        )
    if not missing and not extra:
        return "some tensors have unexpected shapes: the file is damaged"
    return f"{len(missing)} tensors are missing, {len(extra)} unknown"
