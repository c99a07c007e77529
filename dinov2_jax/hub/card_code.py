"""The code of a model card: how its weights are loaded here and elsewhere."""

from typing import Any

from dinov2_jax.models import model_config
from dinov2_jax.weights import official

_HERE = """\
With dinov2_jax (`pip install 'dinov2-jax[hub]'`):

```python
import dinov2_jax

model = dinov2_jax.load("hf:{name}")
{arrays}features = model({images})
features.cls  # [B, {width}]
features.patches  # [B, h, w, {width}]
```
"""
_TRANSFORMERS = """\
With transformers:

```python
{imports}
model = transformers.AutoModel.from_pretrained("{name}")
{inputs}
tokens = model({argument}).last_hidden_state  # [B, {first} + h*w, {width}]
cls, patches = tokens[:, 0], tokens[:, {first}:]
```
"""
_TORCH_FILE = """\
With PyTorch alone, first write the tensors under the reference's names:

```sh
dinov2-jax convert hf:{name} backbone.pth --to torch-hub
```
"""
_TORCH_HUB = """\

```python
import torch

model = torch.hub.load("facebookresearch/dinov2", "{hub}", pretrained=False)
model.load_state_dict(torch.load("backbone.pth"))
```
"""


def usage(name: str, m: model_config.ModelConfig, report: dict[str, Any]) -> str:
    """Return how to load a repository with this project, transformers and PyTorch.

    Args:
      name: The repository, "ORG/NAME".
      m: The architecture.
      report: Report of the export, see `convert.export.export`.
    """
    first = 1 + m.num_register_tokens
    if m.in_chans == 3:
        fields = {
            "arrays": "",
            "images": 'model.preprocess(["cat.jpg"])',
            "imports": "import transformers\nfrom PIL import Image\n",
            "inputs": "prepare = transformers.AutoImageProcessor.from_pretrained("
            f'"{name}")\n'
            'inputs = prepare(images=Image.open("cat.jpg"), return_tensors="pt")',
            "argument": "**inputs",
        }
    else:
        fields = {
            "arrays": f"# images: float32 [B, H, W, {m.in_chans}], normalised\n",
            "images": "images",
            "imports": "import transformers\n",
            "inputs": f"# pixels: float32 [B, {m.in_chans}, H, W], normalised",
            "argument": "pixels",
        }
    text = _HERE + "\n" + _TRANSFORMERS
    text = text.format(name=name, width=m.embed_dim, first=first, **fields)
    if "warning" in report:
        text += (
            "\nTransformers interpolates position embeddings unlike this model: its "
            f"features are the same at {m.image_size} x {m.image_size} px, and differ "
            f"at other sizes{_difference(report)}. dinov2_jax reads the right way from "
            "`conversion.json`.\n"
        )
    text += "\n" + _TORCH_FILE.format(name=name)
    hub = _released(m)
    return (text + (_TORCH_HUB.format(hub=hub) if hub else "")).rstrip()


def _difference(report: dict[str, Any]) -> str:
    """Return how far features differ at the other size that was tried; "" if none."""
    tried = report["verified"].get("other_size")
    if not tried:
        return ""
    height, width = tried["images"][1:3]
    worst = max(tried["relative_error"].values())
    return f" (by {worst:.1e} at {height} x {width} px)"


def _released(m: model_config.ModelConfig) -> str:
    """Return the entry of the reference's hub with this architecture; "" if none."""
    for name in official.NAMES:
        if m == official.config(name).replace(layerscale=m.layerscale):
            return name
    return ""
