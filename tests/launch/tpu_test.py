"""launch/tpu_vm.sh, tpu_mig.sh and tpu_host.sh, with a stand-in for gcloud."""

import pathlib
import shutil
import subprocess
import time

import commands
import pytest

WHERE = ["--name", "pod", "--zone", "us-east5-b", "--poll", "0"]
ARGUMENTS = ["--", "--config=configs/vitg.py", "--workdir=/a b"]
TYPE = ["--type", "v5litepod-16"]
MACHINE = [
    *("--project", "p", "--machine", "ct6e-standard-4t", "--topology", "4x4"),
    *("--size", "2", "--image", "family"),
]


@pytest.fixture
def programs(tmp_path):
    return commands.Programs(tmp_path, "gcloud")


@pytest.mark.parametrize("script, own", [("tpu_vm", TYPE), ("tpu_mig", MACHINE)])
def test_dry_runs(programs, script, own):
    text = ""
    for verb in ("create", "install", "run", "watch", "logs", "status", "delete"):
        options = [*own, "--spot", "--flags", "tpu-v6e", "--dry-run"]
        finished = programs.run(f"{script}.sh", verb, *WHERE, *options, *ARGUMENTS)
        assert finished.returncode == 0, finished.stderr
        text += f"# {verb}: asks\n{finished.stderr}# does\n{finished.stdout}"
    commands.assert_as_recorded(text, script)
    assert programs.calls() == []


def kinds(programs):
    """What was asked of gcloud, in short."""
    short = []
    for call in programs.calls():
        if "describe" in call:
            short.append("state" if "state.state" in call else "hosts")
        elif " ssh " in call:
            short.append(call.split("tpu_host.sh ")[1].split()[0].rstrip("]"))
        else:
            words = call.split()
            short.append(words[4] if words[2] == "tpus" else words[3])
    return short


def watch(programs, *answers, options=(), patience="0"):
    programs.answer("gcloud", *answers)
    flags = [*WHERE, *TYPE, *options, *ARGUMENTS]
    return programs.run("tpu_vm.sh", "watch", *flags, TPU_PATIENCE=patience)


READY = ["0 ACTIVE", "0 ACTIVE", "0 2"]  # state twice, the number of hosts
STARTED = ["0", "0", "0"]  # scp, install, start
LAUNCHED = ["state", "state", "hosts", "scp", "install", "start"]


def test_watch_to_the_end(programs):
    polls = ["0 running\\nrunning", "0 ended 0\\nrunning", "0 ended 0\\nended 0"]
    finished = watch(programs, *READY, *STARTED, *polls)
    assert finished.returncode == 0, finished.stderr
    assert kinds(programs) == [*LAUNCHED, *["status"] * 3]
    start = next(call for call in programs.calls() if " start " in call)
    assert "--worker=all" in start
    assert "start '' --config=configs/vitg.py '--workdir=/a b'" in start
    assert "--config.mesh.processes=2" in start


@pytest.mark.parametrize("code", [42, 75, 134, 137])
def test_watch_starts_again(programs, code):
    ended = [f"0 ended {code}\\nrunning", "0"]  # status, stop
    again = ["0 ended 0\\nended 0"]
    finished = watch(programs, *READY, *STARTED, *ended, *READY, *STARTED, *again)
    assert finished.returncode == 0, finished.stderr
    assert kinds(programs) == [*LAUNCHED, "status", "stop", *LAUNCHED, "status"]
    assert f"exit code {code}: restart 1 of at most 50" in finished.stderr


@pytest.mark.parametrize("code", [1, 2, 3])
def test_watch_ends(programs, code):
    ended = [f"0 ended {code}\\nended {137 if code > 1 else 0}", "0"]
    finished = watch(programs, *READY, *STARTED, *ended)
    assert finished.returncode == code
    assert kinds(programs) == [*LAUNCHED, "status", "stop"]


def test_watch_gives_up(programs):
    ended = ["0 ended 42\\nended 42", "0"]
    finished = watch(programs, *READY, *STARTED, *ended, options=["--restarts", "0"])
    assert finished.returncode == 42
    assert "giving up" in finished.stderr


