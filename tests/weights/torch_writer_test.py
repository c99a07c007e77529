"""Written files as torch and zip tools read them."""

import hashlib
import os
import resource
import zipfile
from collections import OrderedDict

import forged
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from peers import torch

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, torch_file, torch_pickle, torch_writer

WEIGHTS_ONLY = [{}, {"mmap": True}, {"weights_only": True}, {"weights_only": False}]


def tree():
    rng = np.random.default_rng(0)
    arrays = OrderedDict(
        (dtype.name, (10 * rng.standard_normal((3, 5, 2))).astype(dtype))
        for dtype in torch_pickle.STORAGES.values()
    )
    arrays["transposed"] = arrays["float32"].T
    arrays["sliced"] = arrays["float32"][:, ::2]
    arrays["scalar"] = np.array(3.5, ml_dtypes.bfloat16)
    arrays["empty"] = np.zeros((0, 3, 2), np.float16)
    values = [1, -5, 255, 2**31, -(2**31), 2**40, -(2**70), True, None, 1.5, "é", ""]
    return {
        "model": arrays,
        "rest": {"values": values, "none": {}, "list": [], "tuple": (1, ())},
        "inf": float("inf"),
        7: "seven",
    }


def test_torch_reads_it(tmp_path):
    expected = tree()
    torch_writer.write(tmp_path / "x.pth", expected)
    for kwargs in WEIGHTS_ONLY:
        found = torch.load(tmp_path / "x.pth", **kwargs)
        assert isinstance(found["model"], OrderedDict)
        assert list(found["model"]) == list(expected["model"])
        for name, array in expected["model"].items():
            tensor = found["model"][name]
            assert tensor.shape == array.shape
            assert str(tensor.dtype) == f"torch.{array.dtype.name}"
            assert not tensor.requires_grad and tensor.is_contiguous()
            if array.dtype == ml_dtypes.bfloat16:
                tensor, array = tensor.float(), array.astype(np.float32)
            np.testing.assert_array_equal(tensor.numpy(), array, name)
        assert {k: found[k] for k in found if k != "model"} == {
            k: expected[k] for k in expected if k != "model"
        }


def test_a_module_loads_it(tmp_path):
    module = torch.nn.Linear(3, 2)
    state = {name: p.detach().numpy() * 2 for name, p in module.named_parameters()}
    torch_writer.write(tmp_path / "x.pth", state)
    module.load_state_dict(torch.load(tmp_path / "x.pth"))
    np.testing.assert_array_equal(module.weight.detach(), state["weight"])
    assert module.weight.requires_grad


def test_we_read_it(tmp_path):
    expected = tree()
    torch_writer.write(tmp_path / "x.pth", expected)
    found = forged.loaded(torch_file.read(tmp_path / "x.pth"))
    for name, array in expected.pop("model").items():
        np.testing.assert_array_equal(found["model"][name], array, name)
        assert found["model"][name].dtype == array.dtype
    del found["model"]
    assert found == expected


def test_lazy_tensors_functions_and_jax_arrays(tmp_path):
    class Function:
        shape, dtype = (2,), np.dtype(np.int64)

        def __call__(self):
            return np.array([3, 4])

    torch_writer.write(tmp_path / "a.pth", {"w": np.ones((4, 3), np.float32)})
    (stored,) = torch_file.read(tmp_path / "a.pth").values()
    leaves = {"lazy": stored, "function": Function(), "jax": jnp.ones(3, jnp.bfloat16)}
    torch_writer.write(tmp_path / "b.pth", leaves)
    found = torch.load(tmp_path / "b.pth")
    assert torch.equal(found["lazy"], torch.ones(4, 3))
    assert torch.equal(found["function"], torch.tensor([3, 4]))
    assert torch.equal(found["jax"], torch.ones(3, dtype=torch.bfloat16))


