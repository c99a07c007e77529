"""Pickles made to break the reader or to take it over; none may do either."""

import os
import pathlib
import pickle
import struct
import subprocess
import zlib

import forged
import pytest
from peers import torch

from dinov2_jax.weights import torch_file, torch_pickle


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args, state)

    def __reduce__(self):
        return self.call


CALLS = {
    "posix.system": Call(os.system, "touch sentinel"),
    "builtins.eval": Call(eval, "open('sentinel', 'w')"),
    "builtins.getattr": Call(getattr, "", "__class__"),
    "builtins.__import__": Call(__import__, "sentinel"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", "sentinel"]),
    "pathlib.PosixPath": {"model": 1, "path": pathlib.PosixPath("a")},
    "zlib.crc32": {"a": zlib.crc32},
    "torch.storage._load_from_bytes": {"a": Call(torch.storage._load_from_bytes, b"")},
}


@pytest.mark.parametrize("name", CALLS)
def test_foreign_globals_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        data = pickle.dumps(CALLS[name], protocol, fix_imports=False)
        message = forged.refusal(forged.archive(tmp_path / "x.pth", data))
        assert f"asks to run {name}; refused, nothing was executed" in message
        assert "torch.save({" in message
    assert not pathlib.Path("sentinel").exists()


OD = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DEEP = b"\x85" * 300_000
LEVELS = b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(7))
ESCAPES = {  # by what the message says
    "unknown arguments": {
        "a function with others": REBUILD + b"(X\2\0\0\0osNtR.",
        "a function with few": REBUILD + b"(tR.",
        "OrderedDict with some": OD + b"(]tR.",
        "a dict": b"}(tR.",
        "a class": b"ctorch\nFloatStorage\n(tR.",
        "a string": b"X\x09\0\0\0os.system(tR.",
    },
    "modifies something other": {
        "state for a function": REBUILD + b"}X\1\0\0\0aNsb.",
        "slots for a function": REBUILD + b"N}X\x0c\0\0\0__defaults__Ns\x86b.",
        "state for a class": OD + b"}X\3\0\0\0popNsb.",
        "items for a class": OD + b"X\1\0\0\0aNs.",
        "an item for a dict": OD + b")RNa.",
    },
    "a function or a class as a value": {
        "a function alone": REBUILD + b".",
        "a function within": b"}X\1\0\0\0a" + REBUILD + b"s.",
        "a class within": b"}X\1\0\0\0actorch\nFloatStorage\ns.",
    },
    "uses the opcode": {
        "NEWOBJ": OD + b")\x81.",
        "NEWOBJ_EX": OD + b")}\x92.",
        "OBJ": b"(" + OD + b"o.",
        "INST": b"(ios\nsystem\n.",
        "EXT1": b"\x82\x01.",
        "EXT4": b"\x84\xff\xff\xff\x7f.",
        "PERSID": b"Pstorage\n.",
        "NEXT_BUFFER": b"\x97.",
        "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1) + b"a.",
    },
    "storage in an unknown form": {
        "another kind": b"(X\6\0\0\0modulectorch\nFloatStorage\nX\1\0\0\x000NK\1tQ.",
        "a function": b"(X\7\0\0\0storage" + OD + b"X\1\0\0\x000NK\1tQ.",
        "a module": b"X\6\0\0\0moduleQ.",
    },
    "asks to run": {
        "a name from parts": b"X\2\0\0\0osX\6\0\0\0system\x93.",
        "a name with a dot": b"\x8c\x05torch\x8c\x0d_utils.os.sys\x93.",
        "a long name": b"ca\n" + b"b" * 10**6 + b"\n.",
    },
    "key": {
        "a list as key": b"}]Ns.",
        "a deep tuple as key": b"})" + DEEP + b"Ns.",
        "a key without a value": b"}(Nu.",
    },
    "nested more than 100 deep": {
        "one": b")" + DEEP + b".",
        "in pieces": b"](" + b")q\0" + (b"h\0" + DEEP[:90] + b"q\0") * 50 + b"e.",
        "a cycle": b"]q\0h\0a.",
        "a cycle through a dict": b"}q\0X\1\0\0\0ah\0s.",
    },
    "expands to more": {"a billion laughs": b"]q\0" + LEVELS + b"."},
    "opcodes": {"many": b"N" * (torch_pickle.MAX_OPCODES + 1) + b"."},
    "damaged": {
        "a string of 4 GB": b"X\xff\xff\xff\xff.",
        "bytes of 2**62": b"\x8e" + struct.pack("<Q", 2**62) + b".",
        "bytearray of 2**40": b"\x96" + struct.pack("<Q", 2**40) + b".",
        "an integer of 2 GB": b"\x8b\xff\xff\xff\x7f.",
        "a frame of 2**60": b"\x95" + struct.pack("<Q", 2**60) + b".",
        "nothing": b"",
        "stop alone": b".",
        "a mark too few": b"Nt.",
        "no stop": b"N",
        "no pickle": b"\xff\xfe\0",
        "a key not in the memo": b"h\7.",
    },
}


