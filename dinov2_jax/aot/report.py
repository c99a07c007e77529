"""The report about a compiled step, as numbers and as a table.

All numbers are for one device. The step was never run: times are predictions.
"""

import collections
import dataclasses
import math
from typing import Any

from dinov2_jax.aot import collectives, cycles, machines
from dinov2_jax.aot import step as step_lib
from dinov2_jax.augment import crop_sizes
from dinov2_jax.kernels import attention
from dinov2_jax.models import model_config

_TOP = 8  # number of places in the program that are listed
_WIDTH = 100  # maximum length of their names


def make_report(
    config: Any,
    machine: machines.Machine,
    program: step_lib.Program,
    *,
    profile: str,
    options: dict[str, str],
) -> dict[str, Any]:
    """Collect all numbers of a report, ready for JSON.

    Args:
      config: The config that was compiled.
      machine: The machine that it was compiled for.
      program: The compiled step.
      profile: Name of the compiler options.
      options: Compiler options.

    Returns:
      `machine`, `config` (the fields that matter here), `attention` (the kernel for
      each crop's number of tokens), `compile_seconds`, `profile`, `memory`. For a
      program that fits, also `collectives`, `float32_weight_gathers`,
      `activation_gathers`, `activation_all_to_alls` and, unless it was quick,
      `prediction` (None if the compiler gives no figures). Bytes, seconds and FLOPs
      are for one device.
    """
    memory = program.memory
    size = crop_sizes.make_crop_sizes(config).largest
    report = {
        "machine": {
            "name": machine.name,
            "devices": machine.num_devices,
            "hbm_bytes": memory.limit,
            "peak_flops": machine.chip.peak_flops,
        },
        "config": {
            "arch": config.model.arch,
            "remat": config.model.remat,
            "batch_size": config.train.batch_size,
            "group_size": config.train.group_size,
            "crops": list(size[: 1 + bool(config.crops.local_crops_number)]),
            "replica": program.replica,
            "images_per_device": config.train.batch_size / machine.num_devices,
            "parameters": sum(math.prod(shape) for shape, _ in program.weights),
        },
        "attention": _attention(config, machine.chip.platform, size),
        "profile": {"name": profile, "options": options},
        "quick": program.quick,
        "compile_seconds": program.seconds,
        "compile_cpu_seconds": program.cpu_seconds,
        "memory": dataclasses.asdict(memory)
        | {"fits": memory.fits, "share": memory.needed / memory.limit},
    }
    if program.module is None:
        return report
    found = collectives.find(program.module, machine.num_devices)
    weights = collectives.weight_shapes(program.weights + program.frozen_weights)
    report["collectives"] = _by_kind(found)
    report["float32_weight_gathers"] = _names(
        collectives.float32_weight_gathers(found, weights)
    )
    report["activation_gathers"] = _names(
        collectives.activation_gathers(found, weights)
    )
    report["activation_all_to_alls"] = _names(
        [c for c in found if c.kind == "all-to-all"]
    )
    if not program.quick:
        report["prediction"] = _predict(config, machine, program, found)
    return report


