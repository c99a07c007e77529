"""The whole training step, against PyTorch and the reference's own modules.

On the CPU: ViT-S/14 in float32, batch 4, K = 65536, without and with stochastic depth,
against `benchmarks.torch_peer` and, with --reference, `benchmarks.reference_peer`. On a
GPU: the sizes of `workloads.GPU` in bfloat16, against `torch_peer` compiled and eager.
Each contestant has its own process. On the CPU they take turns, one step each; on a
GPU, whose memory holds only one of them, they run one after the other. FLOPs are the
useful ones of `dinov2_jax.runtime.flops`.
"""

import json
import sys
from typing import Any

from benchmarks import contest, report, timing, workers, workloads
from benchmarks.settings import Settings
from dinov2_jax.runtime import flops

OURS = "jax"
Group = tuple[workloads.Workload, list[contest.Contestant]]


def contestants(
    workload: workloads.Workload, config: Any, args: Settings
) -> list[contest.Contestant]:
    """Return the contestants of a workload: ours first, then the faster peer."""
    common = (f"--samples={args.samples}", "--warmup=3")
    ours = (*workload.arguments(), *common)
    memory: dict[str, str] = {}
    if args.plan == "gpu":
        common += ("--inner=4",)  # keeps the device busy, as in a run
        ours += ("--inner=4",)
        if not any(text.startswith("model.remat=") for text in workload.overrides):
            ours += ("--remat", "none", "selective", "full")
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}
    found = [contest.Contestant(OURS, workers.Command("jax_step", ours, memory))]
    if not args.torch_device:
        return found
    theirs = (
        f"--batch_size={workload.batch_size}",
        *common,
        f"--sizes={json.dumps(workloads.torch_sizes(config))}",
        f"--device={args.torch_device}",
    )

    def peer(name: str, module: str, *arguments: str) -> None:
        command = workers.Command(module, arguments, workers.KEEP_MEMORY)
        found.append(contest.Contestant(name, command))

    if args.plan == "gpu":
        theirs += ("--dtype=bfloat16",)
        backend = "eager" if args.tiny else "inductor"
        peer("torch compiled", "torch_peer", *theirs, f"--compile={backend}")
        peer("torch eager", "torch_peer", *theirs)
    else:
        peer("torch", "torch_peer", *theirs)
        if args.reference:
            sizes = json.dumps(workloads.reference_sizes(config))
            flags = (f"--reference={args.reference}", f"--sizes={sizes}")
            peer("reference", "reference_peer", *theirs[:1], *common, *flags)
    return found


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    configs: dict[str, Any] = {}
    groups: list[list[Group]] = []
    for workload in workloads.chosen(args):
        config = workloads.make_config(
            workload.config, workload.batch_size, workload.overrides
        )
        configs[workload.name] = config
        found = contest.groups(contestants(workload, config, args), args)
        groups.append([(workload, group) for group in found])
    if not groups:
        print(f"step has no workload among {', '.join(args.only)}", file=sys.stderr)
        return
    measured: dict[str, contest.Measured] = {name: {} for name in configs}
    for workload, group in order_by_importance(groups) * args.rounds:
        print(f"  {workload.name}:", file=sys.stderr, end="")
        contest.measure_round(group, measured[workload.name], args)
        rows = summarize(measured, configs, args)
        report.write(report.by_device("step", args), args, rows)
    report.show(COLUMNS, rows)


def order_by_importance(groups: list[list[Group]]) -> list[Group]:
    """Put the first two groups of each workload first, in case time runs out."""
    return [
        group
        for place in (slice(0, 2), slice(2, None))
        for found in groups
        for group in found[place]
    ]


def summarize(
    measured: dict[str, contest.Measured], configs: dict[str, Any], args: Settings
) -> list[report.Row]:
    """Return one row per workload and contestant, sorted by workload."""
    peak = flops.peak_flops(args.device["kind"])
    rows = []
    for workload, config in configs.items():
        per_image = flops.step_flops(flops.make_workload(config)).per_image
        ours = measured[workload].get(OURS, {})
        for contestant, result in measured[workload].items():
            row = {"workload": workload, "contestant": contestant} | result
            del row["ratios"]
            row["batch_size"] = config.train.batch_size
            row["gflops_per_image"] = per_image / 1e9
            if result["seconds"]:
                row["step"] = timing.spread(result["seconds"])
                rate = config.train.batch_size / row["step"]["median"]
                row["images_per_second"] = rate
                row["tflops"] = rate * per_image / 1e12
                row["mfu"] = rate * per_image / peak if peak else None
                row["memory_bytes"] = result.get("device_bytes", result["host_bytes"])
                if ours["seconds"]:
                    row["ours_over_this"] = contest.ours_over(result, ours)
            rows.append(row)
    return rows


COLUMNS = {
    "workload": lambda row: row["workload"],
    "": lambda row: row["contestant"],
    "bs": lambda row: str(row["batch_size"]),
    "ms per step": lambda row: row.get("error") or report.milliseconds(row["step"]),
    "images/s": lambda row: f"{row['images_per_second']:.2f}",
    "GFLOP/image": lambda row: f"{row['gflops_per_image']:.0f}",
    "TFLOP/s": lambda row: f"{row['tflops']:.3g}",
    "MFU": lambda row: f"{100 * row['mfu']:.1f} %",
    "peak GB": lambda row: report.gigabytes(row["memory_bytes"]),
    "remat": lambda row: row["remat"],
    "jax is": lambda row: contest.factor(row["ours_over_this"]),
}
