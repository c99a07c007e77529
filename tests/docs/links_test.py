"""Links between the pages, on GitHub and on the site."""

import guides
import pytest
import yaml


class Loader(yaml.SafeLoader):
    """YAML with the Python functions that mkdocs allows, which are left out."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE = yaml.load((guides.ROOT / "mkdocs.yml").read_text(), Loader)


def pages(section: dict) -> list[str]:
    """The files of a section of the navigation, which may have titles."""
    (entries,) = section.values()
    return [next(iter(e.values())) if isinstance(e, dict) else e for e in entries]


@pytest.mark.parametrize("page", guides.PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link in guides.links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            wrong.append(link)
        elif anchor and anchor not in guides.anchors(target):
            wrong.append(link)
    assert not wrong


def test_links_are_found():
    links = {page.name: guides.links(page) for page in guides.PAGES}
    assert "docs/training.md#is-my-curve-normal" in links["README.md"]
    assert "quickstart_pca.png" in links["training.md"]
    assert sum(map(len, links.values())) > 100


def test_every_page_is_in_the_navigation_once():
    named = [page for section in SITE["nav"] for page in pages(section)]
    there = [page.name for page in guides.PAGES[1:]]
    assert sorted(named) == sorted(there)


def test_the_start_page_leads_to_every_section():
    start = {
        link.partition("#")[0] for link in guides.links(guides.ROOT / "docs/index.md")
    }
    for section in SITE["nav"][1:]:
        assert start & set(pages(section)), section


def test_the_site_asks_no_other_server():
    assert SITE["theme"]["font"] is False
    assert "repo_url" not in SITE  # the theme would ask GitHub's API
    assert not SITE.get("extra_javascript")
    assert not any(":" in path for path in SITE["extra_css"])