def test_watch_recreates_a_preempted_machine(programs):
    lost = ["255", "255", "255", "0 SUSPENDED"]  # three ssh, then the state
    made = ["0 SUSPENDED", "0", "0", "0 PROVISIONING", "0 ACTIVE", "0 2"]
    finished = watch(
        programs, *READY, *STARTED, *lost, *made, *STARTED, "0 ended 0\\nended 0"
    )
    assert finished.returncode == 0, finished.stderr
    assert kinds(programs) == [
        *(*LAUNCHED, "status", "status", "status", "state"),
        *("state", "delete", "create", "state", "state", "hosts"),
        *("scp", "install", "start", "status"),
    ]


def test_watch_waits_for_a_network_that_is_down(programs):
    """Neither a failed state nor failed polls take the machine for lost."""
    down = ["255", "255", "255", "1"]  # three ssh, then the state
    end = ["0 ended 0\\nended 0"]
    finished = watch(programs, "1", *READY, *STARTED, *down, *end)
    assert finished.returncode == 0, finished.stderr
    assert kinds(programs) == [
        *("state", *LAUNCHED, "status", "status", "status", "state", "status")
    ]
    assert "gcloud does not answer" in finished.stderr


def test_watch_starts_again_beside_a_replaced_host(programs):
    """Its folder is empty, so ssh fails, while another host has ended."""
    lost = ["1 ended 134", "1 ended 134", "1 ended 134", "0 ACTIVE"]
    again = [*READY, *STARTED, "0 ended 0\\nended 0"]
    finished = watch(programs, *READY, *STARTED, *lost, *again)
    assert finished.returncode == 0, finished.stderr
    assert "exit code 255: restart 1 of at most 50" in finished.stderr


def test_watch_gives_up_on_hosts_that_cannot_be_installed(programs):
    """With a pause after each attempt, and none of the 51 that a lost host gets."""
    failed = ["0", "1 no python3.11", "0 ACTIVE"]  # scp, install, state
    finished = watch(programs, *[*READY, *failed] * 3)
    assert finished.returncode == 1
    assert kinds(programs) == [*LAUNCHED[:-1], "state"] * 3
    assert "install or start failed 3 times in a row" in finished.stderr


def test_watch_is_patient_with_new_hosts(programs):
    """Whose ssh does not answer yet."""
    failed = ["0", "1", "0 ACTIVE"]
    end = [*READY, *STARTED, "0 ended 0\\nended 0"]
    finished = watch(programs, *[*READY, *failed] * 4, *end, patience="300")
    assert finished.returncode == 0, finished.stderr


def test_watch_tells_a_lost_host_from_a_failed_install(programs):
    lost = ["0", "1", "0 SUSPENDED"]
    made = ["0 SUSPENDED", "0", "0", "0 ACTIVE", "0 2"]
    again = ["0 SUSPENDED", "0", "0", "0 ACTIVE", "0 2", *STARTED]
    end = "0 ended 0\\nended 0"
    finished = watch(programs, *READY, *lost, *made, *lost, *made, *lost, *again, end)
    assert finished.returncode == 0, finished.stderr
    assert "exit code 255: restart 3 of at most 50" in finished.stderr


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_copy_to_any_host_of_a_group(programs, failing):
    hosts = "0 pod-a1b2 10.0.0.7\\npod-c3d4 10.0.0.9"
    programs.answer("gcloud", hosts, *["0"] * failing, "1 no route", "0")
    finished = programs.run("tpu_mig.sh", "install", *WHERE)
    assert finished.returncode == 1
    assert len(programs.calls()) == 2 + failing  # and nothing is unpacked


@pytest.mark.parametrize("verb", ["install", "watch"])
def test_a_folder_that_is_no_checkout(programs, verb, tmp_path):
    """As where the launchers of an installed package are."""
    shutil.copytree(commands.LAUNCH, tmp_path / "copy/launch")
    script = str(tmp_path / "copy/launch/tpu_vm.sh")
    finished = programs.run(script, verb, *WHERE, *TYPE, *ARGUMENTS)
    assert finished.returncode == 2
    assert "this is no git checkout of dinov2_jax: clone" in finished.stderr
    assert programs.calls() == []


def test_an_archive_that_cannot_be_made(programs, tmp_path):
    commands.Programs(tmp_path, "tar").answer("tar", "2 no space left")
    programs.answer("gcloud", "0 2", "0")
    finished = programs.run("tpu_vm.sh", "install", *WHERE)
    assert finished.returncode == 2
    asked = [call.split()[0] for call in programs.calls()]
    assert asked == ["gcloud", "tar"]  # for the hosts; nothing is copied


