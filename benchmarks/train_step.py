"""The full training step on this machine, beside the same step in PyTorch.

    python -m benchmarks.train_step [--rounds=2] [--steps=5]

Measures ViT-S/14 in float32 on the CPU (batch 4, K = 65536, Sinkhorn-Knopp): images/s
with and without stochastic depth for this project and for `benchmarks.torch_peer`,
the subset against computing everything, and the compile time of scanned against
unrolled blocks. Every measurement is a process of its own; the two frameworks take
turns, `rounds` times. Prints a table and writes benchmarks/results/train_step.json.
"""

import argparse
import json
import pathlib
import statistics

from benchmarks import environment

RESULTS = pathlib.Path(__file__).parent / "results" / "train_step.json"
RATES = (0.0, 0.3)
DEPTH = 12  # blocks of ViT-S: unrolls the scan


def measure(rounds: int, steps: int, batch_size: int) -> dict:
    """All measurements: {"steps": {(framework, rate): seconds}, "compile": ...}."""
    from benchmarks import torch_peer

    seconds: dict[str, list[float]] = {}
    temp_bytes = {}
    for _ in range(rounds):
        for rate in RATES:
            arguments = [
                f"--drop_path_rate={rate}",
                f"--batch_size={batch_size}",
                f"--steps={steps}",
                "--warmup=2",
            ]
            report = environment.run_worker(
                "torch_peer", arguments, torch_peer.KEEP_MEMORY
            )
            seconds.setdefault(f"torch, drop path {rate}", []).extend(report["seconds"])
            report = environment.run_worker("jax_step", arguments, {})
            seconds.setdefault(f"jax, drop path {rate}", []).extend(report["seconds"])
            temp_bytes[f"drop path {rate}"] = report["temp_bytes"]
    compile_seconds = {}
    for name, unroll in (("scan", 1), ("unrolled", DEPTH)):
        report = environment.run_worker(
            "jax_step", ["--steps=0", f"--scan_unroll={unroll}"], {}
        )
        compile_seconds[name] = report["lower_seconds"] + report["compile_seconds"]
    return {
        "seconds": seconds,
        "temp_bytes": temp_bytes,
        "compile_seconds": compile_seconds,
    }


def summarize(report: dict, batch_size: int) -> list[tuple[str, str]]:
    """The rows of the table."""
    median = {k: statistics.median(v) for k, v in report["seconds"].items()}
    rows = []
    for rate in RATES:
        for name in ("jax", "torch"):
            key = f"{name}, drop path {rate}"
            low, high = min(report["seconds"][key]), max(report["seconds"][key])
            rows.append(
                (
                    key,
                    f"{batch_size / median[key]:.3f} images/s, {median[key]:.2f} s per "
                    f"step ({low:.2f} to {high:.2f})",
                )
            )
        ratio = median[f"torch, drop path {rate}"] / median[f"jax, drop path {rate}"]
        rows.append((f"jax over torch, drop path {rate}", f"{ratio:.2f} x"))
    ratio = median[f"jax, drop path {RATES[0]}"] / median[f"jax, drop path {RATES[1]}"]
    rows.append((f"subset at {RATES[1]} over computing everything", f"{ratio:.2f} x"))
    compile_seconds = report["compile_seconds"]
    for name, value in compile_seconds.items():
        rows.append((f"trace, lower and compile, {name}", f"{value:.1f} s"))
    ratio = compile_seconds["unrolled"] / compile_seconds["scan"]
    rows.append(("scan over unrolled, compiling", f"{ratio:.1f} x"))
    return rows


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=4)
    args = parser.parse_args()
    packages = ("jax", "jaxlib", "flax", "optax", "torch")
    report = environment.describe(packages) | measure(
        args.rounds, args.steps, args.batch_size
    )
    report["summary"] = dict(summarize(report, args.batch_size))
    for name, value in report["summary"].items():
        print(f"{name:48} {value}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
