"""Files that torch would never write, and what reading any file gives."""

import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, torch_file


def loaded(node):
    """The tree with its tensors read."""
    if isinstance(node, dict):
        return {key: loaded(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(loaded, node))
    if isinstance(node, lazy_tensor.LazyTensor):
        array = node.read()
        assert (array.shape, array.dtype) == (node.shape, node.dtype)
        assert array.flags.c_contiguous
        return array
    return node


def refusal(path):
    with pytest.raises(errors.UserError) as error:
        loaded(torch_file.read(path))
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def archive(path, data, *, top="x", extra=(), compression=zipfile.ZIP_STORED):
    """A zip like torch's, around any pickle; one storage of 4 floats."""
    entries = [
        (f"{top}/data.pkl", data),
        (f"{top}/data/0", bytes(np.arange(4, dtype=np.float32))),
        *extra,
    ]
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def tensor_pickle(shape, stride, *, offset=0, size=4, key="0", kind="FloatStorage"):
    class Stub(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", "KIND", key, "cpu", size) if value == "S" else None

    out = io.BytesIO()
    Stub(out, 2).dump(("S", offset, shape, stride, False, None))
    call = out.getvalue()[2:-1].replace(
        b"X\x04\0\0\0KIND", f"ctorch\n{kind}\n".encode()
    )
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + call + b"R."


def run_script(script, *args):
    """In a fresh process, so that a crash is seen and memory is its own."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout
