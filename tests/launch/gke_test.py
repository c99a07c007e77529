"""launch/gke.sh: manifests by their schemas, and calls of a stand-in for kubectl."""

import copy

import commands
import jobset_schema
import jsonschema
import pytest
import yaml

OPTIONS = [
    *("--name", "run", "--queue", "team", "--image", "registry/dinov2:1"),
    *("--claim", "disk", "--hosts", "4", "--flags", "tpu-v6e"),
]
TPU = ["tpu", *OPTIONS, "--accelerator", "tpu-v6e-slice", "--topology", "4x4"]
GPU = ["gpu", *OPTIONS[:-1], "gpu", "--accelerator", "nvidia-h100-80gb"]
# Whose last holds what a shell, YAML or Kubernetes could take for something else.
ARGUMENTS = ["--config=configs/vitg.py", r"""--workdir=/data/a "b" 'c' $(X) \d & #e"""]


@pytest.fixture
def programs(tmp_path):
    return commands.Programs(tmp_path, "kubectl")


def dry_run(programs, *arguments):
    finished = programs.run("gke.sh", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert programs.calls() == []
    return finished.stdout


@pytest.mark.parametrize("options", [TPU, GPU], ids=["tpu", "gpu"])
def test_manifest_of_a_run(programs, options):
    text = dry_run(programs, "run", *options, "--dry-run", "--", *ARGUMENTS)
    commands.assert_as_recorded(text, f"gke_{options[0]}")
    manifest = yaml.safe_load(text)
    jsonschema.validate(manifest, jobset_schema.JOBSET)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    own = [x.replace("$(X)", "$$(X)") for x in ARGUMENTS]
    assert container["args"][-3:] == [*own, "--config.mesh.processes=4"]
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}


def test_slices(programs):
    text = dry_run(programs, "run", *TPU, "--slices", "2", "--dry-run", "--")
    manifest = yaml.safe_load(text)
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    assert "--config.mesh.processes=8" in text


def test_setup(programs):
    text = dry_run(programs, "setup", "--queue", "team", "--quota", "64", "--dry-run")
    commands.assert_as_recorded(text, "gke_setup")
    seen = []
    for manifest in yaml.safe_load_all(text):
        jsonschema.validate(manifest, jobset_schema.OTHERS[manifest["kind"]])
        seen.append(manifest["kind"])
    assert sorted(seen) == sorted(jobset_schema.OTHERS)


def wrong(manifest, path, value):
    """A copy of a manifest with one field changed or added."""
    manifest = copy.deepcopy(manifest)
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return manifest


def test_the_schema_refuses_mistakes(programs):
    text = dry_run(programs, "run", *GPU, "--dry-run", "--", *ARGUMENTS)
    manifest = yaml.safe_load(text)
    jsonschema.validate(manifest, jobset_schema.JOBSET)
    job = ("spec", "replicatedJobs", 0, "template", "spec")
    for path, value in (
        ((*job, "backofLimit"), 0),
        ((*job, "parallelism"), "4"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
        ((*job, "template", "spec", "containers", 0, "env"), None),
        (("metadata", "name"), "a b"),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong(manifest, path, value), jobset_schema.JOBSET)


def test_calls(programs, tmp_path):
    name = ["--name", "run", "--namespace", "team"]
    assert programs.run("gke.sh", "run", *TPU, "--", *ARGUMENTS).returncode == 0
    for verb in ("logs", "status", "delete"):
        assert programs.run("gke.sh", verb, *name).returncode == 0
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=run"
    assert programs.calls() == [
        "kubectl apply -f -",
        "kubectl --namespace=team logs --follow --container=train "
        f"{selector},batch.kubernetes.io/job-completion-index=0",
        f"kubectl --namespace=team get pods --output=wide {selector}",
        "kubectl --namespace=team delete jobset run",
    ]
    applied = yaml.safe_load((tmp_path / "standard_input").read_text())
    jsonschema.validate(applied, jobset_schema.JOBSET)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "what is to be done?"),
        (["run", *OPTIONS], "run tpu or run gpu"),
        (["run", *TPU[:-2]], "--topology is missing"),
        (["run", *TPU, "--hosts", "many"], "--hosts=many: a whole number"),
        (["run", *TPU, "--flags", "fast"], "no such profile"),
        (["run", *TPU, "extra"], "unknown argument extra"),
        (["delete"], "--name or GKE_NAME is missing"),
        (["setup", "--queue", "x"], "--quota is missing"),
    ],
)
def test_wrong_calls(programs, arguments, words):
    finished = programs.run("gke.sh", *arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert programs.calls() == []
