"""The presets, as modules and by name: `from dinov2_jax.configs import vits`.

They are the files of the folder configs/, which a checkout has beside this package and
an installed package has inside it. No other package called `configs` is looked at.
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
    """Returns the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def find(text: str) -> pathlib.Path:
    """Returns the file that a --config flag means.

    Args:
      text: The path of a file, or else a preset: vits, vits.py or configs/vits.py.

    Raises:
      UserError: There is no such file and no such preset.
    """
    path = pathlib.Path(text)
    if path.is_file():
        return path
    in_folder = path.parent in (pathlib.Path(), pathlib.Path("configs"))
    if in_folder and path.suffix in ("", ".py") and path.stem in names():
        return FOLDER / f"{path.stem}.py"
    raise errors.UserError(
        f"there is no config {text}: use one of {', '.join(names())} or the path of a "
        "file"
    )
