"""The page of runs while they go on, served to a browser."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dslth.errors import AddressError, DslthError
from dslth.keys import is_loopback
from dslth.report import page

__all__ = ["serve"]


def serve(folders: Sequence[Path], host: str, port: int) -> ThreadingHTTPServer:
    """Return a server of the page, which reads the run folders anew each time that it is asked; port 0: a free one.

    Raises AddressError if it cannot listen there.
    """
    names = (host, "127.0.0.1", "localhost", "[::1]") if is_loopback(f"tcp://{host}:{port}") else ()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if names and (self.headers.get("Host") or "").rpartition(":")[0] not in names:
                self.send_error(HTTPStatus.FORBIDDEN)  # a page of elsewhere whose name leads here
                return
            try:
                match self.path:
                    case "/":
                        self._answer(page.page(page.content(folders), live=True), "text/html; charset=utf-8")
                    case "/shown.json":
                        self._answer(json.dumps(page.content(folders)), "application/json")
                    case _:
                        self.send_error(HTTPStatus.NOT_FOUND)
            except DslthError as error:  # no report yet
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))

        def _answer(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
            """Print nothing: the page asks every two seconds."""

    try:
        return ThreadingHTTPServer((host, port), Page)
    except OSError as error:
        raise AddressError(f"--listen {host}:{port}: {error.strerror or error}") from None
