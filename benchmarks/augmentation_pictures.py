"""A picture of every augmentation on host and device: docs/augmentations.png.

    python -m benchmarks.augmentation_pictures [OUT]

Both sides use the same draws; the third row of each photograph is ten times their
difference. The last columns are complete draws of the policy.
"""

import pathlib
import sys

import jax
import numpy as np
from PIL import Image, ImageDraw

from dinov2_jax.augment import on_device as on_device_lib
from dinov2_jax.augment import on_host as on_host_lib
from dinov2_jax.augment import policies, resize
from dinov2_jax.data.sources import photos

OUT = pathlib.Path(__file__).parents[1] / "docs" / "augmentations.png"
SIDE, MARGIN, HEAD, LEFT = 112, 4, 16, 64
BOXES = (("coffee", (60, 20, 440, 400)), ("chelsea", (80, 0, 380, 300)))
NOTHING = {
    "flip": False,
    "vertical_flip": False,
    "quarter_turn": False,
    "order": np.arange(4),
    "amounts": np.array([1.0, 1.0, 1.0, 0.0]),
    "gray": False,
    "sigma": 0.0,
    "solarize": False,
}


def amounts(kind: int, value: float) -> dict:
    """Return the draws for one of the four colour changes."""
    changed = NOTHING["amounts"].copy()
    changed[kind] = value
    return {"amounts": changed}


COLUMNS = {
    "crop": {},
    "flip": {"flip": True},
    "brightness 1.4": amounts(0, 1.4),
    "contrast 0.6": amounts(1, 0.6),
    "saturation 1.2": amounts(2, 1.2),
    "hue +0.1": amounts(3, 0.1),
    "gray": {"gray": True},
    "blur 2 px": {"sigma": 2.0},
    "solarize": {"solarize": True},
}


def on_host(crop: np.ndarray, draws: dict) -> np.ndarray:
    """Apply the host's functions with the given draws."""
    if draws["flip"]:
        crop = crop[:, ::-1]
    if not np.array_equal(draws["amounts"], NOTHING["amounts"]):
        changes = (
            on_host_lib.adjust_brightness,
            on_host_lib.adjust_contrast,
            on_host_lib.adjust_saturation,
            on_host_lib.adjust_hue,
        )
        for kind in draws["order"]:
            crop = changes[kind](crop, float(draws["amounts"][kind]))
    if draws["gray"]:
        gray = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).convert("L"))
        crop = np.repeat(gray[:, :, None], 3, axis=2)
    if draws["sigma"]:
        crop = on_host_lib.gaussian_blur(crop, float(draws["sigma"]))
    return on_host_lib.solarize(crop) if draws["solarize"] else crop


def on_device(crop: np.ndarray, draws: dict) -> np.ndarray:
    """Apply the device's function with the given draws."""
    arrays = {k: np.asarray(v)[..., None, None] for k, v in draws.items()}
    draws = on_device_lib.Draws(**arrays)
    out = on_device_lib.apply(
        jax.numpy.asarray(crop[None, None]), draws, policies.Policy()
    )
    return np.asarray(out)[0, 0]


def whole_draws() -> dict[str, dict]:
    """Return three draws of the reference's policy for its second global crop."""
    keys = np.random.default_rng(5).integers(0, 2**32, (1, 3, 2), np.uint32)
    drawn = vars(on_device_lib.draw(keys, policies.Policy(), num_local=0))
    return {
        f"draw {i + 1}": {k: np.asarray(v)[..., 0, 3 + i] for k, v in drawn.items()}
        for i in range(3)
    }


def main() -> None:
    """Write the picture."""
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    columns = {**COLUMNS, **whole_draws()}
    unseen = dict(zip(("chelsea", "coffee"), photos.load_unseen()))
    step = SIDE + MARGIN
    size = LEFT + len(columns) * step, HEAD + 3 * len(BOXES) * step
    sheet = Image.new("RGB", size, "white")
    write = ImageDraw.Draw(sheet).text
    for j, (name, changes) in enumerate(columns.items()):
        write((LEFT + j * step, 2), name, fill="black")
        for i, (photo, box) in enumerate(BOXES):
            crop = resize.crop_and_resize(unseen[photo], box, SIDE)
            host = on_host(crop, NOTHING | changes)
            device = on_device(crop, NOTHING | changes)
            difference = np.abs(host.astype(int) - device) * 10
            rows = (host, device, np.minimum(difference, 255).astype(np.uint8))
            for k, pixels in enumerate(rows):
                place = LEFT + j * step, HEAD + (3 * i + k) * step
                sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), place)
    for i in range(3 * len(BOXES)):
        label = ("host", "device", "|diff| x 10")[i % 3]
        write((0, HEAD + i * step + SIDE // 2), label, fill="black")
    sheet.save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
