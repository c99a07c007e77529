"""Who imports whom: files import from their own folder and from those below it."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "dinov2_jax").rglob("*.py"))
# Who may import whom, from the ground up. A file imports only from its own folder and
# from rows below it; files at the top that share a row count as one folder.
ROWS = (
    "errors",
    "console files memory_errors html_page svg_plot progress_bar cli schedules "
    "sharding augment configs models.model_config",
    "kernels losses checkpoint data.decode trackers",
    "models data.sources",
    "config data",
    "objectives",
    "ssl_meta_arch optimizer train_state train_step step_by_size micro_batches "
    "data.tools runtime",
    "weights",
    "distillation",
    "feature_extractor several_students trainer status launch convert",
    "pretrained model_inputs run_report",
    "embed visualize",
    "eval aot hub",
    "curate demo export_page",
    "preflight train main data.__main__ recipe",
)
ROW = {room: i for i, row in enumerate(ROWS) for room in row.split()}
ROW[""] = len(ROWS)  # the package, which offers `load`


def module_name(path):
    parts = path.relative_to(ROOT / "dinov2_jax").with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


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


def room(name):
    """The folder or file of the table that a module belongs to."""
    while name not in ROW:
        name = name.rpartition(".")[0]
    return name


def test_every_file_has_a_room():
    assert {room(name) for name in MODULES} == set(ROW)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path):
    name = module_name(path)
    here = room(name)
    for imported in imports(path):
        if not imported.startswith("dinov2_jax."):
            continue
        other = imported.removeprefix("dinov2_jax.")
        there = room(other)
        both_at_top = "." not in name and "." not in other
        beside = here == there or (both_at_top and ROW[here] == ROW[there])
        assert beside or ROW[there] < ROW[here], f"{name} imports {other}"


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


def test_the_client_of_the_hub_is_imported_late():
    assert importers("huggingface_hub") == {"weights.hub_repository"}
    assert not importers("huggingface_hub", at_once=True)


# Only what compares with them runs other frameworks, where they are installed.
CHECKERS = {"convert.verify", "convert.torch_twin", "data.tools.reference_pipeline"}


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "timm", "tensorflow", "torchvision"]
)
def test_no_other_framework(package):
    assert importers(package) <= CHECKERS
    assert not importers(package, at_once=True)


@pytest.mark.parametrize("package", ["jax", "flax", "optax"])
def test_loader_workers_import_no_jax(package):
    users = importers(package) - {"augment.on_device"}
    assert not {u for u in users if u.startswith(("data.", "augment."))}


def test_grain_stays_in_the_loader():
    assert importers("grain") <= {
        "data.batch_builder",
        "data.loader",
        "data.workers",
    }
    assert "data.loader" in importers("grain")


def test_only_programs_read_flags_and_configs():
    assert importers("dinov2_jax.configs") <= {
        *("main", "config.config_file", "config.converted_config"),
    }
    assert not importers("configs")  # of whoever starts a program
    assert importers("ml_collections") <= {"main"}


def test_no_tests_or_benchmarks_are_imported():
    assert not importers("tests") and not importers("benchmarks")
