"""The TPU kernels through the real compiler for TPUs, which needs none.

Each test is a process of its own: libtpu reads its settings once.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import processes
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TOPOLOGIES = {"v5e": "v5e:2x4", "v5p": "v5:2x2x2", "v6e": "v6e:2x4"}
HEADS = 16


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


@pytest.mark.parametrize(
    "chip, crops",
    [
        ("v5e", "38x257,153x50"),
        ("v5p", "38x257,153x50"),
        ("v6e", "38x257,153x50"),
        ("v5e", "3x37,20x197"),
        ("v5p", "4x1370,1x1374"),
        ("v6e", "2x257,9x50:float32"),
    ],
)
def test_forward_and_backward_compile(chip, crops):
    assert run(TOPOLOGIES[chip], crops).split() == ["2"] * crops.count("x")


def main(topology_name, crops):
    """Compiles the gradient for all devices and prints the number of its kernels."""
    import functools

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from dinov2_jax.kernels import attention_tpu

    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
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
        print(compiled.as_text().count('custom_call_target="tpu_custom_call"'))


if __name__ == "__main__":
    main(*sys.argv[1:])
