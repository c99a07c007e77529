"""The tables of the config page, made of configs/default.py and its comments."""

import importlib.util

import guides
import pytest

from dinov2_jax.config import flattening
from dinov2_jax.configs import default


@pytest.fixture(scope="module")
def config_page():
    path = guides.ROOT / "docs/hooks/config_page.py"
    spec = importlib.util.spec_from_file_location("config_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = '''
"""All fields."""


def get_config():
    c = config_dict.ConfigDict()
    c.seed = 0  # of all
    # A section, in
    # two lines.
    c.a = config_dict.ConfigDict()
    # Both sizes.
    c.a.width = 1
    c.a.height = 2
    c.a.depth = 3  # px
    c.a.area = 4
    c.a.flag = (
        False  # behind it
    )
    c.lock()
    return c
'''


def test_comments_belong_to_fields(config_page):
    top, section = config_page.read_sections(SOURCE)
    assert (top.name, top.rows) == ("", [config_page.Row(["seed"], "of all")])
    assert (section.name, section.about) == ("a", "A section, in two lines.")
    assert section.rows == [
        config_page.Row(["a.width", "a.height", "a.area"], "Both sizes."),
        config_page.Row(["a.depth"], "px"),
        config_page.Row(["a.flag"], "behind it"),
    ]


def test_every_field_has_a_row_and_a_comment(config_page):
    with open(default.__file__) as file:
        sections = config_page.read_sections(file.read())
    rows = [row for section in sections for row in section.rows]
    named = [name for row in rows for name in row.names]
    assert sorted(named) == sorted(flattening.flatten(default.get_config()))
    assert all(row.about for row in rows)


def test_tables(config_page):
    fields, presets = config_page.fields(), config_page.presets()
    assert '| <a id="optim.base_lr"></a>`optim.base_lr` | `0.004` | at batch' in fields
    assert "\\| folder \\| manifest" in fields
    assert "see [data.md](data.md)" in fields
    assert "| [`model.arch`](#model.arch) | `'vit_giant2'` | `'vit_large'` |" in presets
