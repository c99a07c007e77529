"""Against torch itself, and against damaged, forged and other files."""

import os
import pickle
import struct
import tarfile
import zipfile

import forged
import ml_dtypes
import numpy as np
import pytest
from peers import torch

from dinov2_jax import errors
from dinov2_jax.weights import torch_file

DTYPES = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool".split()


def saved(tmp_path, tree, **kwargs):
    torch.save(tree, tmp_path / "saved.pth", **kwargs)
    return forged.loaded(torch_file.read(tmp_path / "saved.pth"))


def as_numpy(tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        bits = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_equals_torchs(tmp_path, name):
    dtype = getattr(torch, name)
    tensor = torch.randn(5, 7).mul(3).to(dtype)
    found = saved(tmp_path, {"w": tensor, "scalar": tensor[0, 0], "dtype": dtype})
    np.testing.assert_array_equal(found["w"], as_numpy(tensor))
    np.testing.assert_array_equal(found["scalar"], as_numpy(tensor[0, 0]))
    assert found["w"].dtype == found["dtype"] == as_numpy(tensor).dtype
    assert found["scalar"].shape == ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_parameters_and_nesting_equal_torchs(tmp_path, protocol):
    base = torch.randn(6, 8)
    parameter = torch.nn.Parameter(torch.randn(3))
    marked = torch.nn.Parameter(torch.randn(3))
    marked.is_marked = True
    tensors = {
        "base": base,
        "transposed": base.T,
        "rows": base[2:4],
        "column": base[:, 3],
        "steps": base[1::2, ::3],
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.randn(1, 3).expand(1, 3),
        "empty": torch.zeros(3, 0),
        "parameter": parameter,
        "marked": marked,
    }
    rest = {"epoch": 3, "lr": 1e-3, "big": -(2**70), "ok": [True, None, (1, "é")]}
    rest |= {"bytes": b"\0\xff", 7: {"size": torch.Size([1, 2])}}
    tree = {"model": tensors, "device": torch.device("cuda", 1), **rest}
    found = saved(tmp_path, tree, pickle_protocol=protocol)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found["model"][name], as_numpy(tensor), name)
    rest[7] = {"size": (1, 2)}
    assert {key: found[key] for key in rest} == rest
    assert found["device"] == "cuda:1"


