"""Attention on sequences of DINOv2's lengths, with every kernel that runs here.

Times forward, and forward with backward, from the packed projection [1, T, 3*D] to
[1, T, D], as in the model, with head dimension 64. The lengths are those of crops: 36,
49, 196, 256 and 1369 patches with a class token, with registers, or both. The peer is
PyTorch's `scaled_dot_product_attention` from and to the same layout. FLOPs are those of
the two products, and twice as many backward.
"""

import sys
from typing import Any

from benchmarks import report, timing, workers
from benchmarks.settings import Settings

LENGTHS = (37, 50, 54, 197, 257, 261, 1370)
HEAD_DIM = 64
IMPLEMENTATIONS = {  # of `dinov2_jax.kernels.attention`, by platform
    "cpu": ("xla", "by_image", "auto"),
    "gpu": ("xla", "cudnn", "pallas_gpu", "auto"),
    "tpu": ("xla", "pallas_tpu", "auto"),
}
PEER = "torch"
PASSES = {"forward": 1, "both": 3}  # times the forward pass's FLOPs


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    lengths, tokens, heads, dtype = LENGTHS, 4096, 6, "float32"
    inner = 1
    if args.plan == "gpu":
        tokens, heads, dtype, inner = 65536, 16, "bfloat16", 10
    if args.tiny:
        lengths, tokens, heads, inner = (5, 17), 64, 2, 1
    flags = [
        f"--tokens={tokens}",
        f"--heads={heads}",
        f"--dtype={dtype}",
        f"--samples={args.samples}",
        f"--inner={inner}",
        "--lengths",
        *map(str, lengths),
    ]
    names = [*IMPLEMENTATIONS[args.device["platform"]]]
    if args.torch_device:
        names.append(PEER)
    measured: dict[tuple[int, str], dict[str, Any]] = {}
    for _ in range(args.rounds):
        for name in names:
            print(f"  {name}", file=sys.stderr, flush=True)
            for length, result in measure(name, flags, args).items():
                total = measured.setdefault((int(length), name), {})
                for key, value in result.items():
                    old = total.get(key, [])
                    total[key] = old + value if key in PASSES else value
            rows = summarize(measured, tokens, heads)
            report.write(
                report.by_device("attention", args),
                args,
                rows,
                dtype=dtype,
                tokens=tokens,
            )
    report.show(COLUMNS, rows)


def measure(name: str, flags: list[str], args: Settings) -> dict[str, dict[str, Any]]:
    """Return one implementation's seconds by length and pass, or the error."""
    module, extra, variables = "attention_jax", [f"--implementation={name}"], {}
    if name == PEER:
        module, extra = "attention_torch", [f"--device={args.torch_device}"]
        variables = workers.KEEP_MEMORY
    lengths = flags[flags.index("--lengths") + 1 :]
    try:
        return workers.run_worker(
            module, [*extra, *flags], variables, args.seconds_left()
        )
    except workers.WorkerFailed as error:
        return {length: {"error": str(error)} for length in lengths}


def summarize(measured, tokens: int, heads: int) -> list[report.Row]:
    """Return one row per length and implementation."""
    rows = []
    for (length, name), result in sorted(measured.items(), key=lambda item: item[0][0]):
        row = {"length": length, "implementation": name} | result
        count = max(tokens // length, 1)
        peer = measured.get((length, PEER), {})
        for key, times in PASSES.items():
            if not result.get(key):
                continue
            spread = timing.spread(result[key])
            flops = times * 4 * count * length**2 * heads * HEAD_DIM
            row[key] = spread
            row[f"{key}_tflops"] = flops / spread["median"] / 1e12
            if peer.get(key):
                theirs = timing.spread(peer[key])["median"]
                row[f"{key}_over_{PEER}"] = theirs / spread["median"]
        rows.append(row)
    return rows


COLUMNS = {
    "length": lambda row: str(row["length"]),
    "": lambda row: row["implementation"],
    "forward ms": lambda row: row.get("error") or report.milliseconds(row["forward"]),
    "TFLOP/s": lambda row: f"{row['forward_tflops']:.3g}",
    "x torch": lambda row: f"{row['forward_over_torch']:.2f}",
    "forward + backward ms": lambda row: report.milliseconds(row["both"]),
    "TFLOP/s ": lambda row: f"{row['both_tflops']:.3g}",
    "x torch ": lambda row: f"{row['both_over_torch']:.2f}",
}
