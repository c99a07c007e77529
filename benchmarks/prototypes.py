"""The loss over prototypes: Sinkhorn targets, cross-entropy and its gradients.

Inputs are bottleneck features of teacher and student, M masked patches by 256 channels,
and both sides' K prototypes. Outputs are the loss and the gradients of the student's
features and prototypes; 3 Sinkhorn iterations. Compares
`dinov2_jax.losses.tiled.cross_entropy` with a plain transcription of the reference in
jax.numpy and with `torch_peer`. Temporaries are the compiler's count; for PyTorch the
peak beyond the inputs, on a GPU only. Useful FLOPs are four products of M x K x 256:
logits of both sides and two in the backward pass.
"""

from benchmarks import contest, report, timing, workers
from benchmarks.settings import Settings
from dinov2_jax.runtime import flops

CHANNELS = 256
NAMES = ("jax", "plain jax.numpy")
PEER = "torch"


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    rows, columns, dtype, inner = 1200, 65536, "float32", 1
    if args.plan == "gpu":
        rows, columns, dtype, inner = 4941, 131072, "bfloat16", 4
    if args.tiny:
        rows, columns, inner = 64, 128, 1
    flags = (
        f"--rows={rows}",
        f"--columns={columns}",
        f"--dtype={dtype}",
        f"--samples={args.samples}",
        f"--inner={inner}",
    )

    def contestant(name, module, extra, variables):
        command = workers.Command(module, (*extra, *flags), variables)
        return contest.Contestant(name, command)

    contestants = [
        contestant(name, "prototypes_jax", (f"--implementation={name}",), {})
        for name in NAMES
    ]
    if args.torch_device:
        extra = (f"--device={args.torch_device}",)
        if args.plan == "gpu" and not args.tiny:
            extra += ("--compile=inductor",)
        contestants.append(
            contestant(PEER, "prototypes_torch", extra, workers.KEEP_MEMORY)
        )
    measured: contest.Measured = {}
    sizes = {"M": rows, "K": columns, "dtype": dtype}
    for group in contest.groups(contestants, args) * args.rounds:
        contest.hold(group, measured, args)
        table = summarize(
            measured,
            useful=8 * rows * columns * CHANNELS,
            peak=flops.peak_flops(args.device["kind"]),
        )
        report.write(report.by_device("prototypes", args), args, table, **sizes)
    print(f"M = {rows}, K = {columns}, {dtype}")
    report.show(COLUMNS, table)


def summarize(
    measured: contest.Measured, useful: float, peak: float | None
) -> list[report.Row]:
    """Return one row per contestant."""
    rows = []
    ours = measured[NAMES[0]]
    for name, result in measured.items():
        row = {"implementation": name} | result
        del row["ratios"]
        if result["seconds"]:
            row["time"] = timing.spread(result["seconds"])
            median = row["time"]["median"]
            row["tflops"] = useful / median / 1e12
            row["mfu"] = useful / median / peak if peak else None
            if ours["seconds"]:
                row["ours_over_this"] = contest.ours_over(result, ours)
            if "temp_bytes" in row and ours.get("temp_bytes"):
                row["memory_over_ours"] = row["temp_bytes"] / ours["temp_bytes"]
        rows.append(row)
    return rows


COLUMNS = {
    "": lambda row: row["implementation"],
    "ms": lambda row: row.get("error") or report.milliseconds(row["time"]),
    "TFLOP/s": lambda row: f"{row['tflops']:.3g}",
    "MFU": lambda row: f"{100 * row['mfu']:.1f} %",
    "temporaries GB": lambda row: f"{row['temp_bytes'] / 1e9:.3f}",
    "loss": lambda row: f"{row['loss']:.5f}",
    "jax is": lambda row: contest.factor(row["ours_over_this"]),
    "memory is": lambda row: f"{row['memory_over_ours']:.1f} x jax's",
}
