"""The reference's augmentation, for comparison with ours.

The transforms of torchvision that the reference's `data/augmentations.py` composes, on
Pillow images, written from torchvision's documentation and run by torch, which is
needed only for this comparison. Random numbers are NumPy's, cheaper than torch's. It is
part of the package because `data bench` reports the speed relative to it.
"""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from dinov2_jax.augment import crop_boxes, policies


class ReferencePipeline:
    """Function from an image file's content to 2 + L normalised float tensors.

    Args:
      global_size: Side of a global crop, S, in pixels.
      local_size: Side of a local crop, s, in pixels.
      num_local: Number of local crops, L.

    Raises:
      ImportError: torch is not installed.
    """

    def __init__(self, *, global_size: int, local_size: int, num_local: int):
        import torch

        torch.set_num_threads(1)  # one process per core, as DataLoader workers
        self._torch = torch
        large, small = (global_size, (0.32, 1.0)), (local_size, (0.05, 0.32))
        self._views = [(0, *large), (1, *large)] + [(2, *small)] * num_local
        self._mean = torch.tensor(policies.IMAGENET_MEAN)[:, None, None]
        self._std = torch.tensor(policies.IMAGENET_STD)[:, None, None]

    def __call__(self, content: bytes, rng: np.random.Generator) -> list:
        """Draw all crops of an image file: float32 [3, S, S], then [3, s, s]."""
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return [self._view(image, rng, *view) for view in self._views]

    def _view(self, image, rng, view, size, scale):
        policy, torch = policies.POLICIES["rgb"], self._torch
        box = crop_boxes.random_crop_box(
            rng, width=image.width, height=image.height, scale=scale
        )
        image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
        if rng.random() < policy.flip_probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < policy.jitter_probability:
            image = _color_jitter(image, rng, policy)
        if rng.random() < policy.grayscale_probability:
            gray = np.asarray(image.convert("L"))
            image = Image.fromarray(np.dstack([gray, gray, gray]))
        if rng.random() < policy.blur_probabilities[view]:
            image = self._blur(image, rng.uniform(*policies.BLUR_SIGMA))
        if rng.random() < policy.solarize_probabilities[view]:
            image = ImageOps.solarize(image, policies.SOLARIZE_THRESHOLD)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(self._mean).div_(self._std)

    def _blur(self, image, sigma):
        torch, radius = self._torch, policies.BLUR_TAPS // 2
        x = torch.linspace(-radius, radius, policies.BLUR_TAPS)
        kernel = torch.exp(-0.5 * (x / sigma) ** 2)
        kernel = kernel / kernel.sum()
        kernel = torch.mm(kernel[:, None], kernel[None]).expand(3, 1, -1, -1)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        pixels = torch.nn.functional.pad(
            pixels.to(torch.float32), [radius] * 4, mode="reflect"
        )
        pixels = torch.nn.functional.conv2d(pixels, kernel, groups=3)
        pixels = pixels[0].round_().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.contiguous().numpy())


def _color_jitter(image, rng, policy):
    amounts = [
        rng.uniform(1 - strength, 1 + strength)
        for strength in (policy.brightness, policy.contrast, policy.saturation)
    ]
    shift = rng.uniform(-policy.hue, policy.hue)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in rng.permutation(4):
        if kind < 3:
            image = enhancers[kind](image).enhance(amounts[kind])
        else:
            hue, saturation, value = image.convert("HSV").split()
            turned = np.array(hue, np.uint8) + np.uint8(int(shift * 255) % 256)
            hue = Image.fromarray(turned)
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image
