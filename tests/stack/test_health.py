"""What ops/ starts counts as healthy only when each container is."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.baking import bake

# One that never becomes healthy, one that is, and one that has done its work.
SERVICES = """
name: {name}
x-service: &service
  image: redis:8.0
  command: [sleep, infinity]
  init: true
  healthcheck: &health {{test: [CMD, "true"], interval: 600s, start_period: 600s, start_interval: 1s}}
services:
  ill:
    <<: *service
    healthcheck: {{<<: *health, test: [CMD, "false"]}}
  well: *service
  once: {{image: redis:8.0, command: ["true"]}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A rendered project whose services are those above."""
    folder = bake(tmp_path)
    for file in folder.glob("compose*.yaml"):
        file.unlink()
    text = SERVICES.format(name=f"dcctest_{secrets.token_hex(4)}")
    (folder / "compose.yaml").write_text(text)
    yield folder
    subprocess.run(
        ["docker", "compose", "down", "--remove-orphans", "--timeout=0"], cwd=folder, check=True
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which compose never fails, as it does now and then when the time is over."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\n{shutil.which("docker")} "$@" || [ "$1" = compose ]\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run(project: Path, code: str, path: str) -> list[str]:
    """Run code that knows ops/common.py; return the lines that it prints."""
    command = [sys.executable, "-B", "-c", f"import common\n{code}"]
    env = os.environ | {"PATH": path}
    return subprocess.check_output(command, cwd=project / "ops", env=env, text=True).splitlines()


def test_a_container_that_is_not_healthy_in_time_is_noticed_each_time(
    project: Path, path: str
) -> None:
    code = """
for attempt in range(20):
    try:
        common.up("ill", "well", wait=1)
        print("ended: without an error")
    except common.Failed as failed:
        print(f"ended: {failed}")
"""
    ends = [line for line in run(project, code, path) if line.startswith("ended: ")]
    assert len(ends) == 20
    for end in ends:
        assert re.fullmatch(r"ended: Not healthy within 1 s: ill(, well)?\.", end)

    code = """
common.up("well")
common.compose("up", "--detach")
common.output("docker", "compose", "run", "well", "false")
common.up("well", wait=common.HEALTHY_WITHIN)
print(common.unhealthy_after(common.containers("once"), common.HEALTHY_WITHIN))
print(common.unhealthy_after(common.containers("ill", "once"), 0))
"""
    assert run(project, code, path) == ["[]", "", "['ill']"]
