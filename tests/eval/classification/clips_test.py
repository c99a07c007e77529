"""Frames of videos: which are taken, in which order, and how they are combined."""

import sys

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.eval.classification import clips


def write_frames(folder, values, name="frame{}.png"):
    """A frame of one grey a value, numbered without leading zeros."""
    folder.mkdir(parents=True)
    for i, value in enumerate(values):
        Image.new("RGB", (8, 8), (value,) * 3).save(folder / name.format(i))


def grey(source, index):
    return int(source.open(index).pixels()[0, 0, 0])


def test_frames_are_the_middles_of_equal_parts():
    np.testing.assert_array_equal(clips.evenly_spaced(80, 8), range(5, 80, 10))
    np.testing.assert_array_equal(clips.evenly_spaced(3, 3), [0, 1, 2])
    np.testing.assert_array_equal(clips.evenly_spaced(2, 4), [0, 0, 1, 1])
    np.testing.assert_array_equal(clips.evenly_spaced(1, 3), [0, 0, 0])


def test_folders_of_frames(tmp_path):
    write_frames(tmp_path / "run/b", range(100, 112))
    write_frames(tmp_path / "run/a", [7])
    write_frames(tmp_path / "jump/c", range(30, 36))
    found = clips.open_clips(str(tmp_path), "--train-path", frames=3)
    assert len(found) == 3 and len(found.source) == 9
    values = [grey(found.source, i) for i in range(9)]
    # Frame 10 comes after frame 9.
    assert values == [31, 33, 35, 7, 7, 7, 102, 106, 110]
    assert found.source.label_names == ["jump", "run"]
    assert found.source.labels.tolist() == [0] * 3 + [1] * 6
    some = clips.open_clips(str(tmp_path), "--train-path", frames=3, max_videos=2)
    assert [grey(some.source, i) for i in range(6)] == [31, 33, 35, 102, 106, 110]


def test_videos_with_unreadable_frames_are_left_out(tmp_path):
    for i in range(3):
        write_frames(tmp_path / f"class{i}/video", [0, 1])
    found = clips.open_clips(str(tmp_path), "--train-path", frames=2)
    indices = np.array([0, 1, 3, 4, 5])  # the second video's first frame is missing
    rows = np.arange(10.0).reshape(5, 2)
    x, y = found.combine(rows, indices, how="mean")
    np.testing.assert_array_equal(x, [[1, 2], [7, 8]])
    np.testing.assert_array_equal(y, [0, 2])
    x, _ = found.combine(rows, indices, how="concat")
    np.testing.assert_array_equal(x, [[0, 1, 2, 3], [6, 7, 8, 9]])


def test_images_outside_of_videos_are_refused(tmp_path):
    write_frames(tmp_path / "run", [1, 2])
    with pytest.raises(errors.UserError, match="CLASS/VIDEO/FRAME"):
        clips.open_clips(str(tmp_path), "--val-path", frames=2)


def test_files_need_pyav(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a.mp4").write_bytes(b"video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(errors.UserError, match=r"a\.mp4.*PyAV.*dinov2-jax\[video\]"):
        clips.open_clips(str(tmp_path), "--train-path", frames=2)


def test_video_files(tmp_path):
    """A video written by PyAV itself, and a file that is none."""
    import av

    (tmp_path / "run").mkdir()
    with av.open(str(tmp_path / "run/a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)  # without loss
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        for value in range(0, 120, 10):
            pixels = np.full((16, 16, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "run/b.mp4").write_bytes(b"no video")
    found = clips.open_clips(str(tmp_path), "--train-path", frames=3)
    assert [grey(found.source, i) for i in range(3)] == [20, 60, 100]
    with pytest.raises(clips.image_decoder.BadImage, match=r"run/b\.mp4, frame 0"):
        found.source.open(3)
