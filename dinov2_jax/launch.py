"""Copying of the launch scripts to a folder for editing: dinov2-jax launch [FOLDER]."""

import pathlib
import shutil

from dinov2_jax import cli, errors

_PACKAGE = pathlib.Path(__file__).parent


def main() -> int:
    """Copy the launch scripts to the given folder and return the exit code."""
    parser = cli.Parser(
        prog="dinov2-jax launch",
        description="Copies the scripts that start runs on several processes, SLURM, "
        "Cloud TPU and GKE.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=cli.path,
        default=pathlib.Path("launch"),
        help="a new one; default: ./launch",
    )
    folder = parser.parse_args().folder
    return cli.exit_code(lambda: _copy(folder))


def _copy(folder: pathlib.Path) -> None:
    # Inside the package when installed, beside it in a checkout.
    inside, beside = _PACKAGE / "launch", _PACKAGE.parent / "launch"
    try:
        shutil.copytree(inside if inside.is_dir() else beside, folder)
    except FileExistsError as error:
        raise errors.UserError(f"{folder} exists: name another folder") from error
    except OSError as error:
        raise errors.UserError(
            f"cannot write {folder} ({error.strerror or error}): name another folder"
        ) from error
    print(f"the launchers are in {folder}; each has --help and --dry-run")


if __name__ == "__main__":
    cli.start(main)
