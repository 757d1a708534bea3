"""A certificate authority for tests, and connections that look at what it signed."""

import http.client
import json
import socket
import ssl
import subprocess
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent


def openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def self_signed(folder: Path, *names: str) -> None:
    """Make key.pem and cert.pem for some names."""
    alternatives = ",".join(f"DNS:{name}" for name in names)
    openssl(
        folder,
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"),
        # Which Python 3.14 requires of one that it shall trust.
        *("-addext", "keyUsage=digitalSignature,keyCertSign"),
        *("-addext", f"subjectAltName={alternatives}", "-keyout", "key.pem", "-out", "cert.pem"),
    )


def configuration(days: int, port: int) -> str:
    """Return Pebble's configuration: how long certificates are valid, the port of challenges."""
    return json.dumps(
        {
            "pebble": {
                "listenAddress": "0.0.0.0:14000",
                "managementListenAddress": "0.0.0.0:15000",
                "certificate": "/authority/cert.pem",
                "privateKey": "/authority/key.pem",
                "httpPort": port,
                "tlsPort": 8443,
                "profiles": {"default": {"description": "", "validityPeriod": days * 24 * 3600}},
            }
        }
    )


def connect(
    address: tuple[str, int],
    name: str,
    trusted: str | None = None,
    version: ssl.TLSVersion | None = None,
) -> ssl.SSLSocket:
    """Open a connection for a name; the certificate must be of `trusted`, PEM, if that is given."""
    context = ssl.create_default_context(cadata=trusted)
    if trusted is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if version:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # this client would refuse old ones itself
        context.minimum_version = context.maximum_version = version
    plain = socket.create_connection(address, timeout=60)
    return context.wrap_socket(plain, server_hostname=name)


def get(
    address: tuple[str, int], name: str, path: str, trusted: str | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """GET over TLS; return status, headers and text."""
    with closing(http.client.HTTPConnection(name, address[1])) as client:
        client.sock = connect(address, name, trusted)
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read().decode()
