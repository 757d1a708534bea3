"""Requests a second, latency and errors of the stack under 32 kept-alive connections."""

import json
import shutil
import time
import urllib.request
from pathlib import Path

from common import Failed, Parts, Stack, add_bench, main, report, run, stack
from tables import Table

CONNECTIONS = 32
PAGES = {
    "sync view": "/bench/sync",
    "async view": "/bench/async",
    "view that reads a row": "/bench/row",
}
FILE = "admin/css/base.css"
LUA = """
local addresses, next_one = {{ {addresses} }}, 0
function setup(thread)
    thread.addr = wrk.lookup(addresses[next_one % #addresses + 1], "{port}")[1]
    next_one = next_one + 1
end
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format('\\n{{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, '
        .. '"status": %d, "socket": %d}}', summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
"""
NGINX = """
worker_processes auto; pid /tmp/nginx.pid; error_log /dev/stderr warn;
events { worker_connections 1024; }
http { include /etc/nginx/mime.types; sendfile on; access_log off;
       client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
       uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
       server { listen 8080; root /srv; } }
"""


def measure(quick: bool) -> Parts:
    """Return the table of what the proxy serves, each beside its reference."""
    with stack("web", add_bench) as project:
        report("building and starting")
        project.build()
        wrk = find_wrk(project)
        project.up()
        file = static_url(project)
        proxy = [project.address("proxy")]
        webs = [project.address("web-a"), project.address("web-b")]
        nginx = [nginx_alone(project)]
        rows = []
        for name, path in (*PAGES.items(), ("static file", file)):
            reference = ("nginx", nginx, 8080) if path == file else ("gunicorn", webs, 8000)
            found = []
            for side, addresses, port in (("proxy", proxy, 8080), reference):
                report(f"{name}, {side}")
                found.append(load(project.folder.parent, wrk, addresses, port, path, quick))
            rows.append(row(f"{name}, through the proxy", found[0], found[1]))
            rows.append(row(f"{name}, {reference[0]} alone", found[1], found[1]))
    head = ("what", "requests/s", "p50, ms", "p99, ms", "not 2xx", "socket errors", "ratio")
    return [Table(head, rows)]


def row(name: str, found: dict[str, float], reference: dict[str, float]) -> tuple[object, ...]:
    """Return the row of a figure; its ratio is that of the rates."""
    rate, base = (each["requests"] / each["seconds"] for each in (found, reference))
    latency = (f"{found['p50']:.1f}", f"{found['p99']:.1f}")
    return name, f"{rate:.0f}", *latency, found["status"], found["socket"], f"{rate / base:.2f}"


def load(
    folder: Path, wrk: list[str], addresses: list[str], port: int, path: str, quick: bool
) -> dict[str, float]:
    """Warm up, then load, with a script in `folder`, which `find_wrk` knows; give requests, seconds, p50 and p99 in ms, and errors of both kinds."""
    for address in addresses:
        expect_200(f"http://{address}:{port}{path}")
    script = folder / "load.lua"
    quoted = ", ".join(f'"{address}"' for address in addresses)
    script.write_text(LUA.format(addresses=quoted, port=port))
    out = ""
    for seconds in (1, 2) if quick else (3, 10):
        options = (f"--connections={CONNECTIONS}", "--threads=2", f"--duration={seconds}s")
        words = (*options, f"--script={script}", "--header=Host: localhost")
        out = run(*wrk, *words, f"http://{addresses[0]}:{port}{path}", timeout=seconds + 30)
    return json.loads(out.splitlines()[-1])


def expect_200(url: str) -> None:
    """Ask once, so that what is loaded is an answer and not a redirect; raises Failed."""
    request = urllib.request.Request(url, headers={"Host": "localhost"})
    with urllib.request.urlopen(request, timeout=10) as response:
        if response.status != 200 or response.url != url:
            raise Failed(f"{url} answers {response.status}, {response.url}")


def find_wrk(project: Stack) -> list[str]:
    """Return the command of wrk: the machine's, or one in a container of the machine's network."""
    if wrk := shutil.which("wrk"):
        return [wrk]
    report("building an image with wrk")
    tag, folder = f"{project.slug}-wrk", str(project.folder.parent)
    Path(folder, "Dockerfile").write_text(
        f"FROM {project.bases()[1]}\nRUN apt-get update && apt-get install -y --no-install-recommends wrk\n"
    )
    run("docker", "build", "--quiet", "--network=host", f"--tag={tag}", folder, timeout=180)
    label = f"--label=com.docker.compose.project={project.slug}"
    mount = f"--volume={folder}:{folder}:ro"
    return ["docker", "run", "--rm", "--network=host", label, mount, tag, "wrk"]


def static_url(project: Stack) -> str:
    """Return the path under which the proxy serves FILE."""
    code = f"from django.templatetags.static import static; print(static({FILE!r}))"
    command = ("exec", "--no-TTY", "web-a", "./manage.py", "shell", "--verbosity=0", "-c", code)
    return project.compose(*command).split()[-1]


def nginx_alone(project: Stack) -> str:
    """Start nginx with nothing but the static files that the proxy has; give its address."""
    name = f"{project.slug}-nginx"
    container = project.engine.containers.run(
        f"{project.slug}-proxy",
        name=name,
        entrypoint=[
            "sh",
            "-c",
            "echo \"$CONF\" > /tmp/nginx.conf; exec nginx -c /tmp/nginx.conf -g 'daemon off;'",
        ],
        environment={"CONF": NGINX},
        volumes={f"{project.slug}_static": {"bind": "/srv/static", "mode": "ro"}},
        labels={"com.docker.compose.project": project.slug},
        network=f"{project.slug}_edge",
        detach=True,
    )
    time.sleep(1)
    container.reload()
    return container.attrs["NetworkSettings"]["Networks"][f"{project.slug}_edge"]["IPAddress"]


if __name__ == "__main__":
    main(__doc__, measure)
