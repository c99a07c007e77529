"""Breaks runs in many ways and counts the outcomes.

  python -m tests.faults.campaign [--seed=N] [--scale=0.1] [--write]

Every run must end with the losses, weights and optimizer of one that nothing happened
to, bit for bit. Half an hour on two cores; --write puts the table into docs/faults.md.
"""

import argparse
import collections
import concurrent.futures
import logging
import pathlib
import random
import sys
import tempfile
import time
import traceback

from tests import disks, processes
from tests.faults import (
    damage,
    document,
    full_disk,
    loader_workers,
    pairs,
    runs,
    sigkill,
    sigterm,
)

# The longest first; two at a time.
PARTS = {
    "SIGKILL": (sigkill, 100),
    "SIGTERM": (sigterm, 20),
    "full disk": (full_disk, 10),
    "loader worker": (loader_workers, 10),
    "pair": (pairs, 5),
    "damage": (damage, 220),
}
SPLIT = {"SIGKILL": 2}  # so that both cores have work to the end
DOCUMENT = processes.ROOT / "docs/faults.md"


def main() -> int:
    """Runs all parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="the table into docs")
    flags = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax, where it reads back
    begin = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", flush=True)

    say(f"seed {flags.seed}: --seed={flags.seed} draws the same again")
    counts, failed = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        ours = runs.Runs(folder)
        say(f"the uninterrupted run took {ours.seconds:.0f} s")

        def run(part: str, number: int, count: int) -> None:
            module, _ = PARTS[part]
            title = f"{part} {number}" if number else part
            draw = random.Random(f"{flags.seed} {title}")
            try:
                counts[part] += module.campaign(
                    ours, count, draw, lambda done: say(f"{title}: {done} of {count}")
                )
                say(f"{title}: done")
            except disks.Unavailable as reason:
                say(f"{title}: left out, for no disk can be mounted: {reason}")
            except Exception:
                failed.append(title)
                say(f"{title}: FAILED\n{traceback.format_exc()}")

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for part in flags.parts:
                total = max(round(PARTS[part][1] * flags.scale), 1)
                pieces = SPLIT.get(part, 1)
                for number in range(pieces):
                    pool.submit(run, part, number, total // pieces)
        time.sleep(5)  # what loses its parent ends within seconds
        left = runs.leftovers(folder)
    minutes = (time.monotonic() - begin) / 60
    table = describe(counts, len(left), flags.seed, minutes)
    print(f"\n{table}")
    for command in left:
        print(f"still running: {command}")
    if failed:
        print(f"FAILED: {', '.join(failed)}; seed {flags.seed}")
    if flags.write and not failed:
        document.write(DOCUMENT, "counted", table)
    return bool(failed or left)


def describe(counts: dict, leftovers: int, seed: int, minutes: float) -> str:
    """The table of counts, in Markdown."""
    kill, term, disk = counts["SIGKILL"], counts["SIGTERM"], counts["full disk"]
    worker, pair, cut = counts["loader worker"], counts["pair"], counts["damage"]
    ended = sum(part["ended"] for part in counts.values())
    rows = [
        ("SIGKILL at a random moment", kill["kills"], "resumed, nothing lost"),
        ("- of them inside a save", kill["inside"], "the save before serves"),
        ("- of them between a save and its seal", kill["before_seal"], "it serves"),
        ("SIGTERM", term["terminated"], "exit code 42, saved at that step"),
        ("- of them twice, the second in the save", term["twice"], "the same"),
        ("newest checkpoint damaged, then started", term["found"], "found, fell back"),
        ("bit flipped in a checkpoint", cut["flips"], "found, fell back"),
        ("file of a checkpoint cut or emptied", cut["cuts"], "found, fell back"),
        ("damage found, of all", cut["found"] + term["found"], "none silent"),
        ("disk full for a while", disk["filled"], "went on by itself"),
        ("- of them killed while it was full", disk["killed"], "resumed"),
        ("loader worker killed", worker["killed"], "exit code 75, resumed"),
        ("one process of a pair killed", pair["kills"], "both restarted, resumed"),
        ("processes left behind", leftovers, ""),
        ("runs that ended", ended, "rows, weights, optimizer bit for bit"),
    ]
    lines = ["| What was done | Times | What came of it |", "|---|---:|---|"]
    lines += [f"| {what} | {times} | {came} |" for what, times, came in rows]
    return "\n".join([*lines, "", f"Seed {seed}, {minutes:.0f} minutes."])


if __name__ == "__main__":
    sys.exit(main())
