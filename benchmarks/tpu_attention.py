"""Compiled cycles of our TPU attention, XLA's, and jax's flash and splash kernels.

    python -m benchmarks.tpu_attention [--chips v6e ...] [--groups 38x257 ...]

All do the same job: from the packed projection [1, count * length, 3 * D] to the output
(and, in the second column, the packed gradient too), with 16 heads of 64 in bfloat16.
Operations around the kernels (padding to whole tiles, transposes) count. The peers use
one block per sequence; other blocks were not searched. Nothing is run: see
`benchmarks/tpu_cycles.py` for the meaning of the cycles. Prints a table in picoseconds
per score and writes benchmarks/results/tpu_attention.json, keeping rows of earlier runs
that are not measured again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

RESULTS = pathlib.Path(__file__).parent / "results" / "tpu_attention.json"
KEY = ("chip", "group", "name", "backward")
HEADS = 16
WIDTH = 64 * HEADS
IMPLEMENTATIONS = ("ours", "xla", "flash", "splash")
# Chip -> topology, Hz (peak FLOP/s over FLOPs per cycle), bytes/s of main memory.
CHIPS = {
    "v5e": ("v5e:2x4", 1.5e9, 819e9),
    "v5p": ("v5:2x2x1", 1.75e9, 2765e9),
    "v6e": ("v6e:2x4", 1.75e9, 1640e9),
}
GROUPS = ("38x257", "153x50", "64x257", "40x197", "40x261", "4x1370")


def padded_heads(qkv, count, length, keys):
    """Map [1, T, 3 * D] to [3, count, H, keys, 64] and segment ids [count, keys]."""
    import jax.numpy as jnp

    x = qkv.reshape(count, length, 3, HEADS, 64).transpose(2, 0, 3, 1, 4)
    x = jnp.pad(x, ((0, 0),) * 3 + ((0, keys - length), (0, 0)))
    segments = (jnp.arange(keys) >= length).astype(jnp.int32)
    return x, jnp.broadcast_to(segments, (count, keys))


def unpadded(out, count, length):
    """Map [count, H, keys, 64] to [1, T, D]."""
    out = out[:, :, :length].transpose(0, 2, 1, 3)
    return out.reshape(1, count * length, WIDTH)


def ours(qkv, count, length):
    """Run this project's kernel."""
    from dinov2_jax.kernels import attention_tpu

    return attention_tpu.attention(qkv, count=count, length=length, num_heads=HEADS)


def xla(qkv, count, length):
    """Run XLA's einsum and softmax."""
    from dinov2_jax.kernels import attention

    return attention.attention(
        qkv, sequences=((count, length),), num_heads=HEADS, implementation="xla"
    )


def flash(qkv, count, length):
    """Run `jax.experimental.pallas.ops.tpu.flash_attention`."""
    from jax.experimental.pallas.ops.tpu import flash_attention

    keys = -(-length // 128) * 128
    (q, k, v), segments = padded_heads(qkv, count, length, keys)
    out = flash_attention.flash_attention(
        q,
        k,
        v,
        segment_ids=flash_attention.SegmentIds(segments, segments),
        sm_scale=64**-0.5,
        block_sizes=flash_attention.BlockSizes(
            block_q=keys,
            block_k_major=keys,
            block_k=keys,
            block_b=1,
            block_q_major_dkv=keys,
            block_k_major_dkv=keys,
            block_k_dkv=keys,
            block_q_dkv=keys,
            block_k_major_dq=keys,
            block_k_dq=keys,
            block_q_dq=keys,
        ),
    )
    return unpadded(out, count, length)


def splash(qkv, count, length):
    """Run `jax.experimental.pallas.ops.tpu.splash_attention`."""
    import jax
    from jax.experimental.pallas.ops.tpu import splash_attention

    keys = -(-length // 128) * 128
    mask = splash_attention.FullMask((keys, keys))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * HEADS),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention.BlockSizes(
            block_q=keys,
            block_kv=keys,
            block_q_dkv=keys,
            block_kv_dkv=keys,
            use_fused_bwd_kernel=True,
        ),
    )
    (q, k, v), segments = padded_heads(qkv, count, length, keys)
    ids = splash_attention.SegmentIds(segments, segments)
    out = jax.vmap(kernel)(q * 64**-0.5, k, v, segment_ids=ids)
    return unpadded(out, count, length)


