"""Pictures of attention maps and token norms over the patches of an image.

Shapes: A heads, R registers, h x w patches, T = 1 + R + h*w tokens.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinov2_jax.visualize import panels, views

_PANEL_SIZE = 256  # approximate longer side of a panel, px
_PERCENTILE = 98  # of a map, shown brightest: a few outliers would darken the rest
_PHOTOGRAPH_OPACITY = 0.35  # share of the grey photograph in a map's picture


def maps_over_patches(
    attention: np.ndarray, grid: tuple[int, int], num_registers: int
) -> np.ndarray:
    """Return the share of attention that goes to each patch, not renormalised.

    Args:
      attention: Attention [..., T], softmaxed over T.
      grid: Rows and columns of patches, (h, w).
      num_registers: Number R of registers, which lie between class token and patches.

    Returns:
      [..., h, w]; sums to 1 minus the share of the class token and the registers.

    Raises:
      ValueError: T is not 1 + R + h*w.
    """
    height, width = grid
    if attention.shape[-1] != 1 + num_registers + height * width:
        raise ValueError(
            f"attention to {attention.shape[-1]} tokens: expected 1 class token, "
            f"{num_registers} registers and {height}x{width} patches"
        )
    patches = attention[..., 1 + num_registers :]
    return patches.reshape(*attention.shape[:-1], height, width)


def attention_panels(view: views.View) -> list[panels.Panel]:
    """Return photograph, mean over heads, each head, then each register's mean.

    The percentages in the titles are the shares of attention that go to patches.
    """
    if view.attention is None:
        raise ValueError("the view has no attention")
    num_heads, queries, _ = view.attention.shape
    maps = maps_over_patches(view.attention, view.grid, queries - 1)  # [A, 1 + R, h, w]
    named = {"mean": maps[:, 0].mean(axis=0)}
    named |= {f"head {i}": maps[i, 0] for i in range(num_heads)}
    named |= {f"register {i}": maps[:, 1 + i].mean(axis=0) for i in range(queries - 1)}
    size = panels.shown_size(view.grid, _PANEL_SIZE)
    photograph = panels.photograph(view.pixels, size)
    shown = [panels.Panel(photograph, view.name)]
    for name, values in named.items():
        title = f"{name}, {values.sum():.0%}"
        shown.append(panels.Panel(_blend(photograph, values), title))
    return shown


def draw_attention(view: views.View, *, block: int) -> Image.Image:
    """Draw a sheet of one image's attention maps in a block.

    Args:
      view: View with attention.
      block: Number of the block, for the caption.
    """
    shown = attention_panels(view)
    rows = panels.wrapped(shown, panels.columns_for(len(shown)))
    text = (
        f"Block {block}: what the class token attends to, in the mean and by head, and "
        "the share that goes to patches. Each map has its own scale: "
    )
    if view.attention.shape[1] > 1:
        text = text.replace("class token", "class token (or a register)")
    bar = ("0", f"{_PERCENTILE}th percentile of its patches")
    return panels.sheet(rows, [panels.Note(text, bar)])


def draw_norms(seen: Sequence[views.View], *, block: int) -> Image.Image:
    """Draw a sheet of photographs, each beside the lengths of its patch tokens.

    Args:
      seen: Views of any shapes.
      block: Number of the block that gave the tokens, for the caption.
    """
    maps = [v.norms[len(v.norms) - v.grid[0] * v.grid[1] :] for v in seen]
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    entries = []
    for view, norms in zip(seen, maps):
        size = panels.shown_size(view.grid, _PANEL_SIZE)
        colors = panels.heat(norms.reshape(view.grid), low, high)
        title = f"median {np.median(norms):.3g}, largest {norms.max():.3g}"
        entries += [
            panels.Panel(panels.photograph(view.pixels, size), view.name),
            panels.Panel(panels.patches(colors, size), title),
        ]
    columns = 2 * max(1, panels.columns_for(len(entries)) // 2)
    text = f"Length of the patch tokens after block {block}, before the last LayerNorm:"
    bar = (f"{low:.3g}", f"{high:.3g}")
    return panels.sheet(panels.wrapped(entries, columns), [panels.Note(text, bar)])


def _blend(photograph: Image.Image, values: np.ndarray) -> Image.Image:
    """Blend a map [h, w] in colours with the photograph in grey."""
    colors = panels.heat(values, 0.0, float(np.percentile(values, _PERCENTILE)))
    shown = panels.patches(colors, photograph.size)
    return Image.blend(
        shown, photograph.convert("L").convert("RGB"), _PHOTOGRAPH_OPACITY
    )
