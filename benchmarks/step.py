"""The whole training step, beside PyTorch and beside the reference's own modules.

On the CPU: ViT-S/14 in float32, batch 4, K = 65536, without and with stochastic depth,
beside `benchmarks.torch_peer` and, with --reference, `benchmarks.reference_peer`, whose
loss and gradients are first compared with ours. On a GPU: the sizes of `workloads.GPU`
in bfloat16, beside `torch_peer` compiled and eager. Every contestant is a process of
its own. On the CPU they take turns, a step each; on a GPU, whose memory is for one
alone, they run one after the other. FLOPs are the useful ones of `dinov2_jax.flops`.
"""

import json
import sys
from typing import Any, NamedTuple

from benchmarks import report, timing, workers, workloads
from benchmarks.settings import Settings
from dinov2_jax import flops

OURS = "jax"
_LEAST_SECONDS = 15  # nothing is started with less time left


class Contestant(NamedTuple):
    """Who is measured, and the process that does it."""

    name: str
    command: workers.Command


Turn = tuple[workloads.Workload, list[Contestant]]


def contestants(
    workload: workloads.Workload, config: Any, args: Settings
) -> list[Contestant]:
    """Who runs a workload: ours first, then the faster peer."""
    common = (f"--samples={args.samples}", "--warmup=3")
    ours = (*workload.arguments(), *common)
    memory: dict[str, str] = {}
    if args.plan == "gpu":
        common += ("--inner=4",)  # the device never waits, as in a run
        ours += ("--inner=4",)
        if not any(text.startswith("model.remat=") for text in workload.overrides):
            ours += ("--remat", "none", "selective", "full")
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}
    found = [Contestant(OURS, workers.Command("jax_step", ours, memory))]
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
        found.append(Contestant(name, command))

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
    """Measures, prints and writes."""
    more: dict[str, Any] = {}
    if args.reference and args.plan == "cpu":
        check = workers.Command(
            "reference_check", (f"--reference={args.reference}",), {}
        )
        (more["reference_check"],) = measure([check], args)
    configs: dict[str, Any] = {}
    turns: list[Turn] = []
    for workload in workloads.chosen(args):
        config = workloads.make_config(
            workload.config, workload.batch_size, workload.overrides
        )
        configs[workload.name] = config
        turns.append((workload, contestants(workload, config, args)))
    if not turns:
        print(f"step has no workload among {', '.join(args.only)}", file=sys.stderr)
        return
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    in_turns = args.plan == args.device["platform"] == "cpu"
    for workload, group in (turns if in_turns else one_by_one(turns)) * args.rounds:
        names = [contestant.name for contestant in group]
        print(f"  {workload.name}: {', '.join(names)}", file=sys.stderr, flush=True)
        found = measure([contestant.command for contestant in group], args)
        if in_turns:
            add_ratios(found)
        for name, result in zip(names, found, strict=True):
            add(measured.setdefault((workload.name, name), {"seconds": []}), result)
        rows = summarize(measured, configs, args)
        report.write(report.by_device("step", args), args, rows, **more)
    report.show(COLUMNS, rows)
    if more:
        check = more["reference_check"]
        print(
            "the reference's losses and gradients differ from ours by "
            f"{check.get('largest_relative_difference', check.get('error'))}\n"
        )


def one_by_one(turns: list[Turn]) -> list[Turn]:
    """The same, each contestant alone.

    What is compared most comes first, where time may run out before the rest.
    """
    return [
        (workload, [contestant])
        for place in (slice(0, 2), slice(2, None))
        for workload, found in turns
        for contestant in found[place]
    ]


def measure(commands: list[workers.Command], args: Settings) -> list[dict[str, Any]]:
    """What the processes report, or {"error": why not}."""
    left = args.seconds_left()
    if left is not None and left < _LEAST_SECONDS:
        return [{"error": "out of time"}] * len(commands)
    if len(commands) > 1:
        found = workers.alternate(commands, args.samples, left)
    else:
        try:
            found = [workers.run_worker(*commands[0], left)]
        except workers.WorkerFailed as error:
            found = [error]
    return [
        {"error": str(result)} if isinstance(result, workers.WorkerFailed) else result
        for result in found
    ]


def add_ratios(found: list[dict[str, Any]]) -> None:
    """How many times as fast the first was, in each turn that both of them had."""
    ours = found[0].get("seconds", [])
    for result in found:
        theirs = result.get("seconds", [])
        result["ratios"] = [b / a for a, b in zip(ours, theirs)]


def add(total: dict[str, Any], turn: dict[str, Any]) -> None:
    """Joins the seconds and ratios of a round to those of earlier ones."""
    lists = {
        key: total.get(key, []) + turn.get(key, []) for key in ("seconds", "ratios")
    }
    total.update(turn | lists)


def summarize(
    measured: dict[tuple[str, str], dict[str, Any]],
    configs: dict[str, Any],
    args: Settings,
) -> list[report.Row]:
    """One row a workload and contestant, sorted by workload."""
    peak = flops.peak_flops(args.device["kind"])
    rows = []
    for workload, config in configs.items():
        per_image = flops.step_flops(config).per_image
        ours = None
        for (name, contestant), result in measured.items():
            if name != workload:
                continue
            row = {"workload": workload, "contestant": contestant} | result
            ratios = row.pop("ratios")
            row["batch_size"] = config.train.batch_size
            row["gflops_per_image"] = per_image / 1e9
            if result["seconds"]:
                row["step"] = timing.spread(result["seconds"])
                rate = config.train.batch_size / row["step"]["median"]
                row["images_per_second"] = rate
                row["tflops"] = rate * per_image / 1e12
                row["mfu"] = rate * per_image / peak if peak else None
                row["memory_bytes"] = result.get("device_bytes", result["host_bytes"])
                if contestant == OURS:
                    ours = row["step"]["median"]
                if ours:
                    by_medians = row["step"]["median"] / ours
                    row["ours_over_this"] = timing.spread(ratios or [by_medians])
            rows.append(row)
    return rows


def factor(ratio: dict[str, float]) -> str:
    """ "1.02 x (0.98 to 1.05)" """
    if ratio["samples"] == 1:
        return f"{ratio['median']:.2f} x"
    return "{median:.2f} x ({low:.2f} to {high:.2f})".format(**ratio)


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
    "jax is": lambda row: factor(row["ours_over_this"]),
}
