"""Receives webhooks: an HTTP server in a thread that remembers what it was sent."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_" + base64.b64encode(b"a secret of the fault suite").decode()


class Receiver:
    """Answers everything with 200."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        """The webhook-id header and the body of each request."""
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                received.append((self.headers["webhook-id"], body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver")
        self._thread.start()

    def settings(self) -> dict[str, object]:
        """What makes a service send here."""
        ports = json.dumps([self.port])
        return {"webhook_secret": SECRET, "webhook_allow_private": "true", "egress_ports": ports}

    def of_job(self, job_id: str) -> list[tuple[str, str]]:
        """Id and type of each webhook about a job, repeated tries as one, in order of arrival."""
        about = [(id, body["type"]) for id, body in self.received if body["data"]["id"] == job_id]
        return list(dict.fromkeys(about))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
