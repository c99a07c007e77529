"""The labelled images of NYUd in one MATLAB file, `nyu_depth_v2_labeled.mat`.

It is an HDF5 file with `images` [1449, 3, 640, 480] and `depths` [1449, 640, 480], both
with the axes of MATLAB reversed. `splits.mat` says which images are for training.
"""

import dataclasses
import pathlib

import numpy as np
import scipy.io

from dinov2_jax import errors
from dinov2_jax.eval.dense import pairs

FILE = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
_INDICES = {"train": "trainNdxs", "test": "testNdxs"}  # counted from 1


@dataclasses.dataclass(frozen=True)
class LabeledImages(pairs.Pairs):
    """Images and depth maps inside the file; the name of a path is the image's number.

    Attributes:
      images: Path of the file, then the number of the image, counted from 1.
      targets: The same.
      read_target: Function from such a path to a depth map in metres.
    """

    def read_image(self, path: pathlib.Path) -> np.ndarray:
        """Read an image, uint8 [H, W, 3]."""
        return _read(path, "images")

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the file and the images that are chosen."""
        file = self.images[0].parent
        return pairs.hash_of_files([file], *(path.name for path in self.images))


def open_split(root: pathlib.Path, split: str) -> LabeledImages:
    """Open the images of a split.

    Args:
      root: Folder with both files.
      split: "train" or "test".

    Raises:
      UserError: A file is missing or damaged, or h5py is not installed.
    """
    module()
    path = root / SPLITS
    try:
        found = scipy.io.loadmat(path, variable_names=[_INDICES[split]])
        numbers = found[_INDICES[split]].ravel().tolist()
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise errors.UserError(
            f"cannot read which images are for {split} from {path} ({error}): put the "
            f"data set's splits.mat beside {FILE}"
        ) from error
    images = tuple(root / FILE / str(number) for number in numbers)
    return LabeledImages(images, images, read_depth)


def read_depth(path: pathlib.Path) -> np.ndarray:
    """Read a depth map in metres, float32 [H, W].

    Args:
      path: Path of the file, then the number of the image.
    """
    return _read(path, "depths")


def module():
    """Return h5py, which reads the file.

    Raises:
      UserError: It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise errors.UserError(
            f"{FILE} needs: pip install 'dinov2-jax[nyu]' ({error})"
        ) from error
    return h5py


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    try:
        with module().File(path.parent) as file:
            return np.ascontiguousarray(file[name][int(path.name) - 1].T)
    except (OSError, KeyError, ValueError) as error:
        raise errors.UserError(
            f"cannot read {name} of {path} ({error}): download {FILE} again"
        ) from error
