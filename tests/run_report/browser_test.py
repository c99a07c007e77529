"""The report in a real browser: no error, and nothing is loaded besides the page."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
import urllib.parse

import pytest

from dinov2_jax.run_report import page

pytestmark = pytest.mark.extra
HOST = "http://report.invalid"
OWN = ("google.com", "googleapis.com", "gvt1.com")  # what Chromium asks by itself
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


class Proxy(http.server.SimpleHTTPRequestHandler):
    """Answers all requests of a browser from a folder, and notes them."""

    def do_GET(self):
        self.server.requests.append(self.path)
        self.path = urllib.parse.urlsplit(self.path).path
        super().do_GET()

    def do_CONNECT(self):
        self.server.requests.append(self.path)
        self.send_error(502)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """(folder, address of the proxy, list of requests)."""
    handler = functools.partial(Proxy, directory=tmp_path / "served")
    (tmp_path / "served").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "served", f"127.0.0.1:{server.server_port}", server.requests
        server.shutdown()
        thread.join()


def load(name, proxy, profile):
    """The page after it was loaded, and what the browser complains about."""
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--user-data-dir={profile}"),
            *(f"--proxy-server={proxy}", "--disable-background-networking"),
            *("--disable-component-update", "--no-first-run", "--disable-sync"),
            *("--virtual-time-budget=5000", f"{HOST}/{name}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, [x for x in done.stderr.splitlines() if "CONSOLE" in x]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_nothing_is_loaded_and_nothing_is_wrong(served, tmp_path):
    folder, proxy, requests = served
    rows = [
        {"step": step, "loss/total": 3.0 / step, "lr": 0.1, "knn/top1": 0.5}
        for step in range(1, 2000)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    assert page.write(folder) == ""
    document, complaints = load("report.html", proxy, tmp_path / "profile")
    assert document.count("<svg") == 3 and document.rstrip().endswith("</html>")
    assert "loss/total <b>0.001501</b>" in document
    assert not complaints
    ours = {request for request in requests if not any(x in request for x in OWN)}
    assert ours - {f"{HOST}/favicon.ico"} == {f"{HOST}/report.html"}
    # The same test notices what it looks for.
    evil = "<img src='http://elsewhere.invalid/a.png'><script>nowhere()</script>"
    (folder / "evil.html").write_text(document + evil)
    _, complaints = load("evil.html", proxy, tmp_path / "profile")
    assert complaints and "http://elsewhere.invalid/a.png" in requests
