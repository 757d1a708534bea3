"""All is lost but a backup and a bundle, and the VM has no network."""

import io
import re
from pathlib import Path

from tests.stack.stack import wait_for
from tests.systemd.machine import docker

from .vm import ProductionVm

# Turns one bit in the middle of a file.
DAMAGE = """
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(0, 2)
    middle = file.tell() // 2
    file.seek(middle)
    bit = file.read(1)[0] ^ 1
    file.seek(middle)
    file.write(bytes([bit]))
"""


# What anybody can see meanwhile.
PROCESSES = "while sleep 1; do ps -eo args >> /root/processes; done"


def instance(vm: ProductionVm, unit: str) -> str:
    """Return the name of a unit of this project."""
    return f"{unit.partition('.')[0]}@srv-{vm.stack.slug}.{unit.partition('.')[2]}"


def test_the_nightly_backup_runs_and_belongs_to_who_restores_it(vm: ProductionVm) -> None:
    assert "last backup: none here" in vm.here("ops/status")
    vm.run("systemctl", "start", instance(vm, "backup.service"))
    (file,) = vm.here("ls backups/*.tar").split()
    assert vm.here(f"stat --format='%U %a' {file}").split() == ["deploy", "600"]
    assert f"last backup: {vm.folder}/{file}, " in vm.here("ops/status")


def test_a_bundle_and_a_backup_make_a_wiped_vm_whole_without_a_network(
    vm: ProductionVm, tmp_path: Path
) -> None:
    picture = {"file": ("picture.png", io.BytesIO(b"a picture"))}
    media = vm.ask("POST", "/probe/upload", files=picture).json()["url"]
    services, version = set(vm.running()), vm.version()
    secret = vm.settings()["SECRET_KEY"]
    vm.send("work", "kept", 3, 0)
    wait_for("the tasks", lambda: vm.count("coalesce(sum(done), 0)", "kept") == [3])
    tasks = vm.count("count(*), sum(done)", "%")
    vm.here("ops/backup --to=/tmp/kept")
    bundle = tmp_path / "site.tar"
    printed = vm.ops("deploy", f"--bundle={bundle}", f"--tag={version}")
    checksum = re.search("--sha256=[0-9a-f]{64}", printed)[0]

    vm.here("docker compose down --volumes --timeout=5")
    vm.run("sh", "-c", f"rm -rf {vm.folder} && docker image prune --all --force")
    assert vm.run("docker", "image", "ls", "--quiet") == ""
    docker("cp", str(bundle), f"{vm.name}:/root/site.tar")
    vm.run("sh", "-c", "cd /root && cp site.tar bad.tar && tar -xf site.tar ./version/ops")
    vm.run("python3", "-c", DAMAGE, "/root/bad.tar")
    install = f"cd /root && version/ops/install --yes {checksum} {{}} 2>&1; echo ended with $?"
    options = " ".join(vm.first_settings())
    with vm.no_network():
        printed = vm.run("sh", "-c", install.format("bad.tar"), timeout=600)
        assert printed.endswith(
            "bad.tar has another checksum; copy it again. Nothing was changed.\nended with 1\n"
        ), printed
        assert vm.run("docker", "image", "ls", "--quiet") == ""
        vm.run("systemd-run", "--unit=look", "sh", "-c", PROCESSES)
        vm.run("sh", "-c", "echo a-chosen-secret > /root/secret")
        options += " --set FLOWER_PASSWORD < /root/secret"
        printed = vm.run("sh", "-c", install.format(f"site.tar {options}"), timeout=600)
        assert printed.endswith("ended with 0\n"), printed
        vm.run("systemctl", "stop", "look")
        assert vm.settings()["FLOWER_PASSWORD"] == "a-chosen-secret"
        seen = vm.run("cat", "/root/processes")
        assert "/ops/release " in seen
        assert "a-chosen-secret" not in seen
        vm.wait_until_healthy(services)
        assert vm.settings()["SECRET_KEY"] != secret
        vm.here("ops/restore --yes /tmp/kept/*.tar")
    vm.wait_until_healthy(services)
    assert vm.version() == version
    assert vm.count("count(*), sum(done)", "%") == tasks
    assert vm.get(media).content == b"a picture"