def test_nothing_is_created_without_a_type(programs):
    finished = programs.run("tpu_vm.sh", "create", *WHERE)
    assert finished.returncode == 2
    assert "--type or TPU_TYPE is missing" in finished.stderr
    assert programs.calls() == []


def test_hosts_of_a_group_get_the_cluster_flags(programs):
    hosts = "0 pod-a1b2 10.0.0.7\\npod-c3d4 10.0.0.9"
    end = ["0 ended 0", "0 ended 0"]
    programs.answer("gcloud", hosts, "0", "0", *end)
    finished = programs.run("tpu_mig.sh", "run", *WHERE, *ARGUMENTS)
    assert finished.returncode == 0, finished.stderr
    starts = [call for call in programs.calls() if " start " in call]
    assert len(starts) == 2
    for i, (host, start) in enumerate(zip(("pod-a1b2", "pod-c3d4"), starts)):
        assert start.startswith(f"gcloud compute ssh {host} --zone=us-east5-b")
        assert "--config.mesh.processes=2 --coordinator=10.0.0.7:8476" in start
        assert f"--num_processes=2 --process_id={i}" in start


def test_a_group_created_in_part_can_be_deleted(programs):
    programs.answer("gcloud", "0", "1 quota exceeded")
    finished = programs.run("tpu_mig.sh", "create", *WHERE, *MACHINE)
    assert finished.returncode == 1
    assert "the verb delete removes its parts" in finished.stderr
    assert len(programs.calls()) == 2  # nothing is tried after the failure


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "what is to be done?"),
        (["run"], "--name or TPU_NAME is missing"),
        (["run", "--name", "x"], "--zone or TPU_ZONE is missing"),
        (["start", *WHERE], "unknown verb start"),
        (["run", *WHERE, "--topology", "4x4"], "unknown option --topology"),
        (["run", *WHERE, "--flags", "fast"], "no such profile"),
        (["run", *WHERE, "--config=x"], "unknown option --config=x"),
    ],
)
def test_wrong_calls(programs, arguments, words):
    finished = programs.run("tpu_vm.sh", *arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert programs.calls() == []


# --- what runs on a host --------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    """Calls tpu_host.sh of a copy of the launchers, whose Python is a shell script."""
    shutil.copytree(commands.LAUNCH, tmp_path / "launch")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\necho "$LIBTPU_INIT_ARGS $*"\n'
        f"until [[ -e {tmp_path}/go ]]; do sleep 0.02; done\nexit 42\n"
    )
    python.chmod(0o755)

    def call(*arguments):
        return subprocess.run(
            [tmp_path / "launch/tpu_host.sh", *arguments],
            env=commands.environment(PYTHON=str(python)),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    return call, tmp_path


def test_host(host):
    call, folder = host
    assert call("status") == "idle\n"
    call("start", "tpu-check", "--config=a b")  # and does not wait
    assert call("status") == "running\n"
    (folder / "go").touch()
    while call("status") == "running\n":
        time.sleep(0.05)
    assert call("status") == "ended 42\n"
    assert (folder / "run/log").read_text() == (
        "--xla_tpu_enable_sdc_checker=true -m dinov2_jax.main --config=a b\n"
    )


def test_host_stops_the_run(host):
    """It may save itself; what it leaves running is killed."""
    call, folder = host
    (folder / "python").write_text(
        "#!/bin/bash\ntrap 'sleep 0.5; touch saved; exit 42' TERM\n"
        "sleep 600 & touch up; wait\n"
    )
    call("start", "", "x")
    group = int((folder / "run/pid").read_text())
    while not (folder / "up").exists():
        time.sleep(0.02)
    call("stop")
    assert (folder / "saved").exists()
    deadline = time.monotonic() + 60
    while alive(group):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert call("status") == "idle\n"


def alive(group):
    """Whether a process group has members that are not zombies."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def test_host_that_lost_its_run(host):
    """Killed with all that could have written an exit code."""
    call, folder = host
    (folder / "run").mkdir()
    (folder / "run/pid").write_text("999999999")
    assert call("status") == "ended 137\n"


def test_host_installs_jax_of_the_pinned_version(host):
    call, _ = host
    assert call("--dry-run", "install", "python3.11").splitlines() == [
        "python3.11 -m venv .venv",
        ".venv/bin/python -m pip install -q -r requirements.txt 'jax[tpu]'",
    ]
