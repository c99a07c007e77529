"""The package as a library: it leaves the process that imports it as it was."""

import ast
import json
import pathlib
import subprocess
import sys

import random_weights
from safetensors import numpy as safetensors_numpy

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "dinov2_jax").rglob("*.py"))
SCRIPT = """
import importlib
import json
import logging
import os
import signal
import sys
import threading
import warnings

others, ours, weights = json.load(sys.stdin)
for name in others:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # a name in a module, or a package that is not installed
import jax
from PIL import Image, ImageFile

jax.devices()  # starting it is jax's own matter


def state():
    names = [None, *logging.Logger.manager.loggerDict]
    loggers = {name: logging.getLogger(name) for name in names}
    found = {
        f"logger {name}": (log.level, log.disabled, [*log.handlers], [*log.filters])
        for name, log in loggers.items()
    }
    for module in (Image, ImageFile):
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, bool | int | float | str | None):
                found[f"{module.__name__}.{name}"] = value
    for number in signal.valid_signals():
        found[f"signal {number}"] = signal.getsignal(number)
    return found | {
        "warnings": [*warnings.filters],
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "logging": (logging.root.manager.disable, logging.lastResort),
        "path": [*sys.path],
        "switching": sys.getswitchinterval(),
        "jax": dict(jax.config.values),
    }


def changed(before):
    after = state()
    return {k: (v, after[k]) for k, v in before.items() if after[k] != v}


before = state()
assert before["PIL.ImageFile.MAXBLOCK"] and "logger PIL" in before
for name in ours:
    importlib.import_module(name)
assert not changed(before), changed(before)
import dinov2_jax

model = dinov2_jax.load(weights, num_heads=2)
assert model.params
assert not changed(before), changed(before)
"""


def other_modules():
    """Names of the modules of other packages that ours import."""
    found = set()
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] != "dinov2_jax"}


def test_importing_every_module_and_loading_a_model(tmp_path):
    weights = tmp_path / "tiny.safetensors"
    tensors = random_weights.tensors(random_weights.small_shapes("vits14"), 0)
    safetensors_numpy.save_file(tensors, weights)
    ours = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    ]
    given = json.dumps([sorted(other_modules()), ours, str(weights)])
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, input=given, text=True, cwd=ROOT, stderr=subprocess.PIPE
    )
    assert done.returncode == 0, done.stderr
