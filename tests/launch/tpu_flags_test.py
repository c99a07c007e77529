"""The flags of the TPU profiles, by the compiler that reads them."""

import subprocess
import sys

import commands
import pytest

from dinov2_jax import errors
from dinov2_jax.aot import machines

# Compiles a product for a chip with each flag for itself and prints those refused.
PROGRAM = """
import sys
import numpy as np
from dinov2_jax.aot import machines
machine = machines.parse(sys.argv[1])
machines.prepare(machine)
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.asarray(machines.devices(machine)).reshape(-1), "x")
rows = NamedSharding(mesh, PartitionSpec("x"))
product = jax.jit(lambda x: x @ x, in_shardings=rows, out_shardings=rows)
lowered = product.lower(jax.ShapeDtypeStruct((256, 256), "float32"))
for flag in sys.argv[2:]:
    name, value = flag.lstrip("-").split("=")
    value = {"true": True, "false": False}.get(value, value)
    try:
        lowered.compile(compiler_options={name: value})
    except Exception:
        print(name)
"""


def has_libtpu():
    try:
        return machines.libtpu() is not None
    except errors.UserError:
        return False


@pytest.mark.skipif(
    not has_libtpu(), reason="needs libtpu: pip install -r requirements-aot.txt"
)
@pytest.mark.parametrize(
    "chip, profiles",
    [
        ("v6e:2x2", ["tpu-v6e", "tpu-multislice", "tpu-check"]),
        ("v5p:2x2x1", ["tpu-v5p"]),
    ],
)
def test_the_compiler_knows_the_flags(chip, profiles):
    flags = ["--xla_tpu_enable_magic=true", "--xla_tpu_scoped_vmem_limit_kib=much"]
    for profile in profiles:
        text = (commands.LAUNCH / f"flags/{profile}.env").read_text()
        for line in text.splitlines():
            # megascale_* are read by the runtime alone.
            if line.startswith("LIBTPU_INIT_ARGS=--") and "megascale" not in line:
                flags.append(line.partition("=")[2])
    assert len(flags) > 4
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, chip, *flags],
        cwd=commands.LAUNCH.parent,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [x.split("=")[0].lstrip("-") for x in flags[:2]]
