import json
import os
import subprocess
import sys

import hlo_snippets
import pytest

from dinov2_jax.aot import collectives, hlo


def find(text, num_devices=8):
    return collectives.find(hlo.parse(text), num_devices)


def test_a_pair_in_a_loop_counts_once_an_iteration():
    gather, reduce = find(hlo_snippets.LOOP, 16)
    assert (gather.kind, gather.dtype, gather.count) == ("all-gather", "bf16", 12)
    assert gather.group_size == 8  # of the second axis of the mesh
    assert gather.payload_bytes == 12 * 384 * 384 * 2  # what each device ends with
    assert gather.sent_bytes == 12 * 384 * 384 * 2 * 7 / 8
    assert (reduce.kind, reduce.dtype, reduce.count) == ("all-reduce", "f32", 12)
    assert reduce.group_size == 16
    assert reduce.payload_bytes == 12 * 384 * 4
    assert reduce.sent_bytes == 2 * 12 * 384 * 4 * 15 / 16


def test_split_and_fused_collectives():
    found = {(c.kind, c.dtype): c for c in find(hlo_snippets.FUSED)}
    assert len(find(hlo_snippets.FUSED)) == len(found) == 6
    pieces = found["all-gather", "f32"]
    assert (pieces.count, pieces.shapes) == (1, ((128, 64),))
    padded = found[collectives.PADDED_GATHER, "bf16"]
    assert padded.shapes == ((96,),)
    assert padded.sent_bytes == 2 * 96 * 2 * 7 / 8
    assert found[collectives.PADDED_GATHER, "f32"].shapes == ((2400,),)
    scattered = found["reduce-scatter", "bf16"]
    assert scattered.payload_bytes == 64 * 64 * 2
    assert scattered.sent_bytes == 64 * 64 * 2 * 7 / 8
    assert found["collective-permute", "bf16"].sent_bytes == 64 * 64 * 2
    assert found["all-to-all", "bf16"].sent_bytes == 64 * 64 * 2 * 7 / 8


def test_a_sum_of_whole_arrays_is_no_gather():
    text = hlo_snippets.FUSED.replace(
        "all-reduce(%padded.1, %padded.2)", "all-reduce(%z.1, %padded.2)"
    )
    assert collectives.PADDED_GATHER not in {c.kind for c in find(text)}


def test_float32_weights_and_activations_are_distinguished():
    # A stack of two [128, 64] matrices, and a vector of 2400.
    weights = collectives.weight_shapes([((2, 128, 64), True), ((2400,), False)])
    found = find(hlo_snippets.FUSED)
    gathers = collectives.float32_weight_gathers(found, weights)
    assert [c.op_name for c in gathers] == ["jit(step)/w", "jit(step)/n"]
    assert not collectives.activation_gathers(found, weights)
    large = find(hlo_snippets.FUSED.replace("128,64]", "131072,64]"))
    assert [c.op_name for c in collectives.activation_gathers(large, weights)] == [
        "jit(step)/w"
    ]
    # Of 24 elements, every device has them whole anyway.
    small = find(hlo_snippets.FUSED.replace("f32[2400]", "f32[24]"))
    gathers = collectives.float32_weight_gathers(small, weights | {(24,)})
    assert [c.op_name for c in gathers] == ["jit(step)/w"]
    # Eight shards of 15 rows are gathered as shards of 16.
    padded = collectives.weight_shapes([((120, 64), False), ((2400,), False)])
    assert len(collectives.float32_weight_gathers(found, padded)) == 2
    # Each shard's rows may be an axis of their own.
    split = collectives.weight_shapes([((8 * 64, 16), False)])
    assert len(collectives.float32_weight_gathers(found, split)) == 1
    # What is cast before it is gathered is as it should be.
    cast = find(hlo_snippets.FUSED.replace("f32[", "bf16["))
    assert not collectives.float32_weight_gathers(cast, weights)


# Five sums of [6, 32] over all devices in a scan, then one gather of 8 times that.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from dinov2_jax import sharding
from dinov2_jax.aot import collectives, hlo

mesh = sharding.make_mesh()

def step(x):
    def layer(x, _):
        return jax.lax.psum(x, ("replica", "fsdp")) * 0.5, None
    x, _ = jax.lax.scan(layer, x, length=5)
    whole = jax.lax.all_gather(x.astype(jnp.bfloat16), "fsdp", tiled=True)
    return x + whole.astype(jnp.float32).sum()

step = jax.shard_map(step, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"),
                     check_vma=False)
x = jax.ShapeDtypeStruct((8 * 6, 32), jnp.float32,
                         sharding=NamedSharding(mesh, P("fsdp")))
module = hlo.parse(jax.jit(step).lower(x).compile().as_text())
found = collectives.find(module, 8)
json.dump([[c.kind, c.dtype, c.count, c.group_size, c.payload_bytes] for c in found],
          sys.stdout)
"""


@pytest.fixture(scope="module")
def compiled_for_eight_cpus():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_program_with_known_collectives(compiled_for_eight_cpus):
    found = {row[0]: row[1:] for row in compiled_for_eight_cpus}
    assert len(found) == len(compiled_for_eight_cpus)
    assert found["all-reduce"] == ["f32", 5, 8, 5 * 6 * 32 * 4]
    # XLA for CPUs has no bfloat16 collectives and may widen this one.
    dtype, count, group_size, payload = found["all-gather"]
    assert (count, group_size) == (1, 8)
    assert payload == 48 * 32 * {"bf16": 2, "f32": 4}[dtype]
