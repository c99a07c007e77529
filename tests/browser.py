"""Chromium without a window, driven through its DevTools protocol."""

import base64
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)
_PATIENCE = 120.0  # seconds for anything to happen


def program() -> str:
    """$CHROMIUM, or Chromium or Chrome on the path; without one the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, names)), ""
    )
    if not found:
        pytest.skip("there is no Chromium: install it, or set CHROMIUM to its path")
    return found


@contextlib.contextmanager
def opened(*, width: int = 1100, height: int = 1000):
    """Yields a `Page` of a new browser with a profile of its own."""
    from websockets.sync import client

    command = program()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = (
            *_FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        )
        process = subprocess.Popen(
            [command, *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(pathlib.Path(profile) / "DevToolsActivePort", process)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = json.load(answer)
            address = next(t for t in targets if t["type"] == "page")
            with client.connect(
                address["webSocketDebuggerUrl"], max_size=None, proxy=None
            ) as socket:
                yield Page(socket, (width, height))
        finally:
            process.terminate()
            process.wait()


def _port(path: pathlib.Path, process: subprocess.Popen) -> int:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "Chromium ended at once"
        if path.exists() and (lines := path.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise TimeoutError("Chromium opened no port")


class Page:
    """A page of the browser.

    Attributes:
      problems: Errors of its scripts and its console.
      requests: Addresses that it requested.
    """

    def __init__(self, socket, size):
        self._socket, self._number = socket, 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.resize(*size)

    def send(self, method: str, **params):
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=_PATIENCE))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.problems.append(json.dumps(params["args"])[:500])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                entry = params["entry"]
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def go(self, address: str) -> None:
        """Opens an address."""
        self.send("Page.navigate", url=address)

    def run(self, expression: str):
        """Returns the value of an expression, awaited if it is a promise."""
        done = self.send(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str):
        """Returns the value of an expression as soon as it is true."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if value := self.run(
                f"(() => {{ try {{ return {expression}; }} catch {{}} }})()"
            ):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never true: {expression}; problems: {self.problems}")

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Clicks at a place of an element, given as shares of its width and height."""
        box = self.run(
            f"(() => {{ const e = {selector}; e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        x, y = box[0] + across * box[2], box[1] + down * box[3]
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    def press(self, key: str) -> None:
        """Presses a key such as ArrowDown."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def choose_file(self, selector: str, path: pathlib.Path) -> None:
        """Puts a file into an <input type=file>."""
        found = self.send("Runtime.evaluate", expression=selector)["result"]
        self.send(
            "DOM.setFileInputFiles", files=[str(path)], objectId=found["objectId"]
        )

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window's content."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self) -> None:
        """Prefers dark colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes a PNG of what is seen."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def served(folder: pathlib.Path):
    """Yields the address of a folder on a plain HTTP server."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=os.fspath(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
