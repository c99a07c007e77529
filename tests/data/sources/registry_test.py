"""Sources: folders in every state a user brings them, and tfds without TensorFlow."""

import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import default
from dinov2_jax import errors
from dinov2_jax.config import checking
from dinov2_jax.data import __main__ as program
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, photos, registry, tfds
from dinov2_jax.data.sources import folder as folder_lib


def save(path, value=0, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path, "PNG")


def folder(path):
    return folder_lib.FolderSource(path, image_decoder.Decoder(max_pixels=10_000))


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_nested_in_sorted_order_any_case(tmp_path):
    for i, name in enumerate(["b/2.JPG", "a/z/1.png", "a/0.TiFf", "a-b/4.webp"]):
        save(tmp_path / name, i)
    for name in ["a/readme.txt", "a/.hidden.png", ".git/x.png", "b/noextension"]:
        save(tmp_path / name)
    source = folder(tmp_path)
    assert names(source) == ["a-b/4.webp", "a/0.TiFf", "a/z/1.png", "b/2.JPG"]
    assert [int(source.open(i).pixels()[0, 0, 0]) for i in range(4)] == [3, 2, 1, 0]
    assert source.open(0).pixels().shape == (3, 4, 3)
    assert source.labels.tolist() == [1, 0, 0, 2]
    assert source.label_names == ["a", "a-b", "b"]
    assert source.labels.dtype == np.int32


def test_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    for i in range(20):
        save(tmp_path / f"{i % 3}" / f"{i}.png")
    want = names(folder(tmp_path))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = list(scandir(path))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(folder(tmp_path)) == want == sorted(want)


def test_flat_or_mixed_has_no_labels(tmp_path):
    save(tmp_path / "a.png")
    source = folder(tmp_path)
    assert source.labels is None and source.label_names == []
    save(tmp_path / "b" / "a.png")
    assert folder(tmp_path).labels is None


