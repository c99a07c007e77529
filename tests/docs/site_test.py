"""The documentation as a site, built as `make docs` builds it."""

import re
import subprocess
import sys

import guides
import pytest

import dinov2_jax
from dinov2_jax.config import flattening
from dinov2_jax.configs import default

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*command, f"--site-dir={folder}"],
        cwd=guides.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site):
    for page in guides.PAGES[1:]:
        assert (site / page.with_suffix(".html").name).is_file()
    assert not (site / "hooks").exists()


def test_every_field_is_on_the_config_page(site):
    page = (site / "config.html").read_text()
    for name in flattening.flatten(default.get_config()):
        assert f'id="{name}"' in page


def test_every_public_name_is_on_the_api_page(site):
    page = (site / "api.html").read_text()
    for name in dinov2_jax.__all__:
        assert re.search(rf"<h3 [^>]*>\s*dinov2_jax\.{name}\s", page), name
    assert ":::" not in page


def test_no_page_fetches_from_another_server(site):
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]* src="([^"]*)"|<link ([^>]*)>'
    )
    for path in site.rglob("*.html"):
        for source, link in loads.findall(path.read_text()):
            assert "//" not in source, (path, source)
            is_fetched = re.search("stylesheet|icon|preconnect|preload", link)
            assert not (is_fetched and "//" in link), (path, link)
