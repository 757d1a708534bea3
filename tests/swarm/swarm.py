"""Several VMs, of which the first one deploys, serves and has the data."""

import json
import shlex
from pathlib import Path
from typing import Any

from tests.stack.stack import wait_for
from tests.systemd.machine import docker
from tests.vm.vm import ProductionVm

TASKS = 60
RUN = "docker compose run --rm --no-deps --no-TTY web ./manage.py"
FILES = "compose.yaml:compose.production.yaml:compose.swarm.yaml"


class Node(ProductionVm):
    """One more VM for the project of the first one, with the same image of the machine."""

    def __init__(self, first: ProductionVm, name: str) -> None:
        """Choose its name; nothing is started yet."""
        self.first = first
        self.stack, self.key, self.bin = first.stack, first.key, first.bin
        self.name = f"{first.name}-{name}"

    def boot_bare(self, *options: str) -> None:
        """Boot it with sshd, Python and ops/ only."""
        docker("tag", self.first.name, self.name)
        self.create(*options)
        docker("cp", f"{self.stack.folder}/ops", f"{self.name}:/root/ops")
        self.boot()

    def remove(self) -> None:
        """Remove the machine and its disk."""
        docker("rm", "--force", "--volumes", self.name, check=False)
        docker("volume", "rm", "--force", self.name, check=False)
        docker("image", "rm", "--force", self.name, check=False)


class Swarm(ProductionVm):
    """The first VM, and the others."""

    def __init__(self, folder: Path) -> None:
        """Render a project; nothing is started yet."""
        super().__init__(folder)
        self.others = [Node(self, "2"), Node(self, "3")]

    @property
    def vms(self) -> list[ProductionVm]:
        """Return all VMs."""
        return [self, *self.others]

    def first_settings(self) -> list[str]:
        """Return what .env.example cannot know, and what this kernel cannot do: ESP."""
        return [*super().first_settings(), "--set=SWARM_ENCRYPTED=false"]

    def boot_bare(self, *options: str) -> None:
        """Boot all VMs; each has a host name of its own."""
        super().boot_bare("--hostname=vm1", *options)
        for number, vm in enumerate(self.others, 2):
            vm.boot_bare(f"--hostname=vm{number}")

    def remove(self) -> None:
        """Remove all of them."""
        for vm in self.others:
            vm.remove()
        super().remove()

    def swarm(self, *arguments: str, code: int = 0) -> str:
        """Run ops/swarm on the laptop."""
        manager = [] if arguments[0] == "init" else [f"--manager={self.host}"]
        return self.ops("swarm", *arguments, *manager, code=code)

    def tasks(self) -> dict[str, list[dict[str, Any]]]:
        """Return the descriptions of the running containers of all VMs, by service."""
        found: dict[str, list[dict[str, Any]]] = {}
        label = "label=com.docker.stack.namespace"
        for vm in self.vms:
            ids = vm.run("docker", "ps", "--quiet", "--filter", label).split()
            for each in json.loads(vm.run("docker", "inspect", *ids)) if ids else []:
                service = each["Config"]["Labels"]["com.docker.compose.service"]
                found.setdefault(service, []).append(each | {"vm": vm})
        return found

    def where(self) -> dict[str, list[str]]:
        """Return the host names of the VMs that run each service's healthy tasks, sorted."""
        return {
            service: sorted(
                task["vm"].run("hostname").strip()
                for task in tasks
                if task["State"].get("Health", {}).get("Status", "healthy") == "healthy"
            )
            for service, tasks in self.tasks().items()
        }

    def wait_for(self, seconds: float = 180, **counts: int) -> None:
        """Wait until so many tasks of services are healthy, "_" for "-"."""
        wanted = {name.replace("_", "-"): count for name, count in counts.items()}

        def there() -> bool:
            found = self.where()
            return all(len(found.get(name, [])) == count for name, count in wanted.items())

        wait_for(f"{wanted}", there, seconds)

    def leave_data(self) -> int:
        """Store a file, and send tasks that are still waiting when the site moves; return how many."""
        self.here("docker compose exec -T web-a sh -c 'printf kept > /srv/media/kept.txt'")
        self.send("work", "moved", TASKS, 0.3)
        return TASKS

    def make(self) -> str:
        """Make a swarm of all VMs; return what is printed."""
        self.made = self.swarm("init", self.host)
        for vm in self.others:
            self.made += self.swarm("join", vm.host, "--label=crawl")
        return self.made

    def move(self, files: str = FILES) -> str:
        """Let the swarm have the site, or this VM alone; return what is printed."""
        values = {
            "COMPOSE_FILE": files,
            "WEB_NODES": "any",
            "WORKER_DEFAULT_NODES": "crawl",
            "WORKER_CRAWL_NODES": "crawl",
            "WORKER_CRAWL_REPLICAS": 2,
        }
        live = self.here("grep ' live$' versions/history | tail -n 1").split()[1]
        return self.deploy(
            f"--tag={live}", *(f"--set={name}={value}" for name, value in values.items())
        )

    def send(self, task: str, key: str, count: int, *arguments: object) -> None:
        """Send tasks of the ledger."""
        words = shlex.join([task, key, str(count), json.dumps(arguments)])
        self.here(f"{RUN} send {words}")

    def all_done(self, key: str, count: int) -> bool:
        """Return whether all tasks of the ledger with a key have done their work."""
        return self.count("count(*), count(*) FILTER (WHERE done > 0)", key) == [count, count]

    def python(self, code: str) -> str:
        """Run `code` in Django's shell in a container of its own; web may run elsewhere."""
        return self.here(f"{RUN} shell --no-imports --command {shlex.quote(code)}").strip()

    def version(self) -> str:
        """Return the tag that all of the project's services have."""
        printed = self.run("docker", "service", "ls", "--format=json")
        images = [json.loads(row)["Image"] for row in printed.splitlines()]
        tags = {image.split(":")[1] for image in images if image.startswith(f"{self.stack.slug}:")}
        assert len(tags) == 1, printed
        return tags.pop()

    def count(self, what: str, key: str) -> list[int]:
        """Select `what` of the ledger's tasks whose keys begin with `key`."""
        query = f"SELECT {what} FROM ledger_entry WHERE key LIKE '{key}-%'"
        psql = f'psql --username=app --dbname=app -tA -c "{query}"'
        printed = self.here(f"docker compose exec -T db {psql}")
        return [int(number) for number in printed.strip().split("|")]