def test_modules_and_optimizers(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    found = saved(
        tmp_path, {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    )
    assert list(found["model"]) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found["model"][name], as_numpy(tensor))
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    np.testing.assert_array_equal(
        found["optimizer"]["state"][0]["exp_avg"], as_numpy(moment)
    )
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        found = saved(tmp_path, {"w": torch.arange(5.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(found["w"], np.arange(5))


def test_unpacked_and_packed_again(tmp_path):
    path = forged.archive(
        tmp_path / "x.pth", forged.tensor_pickle((2, 2), (1, 2)), top="any name"
    )
    np.testing.assert_array_equal(torch_file.read(str(path)).read(), [[0, 2], [1, 3]])
    assert path.read_bytes().startswith(b"PK\x03\x04")


def test_flipped_bit_is_detected(tmp_path):
    torch.save({"w": torch.ones(1000)}, tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    data[data.index(struct.pack("<f", 1.0) * 9) + 400] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    assert "checksum" in forged.refusal(tmp_path / "x.pth")


def test_bools_are_zero_or_one(tmp_path):
    data = forged.tensor_pickle((16,), (1,), size=16, kind="BoolStorage")
    found = torch_file.read(forged.archive(tmp_path / "x.pth", data)).read()
    assert set(found.view(np.uint8)) == {0, 1}


def test_zips_that_torch_does_not_write_are_refused(tmp_path):
    good, path = forged.tensor_pickle((4,), (1,)), tmp_path / "x.pth"
    forged.archive(path, good, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in forged.refusal(path)
    bomb = [("x/data/1", bytes(10**8))]
    forged.archive(path, good, extra=bomb, compression=zipfile.ZIP_BZIP2)
    assert "compressed" in forged.refusal(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        forged.archive(path, good, extra=[("x/data/0", b"")])
    assert "duplicated" in forged.refusal(path)
    for name in ("x/../../etc/passwd", "/etc/passwd"):
        assert "outside" in forged.refusal(
            forged.archive(path, good, extra=[(name, b"")])
        )
    assert "no data.pkl" in forged.refusal(
        forged.archive(path, good, extra=[], top="x/y")
    )
    assert "byte order" in forged.refusal(
        forged.archive(path, good, extra=[("x/byteorder", b"big")])
    )
    assert torch_file.read(
        forged.archive(path, good, extra=[("x/byteorder", b"little")])
    )


def test_forged_zips_are_refused(tmp_path, monkeypatch):
    path = forged.archive(tmp_path / "x.pth", forged.tensor_pickle((4,), (1,)))
    good = path.read_bytes()
    end = good.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<I", good, end + 16)  # of the directory
    changes = [  # where, what, what the message says
        (start + 20, struct.pack("<II", 10**9, 10**9), "overlaps the next entry"),
        (start + 24, struct.pack("<I", 1), "overlaps the next entry"),
        (start + 42, struct.pack("<I", 20), "overlaps the next entry"),
        (start + 8, b"\1", "encrypted"),
        (start + 16, b"1234", "checksum"),
        (end + 12, b"\xfe\xff\xff\xff", "cut short or damaged"),
        (end, b"1234", "cut short or damaged"),
        (0, b"PK\x03\x05", "starts with"),
        (26, b"\xff\xff", "header is wrong"),
        (28, b"\x2e\0", "header is wrong"),
    ]
    for offset, change, expected in changes:
        data = bytearray(good)
        data[offset : offset + len(change)] = change
        path.write_bytes(data)
        assert expected in forged.refusal(path), (offset, change)
    path.write_bytes(good)
    os.truncate(path, 10**12)  # sparse: the end record is not at the end
    assert "cut short or damaged" in forged.refusal(path)
    path.write_bytes(good)
    monkeypatch.setattr(torch_file, "_MAX_DIRECTORY", 50)
    assert "directory claims" in forged.refusal(path)


def test_other_files_are_named(tmp_path):
    def written(data):
        (tmp_path / "x.pth").write_bytes(data)
        return forged.refusal(tmp_path / "x.pth")

    tensors = {"w": torch.ones(3)}
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert "before 1.6" in forged.refusal(tmp_path / "x.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "x.pth")
    assert "TorchScript" in forged.refusal(tmp_path / "x.pth")
    torch.save(tensors, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        assert "cut short" in written(whole[:size])
    assert "empty" in written(b"")
    assert "PNG" in written(b"\x89PNG\r\n\x1a\n" + bytes(99))
    assert "JPEG" in written(b"\xff\xd8\xff\xe0" + bytes(99))
    assert "HTML" in written(b"<!DOCTYPE html><html>404</html>")
    assert "git lfs pull" in written(b"version https://git-lfs.github.com/spec/v1\n")
    assert "bare pickle" in written(pickle.dumps({"a": 1}))
    assert "safetensors" in written(struct.pack("<Q", 90) + b'{"__metadata__":{}}')
    assert "starts with" in written(b"hello world")
    assert "starts with" in written(b"\n")
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    assert "no data.pkl" in forged.refusal(tmp_path / "x.npz")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x.npz")
    forged.refusal(tmp_path / "x.tar")
    assert "folder" in forged.refusal(tmp_path)
    assert "No such file" in forged.refusal(tmp_path / "none.pth")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in forged.refusal(tmp_path / "pipe")
    with pytest.raises(errors.UserError):
        torch_file.read("a\0b")


def test_file_removed_or_changed_after_opening(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    tensor = torch_file.read(path)["w"]
    torch.save({"w": torch.ones(1000)}, path)
    with pytest.raises(errors.UserError, match="changed"):
        tensor.read()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(errors.UserError):
        tensor.read()
    path.unlink()
    with pytest.raises(errors.UserError, match="No such file"):
        tensor.read()


MEMORY = """
import sys
import numpy as np
from dinov2_jax.weights import torch_file
def peak():
    line = [x for x in open("/proc/self/status") if x.startswith("VmHWM")][0]
    return int(line.split()[1]) // 1024
before, total = peak(), 0
for tensor in torch_file.read(sys.argv[1]).values():
    total += tensor.read().nbytes
    after_first = peak()
print(total // 2**20, peak() - before)
"""


def test_reading_holds_one_tensor(tmp_path):
    tree = {str(i): torch.full((10, 2**18), float(i)) for i in range(10)}
    torch.save(tree, tmp_path / "x.pth")
    total, grown = map(int, forged.run_script(MEMORY, tmp_path / "x.pth").split())
    # One tensor has 10; a machine short of memory takes pages away meanwhile.
    assert total == 100 and 5 < grown < 14  # MiB