def test_bytes_depend_only_on_the_tree(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.pth", "folder/a longer name.bin"):
        torch_writer.write(tmp_path / name, tree())
    data = (tmp_path / "a.pth").read_bytes()
    assert (tmp_path / "folder/a longer name.bin").read_bytes() == data
    small = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "epoch": 3}
    torch_writer.write(tmp_path / "a.pth", small)
    digest = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert digest == "d85a32953f8e9990ccf8368a8cbcbeec44a468f2435f570a5ed08fe81e335327"


@pytest.mark.parametrize("limit", [2**32 - 1, 1000, 0])
def test_zip_tools_read_it(tmp_path, monkeypatch, limit):
    """A lower limit makes zip64 fields of what a file above 4 GiB would have."""
    array = np.arange(1000, dtype=np.float32)
    if limit < 2**32 - 1:
        monkeypatch.setattr(torch_writer, "_needs_64", lambda n: n >= limit)
    torch_writer.write(tmp_path / "x.pth", {"a": array, "b": array[:3]})
    data = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        assert file.testzip() is None
        names = ["data.pkl", "byteorder", "data/0", "data/1", "version"]
        assert file.namelist() == [f"archive/{name}" for name in names]
        assert file.read("archive/version") == b"3\n"
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert data.find(file.read(info), info.header_offset) % 64 == 0
    for kwargs in WEIGHTS_ONLY:
        found = torch.load(tmp_path / "x.pth", **kwargs)
        np.testing.assert_array_equal(found["a"], array)
        np.testing.assert_array_equal(found["b"], array[:3])
    found = forged.loaded(torch_file.read(tmp_path / "x.pth"))
    np.testing.assert_array_equal(found["a"], array)


def test_failures_leave_nothing(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"before")
    good = np.ones(1000, np.float32)

    def failing():
        raise KeyboardInterrupt

    def check(error, leaf, match=None):
        with pytest.raises(error, match=match):
            torch_writer.write(path, {"good": good, "leaf": leaf})
        assert path.read_bytes() == b"before"
        assert os.listdir(tmp_path) == ["x.pth"]

    float32 = np.dtype(np.float32)
    check(KeyboardInterrupt, lazy_tensor.LazyTensor((1,), float32, failing))
    check(ValueError, lazy_tensor.LazyTensor((5,), float32, lambda: good), "declared")
    check(ValueError, lazy_tensor.LazyTensor((1000,), np.dtype("i4"), lambda: good))
    check(TypeError, np.float32(1), "leaf")
    check(TypeError, np.ones(2, np.complex64), "complex64")
    check(TypeError, {(1, 2): 3}, "neither str nor int")
    check(TypeError, object(), "object")
    check(TypeError, 2**3000, "bytes")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, old[1]))
    try:  # like a full disk
        check(errors.UserError, np.zeros(10**6, np.float32), "cannot write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    for name in ("none/x.pth", "x.pth/x.pth", "."):
        with pytest.raises(errors.UserError, match="cannot write"):
            torch_writer.write(tmp_path / name, {})


MEMORY = """
import sys
import numpy as np
from dinov2_jax.weights import lazy_tensor, torch_file, torch_writer
def peak():
    line = [x for x in open("/proc/self/status") if x.startswith("VmHWM")][0]
    return int(line.split()[1]) // 1024
def tensor(i):
    dtype = np.dtype(np.float32)
    read = lambda: np.full((10, 2**18), i, dtype)
    return lazy_tensor.LazyTensor((10, 2**18), dtype, read)
before = peak()
torch_writer.write(sys.argv[1], {str(i): tensor(i) for i in range(10)})
written = peak() - before
torch_writer.write(sys.argv[2], torch_file.read(sys.argv[1]))
print(written, peak() - before)
"""


def test_writing_holds_one_tensor(tmp_path):
    paths = tmp_path / "a.pth", tmp_path / "b.pth"
    written, copied = map(int, forged.run_script(MEMORY, *paths).split())
    # MiB, of 100; pages that imports freed may be used again and count less.
    assert 5 <= written < 14 and copied < 14
    assert paths[0].stat().st_size > 100 * 2**20
    assert paths[0].read_bytes() == paths[1].read_bytes()
