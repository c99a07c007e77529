"""Loader: the contract of a batch, and that only (seed, data, step) decides it."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from configs import default
from dinov2_jax import errors
from dinov2_jax.data import batch_builder, batch_spec, loader, masking
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, folder

ROOT = pathlib.Path(__file__).parents[2]


class Flat(base.Source):
    """`length` images of one gray each, the index; those in `bad` are unreadable."""

    fingerprint = "flat"

    def __init__(self, length, bad=()):
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def open(self, index):
        if index in self.bad:
            raise image_decoder.BadImage(self.name(index), "broken on purpose")
        return image_decoder.from_array(np.full((20, 24, 3), index, np.uint8))

    def name(self, index):
        return f"image {index}"

    def _where(self):
        return "in memory"


class Noise(Flat):
    def open(self, index):
        return image_decoder.from_array(
            np.random.default_rng(index).integers(0, 256, (40, 48, 3), np.uint8)
        )


class Worker(Flat):
    """Says in its pixels what it sees of the process it runs in."""

    def open(self, index):
        import jax
        from jax._src import xla_bridge

        del jax
        ok = (
            os.environ.get("JAX_PLATFORMS") == "cpu"
            and not xla_bridge._backends
            and "torch" not in sys.modules
        )
        return image_decoder.from_array(
            np.full((20, 20, 3), 0 if ok else 255, np.uint8)
        )


def small_config(**overrides):
    config = default.get_config()
    config.data.workers = 0
    config.crops.global_crops_size = 16
    config.crops.local_crops_size = 8
    config.crops.local_crops_number = 3
    config.model.patch_size = 4
    config.train.batch_size = 8
    config.train.group_size = 2
    for name, value in overrides.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def take(config, source, start, count, **kwargs):
    with loader.make_loader(
        config, source, start_step=start, num_steps=count, **kwargs
    ) as batches:
        return list(batches)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def plain(builder):
    """Replaces crops by the unchanged gray of the image, to see who is where."""

    def crops(image, rng):
        del rng
        value = np.uint8(image[0, 0, 0])
        return np.full((2, 16, 16, 3), value), np.full((3, 8, 8, 3), value)

    crops.global_crops_size, crops.local_crops_size = 16, 8
    crops.local_crops_number = 3
    object.__setattr__(builder, "augmentation", crops)
    return builder


def test_shapes_are_those_of_the_spec():
    config = small_config()
    (batch,) = take(config, Noise(9), 0, 1)
    assert len(batch.pop("bad_images")) == 0
    spec = batch_spec.batch_spec(config)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == spec
    assert spec["global_crops"][0] == (4, 4, 16, 16, 3)
    assert spec["local_crops"][0] == (4, 6, 8, 8, 3)
    assert spec["masks"][0] == (4, 4, 16)


def test_larger_crops_for_a_gram_teacher():
    config = small_config(gram__loss_weight=1.0)
    assert "gram_crops" not in batch_spec.batch_spec(config)  # those of the student
    config.gram.scale = 1.5
    (batch,) = take(config, Noise(9), 0, 1)
    batch.pop("bad_images")
    spec = batch_spec.batch_spec(config)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == spec
    assert spec["gram_crops"] == ((4, 4, 24, 24, 3), np.dtype(np.uint8))
    (plain,) = take(small_config(), Noise(9), 0, 1)
    np.testing.assert_array_equal(batch["global_crops"], plain["global_crops"])


def test_spec_of_the_reference_sizes():
    config = default.get_config()
    config.crops.local_crops_size = 98
    config.model.patch_size = 14
    spec = batch_spec.batch_spec(config)
    assert spec["global_crops"][0] == (32, 128, 224, 224, 3)
    assert spec["local_crops"][0] == (32, 512, 98, 98, 3)
    assert spec["masked_indices"] == ((32, 4941), np.dtype(np.int32))


def test_no_local_crops():
    config = small_config(crops__local_crops_number=0)
    (batch,) = take(config, Noise(9), 0, 1)
    assert batch["local_crops"].shape == (4, 0, 8, 8, 3)


def test_masks_are_listed():
    (batch,) = take(small_config(), Noise(9), 3, 1)
    for g in range(4):
        indices, weights = masking.mask_indices(
            batch["masks"][g], batch["masked_indices"].shape[1]
        )
        np.testing.assert_array_equal(batch["masked_indices"][g], indices)
        np.testing.assert_array_equal(batch["masked_weights"][g], weights)
    assert batch["masks"].any()


def test_every_image_once_per_pass_and_crop_major():
    source = Flat(20)
    builder = plain(batch_builder.make_batch_builder(small_config(), source))
    seen = []
    for step in range(5):  # 40 positions: two passes
        batch = builder(step)
        first, second = batch["global_crops"][:, :2], batch["global_crops"][:, 2:]
        np.testing.assert_array_equal(first, second)
        local = batch["local_crops"].reshape(4, 3, 2, 8, 8, 3)
        np.testing.assert_array_equal(local[:, 0, :, 0, 0], first[:, :, 0, 0])
        np.testing.assert_array_equal(local[:, 2, :, 0, 0], first[:, :, 0, 0])
        seen += list(first[:, :, 0, 0, 0].reshape(-1))
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:] and seen[:20] != list(range(20))


def test_seed_step_and_pass_change_the_crops():
    config = small_config()
    a = batch_builder.make_batch_builder(config, Noise(8))
    config.seed = 1
    b = batch_builder.make_batch_builder(config, Noise(8))
    assert not np.array_equal(a(0)["global_crops"], b(0)["global_crops"])
    assert not np.array_equal(a(0)["masks"], b(0)["masks"])
    assert not np.array_equal(a(0)["masks"], a(1)["masks"])
    # Same images in another pass: other crops, whatever the order.
    sums = [sorted(a(n)["global_crops"].sum((2, 3, 4)).reshape(-1)) for n in (0, 1)]
    assert sums[0] != sums[1]


def test_workers_and_restarts_change_nothing():
    config, source = small_config(), Noise(11)
    whole = take(config, source, 0, 5)
    assert_same(take(config, source, 2, 3), whole[2:])
    config.data.workers = 1
    assert_same(take(config, source, 1, 2), whole[1:3])


def test_processes_share_the_groups():
    config, source = small_config(), Noise(11)
    (whole,) = take(config, source, 4, 1)
    parts = [
        take(config, source, 4, 1, process_index=p, process_count=2)[0] for p in (0, 1)
    ]
    for name in batch_spec.batch_spec(config):
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(joined, whole[name], err_msg=name)


def test_bad_images_are_replaced_and_reported():
    source = Flat(20, bad=(3, 7))
    builder = plain(batch_builder.make_batch_builder(small_config(), source))
    reported, seen = [], []
    for step in range(5):
        batch = builder(step)
        np.testing.assert_array_equal(
            batch["global_crops"], builder(step)["global_crops"]
        )
        reported += list(batch["bad_images"])
        seen += list(batch["global_crops"][:, :2, 0, 0, 0].reshape(-1))
    assert {int(bad["index"]) for bad in reported} == {3, 7}
    assert len(reported) >= 4 and len(seen) == 40
    assert set(seen) == set(range(20)) - {3, 7}
    assert reported[0]["reason"] == "broken on purpose"
    assert reported[0]["name"].startswith("image ")


def test_folder_of_horrors(tmp_path):
    good = Image.fromarray(Noise(1).open(0).pixels())
    for mode in ("RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "I;16"):
        image = (
            good.convert("L").convert(mode) if mode == "I;16" else good.convert(mode)
        )
        image.save(tmp_path / f"good_{mode[0]}{len(mode)}.tif")
    good.resize((1, 300)).save(tmp_path / "thin.png")
    good.resize((300, 1)).save(tmp_path / "flat.gif")
    good.save(tmp_path / "bad_cut.png")
    content = (tmp_path / "bad_cut.png").read_bytes()
    (tmp_path / "bad_cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "bad_empty.jpg").touch()
    (tmp_path / "bad_text.jpg").write_text("not an image at all")
    good.resize((200, 200)).save(tmp_path / "bad_large.bmp")
    source = folder.FolderSource(tmp_path, image_decoder.Decoder(10_000))
    builder = batch_builder.make_batch_builder(small_config(), source)
    batches = [builder(step) for step in range(-(-len(source) // 8))]
    reported = {str(bad["name"]) for batch in batches for bad in batch["bad_images"]}
    want = {name for name in os.listdir(tmp_path) if name.startswith("bad")}
    assert reported == want and len(want) == 4 and len(source) == 14


def test_bad_images_come_through_workers():
    config = small_config(data__workers=1)
    batches = take(config, Flat(8, bad=(5,)), 0, 2)
    assert type(batches[0]["global_crops"]) is np.ndarray
    assert all(5 in batch["bad_images"]["index"] for batch in batches)


def test_only_bad_images_end_with_one_line():
    config = small_config(data__workers=1)
    with pytest.raises(errors.UserError, match="64 images in a row.*broken on purp"):
        take(config, Flat(8, bad=range(8)), 0, 1)


def test_too_few_images():
    config = small_config()
    assert len(take(config, Noise(8), 0, 1)) == 1
    with pytest.raises(errors.UserError, match="has 7 images but train.batch_size = 8"):
        loader.make_loader(config, Noise(7), start_step=0, num_steps=1)


def test_processes_must_divide_the_groups():
    with pytest.raises(errors.UserError, match="4 groups.*3 processes"):
        batch_builder.make_batch_builder(small_config(), Noise(9), process_count=3)


def test_builder_is_small_to_send():
    builder = batch_builder.make_batch_builder(small_config(), Noise(9))
    copy = pickle.loads(pickle.dumps(builder))
    assert_same([copy(1)], [builder(1)])


def test_workers_hold_no_backend(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    config = small_config(data__workers=1, crops__blur="reference")
    with loader.make_loader(config, Worker(8), start_step=0, num_steps=4) as batches:
        # Jitter keeps black black; only solarized second crops turn white.
        for batch in batches:
            assert batch["global_crops"][:, :2].max() == 0
        assert "JAX_PLATFORMS" not in os.environ  # given back


SCRIPT = """
import sys, time
from absl import app
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
import loader_test
from dinov2_jax.data import loader

