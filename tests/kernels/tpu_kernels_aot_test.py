"""The TPU kernels through the real compiler for TPUs, which needs none.

Each test is a process of its own: libtpu reads its settings once.
"""

import functools
import importlib.util
import math
import os
import pathlib
import subprocess
import sys

import processes
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TOPOLOGIES = {"v5e": "v5e:2x4", "v5p": "v5:2x2x2", "v6e": "v6e:2x4"}
HEADS = 16
KERNEL = 'custom_call_target="tpu_custom_call"'


def library() -> str | None:
    """libtpu.so; None where jax finds it by itself or there is none."""
    places = [os.environ.get("TPU_LIBRARY_PATH", "")]
    places.append(str(ROOT / ".venv/libtpu/libtpu/libtpu.so"))
    return next((place for place in places if os.path.isfile(place)), None)


pytestmark = pytest.mark.skipif(
    library() is None and importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed",
)


def run(*arguments: str) -> str:
    environment = processes.as_users() | {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_LOG_DIR": "disabled",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    if library():
        environment["TPU_LIBRARY_PATH"] = library()
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def quick_and_slow(quick, *slow):
    return [quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


@pytest.mark.parametrize(
    "chip, crops",
    quick_and_slow(
        ("v5e", "1x257,3x50"),
        ("v5e", "38x257,153x50"),
        ("v5p", "38x257,153x50"),
        ("v6e", "38x257,153x50"),
        ("v5e", "3x37,20x197"),
        ("v5p", "4x1370,1x1374"),
        ("v6e", "2x257,9x50:float32"),
    ),
)
def test_attention_compiles(chip, crops):
    numbers = run("attention", TOPOLOGIES[chip], crops).split()
    assert numbers == ["2"] * crops.count("x")


@pytest.mark.parametrize(
    "chip, moves",
    quick_and_slow(
        ("v6e", "8x50x384:5"),
        ("v5p", "24x257x1536:14,8x261x384:5"),
        ("v5e", "9x197x768:6,96x37x384:57"),
        ("v6e", "6x54x768:6,8x50x384:5:float32"),
    ),
)
def test_crops_leave_and_rejoin(chip, moves):
    """Taken and added ahead, added and taken on the way back, by kernels alone."""
    numbers = run("crops", TOPOLOGIES[chip], moves).split()
    assert numbers == ["4", "0"] * len(moves.split(","))


def attention(topology, crops):
    """Compiles the gradient for all devices and prints the number of its kernels."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from dinov2_jax.kernels import attention_tpu

    groups = len(topology.devices)
    mesh = Mesh(topology.devices, ("fsdp",), axis_types=(AxisType.Auto,))
    crops, _, dtype = crops.partition(":")
    for group in crops.split(","):
        count, length = map(int, group.split("x"))
        kernel = functools.partial(
            attention_tpu.attention, count=count, length=length, num_heads=HEADS
        )

        mapped = jax.shard_map(
            kernel, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp")
        )

        def loss(qkv, mapped=mapped):
            return jnp.sum(mapped(qkv).astype(jnp.float32) ** 2)

        qkv = jax.ShapeDtypeStruct(
            (groups, count * length, 3 * 64 * HEADS),
            dtype or jnp.bfloat16,
            sharding=NamedSharding(mesh, P("fsdp")),
        )
        compiled = jax.jit(jax.grad(loss)).lower(qkv).compile()
        print(compiled.as_text().count(KERNEL))


def crops(topology, moves):
    """The same of a branch on some crops; prints kernels, and what XLA moves itself."""
    import jax
    import jax.numpy as jnp

    from dinov2_jax import sharding
    from dinov2_jax.aot import hlo
    from dinov2_jax.kernels import crops, layer_norm

    mesh = sharding.make_mesh(devices=topology.devices)
    for move in moves.split(","):
        shape, kept, *dtype = move.split(":")
        dtype = jnp.dtype(*dtype or ["bfloat16"])
        batch, length, width = map(int, shape.split("x"))

        def loss(x, kept, weight, bias):
            x, tokens, statistics = crops.leave(x, kept)
            (residual,) = layer_norm.project(tokens, (weight,), statistics)
            out = crops.rejoin(x, kept, residual, bias).astype(jnp.float32)
            return jnp.sum(jnp.square(out))

        groups = (mesh.size,)
        shapes = [
            ((*groups, batch, length, width), dtype, sharding.BATCH),
            ((*groups, int(kept)), jnp.int32, sharding.BATCH),
            ((width, width), dtype, None),
            ((width,), dtype, None),
        ]
        arguments = [
            jax.ShapeDtypeStruct(
                shape,
                dtype,
                sharding=jax.NamedSharding(mesh, spec or jax.P()),
            )
            for shape, dtype, spec in shapes
        ]
        with jax.set_mesh(mesh):
            gradient = jax.jit(jax.grad(loss, (0, 2, 3)))
            text = gradient.lower(*arguments).compile().as_text()
        size = int(kept) * length * width
        moved = [
            instruction
            for computation in hlo.parse(text).computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode in ("gather", "scatter", "reshape", "transpose")
            and math.prod(instruction.arrays[0].dims) >= size
        ]
        print(text.count(KERNEL), len(moved))


def main(name, topology_name, shapes):
    """What the tests start: compiles one of the kernels and prints what is in it."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
    {"attention": attention, "crops": crops}[name](topology, shapes)


if __name__ == "__main__":
    main(*sys.argv[1:])
