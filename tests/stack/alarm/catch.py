"""Prints each ping that it gets, as one line: its path and its body."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Catcher(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Print it; answer as Healthchecks.io does."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        print(json.dumps([self.path, body]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")

    do_GET = do_POST

    def log_message(self, *args: object) -> None:
        """Print nothing else."""


ThreadingHTTPServer(("", 9000), Catcher).serve_forever()
