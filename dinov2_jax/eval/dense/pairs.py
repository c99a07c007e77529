"""Images that have a target for every pixel: masks of classes, or depth maps."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TARGETS = (".png", ".npy", ".tif", ".tiff", ".bmp")
_SPLITS = ("train", "val", "test", "training", "validation", "testing")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A data set of images and their targets.

    Attributes:
      images: Paths of the images.
      targets: Paths of the targets.
      read_target: Function from the path of a target to an array [H, W].
      crop: Function that cuts both image and target, [H, W, ...]; None cuts nothing.
    """

    images: tuple[pathlib.Path, ...]
    targets: tuple[pathlib.Path, ...]
    read_target: Callable[[pathlib.Path], np.ndarray]
    crop: Callable[[np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an image and its target.

        Returns:
          uint8 [H, W, 3], and the target [H, W].

        Raises:
          UserError: A file cannot be read, or the sizes differ.
        """
        image = self.read_image(self.images[index])
        target = self.read_target(self.targets[index])
        if image.shape[:2] != target.shape:
            raise errors.UserError(
                f"{self.targets[index]} is {target.shape[0]}x{target.shape[1]} px and "
                f"its image {self.images[index]} {image.shape[0]}x{image.shape[1]}: "
                "recreate the target at the size of the image"
            )
        if self.crop is not None:
            return self.crop(image), self.crop(target)
        return image, target

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the files and with how targets are read.

        Of the files, their names, sizes and modification times count.
        """
        settings = getattr(self.read_target, "keywords", {})  # of functools.partial
        lines = [f"{name}={settings[name]!r}" for name in sorted(settings)]
        return hash_of_files((*self.images, *self.targets), *lines)

    def read_image(self, path: pathlib.Path) -> np.ndarray:
        """Read an image, uint8 [H, W, 3]."""
        return read_image(path)

    def part(self, chosen: slice) -> "Pairs":
        """Return only some of the pairs."""
        return dataclasses.replace(
            self, images=self.images[chosen], targets=self.targets[chosen]
        )

    def spaced(self, most: int | None) -> "Pairs":
        """Return at most so many of the pairs, evenly spaced; None for all."""
        if most is None or len(self) <= most:
            return self
        chosen = np.linspace(0, len(self) - 1, most).astype(int).tolist()
        return dataclasses.replace(
            self,
            images=tuple(self.images[i] for i in chosen),
            targets=tuple(self.targets[i] for i in chosen),
        )


def hash_of_files(paths: Iterable[pathlib.Path], *more: str) -> str:
    """Return a hash of files' names, sizes and modification times.

    Args:
      paths: Paths of the files.
      more: Other texts that the hash depends on.
    """
    found = hashlib.sha256()
    for path in paths:
        status = path.stat()
        line = f"{path.name} {status.st_size} {status.st_mtime_ns}\n"
        found.update(line.encode("utf-8", "surrogateescape"))
    found.update("\n".join(more).encode())
    return found.hexdigest()[:16]


def read_image(path: pathlib.Path) -> np.ndarray:
    """Read an image, uint8 [H, W, 3].

    Raises:
      UserError: The file is no readable image.
    """
    try:
        return image_decoder.Decoder().decode(path, name=str(path))
    except image_decoder.BadImage as error:
        raise errors.UserError(f"{error}: replace or remove it") from error


def read_values(path: pathlib.Path) -> np.ndarray:
    """Read a target's numbers as they are on disk: palette indices, grey values or npy.

    Args:
      path: A PNG, TIFF or BMP with one channel, or a `.npy` [H, W].

    Raises:
      UserError: The file is unreadable or has several channels.
    """
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.array(image)  # of a palette: the indices
    except (OSError, ValueError, SyntaxError) as error:
        raise errors.UserError(
            f"cannot read {path} ({error}): replace or remove it"
        ) from error
    if values.ndim != 2:
        raise errors.UserError(
            f"{path} is {list(values.shape)}: a target has one value for each pixel; "
            "save it with one channel or a palette, not as colours"
        )
    return values


def match_folders(
    images: pathlib.Path,
    targets: pathlib.Path,
    read_target: Callable[[pathlib.Path], np.ndarray],
    *,
    image_ending: str = "",
    target_ending: str = "",
    crop: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Pairs:
    """Pair the files of two folders that have the same path but for their endings.

    Args:
      images: Folder of images.
      targets: Folder of targets.
      read_target: Function that reads a target.
      image_ending: End of the images' names before the suffix, not in common.
      target_ending: End of the targets' names before the suffix, not in common.
      crop: Function that cuts both.

    Raises:
      UserError: A folder is missing or empty, a file has no partner, or two files have
        the same name but for their endings.
    """
    found = []
    for folder, endings, end in (
        (images, IMAGES, image_ending),
        (targets, TARGETS, target_ending),
    ):
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in endings
            and path.stem.endswith(end)
            and not path.name.startswith(".")
        )
        if not paths:
            raise errors.UserError(
                f"there is no file *{end}.png or similar in {folder}: check the "
                "folder, see docs/evaluation.md for its layout"
            )
        named: dict[str, pathlib.Path] = {}
        for path in paths:
            key = str(path.relative_to(folder).with_suffix("")).removesuffix(end)
            if key in named:
                raise errors.UserError(
                    f"{named[key]} and {path} have the same name but for their "
                    "endings: remove or rename one of them"
                )
            named[key] = path
        found.append(named)
    check_partners(found[0], found[1], images, targets)
    return Pairs(
        tuple(found[0].values()),
        tuple(found[1][key] for key in found[0]),
        read_target,
        crop,
    )


def check_partners(
    images: Iterable[str],
    targets: Iterable[str],
    images_folder: pathlib.Path,
    targets_folder: pathlib.Path,
) -> None:
    """Raise UserError if an image has no target; targets without images are ignored."""
    missing = sorted(set(images) - set(targets))
    if missing:
        raise errors.UserError(
            f"{len(missing)} images in {images_folder} have no file of their name in "
            f"{targets_folder}, the first is {missing[0]}: add or remove them"
        )


def from_list(
    lines: Sequence[tuple[pathlib.Path, pathlib.Path]],
    read_target: Callable[[pathlib.Path], np.ndarray],
    *,
    source: pathlib.Path,
    crop: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Pairs:
    """Make pairs of listed files.

    Args:
      lines: Paths of image and target.
      read_target: Function that reads a target.
      source: The list, named in errors.
      crop: Function that cuts both.

    Raises:
      UserError: The list is empty or a file is missing.
    """
    if not lines:
        raise errors.UserError(f"{source} lists no pairs of files: check it")
    missing = [path for line in lines for path in line if not path.is_file()]
    if missing:
        raise errors.UserError(
            f"{len(missing)} files listed in {source} do not exist, the first is "
            f"{missing[0]}: check the folder"
        )
    images, targets = zip(*lines)
    return Pairs(images, targets, read_target, crop)


def read_lines(path: pathlib.Path) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises:
      UserError: The file cannot be read.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.UserError(
            f"cannot read {path} ({reason}): pass the root folder of the data set"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def find_folders(
    root: pathlib.Path,
    split: str,
    image_names: tuple[str, ...],
    target_names: tuple[str, ...],
) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the folders of images and targets of a split.

    Args:
      root: Folder of the data set.
      split: Name of the split; `root/SPLIT/images`, `root/images/SPLIT` and, where no
        folder has the name of any usual split, `root/images` are looked for.
      image_names: Names that the folder of images may have.
      target_names: Names that the folder of targets may have.

    Raises:
      UserError: There is no such folder.
    """

    def find(names):
        for pattern in ("{split}/{name}", "{name}/{split}"):
            for name in names:
                folder = root / pattern.format(split=split, name=name)
                if folder.is_dir():
                    return folder
        whole = [root / name for name in names if (root / name).is_dir()]
        others = sorted(
            {s for s in _SPLITS for where in (root, *whole) if (where / s).is_dir()}
        )
        if whole and not others:
            return whole[0]
        if others:
            raise errors.UserError(
                f"there is neither {split}/{names[0]}/ nor {names[0]}/{split}/ in "
                f"{root}, which has {', '.join(others)}: put the files into "
                f"{root / split / names[0]}/ (also called: {', '.join(names[1:])}), or "
                "name a split that is there"
            )
        raise errors.UserError(
            f"there is neither {names[0]}/ nor {split}/{names[0]}/ in {root}: put the "
            f"files into {root / split / names[0]}/ (also called: "
            f"{', '.join(names[1:])})"
        )

    return find(image_names), find(target_names)
