"""The preset configs, as modules and by name: `from dinov2_jax.configs import vits`.

They are the files in the folder configs/, which is beside this package in a checkout
and inside it when installed. Other packages called `configs` are ignored.
"""

import pathlib

from dinov2_jax import errors

_PACKAGE = pathlib.Path(__file__).parent
FOLDER = next(
    folder
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    if (folder / "default.py").is_file()
)
__path__ = [str(FOLDER)]  # makes this module a package


def names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def find(text: str) -> pathlib.Path:
    """Return the file that a --config flag refers to.

    Args:
      text: The path of a file or, failing that, a preset such as vits, vits.py or
        configs/vits.py.

    Raises:
      UserError: There is no such file and no such preset.
    """
    path = pathlib.Path(text).expanduser()
    if path.is_file():
        return path
    in_folder = path.parent in (pathlib.Path(), pathlib.Path("configs"))
    if in_folder and path.suffix in ("", ".py") and path.stem in names():
        return FOLDER / f"{path.stem}.py"
    raise errors.UserError(
        f"there is no config {text}: use one of {', '.join(names())} or the path of a "
        "file"
    )