def test_links_are_followed_and_loops_end(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    save(tmp_path / "root" / "x" / "0.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "x" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "x" / "file.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root" / "broken.png").symlink_to(tmp_path / "nothing.png")
    source = folder(tmp_path / "root")
    assert names(source) == ["link/1.png", "x/0.png", "x/file.png"]
    assert source.skipped() == {"broken link": 1}


def test_odd_names(tmp_path):
    save(tmp_path / "with space ü.png", 7)
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
        Image.new("RGB", (2, 2), (9, 9, 9)).save(file, "PNG")
    source = folder(tmp_path)
    assert [int(source.open(i).pixels()[0, 0, 0]) for i in range(2)] == [7, 9]
    assert source.name(1).encode("utf-8")


def test_a_file_that_vanishes_is_a_bad_image(tmp_path):
    save(tmp_path / "a.png")
    source = folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(image_decoder.BadImage, match="a.png: No such file"):
        source.open(0).pixels()


def test_too_large_is_refused(tmp_path):
    save(tmp_path / "a.png", size=(101, 100))
    with pytest.raises(
        image_decoder.BadImage, match="101x100 px is more than max_pixels"
    ):
        folder(tmp_path).open(0).pixels()


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(errors.UserError) as caught:
        folder(tmp_path / "no")
    assert str(tmp_path / "no") + " does not exist" in one_line(caught)
    assert "--config.data.path=/path/to/images" in one_line(caught)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(errors.UserError) as caught:
        folder(tmp_path)
    for part in (str(tmp_path), ".jpeg", ".webp", "--config.data.path="):
        assert part in one_line(caught)
    with pytest.raises(errors.UserError, match="is not a folder"):
        folder(tmp_path / "notes.txt")


@pytest.mark.parametrize("as_file", [True, False])
def test_several_folders_are_one_source(tmp_path, monkeypatch, as_file):
    for i, name in enumerate(["one/a", "one/b/c", "two/a", "three/d"]):
        save(tmp_path / f"{name}.png", 40 * i)
    (tmp_path / "one" / "x.psd").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = "list.txt" if as_file else "~/one,two, three"
    (tmp_path / "list.txt").write_text(f"# all\n{tmp_path}/one\ntwo\n\n./three\n")
    source = registry.open_path(path, image_decoder.Decoder())
    assert len(source) == source.pass_length == 4
    shown = [source.resolve(1, place) for place in range(4)]
    values = [int(source.open(i).pixels()[0, 0, 0]) for i in shown]
    assert values == [0, 40, 80, 120]
    assert source.name(2).endswith("two: a.png")
    assert source.left_out() == {".psd": 1} and len(source.warnings()) == 1
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint


def test_folders_that_come_twice(tmp_path):
    for i, name in enumerate(["one/a", "one/in/b", "one/.hidden/c", "two/d"]):
        save(tmp_path / f"{name}.png", 40 * i)
    os.symlink(tmp_path / "one", tmp_path / "link")

    def shown(*folders):
        (tmp_path / "list.txt").write_text("\n".join(folders))
        source = registry.open_path(str(tmp_path / "list.txt"), image_decoder.Decoder())
        images = [source.resolve(0, place) for place in range(source.pass_length)]
        return [int(source.open(i).pixels()[0, 0, 0]) for i in images]

    assert shown("two", "one", "one", "./two/", "link") == [120, 0, 40]
    assert shown("one/.hidden", "one") == [80, 0, 40]
    for folders in (("one", "two", "one/in"), ("link/in", "one")):
        with pytest.raises(errors.UserError, match="is inside of it") as caught:
            shown(*folders)
        assert "list.txt" in one_line(caught)


def test_lists_with_something_else_than_folders(tmp_path):
    save(tmp_path / "one" / "a.png")
    (tmp_path / "list.txt").write_text("one\n" * 100 + "one/a.png\n")
    with pytest.raises(errors.UserError, match="list folders or files, not both"):
        registry.open_path(str(tmp_path / "list.txt"), image_decoder.Decoder())
    with pytest.raises(errors.UserError, match="nor do all the paths between its"):
        registry.open_path(f"{tmp_path}/one,{tmp_path}/no", image_decoder.Decoder())
    save(tmp_path / "one,two" / "a.png")  # a folder of that name
    (tmp_path / "two").mkdir()
    source = registry.open_path(f"{tmp_path}/one,two", image_decoder.Decoder())
    assert isinstance(source, folder_lib.FolderSource)


def test_pickle_is_compact(tmp_path):
    for i in range(300):
        (tmp_path / f"{i:04}.jpg").touch()
    source = folder(tmp_path)
    data = pickle.dumps(source)
    assert len(data) < 700
    assert names(pickle.loads(data)) == names(source)


def test_make_source(tmp_path):
    config = default.get_config()
    with pytest.raises(errors.UserError) as caught:
        registry.make_source(config)
    assert "--config.data.path=/path/to/images" in one_line(caught)
    assert "--config.data.source=photos" in one_line(caught)
    save(tmp_path / "a.png")
    config.data.path = str(tmp_path)
    assert isinstance(registry.make_source(config), folder_lib.FolderSource)
    config.data.source = "photos"
    assert isinstance(registry.make_source(config), photos.PhotosSource)
    config.data.source = "tfds"
    with pytest.raises(errors.UserError, match="tfds_name"):
        registry.make_source(config)
    config.data.source, config.data.tfds_name = "auto", "nosuchset"
    with pytest.raises(errors.UserError, match="tfds data set 'nosuchset'"):
        registry.make_source(config)
    config.data.source = "web"
    with pytest.raises(errors.UserError, match="'web' is unknown"):
        registry.make_source(config)


PREPARE = """
import io, sys
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

class Dots(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["even", "odd"])}))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(7):
            stream = io.BytesIO()
            Image.fromarray(np.full((9, 8, 3), 30 * i, np.uint8)).save(stream, "PNG")
            stream.seek(0)
            yield i, {"image": stream, "label": i % 2}

Dots(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    path = tmp_path_factory.mktemp("tfds")
    # In a process of its own, so that here the data set is known by its files alone.
    command = [sys.executable, "-c", PREPARE, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return str(path)


def test_tfds_without_tensorflow(tfds_dir):
    config = default.get_config()
    config.data.source, config.data.path = "tfds", tfds_dir
    config.data.tfds_name = "dots:1.0.0"
    source = registry.make_source(config)
    source = pickle.loads(pickle.dumps(source))
    assert len(source) == 7 and source.label_names == ["even", "odd"]
    values = [int(source.open(i).pixels()[0, 0, 0]) for i in range(7)]
    assert sorted(values) == [0, 30, 60, 90, 120, 150, 180]
    assert (
        source.open(0).pixels().shape == (9, 8, 3)
        and source.open(0).pixels().dtype == np.uint8
    )
    assert source.labels.tolist() == [value // 30 % 2 for value in values]
    assert source.name(2) == "dots:1.0.0/train record 2"
    assert "tensorflow" not in sys.modules
    small = tfds.TfdsSource(
        "dots", "train", data_dir=tfds_dir, decoder=image_decoder.Decoder(71)
    )
    with pytest.raises(image_decoder.BadImage, match="record 0: 8x9 px"):
        small.open(0)


def test_a_damaged_tfds_record_is_a_bad_image(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir, tmp_path / "copy")
    (records,) = (tmp_path / "copy" / "dots" / "1.0.0").glob("*array_record*")
    content = bytearray(records.read_bytes())
    at = content.index(b"IHDR")
    content[at : at + 4] = b"XXXX"
    records.write_bytes(content)
    decoder = image_decoder.Decoder()
    copy = str(tmp_path / "copy")
    source = tfds.TfdsSource("dots", "train", data_dir=copy, decoder=decoder)
    for read in (source.open, source.content):
        with pytest.raises(image_decoder.BadImage, match="cannot be read") as caught:
            for index in range(len(source)):
                read(index)
        assert caught.value.name.startswith("dots/train record ")


def test_changed_tfds_files_are_noticed(tfds_dir):
    def fingerprint():
        decoder = image_decoder.Decoder()
        source = tfds.TfdsSource("dots", "train", data_dir=tfds_dir, decoder=decoder)
        return pickle.loads(pickle.dumps(source)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    (records,) = pathlib.Path(tfds_dir, "dots", "1.0.0").glob("*array_record*")
    os.utime(records, (5, 5))
    assert fingerprint() != before


@pytest.mark.parametrize("below", ["", "dots", "dots/1.0.0"])
def test_a_folder_of_tfds_says_how_to_name_it(tfds_dir, below):
    path = os.path.join(tfds_dir, below)
    with pytest.raises(errors.UserError) as caught:
        registry.open_path(path, image_decoder.Decoder())
    want = f"--config.data.tfds_name=dots:1.0.0 --config.data.path={tfds_dir}"
    assert one_line(caught).endswith(want)


def test_the_programs_read_tfds(tfds_dir, capsys):
    assert program.main(["scan", tfds_dir]) == errors.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"name {tfds_dir} --tfds-name=dots:1.0.0")
    assert program.main(["stats", *line.split()[-2:]]) == 0
    assert "7 of 7 images" in capsys.readouterr().err


@pytest.mark.parametrize("name, split", [("nosuchset", "train"), ("dots", "val")])
def test_tfds_not_prepared(tfds_dir, name, split):
    with pytest.raises(errors.UserError) as caught:
        tfds.TfdsSource(
            name, split, data_dir=tfds_dir, decoder=image_decoder.Decoder(100)
        )
    assert name in one_line(caught) and split in one_line(caught)
    assert f"tfds build {name} --file_format=array_record" in one_line(caught)


def test_what_a_path_is(tmp_path):
    for name, kind in {
        "folder/a/1.jpg": "folder",
        "flat/1.JPG": "folder",
        "empty/notes.md": "folder",
        "tars/x-00.tar": "webdataset",
        "records/x.array_record": "array_record",
        "tfds/x-train.array_record-00000-of-00002": "array_record",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
        top = tmp_path / name.split("/")[0]
        assert registry.detect(str(top)) == kind
        if kind not in ("folder",):
            assert registry.detect(str(path)) == kind
    for name in ("l.txt", "l.CSV", "l.tsv", "l.parquet"):
        (tmp_path / name).touch()
        assert registry.detect(str(tmp_path / name)) == "manifest"
    assert registry.detect("/data/**/*.jpg") == "glob"
    assert registry.detect("/data/x-{000..003}.tar") == "webdataset"
    assert registry.detect("/data/*.array_record") == "array_record"


@pytest.mark.parametrize(
    "name, words",
    [
        ("no", "does not exist"),
        ("a.jpg", "one image"),
        ("x.tfrecord-00000-of-00001", "TFRecord"),
        ("x.npy", "'/data/**/*.npy'"),
        ("a.SVS", "vips dzsave"),
        ("a.mp4", "ffmpeg"),
        ("both", "--config.data.source=folder or webdataset"),
        ("dangling", "is a broken link"),
    ],
)
def test_a_path_that_is_nothing(tmp_path, name, words):
    (tmp_path / "both" / "deeper").mkdir(parents=True)
    (tmp_path / "both" / "x.tar").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    if "." in name:
        (tmp_path / name).touch()
    with pytest.raises(errors.UserError) as caught:
        registry.open_path(str(tmp_path / name), image_decoder.Decoder())
    assert words in one_line(caught) and str(tmp_path / name) in one_line(caught)


def test_one_table_of_kinds():
    """A config may choose every kind, and each is opened by a path or a config."""
    config = default.get_config()
    for name, kind in registry.KINDS.items():
        config.data.source = name
        checking.check(config)
        assert (kind.open is None) != (kind.make is None)
        assert kind.open is None or issubclass(kind.open, base.Source)
    config.data.source = "foldr"
    with pytest.raises(errors.UserError, match=", ".join(registry.KINDS)):
        checking.check(config)


def test_a_url_is_no_path():
    with pytest.raises(errors.UserError) as caught:
        registry.open_path("gs://bucket/images", image_decoder.Decoder())
    said = one_line(caught)
    assert "gs://bucket/images" in said


def test_folder_of_bytes_is_decoded_alike(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (5, 5), "red").save(stream, "JPEG")
    (tmp_path / "a.jpe").write_bytes(stream.getvalue())
    want = image_decoder.Decoder().decode(stream.getvalue(), name="")
    np.testing.assert_array_equal(folder(tmp_path).open(0).pixels(), want)