def _attention(config, platform: str, size: crop_sizes.Size) -> dict[str, str]:
    """Return the attention kernel for each number of tokens of a crop."""
    model = model_config.make_model_config(config)
    dtype = "bfloat16" if config.model.dtype == "auto" else config.model.dtype
    found = {}
    for side in size[: 1 + bool(config.crops.local_crops_number)]:
        length = 1 + model.num_register_tokens + (side // model.patch_size) ** 2
        found[str(length)] = config.model.attention
        if config.model.attention == "auto":
            found[str(length)] = attention.on_accelerator(
                platform,
                dtype=dtype,
                length=length,
                num_heads=model.num_heads,
                head_dim=model.embed_dim // model.num_heads,
            )
    return found


def _by_kind(found: list[collectives.Collective]) -> list[dict[str, Any]]:
    """Sum count, payload and sent bytes by kind and dtype, most sent first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for c in found:
        row = rows.setdefault(
            (c.kind, c.dtype),
            {"kind": c.kind, "dtype": c.dtype, "count": 0, "bytes": 0, "sent": 0.0},
        )
        row["count"] += c.count
        row["bytes"] += c.payload_bytes
        row["sent"] += c.sent_bytes
    return sorted(rows.values(), key=lambda row: -row["sent"])


def _names(found: list[collectives.Collective]) -> list[dict[str, Any]]:
    """Sum the bytes of collectives by where they come from, largest first."""
    totals: collections.Counter = collections.Counter()
    for c in found:
        totals[c.op_name] += c.payload_bytes
    return [{"op_name": name, "bytes": size} for name, size in totals.most_common()]


def _predict(config, machine, program, found) -> dict[str, Any] | None:
    """Bound step time and MFU: communication all hidden, and none hidden."""
    chip = machine.chip
    work = cycles.count(
        program.module, peak_flops=chip.peak_flops, hbm_bandwidth=chip.hbm_bandwidth
    )
    if not chip.clock or not work.total:
        return None
    sent = sum(c.sent_bytes for c in found)
    compute = work.total / chip.clock + work.kernel_seconds + work.moving_seconds
    link = sent / machine.send_bandwidth if machine.send_bandwidth else 0.0
    useful = program.flops_per_image
    useful *= config.train.batch_size / machine.num_devices

    def outcome(seconds):
        return {"step_seconds": seconds, "mfu": useful / (seconds * chip.peak_flops)}

    return {
        "model_flops": useful,
        "cycles": work.total,
        "compute_seconds": compute,
        "kernels": work.kernels,
        "kernel_seconds": work.kernel_seconds,
        "moving_seconds": work.moving_seconds,
        "without_cost": work.without_cost,
        "link_bytes": sent,
        "link_seconds": link,
        "hidden": outcome(max(compute, link)),
        "exposed": outcome(compute + link),
        "cycles_by_scope": work.by_scope,
    }


def describe(report: dict[str, Any]) -> str:
    """Format a report as a table."""
    machine, config, memory = (report[k] for k in ("machine", "config", "memory"))
    lines = [
        f"{config['arch']}, batch {config['batch_size']} in groups of "
        f"{config['group_size']}, crops of {_sides(config['crops'])} px, remat "
        f"{config['remat']}",
        f"on {machine['name']}: {machine['devices']} devices of "
        f"{config['images_per_device']:g} images, fsdp "
        f"{machine['devices'] // config['replica']}",
        "compiled for this machine, not run: times below are predictions",
        "",
        f"compilation   {report['compile_seconds']:.0f} s "
        f"({report['compile_cpu_seconds']:.0f} s of a CPU core)"
        + (", quick: no optimisations" if report["quick"] else ""),
        f"options       {_describe_options(report['profile'])}",
        f"attention     {_describe_attention(report['attention'])}",
        *_describe_memory(memory),
    ]
    if "collectives" in report:
        lines += ["", *_describe_collectives(report)]
    if "prediction" in report:
        lines += ["", *_describe_prediction(report["prediction"])]
    return "\n".join(lines)


def _sides(sides: list[int]) -> str:
    return "/".join(map(str, sides))


def _describe_attention(kernels: dict[str, str]) -> str:
    return ", ".join(f"{name} for {n} tokens" for n, name in kernels.items())


def _describe_options(profile: dict[str, Any]) -> str:
    options = [f"{k}={v}" for k, v in profile["options"].items()]
    return f"{profile['name']}: {', '.join(options) or 'none'}"


def _describe_memory(memory: dict[str, Any]) -> list[str]:
    spare = memory["limit"] - memory["needed"]
    verdict = (
        f"fits, {_size(spare)} to spare"
        if memory["fits"]
        else f"DOES NOT FIT, {_size(max(-spare, 0.0))} too large"
    )
    lines = [
        f"memory        {verdict}: {_size(memory['needed'])} a device, "
        f"{memory['share']:.0%} of {_size(memory['limit'])}"
    ]
    for name in ("arguments", "temporaries", "outputs", "code"):
        if memory[name] is not None:
            lines.append(f"  {name:<12}{_size(memory[name]):>10}")
    return lines


def _describe_collectives(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{'collectives of a step':<27}{'dtype':>6}{'count':>8}{'arrays':>12}"
        f"{'sent':>12}"
    ]
    for row in report["collectives"]:
        lines.append(
            f"  {row['kind']:<25}{row['dtype']:>6}{row['count']:>8}"
            f"{_size(row['bytes']):>12}{_size(row['sent']):>12}"
        )
    sent = sum(row["sent"] for row in report["collectives"])
    padded = sum(
        row["sent"]
        for row in report["collectives"]
        if row["kind"] == collectives.PADDED_GATHER
    )
    if padded > sent / 10:
        fsdp = report["machine"]["devices"] // report["config"]["replica"]
        lines.append(
            f"gathers by all-reduce send twice the bytes, because shards of 1/{fsdp} "
            "are smaller than a tile: raise --config.mesh.replica"
        )
    for key, label in (
        ("float32_weight_gathers", "weights gathered in float32"),
        ("activation_gathers", "activations gathered (1 MiB or more)"),
        ("activation_all_to_alls", "all-to-all"),
    ):
        total = sum(item["bytes"] for item in report[key])
        lines.append(f"{label}: {_size(total) if report[key] else 'none'}")
        lines += [
            f"  {_size(item['bytes']):>10}  {_short(item['op_name'])}"
            for item in report[key][:_TOP]
        ]
    return lines


def _describe_prediction(prediction: dict[str, Any] | None) -> list[str]:
    if prediction is None:
        return ["PREDICTION    none: this compiler gives no cost estimates"]
    hidden, exposed = prediction["hidden"], prediction["exposed"]
    lines = [
        f"PREDICTION    {_step(hidden)} if compute hides all communication,",
        f"              {_step(exposed)} if it hides none",
        f"  compute {prediction['compute_seconds']:.3f} s, the compiler's estimated "
        f"cycles; links at least {prediction['link_seconds']:.3f} s for "
        f"{_size(prediction['link_bytes'])}",
    ]
    if prediction["kernels"]:
        lines.append(
            f"  including {prediction['kernel_seconds']:.3f} s for "
            f"{prediction['kernels']} kernels (a lower bound) and "
            f"{prediction['moving_seconds']:.3f} s of data movement; "
            f"{prediction['without_cost']} operations have no estimate"
        )
    lines.append("  where the cycles go:")
    total = prediction["cycles"]
    for scope, count in list(prediction["cycles_by_scope"].items())[:_TOP]:
        lines.append(f"  {count / total:>8.1%}  {_short(scope)}")
    return lines


def _step(outcome: dict[str, float]) -> str:
    return f"{outcome['step_seconds']:.3f} s a step, MFU {outcome['mfu']:.1%}"


def _short(op_name: str) -> str:
    """Return the end of an op name; of merged names, that of the first."""
    name = op_name.split(":")[0] or "(no name)"
    return name if len(name) <= _WIDTH else f"...{name[3 - _WIDTH :]}"


def _size(num_bytes: float) -> str:
    if num_bytes < 1e7:
        return f"{num_bytes / 1e6:.2f} MB"
    return f"{num_bytes / 1e9:.2f} GB"
