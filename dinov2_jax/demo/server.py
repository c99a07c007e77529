"""The page on this machine's own address, shut off from everything else.

It binds to 127.0.0.1 and answers under that name and localhost alone, so no other
website reaches it by a name of its own, nor by requests from its pages. It serves no
file of the disk but those that were sent to it or that it made, loads nothing from
elsewhere, and sends nothing.
"""

import contextlib
import os
import socket
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from dinov2_jax import errors

HOST = "127.0.0.1"
MAX_UPLOAD = 2**25  # bytes of a file
_NAMES = [HOST, "localhost"]
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:; frame-ancestors 'self'; form-action 'self'"
)
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ALLOWED_PATHS": "",  # else files could be served by it
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextlib.contextmanager
def environment() -> Iterator[str]:
    """Set what Gradio reads from the environment, for a block that imports and uses it.

    Yields:
      A new folder, which it uses for files and which is removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="dinov2_jax-demo-") as folder:
        settings = _ENVIRONMENT | {"GRADIO_TEMP_DIR": folder}
        before = {name: os.environ.get(name) for name in settings}
        os.environ |= settings
        try:
            yield folder
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def check_port(port: int) -> None:
    """Raise UserError if another program has a port, or it may not be used."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise errors.UserError(
                f"--port={port} cannot be used ({error}): choose another, or leave it "
                "out"
            ) from error


@contextlib.contextmanager
def serve(page: Any, *, port: int | None) -> Iterator[str]:
    """Serve a page until the block ends.

    Args:
      page: A `gradio.Blocks`.
      port: Port; None takes the first free one from 7860 on.

    Yields:
      The page's address.

    Raises:
      UserError: The port, or each that was tried, is in use.
    """
    import gradio as gr
    from starlette import middleware
    from starlette.middleware import trustedhost

    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace",)}
    guards = [
        middleware.Middleware(trustedhost.TrustedHostMiddleware, allowed_hosts=_NAMES),
        middleware.Middleware(_Closed),
    ]
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            theme=gr.themes.Default(**fonts),
            app_kwargs={"middleware": guards},
        )
    except OSError as error:
        raise errors.UserError(
            f"no port can be used ({error}): choose another --port"
        ) from error
    try:
        yield address
    finally:
        page.close(verbose=False)


class _Closed:
    """An ASGI layer between the application and other websites.

    Their pages get no answers, their addresses are not fetched for a caller, and the
    application's own pages load nothing from them.

    Args:
      app: The application inside.
    """

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if _is_from_elsewhere(scope["headers"]) or _names_an_address(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            return await send({"type": "http.response.body", "body": b"not allowed"})

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", _POLICY.encode())
                message = message | {"headers": [*message["headers"], header]}
            await send(message)

        await self._app(scope, receive, send_with_policy)


def _is_from_elsewhere(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a page of another website sends a request."""
    fields = dict(headers)
    origin = fields.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != fields.get(b"host")


def _names_an_address(path: str) -> bool:
    """Return whether a request asks for the content of another address."""
    path = urllib.parse.unquote(path).lower()
    return any(
        f"{kind}={scheme}" in path
        for kind in ("file", "proxy")
        for scheme in ("http:", "https:")
    )
