"""The notebooks: both files of each agree, and all cells run, without a network."""

import os
import pathlib
import sys

import pytest

pytestmark = pytest.mark.extra

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [path.stem for path in SOURCES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to run them in, with the command of this checkout on the path.

    They share the small model that the first of them trains.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    command = folder / "bin" / "dinov2-jax"
    command.parent.mkdir()
    program = f"#!{sys.executable}\nfrom dinov2_jax import cli\n\ncli.main()\n"
    command.write_text(program)
    command.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        # They train for hundreds of steps; compiled programs are still shared.
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
        path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
        patch.setenv("PATH", path)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, folder):
    import jupytext
    import nbclient

    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


@pytest.mark.parametrize("name", NAMES)
def test_both_files_have_the_same_cells(name):
    import jupytext

    source, notebook = (
        jupytext.read(ROOT / "notebooks" / f"{name}{suffix}")
        for suffix in (".py", ".ipynb")
    )
    cells, others = (
        [(cell.cell_type, cell.source) for cell in read.cells]
        for read in (source, notebook)
    )
    assert cells == others, "run: make notebooks"
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_readme_lists_all():
    readme = (ROOT / "notebooks" / "README.md").read_text()
    for name in NAMES:
        assert f"({name}.ipynb)" in readme
        assert f"/blob/main/notebooks/{name}.ipynb)" in readme
