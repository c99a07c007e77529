import dense_pairs
import numpy as np
import pytest
from PIL import Image
from scipy import io

from dinov2_jax import errors
from dinov2_jax.eval.depth import depth_data, nyu_labeled


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_nyu(tmp_path):
    save(tmp_path / "kitchen/rgb_1.jpg", np.zeros((4, 5, 3), np.uint8))
    depth = np.full((4, 5), 2500, np.uint16)
    depth[0] = 0
    save(tmp_path / "kitchen/sync_depth_1.png", depth)
    line = "/kitchen/rgb_1.jpg /kitchen/sync_depth_1.png 518.8579\n"
    (tmp_path / "nyu_test.txt").write_text(line)
    data = depth_data.depth_pairs(tmp_path, split="test")
    assert depth_data.guess_format(tmp_path) == "nyu"
    truth = data.sample(0)[1]
    assert truth[1, 0] == np.float32(2.5) and truth[0, 0] == 0


def test_labeled_file_of_nyu(tmp_path):
    """As MATLAB writes it: axes reversed, images counted from 1."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 5, 3), np.uint8)  # [N, H, W, 3]
    depths = rng.uniform(1, 9, (3, 4, 5)).astype(np.float32)
    with pytest.raises(errors.UserError, match="splits.mat"):
        nyu_labeled.open_split(tmp_path, "test")
    with h5py.File(tmp_path / nyu_labeled.FILE, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
    splits = {"trainNdxs": [[2]], "testNdxs": [[1], [3]]}
    io.savemat(tmp_path / "splits.mat", splits)
    test, train = (
        depth_data.depth_pairs(tmp_path, split=split) for split in ("test", "train")
    )
    assert depth_data.guess_format(tmp_path) == "nyu"
    assert len(test) == 2 and len(train) == 1
    for found, index in ((test.sample(1), 2), (train.sample(0), 1)):
        np.testing.assert_array_equal(found[0], images[index])
        np.testing.assert_array_equal(found[1], depths[index])
    assert test.part(slice(1)).fingerprint != test.fingerprint
    missing = depth_data.depth_pairs(tmp_path, split="test")
    (tmp_path / nyu_labeled.FILE).write_bytes(b"cut off")
    with pytest.raises(errors.UserError, match="download nyu_depth_v2_labeled.mat"):
        missing.sample(0)


def test_kitti_is_cropped_and_none_is_dropped(tmp_path):
    save(tmp_path / "input/a/1.png", np.zeros((375, 1242, 3), np.uint8))
    depth = np.arange(375, dtype=np.uint16)[:, None] * 256 + np.zeros(1242, np.uint16)
    save(tmp_path / "gt_depth/a/1.png", depth)
    lines = "a/1.png a/1.png 721\nb/1.png None 721\n"
    (tmp_path / "kitti_eigen_test.txt").write_text(lines)
    data = depth_data.depth_pairs(tmp_path, split="test")
    image, truth = data.sample(0)
    assert len(data) == 1 and image.shape == (352, 1216, 3)
    assert truth[0, 0] == 23.0


def test_sun_turns_bits_back(tmp_path):
    root = tmp_path / "SUNRGBD"
    save(root / "kv1/1/image/a.jpg", np.zeros((2, 2, 3), np.uint8))
    metres = np.array([[1.0, 8.0], [0.0, 3.001]])
    millimetres = (metres * 1000).round().astype(np.uint16)
    save(root / "kv1/1/depth/a.png", (millimetres << 3) | (millimetres >> 13))
    line = "SUNRGBD/kv1/1/image/a.jpg SUNRGBD/kv1/1/depth/a.png\n"
    (root / "SUNRGBD_val_splits.txt").write_text(line)
    truth = depth_data.depth_pairs(root, split="test").sample(0)[1]
    np.testing.assert_allclose(truth, metres, atol=1e-6)
    with pytest.raises(errors.UserError, match="no split 'train'"):
        depth_data.depth_pairs(root, split="train")


@pytest.mark.parametrize(
    "unit, max_depth, hint",
    [(1.0, 10.0, "--depth-unit=1000"), (1e6, 10.0, "--depth-unit=1000")],
)
def test_a_wrong_unit_gives_a_hint(tmp_path, unit, max_depth, hint):
    dense_pairs.write(tmp_path, {"test": 1})
    data = depth_data.depth_pairs(tmp_path, unit=unit, max_depth=max_depth)
    with pytest.raises(errors.UserError, match=hint):
        data.sample(0)


def test_pairs_in_millimetres_and_in_metres(tmp_path):
    dense_pairs.write(tmp_path, {"test": 2})
    data = depth_data.depth_pairs(tmp_path, max_depth=10.0)
    wanted = data.sample(0)[1]
    assert wanted.max() == 4.0
    (tmp_path / "test/depth/0.png").unlink()
    np.save(tmp_path / "test/depth/0.npy", np.where(wanted > 0, wanted, np.nan))
    data = depth_data.depth_pairs(tmp_path, max_depth=10.0)
    np.testing.assert_array_equal(data.sample(0)[1], wanted)
