"""Docker's classic image store and containerd's, on both sides of a deploy: little is shipped."""

import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from tests import ops
from tests.stack.stack import PRODUCTION, Stack, wait_for
from tests.systemd.machine import Vm, docker

from .test_journeys import WAIT
from .vm import ProductionVm

pytestmark = pytest.mark.long

STORES = ("classic", "containerd")
BASE, PACKAGES = 20_000_000, 5_000_000  # bytes
SMALL = 100_000
DOCKERFILE = "FROM scratch\nCOPY base /\nCOPY packages /\nCOPY source /\n"
FEATURE = '{"features": {"containerd-snapshotter": %s}}'
# An engine of its own, whose store lies in a folder that may be small.
ENGINE = """
mkdir -p /var/lib/docker/{0}
exec dockerd --config-file=/etc/docker/{1}.json --host=unix:///sockets/{0}.sock \\
    --data-root=/var/lib/docker/{0} --exec-root=/run/{0} --pidfile=/run/{0}.pid \\
    --bridge=none --iptables=false > /var/log/{0}.log 2>&1
"""
# A docker that takes nothing of the first images that it shall load.
SWALLOW = """#!/bin/sh
[ "$1" = load ] && mkdir /tmp/swallowed && exec cat > /dev/null
exec /usr/bin/docker "$@"
"""
# Runs the last word as on the VM.
SSH = """#!/bin/sh
for word; do :; done
DOCKER_HOST=$THERE exec sh -c "$word"
"""


class Engines(Vm):
    """Four engines in one container: each store here and there."""

    def __init__(self, stack: Stack) -> None:
        """Choose a folder for their sockets, whose names may not be long."""
        super().__init__(stack)
        self.sockets = tempfile.mkdtemp(prefix="dcctest-", dir="/tmp")

    def boot(self) -> None:
        """Start all."""
        self.build("--target=engine")
        self.create(f"--volume={self.sockets}:/sockets")
        super().boot()
        self.run("systemctl", "stop", "docker.socket", "docker", "containerd")
        for store in STORES:
            on = "true" if store == "containerd" else "false"
            write = f"mkdir -p /etc/docker; echo '{FEATURE % on}' > /etc/docker/{store}.json"
            self.run("sh", "-c", write)
            for side in ("here", "there"):
                self.start(f"{side}-{store}", store)

    def start(self, name: str, store: str) -> None:
        """Start one engine; return when it answers."""
        self.run("systemd-run", f"--unit={name}", "sh", "-c", ENGINE.format(name, store))
        look = ["docker", f"--host={self.host(name)}", "version"]
        wait_for(name, lambda: not subprocess.run(look, capture_output=True).returncode)

    def host(self, name: str) -> str:
        """Return the address of an engine."""
        return f"unix://{self.sockets}/{name}.sock"

    def remove(self) -> None:
        """Remove all of it."""
        super().remove()
        shutil.rmtree(self.sockets)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """The four engines, with no images."""
    folder = tmp_path_factory.mktemp("engines")
    engines = Engines(Stack(folder, PRODUCTION, queues="none", example="false"))
    try:
        engines.boot()
        yield engines
    finally:
        engines.remove()


