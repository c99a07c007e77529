"""launch/local.sh: the supervisor, with stand-ins for the training processes."""

import os
import pathlib
import signal
import subprocess
import time

import processes
import pytest

LOCAL = processes.ROOT / "launch/local.sh"
# Takes the place of Python: writes what it was called with, then does as a file of its
# own says, for each attempt a line "process 0's exit code, process 1's".
STAND_IN = r"""#!/usr/bin/env bash
cd "$(dirname -- "$0")"
process=$(grep -o 'process_id=[0-9]*' <<<"$*" | cut -d= -f2)
trap 'echo $process >>terminated; exit 42' TERM
echo "${JAX_LOCAL_DEVICE_IDS-} $*" >>"calls$process"
attempt=$(wc -l <"calls$process")
does=$(sed -n "${attempt}p" plan | cut -d' ' -f$((process + 1)))
case $does in
  wait) for _ in {1..300}; do sleep 0.1; done ;;
  kill) kill -KILL $$ ;;
  late) sleep 0.7; kill -KILL $$ ;;
  *) exit "$does" ;;
esac
"""


class StandIn:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "python").write_text(STAND_IN)
        (folder / "python").chmod(0o755)

    def start(self, *plan: str, options=()):
        (self.folder / "plan").write_text("\n".join(plan) + "\n")
        return subprocess.Popen(
            [LOCAL, "2", *options, "--", "--config=a b"],
            env=os.environ | {"PYTHON": str(self.folder / "python")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # as a terminal's foreground group
        )

    def run(self, *plan: str, options=()) -> processes.Finished:
        process = self.start(*plan, options=options)
        output, _ = process.communicate(timeout=30)
        return processes.Finished(process.returncode, output)

    def calls(self, process: int) -> list[str]:
        path = self.folder / f"calls{process}"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


def test_processes_get_the_cluster_flags(stand_in):
    finished = stand_in.run("0 0", options=["--gpus", "--port", "7000"])
    assert (finished.code, finished.output) == (0, "")
    for process in range(2):
        assert stand_in.calls(process) == [
            f"{process} -m dinov2_jax.main --coordinator=localhost:7000 "
            f"--num_processes=2 --process_id={process} --config=a b"
        ]


@pytest.mark.parametrize("code", [2, 3, 1, 130])
def test_no_restart(stand_in, code):
    plan = f"{code} {code}" if code == 3 else f"wait {code}"
    assert stand_in.run(plan, "0 0").code == code
    assert len(stand_in.calls(0)) == 1


@pytest.mark.parametrize(
    "plan", ["42 42", "75 wait", "75 1", "134 wait", "wait kill", "kill 1"]
)
def test_restart(stand_in, plan):
    finished = stand_in.run(plan, "0 0", options=["--port", "7000"])
    assert finished.code == 0
    assert [f"localhost:{7000 + i}" in c for i, c in enumerate(stand_in.calls(1))] == [
        True,
        True,
    ]
    assert "restart 1 of at most 10" in finished.output


@pytest.mark.parametrize("plan", ["75 kill", "kill 75", "75 late", "late 75"])
def test_cause_outranks_its_consequences(stand_in, plan):
    """Whichever is seen first: sockets close before a killed process has ended."""
    finished = stand_in.run(plan, "0 0")
    assert finished.code == 0
    assert "exit code 137: restart 1 of at most 10" in finished.output


def test_bad_input_beside_a_killed_process_is_not_retried(stand_in):
    assert stand_in.run("kill 2", "0 0").code == 2


def test_restarts_end(stand_in):
    finished = stand_in.run(*["42 42"] * 4, options=["--restarts", "2"])
    assert finished.code == 42
    assert len(stand_in.calls(0)) == 3
    assert "after 2 restarts: giving up" in finished.output


def terminate(stand_in, process):
    deadline = time.monotonic() + 60
    while not (stand_in.calls(0) and stand_in.calls(1)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    return output


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_signals_of_a_terminal_reach_the_script_and_its_helpers(stand_in, sent):
    """Which must not end the script before the processes have saved."""
    process = stand_in.start("wait wait", options=["--restarts", "0"])
    while not (stand_in.calls(0) and stand_in.calls(1)):
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 42, output
    terminated = (stand_in.folder / "terminated").read_text().split()
    assert sorted(terminated) == ["0", "1"]


def test_sigterm_is_passed_on_and_no_restart_follows(stand_in):
    process = stand_in.start("wait wait", "0 0")
    terminate(stand_in, process)
    assert process.returncode == 42
    assert sorted((stand_in.folder / "terminated").read_text().split()) == ["0", "1"]
    assert len(stand_in.calls(0)) == 1


def test_processes_that_ignore_sigterm_are_killed(stand_in):
    text = STAND_IN.replace("echo $process >>terminated; exit 42", "")
    (stand_in.folder / "python").write_text(text)
    process = stand_in.start("wait wait", options=["--grace", "1"])
    output = terminate(stand_in, process)
    assert process.returncode == 137
    assert "killing the other 2 of 2 processes" in output


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "how many processes?"),
        (["two"], "N=two: a whole number"),
        (["0"], "at least one"),
        (["2", "--restart", "1"], "unknown option --restart"),
        (["2", "--restarts"], "--restarts needs a value"),
        (["2", "--restarts", "x"], "--restarts=x: a whole number"),
        (["2", "--flags", "fast"], "no such profile: use one of"),
    ],
)
def test_wrong_calls(arguments, words):
    finished = subprocess.run([LOCAL, *arguments], capture_output=True, text=True)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