def main(argv):
    config = loader_test.small_config(data__workers=2)
    batches = loader.make_loader(
        config, loader_test.Noise(9), start_step=0, num_steps=1000)
    for _ in range(3):
        print(next(batches)["global_crops"].sum(), flush=True)
    import multiprocessing
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    if len(argv) > 1:
        time.sleep(600)
    batches.close()

if __name__ == "__main__":
    app.run(main)
"""


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("killed", [False, True])
def test_a_script_under_absl(tmp_path, killed):
    script = tmp_path / "script.py"
    tests = str(pathlib.Path(__file__).parent)
    script.write_text(SCRIPT.format(root=str(ROOT), tests=tests))
    command = [sys.executable, str(script)] + ["wait"] * killed
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        if killed:
            process.send_signal(signal.SIGKILL)
        assert process.wait(300) == (-signal.SIGKILL if killed else 0)
    builder = batch_builder.make_batch_builder(small_config(), Noise(9))
    sums = [builder(step)["global_crops"].sum() for step in range(3)]
    assert [int(line) for line in lines[:3]] == sums
    pids = [int(pid) for pid in lines[3].split()]
    assert len(pids) == 2
    deadline = time.time() + 300
    while time.time() < deadline and any(map(alive, pids)):
        time.sleep(0.1)
    assert not any(map(alive, pids))