@pytest.mark.parametrize("expected", ESCAPES)
def test_escapes_and_bombs_are_refused(tmp_path, expected):
    for name, data in ESCAPES[expected].items():
        path = forged.archive(tmp_path / "x.pth", b"\x80\x02" + data)
        message = forged.refusal(path)
        assert expected in message, name
        assert len(message) < 500, name


def test_a_memo_number_costs_no_memory(tmp_path):
    data = b"\x80\x02K\x05r\xff\xff\xff\xff."
    assert torch_file.read(forged.archive(tmp_path / "x.pth", data)) == 5


def test_a_huge_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "_MAX_PICKLE", 1000)
    assert "data.pkl" in forged.refusal(
        forged.archive(tmp_path / "x.pth", b"N" * 1000 + b".")
    )


VIEWS = {
    "beyond the end": dict(shape=(5,), stride=(1,)),
    "offset": dict(shape=(2,), stride=(1,), offset=3),
    "negative offset": dict(shape=(2,), stride=(1,), offset=-1),
    "stride": dict(shape=(2, 2), stride=(3, 1)),
    "negative stride": dict(shape=(2,), stride=(-1,), offset=1),
    "negative size": dict(shape=(-1,), stride=(1,)),
    "expanding": dict(shape=(10**12,), stride=(0,)),
    "expanding by overlaps": dict(shape=(3, 2), stride=(1, 1)),
    "huge": dict(shape=(2**62, 2**62), stride=(0, 0)),
    "huge and empty": dict(shape=(2**62, 2**62, 0), stride=(1, 1, 1)),
    "storage larger than its entry": dict(shape=(5,), stride=(1,), size=5),
    "wider elements": dict(shape=(4,), stride=(1,), kind="DoubleStorage"),
    "no such entry": dict(shape=(4,), stride=(1,), key="1"),
    "a path as key": dict(shape=(4,), stride=(1,), key="../data/0"),
    "ranks": dict(shape=(4,), stride=(1, 1)),
    "many ranks": dict(shape=(1,) * 100, stride=(1,) * 100),
    "floats": dict(shape=(4.0,), stride=(1,)),
    "bools": dict(shape=(True,), stride=(1,)),
    "empty storage": dict(shape=(), stride=(), size=0),
    "negative storage": dict(shape=(0,), stride=(1,), size=-1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_outside_their_storage_are_refused(tmp_path, name):
    forged.refusal(
        forged.archive(tmp_path / "x.pth", forged.tensor_pickle(**VIEWS[name]))
    )


FUZZ = """
import pathlib, random, resource, sys, zipfile
import numpy as np
from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, torch_file
source, scratch = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)
good, rng, parsed = source.read_bytes(), random.Random(0), 0
entries = {x.filename: zipfile.ZipFile(source).read(x)
           for x in zipfile.ZipFile(source).infolist()}

def mutated(data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        i = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0: data[i] ^= 1 << rng.randrange(8)
        elif kind == 1: data[i] = rng.choice(b"\\0\\xff\\x7f.(tRbsuq\\x85NX")
        elif kind == 2: data[i:i + 4] = rng.randbytes(4)
        elif kind == 3: del data[i:i + rng.randrange(1, 40)]
        elif kind == 4: data[i:i] = data[rng.randrange(len(data)):][:rng.randrange(40)]
        else: data[i:i + 4] = b"\\xff\\xff\\xff" + rng.randbytes(1)
        if not data: break
    return bytes(data)

def walk(node):
    if isinstance(node, dict): node = list(node.values())
    if isinstance(node, (list, tuple)): return [walk(x) for x in node]
    if isinstance(node, lazy_tensor.LazyTensor):
        assert node.read().shape == node.shape
for n in range(3000):
    if n % 3 == 0:
        scratch.write_bytes(mutated(good))
    else:  # past the checksum of data.pkl
        with zipfile.ZipFile(scratch, "w") as out:
            for name, content in entries.items():
                is_pkl = name.endswith("data.pkl")
                out.writestr(name, mutated(content) if is_pkl else content)
    try:
        walk(torch_file.read(scratch))
        parsed += 1
    except errors.UserError as error:
        assert "\\n" not in str(error) and len(str(error)) < 1000, error
peak = [x for x in open("/proc/self/status") if x.startswith("VmHWM")][0].split()[1]
print(parsed, int(peak) // 1024)
"""


def test_no_mutation_raises_anything_else(tmp_path):
    base = torch.randn(3, 4)
    tree = {"model": {"w": base, "t": base.T, "p": torch.nn.Parameter(base[0])}}
    tree |= {"s": [torch.tensor(1, dtype=torch.bfloat16), 1.5, "x", (None, True)]}
    module = torch.nn.Linear(2, 2).state_dict()
    torch.save(tree | {"m": module}, tmp_path / "saved.pth")
    out = forged.run_script(FUZZ, tmp_path / "saved.pth", tmp_path / "scratch.pth")
    parsed, peak = map(int, out.split())
    assert 0 < parsed < 2500
    assert peak < 150  # MiB, the interpreter with NumPy included
