"""Evenly spaced frames of videos, as a source of images.

Videos are folders of frames, or files that PyAV decodes (the extra `video`). Each gives
the same number of frames, one after the other, so that features of images are all that
an evaluation needs.

Shapes: V videos, F frames of each, D width.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import re
import threading
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base
from dinov2_jax.eval.classification import labelled

SUFFIXES = tuple(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
_DECODED = 32  # videos whose frames are kept in memory


@dataclasses.dataclass(frozen=True)
class Clips:
    """Frames of labelled videos.

    Attributes:
      source: The frames as images, V * F of them, video after video.
      frames: Number of frames of each video F.
    """

    source: Any
    frames: int

    def __len__(self) -> int:
        """Return the number of videos V."""
        return len(self.source) // self.frames

    def combine(
        self, rows: np.ndarray, indices: np.ndarray, *, how: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the features and labels of the videos all of whose frames are there.

        Args:
          rows: Features of frames, [N, D].
          indices: Index of each row's image in `source`, int [N], ascending.
          how: "mean" of a video's frames, [D], or "concat", [F * D].
        """
        videos = np.asarray(indices) // self.frames
        counts = np.bincount(videos, minlength=len(self))
        rows = np.asarray(rows)[counts[videos] == self.frames]
        rows = rows.reshape(-1, self.frames, rows.shape[-1])
        labels = np.asarray(self.source.labels)[:: self.frames]
        labels = labels[counts == self.frames]
        if how == "mean":
            return rows.mean(axis=1), labels
        return rows.reshape(len(rows), -1), labels


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return the middle frame of each of `count` equal parts, int [count].

    Args:
      total: Number of frames of the video; frames repeat if it has fewer than `count`.
      count: Number of frames to take.
    """
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)


def open_clips(path: str, flag: str, *, frames: int, max_videos: int = 0) -> Clips:
    """Open a folder with a sub-folder for each class.

    Args:
      path: The folder: CLASS/VIDEO/FRAME.jpg or CLASS/VIDEO.mp4.
      flag: The flag that named it, for messages.
      frames: Number of frames to take of each video.
      max_videos: Number of videos to keep, evenly spaced; 0 for all.

    Raises:
      UserError: There are no such videos, or PyAV is missing.
    """
    root = pathlib.Path(path)
    found = sorted(
        entry
        for entry in (root.glob("*/*") if root.is_dir() else ())
        if entry.suffix.lower() in SUFFIXES
        and entry.is_file()
        and not any(p.startswith(".") for p in entry.relative_to(root).parts)
    )
    if found:
        _pyav(flag, found[0])
        source = VideoFrames(root, found, frames)
    else:
        source = _frames_of_folders(path, flag, frames)
    clips = Clips(source, frames)
    if not max_videos or len(clips) <= max_videos:
        return clips
    kept = np.linspace(0, len(clips) - 1, max_videos).astype(int)
    kept = (kept[:, None] * frames + np.arange(frames)).ravel()
    return Clips(labelled.Subset(source, kept), frames)


class VideoFrames(base.Source):
    """Frames of video files; a video is decoded when its first frame is opened.

    Args:
      root: The folder of the classes.
      paths: Paths of the videos, CLASS/VIDEO below the root.
      frames: Number of frames to take of each.
    """

    def __init__(self, root: pathlib.Path, paths: list[pathlib.Path], frames: int):
        self._root, self._paths, self._frames = root, paths, frames
        self._names = sorted({path.parent.name for path in paths})
        self._decoded: dict[int, concurrent.futures.Future] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths) * self._frames

    @property
    def labels(self) -> np.ndarray:
        """int32 [length]."""
        index = {name: i for i, name in enumerate(self._names)}
        labels = [index[path.parent.name] for path in self._paths]
        return np.repeat(np.array(labels, np.int32), self._frames)

    @property
    def label_names(self) -> list[str]:
        """The names of the classes."""
        return self._names

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the files' names, sizes and modification times."""
        found = hashlib.sha256(str(self._frames).encode())
        for path in self._paths:
            stat = path.stat()
            text = f" {stat.st_size} {stat.st_mtime_ns}\n"
            found.update(os.fsencode(path.relative_to(self._root)) + text.encode())
        return found.hexdigest()

    def name(self, index: int) -> str:
        """Return a video's path below the root, and the number of the frame."""
        video, frame = divmod(index, self._frames)
        return f"{self._paths[video].relative_to(self._root)}, frame {frame}"

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Return a frame; raises `BadImage`."""
        video, frame = divmod(index, self._frames)
        try:
            return image_decoder.from_array(self._clip(video)[frame])
        except _Unreadable as error:
            raise image_decoder.BadImage(self.name(index), str(error)) from error

    def _where(self) -> str:
        return f"in {len(self._paths)} videos below {self._root}"

    def _clip(self, video: int) -> list[np.ndarray]:
        """Decode a video, once even if several threads ask for its frames."""
        with self._lock:
            future = self._decoded.get(video)
            first = future is None
            if future is None:
                future = self._decoded[video] = concurrent.futures.Future()
                if len(self._decoded) > _DECODED:
                    del self._decoded[next(iter(self._decoded))]
        if first:
            try:
                future.set_result(read_frames(self._paths[video], self._frames))
            except BaseException as error:  # also passed on to waiting threads
                future.set_exception(error)
        return future.result()


class _Unreadable(Exception):
    """Error for a video without frames that can be decoded."""


def read_frames(path: pathlib.Path, count: int) -> list[np.ndarray]:
    """Decode evenly spaced frames, uint8 [H, W, 3] each.

    Where a file has fewer frames than it states, the last one stands for the others.

    Args:
      path: Path of the video.
      count: Number of frames.
    """
    import av

    try:
        with av.open(os.fspath(path)) as container:
            total = container.streams.video[0].frames
        if not total:  # some containers do not state it
            with av.open(os.fspath(path)) as container:
                total = sum(1 for _ in container.decode(video=0))
        wanted = evenly_spaced(total, count)
        found: dict[int, np.ndarray] = {}
        with av.open(os.fspath(path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    found[i] = frame.to_ndarray(format="rgb24")
                if i >= wanted[-1]:
                    break
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise _Unreadable(" ".join(str(error).split())) from error
    if not found:
        raise _Unreadable("has no frames")
    last = found[max(found)]
    return [found.get(int(i), last) for i in wanted]


def _pyav(flag: str, path: pathlib.Path) -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise errors.UserError(
            f"{flag} has videos such as {path.name}, and PyAV is not installed: pip "
            "install 'dinov2-jax[video]', or write their frames as images into a "
            "folder for each video"
        ) from error


def _frames_of_folders(path: str, flag: str, frames: int) -> labelled.Subset:
    """Take frames of folders CLASS/VIDEO, by the numbers in their names."""
    source = labelled.open_labelled(path, flag)
    folders: dict[bytes, list[tuple[list, int]]] = {}
    for i in range(len(source)):
        folder, _, name = source.relative_path(i).rpartition(b"/")
        if b"/" not in folder:
            raise errors.UserError(
                f"{flag} = {path} has {source.name(i)!r}, an image that is not in the "
                "folder of a video: name the frames CLASS/VIDEO/FRAME"
            )
        folders.setdefault(folder, []).append((_by_numbers(name), i))
    chosen = []
    for _, found in sorted(folders.items()):
        found.sort()
        chosen += [found[k][1] for k in evenly_spaced(len(found), frames)]
    return labelled.Subset(source, np.array(chosen))


def _by_numbers(name: bytes) -> list:
    """Return a key by which frame 9 comes before frame 10."""
    parts = re.split(rb"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]
