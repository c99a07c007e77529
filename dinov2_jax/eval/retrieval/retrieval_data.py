"""Images and ground truth of the retrieval benchmarks, in the layouts they come in."""

import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder

Box = tuple[float, float, float, float]  # left, top, right, bottom, px


class ListedImages:
    """Image files in a given order, some of them cropped, as a source.

    Args:
      paths: The files.
      boxes: Box to cut out of each image; None for whole images.
      labels: Label of each image, int [N]; None if there are none.
      flag: The flag that named them, for messages.

    Raises:
      UserError: There are none, or a file is missing.
    """

    label_names: tuple[str, ...] = ()

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        *,
        boxes: Sequence[Box] | None = None,
        labels: np.ndarray | None = None,
        flag: str,
    ):
        if not paths:
            raise errors.UserError(f"{flag} names no images: choose another folder")
        self._paths, self._boxes, self.labels = list(paths), boxes, labels
        digest = hashlib.sha256(repr(boxes).encode())
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError as error:
                raise errors.UserError(
                    f"{flag}: cannot read {path} ({error.strerror}): unpack the images "
                    "of the benchmark there"
                ) from error
            text = f"\0{status.st_size} {status.st_mtime_ns}\0"
            digest.update(os.fsencode(path) + text.encode())
        self.fingerprint = digest.hexdigest()
        self._decoder = image_decoder.Decoder()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self._paths[index])

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""
        image = self._decoder.open(self._paths[index], name=self.name(index))
        if self._boxes is None:
            return image
        left, top, right, bottom = (round(x) for x in self._boxes[index])
        pixels = image.pixels()[max(top, 0) : bottom, max(left, 0) : right]
        if not pixels.size:
            raise image_decoder.BadImage(self.name(index), "the query's box is empty")
        return image_decoder.from_array(pixels)


