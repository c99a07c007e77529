"""Registers, spills and memory of GPU attention, compiled for an H200 without one.

`python -m benchmarks.gpu_compile` compiles the forward and the training step of one
attention with our kernels and with cuDNN's. It prints registers and spilled bytes per
thread (of ours; cuDNN's are precompiled) and the bytes that XLA allocates besides
arguments and results. Needs absl-py and jax[cuda13] (4.4 GB), but no GPU.
"""

import contextlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dinov2_jax import aot
from dinov2_jax.kernels import attention_cudnn, attention_gpu

LENGTHS = (37, 50, 54, 197, 257, 261, 1370, 1374)
GROUPS, COUNT, HEADS = 32, 2, 16
H200 = pathlib.Path(aot.__file__).with_name("h200.txtpb")


@contextlib.contextmanager
def capture_output() -> Iterator[list[str]]:
    """Capture what the process prints, C++ included, as the only entry of a list."""
    text = []
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as file:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield text
        finally:
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            text.append(file.read())


def training(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the gradient function of `attend`, which includes the forward pass."""
    return jax.grad(lambda qkv: jnp.sum(attend(qkv).astype(jnp.float32) ** 2))


def main() -> None:
    """Print a line for each length, kernel and direction."""
    device = topologies.get_topology_desc(
        topology_name="",
        platform="cuda",
        topology="1x1x1",
        target_config=H200.read_text(),
    ).devices[0]
    print("length kernel direction registers spilled_bytes temporary_MiB")
    for length in LENGTHS:
        for module in (attention_gpu, attention_cudnn):
            for direction in ("forward", "training"):
                compile_one(module, direction, length, device)


def compile_one(module, direction: str, length: int, device) -> None:
    """Print the line of one program."""

    def attend(qkv):
        return module.attention(qkv, count=COUNT, length=length, num_heads=HEADS)

    qkv = jax.ShapeDtypeStruct(
        (GROUPS, COUNT * length, 3 * 64 * HEADS),
        jnp.bfloat16,
        sharding=jax.sharding.SingleDeviceSharding(device),
    )
    function = training(attend) if direction == "training" else attend
    name = module.__name__.rpartition("_")[2]
    try:
        with capture_output() as text:
            compiled = jax.jit(function).lower(qkv).compile()
    except NotImplementedError as error:
        print(length, name, direction, error)
        return
    registers = re.findall(r"Used (\d+) registers", text[0])
    spills = map(int, re.findall(r"(\d+) bytes spill", text[0]))
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(
        *(length, name, direction, ",".join(registers) or "-"),
        *(sum(spills) if registers else "-", f"{memory:.1f}"),
    )


if __name__ == "__main__":
    main()
