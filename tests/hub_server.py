"""A server with the endpoints of the Hugging Face hub that its client needs here.

It keeps repositories in memory: create, branch, commit, list, download.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import huggingface_hub.constants

TOKEN = "hf_of_the_tests"


class Hub:
    """The repositories, and the requests that were answered.

    Attributes:
      repositories: {name: {"private", "branches": {branch: commit}}}.
      commits: {commit: {path: bytes}}.
      requests: Lines such as "GET /api/models/a/b".
    """

    def __init__(self):
        self.repositories, self.commits, self.requests = {}, {}, []

    def add(self, name, files, *, private=False, branch="main"):
        commit = hashlib.sha1(f"{name} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        repository = self.repositories.setdefault(
            name, {"private": private, "branches": {}}
        )
        repository["branches"][branch] = commit
        return commit

    def files(self, name, branch="main"):
        return self.commits[self.repositories[name]["branches"][branch]]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def _answer(self, content, code=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        headers |= {"Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, code, kind):
        self._answer({"error": kind}, code, X_Error_Code=kind)

    def _route(self):
        url = urllib.parse.urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        path = url.path
        if self.command == "POST":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._fail(401, "Unauthorized")
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._answer({})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._model(match[1], match[2] or "", body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            content = self.hub.commits[match[2]][urllib.parse.unquote(match[3])]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._answer(content, ETag=etag, X_Repo_Commit=match[2])
        return self._fail(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = _route

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"http://{self.headers['Host']}/{name}"}
        if name in self.hub.repositories:
            return self._answer(url, 409)
        private = asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b""}, private=private)
        return self._answer(url)

    def _model(self, name, rest, body):
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._fail(404, "RepoNotFound")
        what, _, revision = rest.partition("/")
        revision = urllib.parse.unquote(revision) or "main"
        branches = repository["branches"]
        if what == "branch":
            if revision in branches:
                return self._fail(409, "Conflict")
            branches[revision] = branches["main"]
            return self._answer({})
        commit = branches.get(revision, revision)
        if commit not in self.hub.commits:
            return self._fail(404, "RevisionNotFound")
        files = self.hub.commits[commit]
        if what in ("", "revision"):
            return self._answer(
                {
                    "id": name,
                    "sha": commit,
                    "private": repository["private"],
                    "siblings": [{"rfilename": path} for path in files],
                }
            )
        if what == "tree":
            return self._answer(
                [
                    dict(type="file", path=path, size=len(x), oid=_blob(x))
                    for path, x in files.items()
                ]
            )
        if what == "preupload":
            asked = json.loads(body)["files"]
            keep = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer({"files": [{"path": f["path"]} | keep for f in asked]})
        assert what == "commit"
        changed = dict(files)
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del changed[value["path"]]
            elif operation["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
        commit = self.hub.add(name, changed, branch=revision)
        url = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        return self._answer({"commitUrl": url, "commitOid": commit})


def _blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serve():
    """Run a hub on a port of this machine; yield it and its address."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(patch, cache, *, endpoint="http://127.0.0.1:9", offline=False, token=TOKEN):
    """Set what the client reads from its environment when it is imported."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
        constants.ENDPOINT, endpoint
    )
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "tokens"))
    patch.setenv("HF_TOKEN", token)


def fill_cache(cache, name, folder, *, ref="main", commit="0" * 40):
    """Put a folder's files into the client's cache, as a download does."""
    place = cache / f"models--{name.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (place / part).mkdir(parents=True, exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = place / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return place
