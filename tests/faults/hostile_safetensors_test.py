"""Headers of .safetensors files with false claims."""

import json
import os
import resource

import pytest

from dinov2_jax import errors
from dinov2_jax.weights import safetensors_file


def file(header, data=bytes(64), length=None):
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    length = len(header) if length is None else length
    return length.to_bytes(8, "little") + header + data


def tensor(begin, end, shape=(2, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {
    "a header of 8 EB": file(b"{}", length=2**63),
    "a header of 1 TB": file(b"{}", length=2**40),
    "a deep header": file(b'{"a":' * 100_000),
    "many tensors of nothing, cut": file(
        {f"{i}": tensor(0, 0, (0,)) for i in range(10**5)}, data=b""
    )[:-1],
    "overlapping tensors": file({"a": tensor(0, 32), "b": tensor(16, 48)}),
    "the same bytes twice": file({"a": tensor(0, 32), "b": tensor(0, 32)}),
    "a hole": file({"a": tensor(0, 32), "b": tensor(40, 72)}),
    "beyond the end": file({"a": tensor(0, 2**40, (2**38,))}),
    "an end before its beginning": file({"a": tensor(32, 0)}),
    "a negative beginning": file({"a": tensor(-32, 0)}),
    "another size than its shape": file({"a": tensor(0, 64)}),
    "a size beyond 64 bits": file({"a": tensor(0, 64, (2**40, 2**40))}),
    "no list": file(b"[]"),
    "no text": file(b"\xff\xfe\x00"),
    "a number for a tensor": file({"a": 7}),
    "an unknown type": file({"a": tensor(0, 64, dtype="F33")}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_in_a_line(name, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    assert_refused(path)


def test_a_header_as_long_as_a_file_of_a_terabyte(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**40 - 8).to_bytes(8, "little") + b"{")
    os.truncate(path, 2**40)  # which takes no room on the disk
    assert_refused(path)


def assert_refused(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.UserError) as refused:
        for found in safetensors_file.read(path).values():
            found.read()
    assert refused.value.exit_code == errors.BAD_INPUT
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # kilobytes
