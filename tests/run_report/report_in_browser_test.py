"""The report in a real browser: no error, and nothing is loaded besides the page."""

import json

import browser
import pytest

from dinov2_jax.run_report import page

pytestmark = pytest.mark.extra


def test_nothing_is_loaded_and_nothing_is_wrong(tmp_path):
    rows = [
        {"step": step, "loss/total": 3.0 / step, "lr": 0.1, "knn/top1": 0.5}
        for step in range(1, 2000)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert page.write(tmp_path) == ""
    with browser.served(tmp_path) as address, browser.opened() as shown:
        shown.go(f"{address}/report.html")
        shown.wait("document.readyState == 'complete'")
        assert shown.run("document.querySelectorAll('svg').length") == 3
        assert "loss/total 0.001501" in shown.run("document.body.innerText")
        own = {f"{address}/report.html", f"{address}/favicon.ico"}
        assert set(shown.requests) <= own
        assert not [x for x in shown.problems if "favicon" not in x]
        # The same test notices what it looks for.
        evil = "<img src='http://elsewhere.invalid/a.png'><script>nowhere()</script>"
        document = (tmp_path / "report.html").read_text()
        (tmp_path / "evil.html").write_text(document + evil)
        shown.go(f"{address}/evil.html")
        shown.wait("document.readyState == 'complete'")
        assert "http://elsewhere.invalid/a.png" in shown.requests
        assert any("nowhere" in problem for problem in shown.problems)
