"""A webhook server that allows every request and records it."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from tests.kube.api import Object, Objects


class Recorder:
    """A context manager that serves HTTPS on a free loopback port."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._requests: list[tuple[str, Object]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(body)["request"]
                # Remove the secret first part of the path.
                path = "/" + self.path.partition("?")[0].rpartition("/")[2]
                recorder._requests.append((path, request))
                review = {
                    "apiVersion": "admission.k8s.io/v1",
                    "kind": "AdmissionReview",
                    "response": {"uid": request["uid"], "allowed": True},
                }
                answer = json.dumps(review).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Do not log requests in the output of a test."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"https://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str) -> Objects:
        """Return the recorded AdmissionReview requests to `path`; forget all requests."""
        requests = [request for at, request in self._requests if at == path]
        self.forget()
        return requests

    def forget(self) -> None:
        """Forget all recorded requests."""
        self._requests.clear()
