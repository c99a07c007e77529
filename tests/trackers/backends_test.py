"""Real runs in the trackers' offline modes, read back and compared."""

import json
import pathlib
import signal
import sqlite3

import processes
import pytest

pytestmark = pytest.mark.extra
FLAGS = (
    '--config.log.trackers=("wandb","mlflow","trackio")',
    "--config.log.project=tried",
    "--config.checkpoint.every=4",
    "--config.evaluation.every=10",
    "--config.train.steps=12",
)
BLOCK = 32768  # bytes, of the format of LevelDB's logs


def wandb_records(path):
    """The records of a .wandb file: a header, then a LevelDB log of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        kind = data[at + 6]  # 1: whole | 2: first | 3: middle | 4: last
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def read_wandb(workdir):
    rows, runs, codes, pictures = [], [], [], 0
    for path in sorted((workdir / "trackers/wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                runs.append(record.run)
            if record.HasField("exit"):
                codes.append(record.exit.exit_code)
            if record.HasField("history"):
                row = {}
                for item in record.history.item:
                    name = item.key or "/".join(item.nested_key)
                    row[name] = json.loads(item.value_json)
                pictures += any(name.startswith("pca/") for name in row)
                row = {k: v for k, v in row.items() if not k.startswith("pca/")}
                rows.append((row.pop("_step"), row))
    assert {run.run_id for run in runs} == {runs[0].run_id}
    assert runs[0].project == "tried" and pictures == 1
    config = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for item in runs[0].config.update
    }
    return rows, config, codes


def read_mlflow(store):
    from mlflow import tracking

    client = tracking.MlflowClient()
    experiment = client.get_experiment_by_name("tried")
    (run,) = client.search_runs([experiment.experiment_id])
    rows = [
        (metric.step, {name: metric.value})
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.json", "pca.png"}
    assert run.data.tags["end"] == "done" and run.data.tags["images.fingerprint"]
    return rows, run.data.params, run.info.status


def read_trackio(folder):
    (path,) = folder.glob("*.db")
    database = sqlite3.connect(path)
    names = database.execute("select distinct run_name from metrics").fetchall()
    assert len(names) == 1
    rows = database.execute("select step, metrics from metrics").fetchall()
    rows = [(step, json.loads(text)) for step, text in rows]
    ((config,),) = database.execute("select config from configs").fetchall()
    assert len([row for _, row in rows if "pca" in row]) == 1
    codes = [row["exit_code"] for _, row in rows if "exit_code" in row]
    return rows, json.loads(config), codes


def series(rows):
    """{name: {step: value}}; a step that is there twice is a failure."""
    found = {}
    for step, row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not name.startswith("_"):
                steps = found.setdefault(name, {})
                assert step not in steps, (name, step)
                steps[step] = value
    return found


@pytest.fixture(scope="module")
def resumed(in_process, tmp_path_factory):
    """(workdir, stores) of a run that was stopped and resumed."""
    stores = tmp_path_factory.mktemp("stores")
    workdir = stores / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_DIR", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"file:{stores / 'mlflow'}")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("TRACKIO_DIR", str(stores / "trackio"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        flags = [*processes.DEBUG, f"--workdir={workdir}", *FLAGS]
        stop = {"step 6/12": lambda: signal.raise_signal(signal.SIGTERM)}
        first = in_process.run(*flags, when=stop)
        assert first.code == 42, first.output
        second = in_process.run(*flags)
        assert second.code == 0, second.output
        assert "resumed from step" in second.output
        assert "; the run goes on" not in first.output + second.output
        assert "still sending" not in second.output
        yield workdir, stores


@pytest.fixture(scope="module")
def expected(resumed):
    """The series of metrics.jsonl."""
    lines = (resumed[0] / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = series([(row.pop("step"), row) for row in rows])
    assert [*found["loss/total"]] == [*range(1, 13)] and 10 in found["knn/top1"]
    return found


def test_wandb(resumed, expected):
    rows, config, codes = read_wandb(resumed[0])
    assert series(rows) == expected
    assert config["optim.base_lr"] == 0.002 and config["images"]["fingerprint"]
    assert codes == [42, 0]


def test_mlflow(resumed, expected):
    rows, config, status = read_mlflow(resumed[1])
    assert series(rows) == expected
    assert config["optim.base_lr"] == "0.002" and status == "FINISHED"


def test_trackio(resumed, expected):
    rows, config, codes = read_trackio(resumed[1] / "trackio")
    found = series(rows)
    del found["exit_code"]
    assert found == expected and codes[-1] == 0
    assert config["optim.base_lr"] == 0.002 and config["images"]["fingerprint"]


def test_ids_are_kept(resumed):
    folder = pathlib.Path(resumed[0]) / "trackers"
    for name in ("wandb", "mlflow", "trackio"):
        assert json.loads((folder / f"{name}.json").read_text())["id"]
