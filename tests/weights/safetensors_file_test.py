"""Against the safetensors library, and damaged files."""

import ml_dtypes
import numpy as np
import pytest
import random_weights
import safetensors
import safetensors.numpy

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, safetensors_file

TENSORS = random_weights.tensors(random_weights.small_shapes("vits14")) | {
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((3, 0), np.float32),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "brain": np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "integers": np.arange(-3, 3),
}


def lazily(tensors):
    return {
        key: lazy_tensor.LazyTensor(a.shape, a.dtype, lambda a=a: a)
        for key, a in tensors.items()
    }


def write(path, tensors=TENSORS):
    safetensors_file.write(path, lazily(tensors))
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape, key
        assert found[key].tobytes() == array.tobytes(), key


def test_the_library_reads_what_is_written(tmp_path):
    path = write(tmp_path / "a.safetensors")
    assert_same(safetensors.numpy.load_file(path), TENSORS)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses


def test_what_the_library_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(TENSORS, path, metadata={"a": "1", "b": "2"})
    found = safetensors_file.read(path)
    assert {key: t.shape for key, t in found.items()} == {
        key: array.shape for key, array in TENSORS.items()
    }
    assert_same({key: tensor.read() for key, tensor in found.items()}, TENSORS)


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / n).read_bytes() for n in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_files_are_refused(tmp_path, keep):
    path = write(tmp_path / "a.safetensors")
    content = path.read_bytes()
    keep = int(len(content) * keep) if isinstance(keep, float) else keep
    path.write_bytes(content[:keep])
    with pytest.raises(errors.UserError) as caught:
        safetensors_file.read(path)
    assert "not a complete .safetensors file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_type_without_a_numpy_dtype_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(errors.UserError) as caught:
        safetensors_file.read(path)
    assert "x has type F8_E4M3" in str(caught.value)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = write(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def fail():
        raise OSError(28, "No space left on device")

    broken = {"x": lazy_tensor.LazyTensor((2,), np.dtype(np.float32), fail)}
    with pytest.raises(errors.UserError) as caught:
        safetensors_file.write(path, broken)
    assert "No space left on device" in str(caught.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
