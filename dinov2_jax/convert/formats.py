"""What each target of an export can hold, for the checks before jax is imported."""

import dataclasses
import pathlib

from dinov2_jax import errors


@dataclasses.dataclass(frozen=True)
class Format:
    """A format to export to; `targets.WRITERS` has its writer.

    Attributes:
      suffixes: Suffixes of the files it writes; empty for a folder.
      takes_heads: Whether it can hold projection heads.
      has_fixed_size: Whether an export is for one image size only.
    """

    suffixes: tuple[str, ...]
    takes_heads: bool = False
    has_fixed_size: bool = False


FORMATS = {
    "torch-hub": Format((".pth", ".pt"), takes_heads=True),
    "huggingface": Format(()),
    "timm": Format((".safetensors", ".pth", ".pt")),
    "safetensors": Format((".safetensors",), takes_heads=True),
    "onnx": Format((".onnx",), has_fixed_size=True),
    "stablehlo": Format((), has_fixed_size=True),
    "orbax": Format((), takes_heads=True),
}


def check(name: str, path: pathlib.Path, *, heads: bool, both: bool) -> Format:
    """Return the named format, if it can hold what is asked for at this path.

    Args:
      name: Name of the format, a key of `FORMATS`.
      path: Path of the export.
      heads: Whether projection heads are exported too.
      both: Whether teacher and student are exported together.

    Raises:
      UserError: The suffix is wrong, or the format cannot hold heads or both models.
    """
    if name not in FORMATS:
        raise errors.UserError(f"to={name!r}: use one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if chosen.suffixes and path.suffix not in chosen.suffixes:
        raise errors.UserError(
            f"{path} should end in {' or '.join(chosen.suffixes)} for --to {name}"
        )
    if not chosen.suffixes and path.suffix in (".pth", ".pt", ".safetensors", ".onnx"):
        raise errors.UserError(
            f"--to {name} writes a folder, but {path} looks like a file name: leave "
            f"out {path.suffix}"
        )
    if heads and not chosen.takes_heads:
        places = ", ".join(k for k, f in FORMATS.items() if f.takes_heads)
        raise errors.UserError(
            f"--to {name} cannot hold projection heads: leave out --heads "
            f"(heads=False) or use one of {places}"
        )
    if both and name == "orbax":
        raise errors.UserError(
            "--to orbax holds only one model: convert twice, or use torch-hub or "
            "safetensors for --which both"
        )
    return chosen
