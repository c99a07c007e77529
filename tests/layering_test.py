"""Who imports whom: a file imports only from floors below it or its own package."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = {  # the longest prefix counts
    "": 6,  # the package, which offers `load`
    "main": 5,
    "cli": 5,
    "launch": 5,
    "train": 4,
    "preflight": 4,
    "eval": 4,
    "convert": 4,
    "aot": 4,
    "embed": 5,
    "embedding": 3,
    "visualize": 5,
    "pretrained": 3,
    "init_weights": 3,
    "program": 3,
    "train_step": 3,
    "flops": 2,
    "ssl_meta_arch": 2,
    "train_state": 2,
    "optimizer": 2,
    "data.loader": 2,
    "data.bench": 4,
    "data.throughput": 3,
    "data.batch_builder": 1,
    "config_check": 1,
    "models": 1,
    "losses": 0,
    "kernels": 0,
    "schedules": 0,
    "disk_space": -1,
    "configs": -1,
    "record_file": -1,
    "one_line_parser": -1,
    "sharding": -1,  # where arrays live is said on every floor
    "checkpoint": 0,
    "metrics": 0,
    "data": 0,
    "device_augmentation": 1,
    "errors": -2,
    "workdir": 1,
    "bad_images": 1,
    "console": 1,
    "data_record": 1,
    "distributed": 0,
    "host_memory": 0,
    "monitor": 0,
    "events": 1,
    "profiling": 0,
    "goodput": 1,
    "rollback": 1,
    "run_log": 3,
    "status": 5,
    "time_account": 0,
    "watchdog": 1,
    "weights": 2,
}
# Importer and imported on one floor: the state holds the architecture's parameters,
# the loop evaluates, which the checks before it try, and a program is built of what
# starts and of what steps.
BESIDE = {
    ("train_state", "ssl_meta_arch"),
    ("train_state", "optimizer"),
    ("train", "eval.evaluator"),
    ("preflight", "eval.evaluator"),
    ("program", "init_weights"),
    ("program", "train_step"),
}
FILES = sorted((ROOT / "dinov2_jax").rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT / "dinov2_jax").with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def floor(name):
    while name and name not in FLOORS:
        name = name.rpartition(".")[0]
    return FLOORS.get(name)


MODULES = {module_name(path) for path in FILES}


@functools.cache
def imports(path, at_once=False):
    """All modules that a file imports, anywhere or when it is imported itself."""
    found, tree = set(), ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                ours = full.removeprefix("dinov2_jax.")
                found.add(full if ours in MODULES else node.module)
                if node.module == "dinov2_jax" and ours not in MODULES:
                    raise AssertionError(f"{path} imports the unknown module {full}")
    return found


def importers(package, at_once=False):
    """Our modules that import a package or something inside it."""
    return {
        module_name(path)
        for path in FILES
        if any(f"{name}.".startswith(f"{package}.") for name in imports(path, at_once))
    }


def test_every_file_has_a_floor():
    unknown = [name for name in MODULES if name and floor(name) is None]
    assert not unknown


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path):
    name = module_name(path)
    package = name.rpartition(".")[0]
    for imported in imports(path):
        if not imported.startswith("dinov2_jax."):
            continue
        other = imported.removeprefix("dinov2_jax.")
        below = floor(other) < floor(name)
        beside = floor(other) == floor(name) and (
            (package and other.startswith(f"{package}.")) or (name, other) in BESIDE
        )
        assert below or beside, f"{name} (floor {floor(name)}) imports {other}"


def test_there_are_no_circles():
    edges = {
        module_name(path): {
            name.removeprefix("dinov2_jax.")
            for name in imports(path)
            if name.startswith("dinov2_jax.")
        }
        for path in FILES
    }
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, [*trail, name])
            done.add(name)

    for name in edges:
        visit(name, [])


def test_flax_linen_stays_in_the_models():
    users = importers("flax.linen")
    assert users  # the search finds something
    assert all(u.startswith("models.") or u == "ssl_meta_arch" for u in users), users


def test_orbax_stays_in_checkpoint():
    assert {name.partition(".")[0] for name in importers("orbax")} == {"checkpoint"}


# Only what compares with them runs other frameworks, where they are installed.
CHECKERS = {"convert.verify", "convert.torch_twin", "data.reference_pipeline"}


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "timm", "tensorflow", "torchvision"]
)
def test_no_other_framework(package):
    assert importers(package) <= CHECKERS
    assert not importers(package, at_once=True)


@pytest.mark.parametrize("package", ["jax", "flax", "optax"])
def test_loader_workers_import_no_jax(package):
    assert not {u for u in importers(package) if u.startswith("data.")}


def test_grain_stays_in_the_loader():
    assert importers("grain") <= {
        "data.batch_builder",
        "data.loader",
        "data.workers",
    }
    assert "data.loader" in importers("grain")


def test_only_programs_read_flags_and_configs():
    assert importers("dinov2_jax.configs") <= {"main", "aot.config_file"}
    assert not importers("configs")  # of whoever starts a program
    assert importers("ml_collections") <= {"main"}


def test_no_tests_or_benchmarks_are_imported():
    assert not importers("tests") and not importers("benchmarks")