@dataclasses.dataclass(frozen=True)
class Revisited:
    """Revisited Oxford or Paris.

    Attributes:
      database: Images to rank.
      queries: Query images.
      truth: For each query its "easy", "hard" and "junk" images.
    """

    database: ListedImages
    queries: ListedImages
    truth: list[dict[str, np.ndarray]]


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of lists, dicts, numbers, texts and NumPy arrays, of nothing else."""

    _ALLOWED = {
        ("_reconstruct", "numpy.core.multiarray"),
        ("_reconstruct", "numpy._core.multiarray"),
        ("_frombuffer", "numpy.core.numeric"),
        ("_frombuffer", "numpy._core.numeric"),
        ("scalar", "numpy.core.multiarray"),
        ("scalar", "numpy._core.multiarray"),
        ("encode", "_codecs"),  # how some versions write an array's bytes
        ("ndarray", "numpy"),
        ("dtype", "numpy"),
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what a pickle names, if it is NumPy's."""
        if (global_name, module_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return super().find_class(
            module_name.replace("numpy.core", "numpy._core"), global_name
        )


def read_revisited(folder: str, *, query_crop: bool) -> Revisited:
    """Read `gnd_*.pkl` and `jpg/` of Revisited Oxford or Paris.

    Args:
      folder: The folder that holds both.
      query_crop: Whether queries are cropped to their boxes, as the benchmark says.

    Raises:
      UserError: A file is missing or not what it should be.
    """
    root = pathlib.Path(folder)
    found = sorted(root.glob("gnd_*.pkl"))
    if len(found) != 1:
        raise errors.UserError(
            f"--data={folder} has {len(found)} files gnd_*.pkl: name the folder of "
            "roxford5k or rparis6k, which has one, and jpg/ beside it"
        )
    try:
        with open(found[0], "rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
        names = [list(map(str, content[key])) for key in ("imlist", "qimlist")]
        truth = [
            {kind: np.asarray(query[kind], int) for kind in ("easy", "hard", "junk")}
            for query in content["gnd"]
        ]
        boxes = [tuple(map(float, query["bbx"])) for query in content["gnd"]]
    except (OSError, pickle.UnpicklingError, EOFError) as error:
        raise errors.UserError(f"{found[0]} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{found[0]} is not the ground truth of a revisited benchmark: it needs "
            "imlist, qimlist and gnd with bbx, easy, hard and junk"
        ) from error
    database, queries = (
        [root / "jpg" / f"{name}.jpg" for name in some] for some in names
    )
    return Revisited(
        ListedImages(database, flag="--data"),
        ListedImages(queries, boxes=boxes if query_crop else None, flag="--data"),
        truth,
    )


def read_amstertime(folder: str) -> tuple[ListedImages, ListedImages]:
    """Read the pairs of AmsterTime, `old/` and `new/`, in the same order.

    Args:
      folder: The folder that holds both.

    Raises:
      UserError: A folder is missing, or an image has no partner.
    """
    by_name = {}
    for part in ("old", "new"):
        root = pathlib.Path(folder) / part
        if not root.is_dir():
            raise errors.UserError(
                f"--data={folder} has no folder {part}: name the one with old and new"
            )
        by_name[part] = {
            p.stem: p
            for p in sorted(root.iterdir())
            if p.is_file() and not p.name.startswith(".")
        }
    unpaired = sorted(set(by_name["old"]) ^ set(by_name["new"]))
    if unpaired:
        raise errors.UserError(
            f"{len(unpaired)} images of {folder} are only in old or only in new, such "
            f"as {unpaired[0]}: each needs a partner with the same name"
        )
    old, new = (
        ListedImages([by_name[part][n] for n in by_name["old"]], flag="--data")
        for part in ("old", "new")
    )
    return old, new


@dataclasses.dataclass(frozen=True)
class Met:
    """The Met data set.

    Attributes:
      train: Images of the exhibits, with the number of their class as labels.
      val: Queries to tune on, labelled likewise; -1 for distractors.
      test: Queries, labelled likewise.
      num_classes: Number of exhibits.
    """

    train: ListedImages
    val: ListedImages
    test: ListedImages
    num_classes: int


def read_met(folder: str, *, mini: bool = False) -> Met:
    """Read `ground_truth/*.json` of the Met and the images that they name.

    Args:
      folder: The folder that holds ground_truth/ and the images.
      mini: Whether to take the small training set.

    Raises:
      UserError: A file is missing or not what it should be.
    """
    root = pathlib.Path(folder)
    database = "mini_MET_database.json" if mini else "MET_database.json"
    lists = []
    for name in (database, "valset.json", "testset.json"):
        path = root / "ground_truth" / name
        try:
            lists.append(json.loads(path.read_bytes()))
        except OSError as error:
            raise errors.UserError(
                f"cannot read {path} ({error.strerror}): name the folder that holds "
                "ground_truth/ and the images with --data"
            ) from error
        except ValueError as error:
            raise errors.UserError(f"{path} is not JSON: {error}") from error
    try:
        ids, train_labels = np.unique(
            [entry["id"] for entry in lists[0]], return_inverse=True
        )
        classes = {int(exhibit): i for i, exhibit in enumerate(ids)}
        train = ListedImages(
            [root / entry["path"] for entry in lists[0]],
            labels=train_labels,
            flag="--data",
        )
        val, test = (
            ListedImages(
                [root / entry["path"] for entry in entries],
                # An exhibit that a small training set lacks cannot be found.
                labels=np.array(
                    [
                        classes.get(int(entry["MET_id"]), len(ids))
                        if "MET_id" in entry
                        else -1
                        for entry in entries
                    ]
                ),
                flag="--data",
            )
            for entries in lists[1:]
        )
    except (KeyError, TypeError) as error:
        raise errors.UserError(
            f"the files in {root / 'ground_truth'} are not the Met's: {error} is "
            "missing from an entry"
        ) from error
    return Met(train, val, test, len(ids))