def worker(name, chip, group, dump):
    """Compile one contestant and print its cycles, forward and with backward."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from benchmarks import tpu_cycles

    count, length = map(int, group.split("x"))
    function = {"ours": ours, "xla": xla, "flash": flash, "splash": splash}[name]

    def forward(qkv, dout):
        del dout
        return function(qkv, count, length)

    def both(qkv, dout):
        out, pullback = jax.vjp(lambda x: function(x, count, length), qkv)
        return out, pullback(dout)[0]

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip][0]
    )
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    arguments = [
        jax.ShapeDtypeStruct(
            (1, count * length, width), jnp.bfloat16, sharding=sharding
        )
        for width in (3 * WIDTH, WIDTH)
    ]
    cycles = []
    for program in (forward, both):
        traced = jax.jit(program).trace(*arguments)
        compiled = traced.lower().compile()
        cycles.append(
            tpu_cycles.program_cycles(
                compiled.as_text(),
                tpu_cycles.kernels(traced.jaxpr.jaxpr),
                tpu_cycles.bundles(dump),
            )
        )
        for path in dump.iterdir():
            path.unlink()
    print(json.dumps(cycles))


def measure(name, chip, group):
    """Return cycles by part, forward and with backward, or the compiler's error."""
    from benchmarks import tpu_cycles

    with tempfile.TemporaryDirectory() as dump:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tpu_attention", "--worker"]
            + [name, chip, group, dump],
            env=tpu_cycles.environment(None if name == "xla" else pathlib.Path(dump)),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        return [{"error": done.stderr.strip().splitlines()[-1]}] * 2
    return json.loads(done.stdout.splitlines()[-1])


def rows(name, chip, group):
    """Return two rows of the results: forward, and with backward."""
    count, length = map(int, group.split("x"))
    scores = count * length**2 * HEADS
    found = []
    for cycles, passes in zip(measure(name, chip, group), (4, 11)):
        result = dict(name=name, chip=chip, group=group, backward=passes > 4)
        if "error" in cycles:
            found.append(result | cycles)
            continue
        _, clock, bandwidth = CHIPS[chip]
        seconds = sum(cycles.values()) / clock
        if name == "ours":
            # Forward moves q, k, v and out; backward moves q, k, v, dout and dqkv.
            moved = passes * 2 * count * length * WIDTH
            result["memory_share"] = round(moved / bandwidth / seconds, 3)
        found.append(
            result
            | {
                "cycles": cycles,
                "microseconds": round(seconds * 1e6, 1),
                "picoseconds_per_score": round(seconds / scores * 1e12, 2),
            }
        )
    return found


def main():
    """Compile everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--groups", nargs="+", default=GROUPS)
    parser.add_argument("--names", nargs="+", default=IMPLEMENTATIONS)
    options = parser.parse_args()

    from benchmarks import environment

    results = {}
    if RESULTS.exists():
        for row in json.loads(RESULTS.read_text())["rows"]:
            results[tuple(row[field] for field in KEY)] = row
    print("ps a score, forward | forward and backward")
    print(f"{'':12}" + "".join(f"{name:>18}" for name in options.names))
    for chip in options.chips:
        for group in options.groups:
            print(f"{chip:5}{group:7}", end="")
            for name in options.names:
                pair = rows(name, chip, group)
                results |= {tuple(row[field] for field in KEY): row for row in pair}
                texts = [str(r.get("picoseconds_per_score", "-")) for r in pair]
                print(f"{' | '.join(texts):>18}", end="", flush=True)
            print()
            report = {
                "environment": environment.describe(["jax", "jaxlib"]),
                "rows": [results[key] for key in sorted(results)],
            }
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:5], pathlib.Path(sys.argv[5]))
    else:
        main()
