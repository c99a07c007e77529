"""Versions and paths in the files beside the code, which must agree with it."""

import pathlib
import re
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_ruff_version_of_pre_commit_equals_that_of_the_tests():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (rev,) = [hook["rev"] for hook in hooks if "ruff" in hook["repo"]]
    pinned = (ROOT / "requirements-test.txt").read_text()
    assert f"ruff=={rev.removeprefix('v')}\n" in pinned


def test_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == VERSION


@pytest.mark.parametrize("path", ["CONTRIBUTING.md", "AGENTS.md"])
def test_names_in_the_guides_exist(path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    text = (ROOT / path).read_text()
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= set(targets)
    named = re.findall(r"`((?:dinov2_jax|tests|configs|docs)/[\w/.]+)`", text)
    missing = [
        name for name in named if "NAME" not in name and not (ROOT / name).exists()
    ]
    assert named and not missing
