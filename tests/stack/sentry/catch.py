"""Takes what sentry-sdk sends: https://develop.sentry.dev/sdk/data-model/envelopes/"""

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Catcher(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Print the events of an envelope."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
        _, *rest = body.split(b"\n")
        for header, payload in zip(rest[::2], rest[1::2], strict=False):
            if json.loads(header)["type"] == "event":
                print(json.dumps(json.loads(payload)))

    def log_message(self, *args: object) -> None:
        """Print nothing else."""


ThreadingHTTPServer(("", 9000), Catcher).serve_forever()
