"""The DPT head for depth: features of four blocks, fused from coarse to fine.

Mirrors the reference's `eval/depth/models/decode_heads/dpt_head.py`. Parameters are a
flat dict under the names and in the layout of the released files, without the prefix
`decode_head.`: OIHW kernels, [in, out, kh, kw] of transposed convolutions.

Shapes: B images, h x w patches, D width, F channels of the fusion, P_i channels of
tap i.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval.dense import dense_resize

CHANNELS = 256  # F
_DIVISORS = (8, 4, 2, 1)  # P_i = D / divisor
_KERNELS = {0: 4, 1: 2}  # sides of the transposed convolutions by tap
_PRECISION = jax.lax.Precision.HIGHEST

Params = dict[str, jax.Array]


def shapes(width: int, channels: int = CHANNELS) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name.

    Args:
      width: Width D of the backbone.
      channels: Channels F of the fusion.
    """
    posts = [width // divisor for divisor in _DIVISORS]
    found: dict[str, tuple[int, ...]] = {}

    def add(name, weight, bias=None):
        found[f"{name}.weight"] = weight
        if bias is not None:
            found[f"{name}.bias"] = (bias,)

    square = (channels, channels, 3, 3)
    for i, post in enumerate(posts):
        add(f"reassemble_blocks.projects.{i}.conv", (post, width, 1, 1), post)
        add(f"reassemble_blocks.readout_projects.{i}.0", (width, 2 * width), width)
        add(f"convs.{i}.conv", (channels, post, 3, 3))
        add(f"fusion_blocks.{i}.project.conv", (channels, channels, 1, 1), channels)
        for unit in (1, 2) if i else (2,):
            for conv in (1, 2):
                add(f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv", square)
    for i, side in _KERNELS.items():
        shape = (posts[i], posts[i], side, side)
        add(f"reassemble_blocks.resize_layers.{i}", shape, posts[i])
    add("reassemble_blocks.resize_layers.3", (width, width, 3, 3), width)
    add("project.conv", square, channels)
    add("conv_depth.head.0", (channels // 2, channels, 3, 3), channels // 2)
    add("conv_depth.head.2", (32, channels // 2, 3, 3), 32)
    add("conv_depth.head.4", (1, 32, 1, 1), 1)
    return found


def init(seed: int, width: int, channels: int = CHANNELS) -> Params:
    """Return the parameters of a new head, initialised as the reference does.

    Args:
      seed: Seed of the weights.
      width: Width D of the backbone.
      channels: Channels F of the fusion.
    """
    rng = np.random.default_rng(seed)
    wanted = shapes(width, channels)
    params = {}
    for name, shape in wanted.items():
        kind = name.rpartition(".")[0]
        weight = wanted[f"{kind}.weight"]
        if kind.endswith(".conv"):  # He initialisation by the fan-out, zero bias
            deviation = (2.0 / (weight[0] * np.prod(weight[2:]))) ** 0.5
            value = rng.normal(0.0, deviation, shape)
            value = value if name.endswith("weight") else np.zeros(shape)
        else:  # torch's default; a transposed convolution's fan-in is its outputs'
            bound = np.prod(weight[1:]) ** -0.5
            value = rng.uniform(-bound, bound, shape)
        params[name] = jnp.asarray(value, jnp.float32)
    return params


def reassemble(
    params: Mapping[str, jax.Array], taps: Sequence[tuple[jax.Array, jax.Array]]
) -> list[jax.Array]:
    """Turn the features of four blocks into maps of four scales.

    Args:
      params: Parameters of the head.
      taps: Patch features [B, h, w, D] and class tokens [B, D] of each block.

    Returns:
      [B, 4h, 4w, P0], [B, 2h, 2w, P1], [B, h, w, P2] and [B, h/2, w/2, P3], the last
      rounded up.
    """
    maps = []
    for i, (patches, cls) in enumerate(taps):
        block = "reassemble_blocks."
        cls = jnp.broadcast_to(cls[:, None, None], patches.shape)
        x = jnp.concatenate([patches, cls], axis=-1)
        name = f"{block}readout_projects.{i}.0"
        x = jnp.matmul(x, params[f"{name}.weight"].T, precision=_PRECISION)
        x = jax.nn.gelu(x + params[f"{name}.bias"], approximate=False)
        x = _conv(params, f"{block}projects.{i}.conv", x)
        if i in _KERNELS:
            x = _conv_transpose(params, f"{block}resize_layers.{i}", x)
        elif i == 3:
            x = _conv(params, f"{block}resize_layers.3", x, stride=2)
        maps.append(x)
    return maps


def fuse(params: Mapping[str, jax.Array], maps: Sequence[jax.Array]) -> list[jax.Array]:
    """Fuse four maps, the coarsest first.

    Args:
      params: Parameters of the head.
      maps: Maps of `reassemble`.

    Returns:
      The fused map after each step, the coarsest first; each twice as large as before.
    """
    maps = [_conv(params, f"convs.{i}.conv", x) for i, x in enumerate(maps)]
    fused: list[jax.Array] = []
    for i, skip in enumerate(maps[::-1]):
        block = f"fusion_blocks.{i}."
        x = skip
        if fused:
            x = fused[-1]
            skip = dense_resize.bilinear(skip, x.shape[1:3])
            x = x + _residual(params, f"{block}res_conv_unit1", skip)
        x = _residual(params, f"{block}res_conv_unit2", x)
        fused.append(_conv(params, f"{block}project.conv", _doubled(x)))
    return fused


def raw_depth(params: Mapping[str, jax.Array], fused: jax.Array) -> jax.Array:
    """Turn the last fused map into depth before the last activation, [B, H, W, 1]."""
    x = project(params, fused)
    x = _doubled(_conv(params, "conv_depth.head.0", x))
    x = jax.nn.relu(_conv(params, "conv_depth.head.2", x))
    return _conv(params, "conv_depth.head.4", x)


def project(params: Mapping[str, jax.Array], fused: jax.Array) -> jax.Array:
    """Apply the convolution between fusion and head, [B, H, W, F]."""
    return jax.nn.relu(_conv(params, "project.conv", fused))


def depth(
    params: Mapping[str, jax.Array],
    taps: Sequence[tuple[jax.Array, jax.Array]],
    *,
    depth_range: tuple[float, float],
) -> jax.Array:
    """Predict depth from features without the last LayerNorm.

    Args:
      params: Parameters of the head.
      taps: Patch features [B, h, w, D] and class tokens [B, D] of four blocks.
      depth_range: Least and largest depth, metres; the largest bounds nothing here.

    Returns:
      Depth in metres, [B, 16h, 16w, 1]; a little larger if h or w is odd.
    """
    fused = fuse(params, reassemble(params, taps))
    return jax.nn.relu(raw_depth(params, fused[-1])) + depth_range[0]


def _conv(params, name, x, stride=1):
    kernel = params[f"{name}.weight"]
    padding = [(side // 2, side // 2) for side in kernel.shape[2:]]
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=_PRECISION,
    )
    bias = f"{name}.bias"
    return x + params[bias] if bias in params else x


def _conv_transpose(params, name, x):
    """Apply a transposed convolution whose stride is its side: no overlaps."""
    kernel = params[f"{name}.weight"]
    batch, height, width, _ = x.shape
    side = kernel.shape[-1]
    x = jnp.einsum("bhwi,iokl->bhkwlo", x, kernel, precision=_PRECISION)
    x = x.reshape(batch, height * side, width * side, -1)
    return x + params[f"{name}.bias"]


def _residual(params, name, x):
    y = _conv(params, f"{name}.conv1.conv", jax.nn.relu(x))
    return x + _conv(params, f"{name}.conv2.conv", jax.nn.relu(y))


def _doubled(x):
    height, width = x.shape[1:3]
    return dense_resize.bilinear(x, (2 * height, 2 * width), align_corners=True)