class Route:
    """The way of images between two engines, as ops/deploy and ops/release go it."""

    def __init__(self, engines: Engines, folder: Path) -> None:
        """Write what an image is built of, and a program that stands in for ssh."""
        self.engines, self.context, self.bin = engines, folder / "context", folder / "bin"
        project = engines.stack.folder
        self.deploy, self.release = ops.load(project, "deploy"), ops.load(project, "release")
        self.bin.mkdir()
        (self.bin / "ssh").write_text(SSH)
        (self.bin / "ssh").chmod(0o755)
        self.context.mkdir()
        (self.context / "Dockerfile").write_text(DOCKERFILE)
        self.write_base()
        self.write_packages()

    def write_base(self) -> None:
        """Write the file of the lowest layer, as no other image has it."""
        (self.context / "base").write_bytes(os.urandom(BASE))

    def write_packages(self) -> None:
        """Write that of the layer in the middle."""
        (self.context / "packages").write_bytes(os.urandom(PACKAGES))

    @contextmanager
    def on(self, engine: str) -> Iterator[None]:
        """Let docker mean this engine; over ssh it is the one there."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
            patch.setenv("DOCKER_HOST", self.engines.host(engine))
            patch.setenv("THERE", self.engines.host(self.there))
            yield

    def use(self, here: str, there: str) -> None:
        """Choose the engines."""
        self.here, self.there = f"here-{here}", f"there-{there}"

    def build(self, source: str) -> str:
        """Build an image here; return its name."""
        image = f"{self.engines.name}:{source}"
        (self.context / "source").write_text(source)
        with self.on(self.here):
            docker("build", "--quiet", f"--tag={image}", str(self.context))
        return image

    def missing(self, image: str) -> list[str]:
        """Return what ops/release lacks there."""
        with self.on(self.there), pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.release, "images", lambda _: [image])
            return self.release.missing_images(Path())

    def ship(self, image: str, chains: list[list[str]] | None = None) -> int:
        """
        Ship an image, which is whole there then; return the bytes.

        `chains` are layers that are said to be there, instead of those that are.
        """
        with self.on(self.there):
            chains = self.release.chains() if chains is None else chains
        vm = object.__new__(self.deploy.Vm)
        vm.host, vm.info = "there", {"layers": chains}
        vm.send, vm.receive = (lambda _: None), (lambda: self.missing(image))
        sizes = []
        save = self.deploy.save
        with self.on(self.here), pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.deploy, "save", lambda *of: sizes.append(save(*of)) or sizes[-1])
            vm.ship([image])
            content = self.deploy.common.content(image)
        with self.on(self.there):
            assert self.release.common.content(image) == content
            docker("create", "--network=none", "--name=look", image, "x")
            try:
                copy = ["sh", "-c", "docker cp look:/source - | tar --extract --to-stdout"]
                read = subprocess.check_output(copy, text=True)
            finally:
                docker("rm", "look")
        assert read == image.partition(":")[2]
        return sum(sizes)


@pytest.fixture
def route(engines: Engines, tmp_path: Path) -> Route:
    """A way for images that nobody has."""
    return Route(engines, tmp_path)


@pytest.mark.parametrize(("here", "there"), [*product(STORES, STORES)])
def test_a_small_change_ships_little_and_a_part_of_the_layers_suffices(
    route: Route, here: str, there: str
) -> None:
    route.use(here, there)
    assert route.ship(route.build("first")) > BASE + PACKAGES
    assert route.ship(route.build("second")) < SMALL
    route.write_packages()
    assert PACKAGES < route.ship(route.build("third")) < PACKAGES + SMALL


@pytest.mark.parametrize("there", STORES)
def test_a_change_ships_little_from_another_machine_with_the_other_store(
    route: Route, there: str
) -> None:
    route.use("classic", there)
    route.ship(route.build("first"))
    second = route.build("second")
    copy = f"docker save {second} | docker --host={route.engines.host('here-containerd')} load"
    with route.on("here-classic"):
        subprocess.run(["sh", "-c", copy], check=True, capture_output=True)
    route.use("containerd", there)
    assert route.ship(second) < SMALL
    route.use("classic", there)
    assert route.ship(route.build("third")) < SMALL


@pytest.mark.parametrize(("here", "there"), [*product(STORES, STORES)])
def test_layers_that_are_not_there_after_all_are_shipped(
    route: Route, here: str, there: str
) -> None:
    route.use(here, there)
    route.ship(route.build("same"))
    route.write_base()
    image = route.build("same")
    with route.on(route.here):
        claimed = route.deploy.common.content(image)[1:3]
    assert route.ship(image, [claimed]) > BASE + PACKAGES


@pytest.mark.parametrize("there", STORES)
def test_an_image_of_which_no_layer_came_is_missing(route: Route, there: str) -> None:
    route.use("classic", there)
    image = route.build("alone")
    nothing = io.BytesIO()
    with route.on(route.here):
        route.deploy.save([image], set(route.deploy.common.content(image)), nothing)
    with route.on(route.there):
        subprocess.run(["docker", "load"], input=nothing.getvalue(), capture_output=True)
    assert route.missing(image) == [image]
    assert route.ship(image) > BASE + PACKAGES


@pytest.mark.parametrize("there", STORES)
@pytest.mark.parametrize("size", [BASE, BASE + 2 * PACKAGES])
def test_a_full_disk_is_noticed_and_the_next_attempt_is_whole(
    route: Route, there: str, size: int
) -> None:
    name = f"there-{there}-with-{size}"
    mount = f"mount -t tmpfs -o {{}}size={{}} tmpfs /var/lib/docker/{name}"
    route.engines.run("sh", "-c", f"mkdir /var/lib/docker/{name} && {mount.format('', size)}")
    route.engines.start(name, there)
    route.use("classic", name.removeprefix("there-"))
    image = route.build("first")
    with pytest.raises(SystemExit, match="its disk is full"):
        route.ship(image)
    assert route.missing(image) == [image]
    route.engines.run("sh", "-c", mount.format("remount,", 3 * size))
    route.ship(image)
    assert route.missing(image) == []


# A site -------------------------------------------------------------------------------------------


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[ProductionVm]:
    """A VM whose engine has containerd's store."""
    vm = ProductionVm(tmp_path)
    try:
        vm.boot_bare("--volume=/var/lib/containerd")
        vm.run("mkdir", "/etc/docker")
        vm.run("sh", "-c", f"echo '{FEATURE % 'true'}' > /etc/docker/daemon.json")
        vm.install()
        yield vm
    finally:
        vm.remove()


def test_a_site_on_containerds_store_gets_a_small_change_and_what_only_seems_to_be_there(
    containerd: ProductionVm,
) -> None:
    vm = containerd
    vm.deploy(*vm.first_settings(), WAIT)
    assert "io.containerd.snapshotter" in vm.run("docker", "info")
    (vm.stack.folder / "probe" / "changed.py").write_text("CHANGED = True\n")
    version = vm.commit()
    printed = vm.deploy(WAIT)
    assert float(re.search(r"shipped ([\d.]+) MB", printed)[1]) < 5
    assert vm.version() == version

    option = vm.image("half", "COPY <<END probe/half\nEND\n")
    image = f"{vm.stack.slug}:half"
    deploy = ops.load(vm.stack.folder, "deploy")
    load = ["docker", "exec", "--interactive", vm.name, "docker", "load"]
    with subprocess.Popen(load, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as loading:
        deploy.save([image], set(deploy.common.content(image)), loading.stdin)
    assert image in vm.run("docker", "image", "inspect", image)
    vm.run("sh", "-c", f"printf %s '{SWALLOW}' > /usr/local/bin/docker")
    vm.run("chmod", "755", "/usr/local/bin/docker")
    printed = vm.deploy(option, WAIT)
    assert "the VM cannot add to the layers that it has: shipping all" in printed
    assert vm.version() == "half"
    assert vm.get("/readyz").status_code == 200
