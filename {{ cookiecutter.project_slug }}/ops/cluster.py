"""
What the commands in this folder share about Docker Swarm: the stack's file, its nodes, its updates.

A project is run by a swarm when COMPOSE_FILE in .env names compose.swarm.yaml. Its compose files stay the
source: `stack` below makes of them what "docker stack deploy" takes. Commands that run once, such as
migrations, are containers of "docker compose run" on the VM with the label "data", in the networks and
volumes of the swarm's services.
"""

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import common
from common import Failed, output, report, run

PLACEMENT = {"constraints": ["node.labels.data == true"]}
LABEL = re.compile(r"node\.labels\.([\w.-]+) == true")
SERVICE_ID = "com.docker.swarm.service.id"  # a label of each task's container
MOUNT_LIMIT = 1_000_000  # bytes of a file that swarm distributes
# Options of services that "docker stack deploy" takes as they are. Of a container's file system, network
# and rights there is no other; what .env and compose.yaml decide besides is converted below.
TAKEN = {
    "cap_add",
    "cap_drop",
    "command",
    "configs",
    "deploy",
    "dns",
    "entrypoint",
    "environment",
    "extra_hosts",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "labels",
    "logging",
    "networks",
    "read_only",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
    "ulimits",
    "user",
    "volumes",
    "working_dir",
}
# Options that swarm has nothing for, or needs no more. docs/swarm.md says what takes their place.
LEFT_OUT = {
    "build",
    "cpu_shares",
    "depends_on",
    "env_file",
    "memswap_limit",
    "profiles",
    "pull_policy",
    "restart",
    "scale",
    "security_opt",
}
SERVERS = {"broker", "cache", "db"}
LOCKED = SERVERS | {"beat"}  # two of one would destroy data, or send tasks twice
CONVERTED = {"mem_limit", "pids_limit", "ports", "shm_size", "tmpfs"}
OPEN_NETWORK = ("encrypted", "false")
OPEN = 2 * "{"  # begins a template of swarm, in environment variables
PLACEHOLDER = re.compile(OPEN + r"(?!\.(?:Service|Node|Task)\.\w+" + 2 * "}" + ")")


# The stack's file ---------------------------------------------------------------------------------


def stack(model: dict, only: Iterable[str] | None = None) -> dict:
    """
    Return what "docker stack deploy" takes of the model that "docker compose config" prints.

    Services that run once by "docker compose run", or not at all, are left out, and with `only` all but
    these. Failed for an option that would be lost without a word.
    """
    project, services, volumes, configs = model["name"], {}, {}, {}
    for name, service in model["services"].items():
        job = service.get("deploy", {}).get("mode", "").endswith("job")
        if service.get("scale") == 0 or service.get("restart") == "no" and not job:
            continue
        if only is not None and name not in only:
            continue
        taken = of_service(project, name, service, job)
        taken["volumes"] = []
        for mount in service.get("volumes", []):
            if mount["type"] == "bind" and Path(mount["source"]).is_relative_to(common.PROJECT):
                # The other nodes do not have the project's folder.
                for key, path, target in files(project, mount):
                    configs[key] = {"name": key, "file": str(path)}
                    taken.setdefault("configs", []).append({"source": key, "target": target})
            else:
                mount = {key: value for key, value in mount.items() if key != "bind"}
                taken["volumes"].append(mount)
                if mount["type"] == "volume":
                    volumes[mount["source"]] = model["volumes"][mount["source"]]
        taken["volumes"] += file_systems(service)
        if name in LOCKED:
            lock(taken)
        services[name] = taken
    used = {network for service in services.values() for network in service.get("networks", {})}
    networks = {
        name: {"external": True, "name": model["networks"][name]["name"]} for name in sorted(used)
    }
    found = {"services": services, "networks": networks, "volumes": volumes, "configs": configs}
    return {key: value for key, value in found.items() if value}


def of_service(project: str, name: str, service: dict, job: bool) -> dict:
    """Return a service without what swarm does not know, and with its own words for the rest."""
    service = {key: value for key, value in service.items() if value not in (None, [], {})}
    if unknown := sorted(service.keys() - TAKEN - LEFT_OUT - CONVERTED):
        raise Failed(
            f"Swarm does not know {', '.join(unknown)} of the service {name}: remove it from the "
            "compose files; see docs/swarm.md, “What swarm does not know”."
        )
    found = {key: service[key] for key in service if key in TAKEN}
    deploy = {"placement": PLACEMENT, "endpoint_mode": "dnsrr"} if "deploy" not in service else {}
    deploy = deploy | service.get("deploy", {})
    limits = {"memory": service.get("mem_limit"), "pids": service.get("pids_limit")}
    limits = {key: value for key, value in limits.items() if value is not None}
    deploy["resources"] = {"limits": limits} | deploy.get("resources", {})
    deploy.setdefault("restart_policy", {"condition": "any", "delay": "1s"})
    found["deploy"] = deploy
    found["environment"] = {
        key: PLACEHOLDER.sub(OPEN + f'"{OPEN}"' + 2 * "}", str(value))
        for key, value in service.get("environment", {}).items()
        if value is not None
    }
    # With these "docker compose ps", "logs" and "exec" find the containers of this node.
    found["labels"] = service.get("labels", {}) | {
        "com.docker.compose.config-hash": "swarm",
        "com.docker.compose.container-number": "1",
        common.ONE_OFF: "True" if job else "False",
        "com.docker.compose.project": project,
        "com.docker.compose.service": name,
    }
    if ports := [port_of(name, port) for port in service.get("ports", [])]:
        found["ports"] = ports
    return found


def port_of(name: str, port: dict) -> dict:
    """Return a published port of the node itself: the client's address stays what it is."""
    if port.get("host_ip"):
        raise Failed(
            f"The service {name} publishes {port['host_ip']}:{port['published']}, and swarm publishes "
            "ports on all addresses of a VM only: name the port alone in .env."
        )
    return {
        "target": port["target"],
        "published": int(port["published"]),
        "protocol": port.get("protocol", "tcp"),
        "mode": "host",
    }


def file_systems(service: dict) -> list[dict]:
    """Return the file systems in memory of a service as mounts, which swarm takes."""
    found = [{"type": "tmpfs", "target": word.split(":")[0]} for word in service.get("tmpfs", [])]
    if size := service.get("shm_size"):
        found.append({"type": "tmpfs", "target": "/dev/shm", "tmpfs": {"size": int(size)}})  # noqa: S108
    return found


def files(project: str, mount: dict) -> list[tuple[str, Path, str]]:
    """Return a name, the path and the place in the container of each file below a mounted folder."""
    source, found = Path(mount["source"]), []
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():
            if path.stat().st_size > MOUNT_LIMIT:
                raise Failed(f"{path} is larger than 1 MB, which swarm does not distribute.")
            relative = path.relative_to(source)
            # Another name for each content: what changes replaces the containers that have it.
            named = hashlib.sha256(f"{mount['target']} {relative}\n".encode() + path.read_bytes())
            target = str(Path(mount["target"], relative))
            found.append((f"{project}-{named.hexdigest()[:20]}", path, target))
    return found


def wanted(service: dict) -> list[str]:
    """Return the labels of the nodes on which tasks of a service of the stack may run."""
    rules = service["deploy"].get("placement", {}).get("constraints", [])
    return [found[1] for rule in rules if (found := LABEL.fullmatch(rule))]


def lock(service: dict) -> None:
    """
    Let a service wait until no other container has its volume.

    A node that was lost for its managers still runs what it ran. When it is back it gets a new task for
    the old one, and for seconds both would run: two databases on the same files, two schedulers.
    """
    volume = next(each["target"] for each in service["volumes"] if each["type"] == "volume")
    key = "entrypoint" if "entrypoint" in service else "command"
    # Not with a child: signals reach the program, which has the lock as long as it lives.
    service[key] = ["flock", "--no-fork", f"{volume}/.lock", *service[key]]


# The swarm ----------------------------------------------------------------------------------------


def nodes() -> list[dict[str, Any]]:
    """Return id, name, labels, whether it is ready, active and this one, of each node."""
    ids = run("docker", "node", "ls", "--quiet").split()
    me = json.loads(run("docker", "info", "--format=json"))["Swarm"]["NodeID"]
    found = json.loads(run("docker", "node", "inspect", *ids))
    return [
        {
            "id": node["ID"],
            "name": node["Description"]["Hostname"],
            "labels": node["Spec"].get("Labels") or {},
            "ready": node["Status"]["State"] == "ready",
            "active": node["Spec"]["Availability"] == "active",
            "here": node["ID"] == me,
        }
        for node in found
    ]


def prepare(folder: Path) -> None:
    """Create missing networks. Failed when the nodes cannot run the version in a folder."""
    info = json.loads(run("docker", "info", "--format=json"))
    if not info["Swarm"].get("ControlAvailable"):
        raise Failed(
            "This VM manages no swarm, which COMPOSE_FILE in .env asks for: ops/swarm init."
        )
    there = nodes()
    data = [node for node in there if node["labels"].get("data") == "true"]
    if [node["here"] for node in data] != [True]:
        names = ", ".join(node["name"] for node in data) or "none"
        raise Failed(
            f"The label data=true is for the one VM with the data, to which you deploy; it has {names}."
        )
    model = common.model(folder)
    database = f"{model['name']}_db"
    if "db" in data_services(model) and not output("docker", "volume", "inspect", database):
        raise Failed("There is no database to move to a swarm yet: deploy to this VM alone first.")
    edges = [node for node in there if node["labels"].get("edge") == "true"]
    https = model["services"]["proxy"]["environment"].get("HTTPS")
    if https == "acme" and len(edges) > 1:
        raise Failed(
            f"With HTTPS=acme one VM can have the label edge; {len(edges)} have it. See docs/swarm.md."
        )
    good = [node["labels"] for node in there if node["ready"] and node["active"]]
    for name, service in stack(model)["services"].items():
        if not any(all(labels.get(each) == "true" for each in wanted(service)) for labels in good):
            raise Failed(
                f"No VM that is ready has the label {' and '.join(wanted(service))}, which {name} "
                "needs: ops/swarm label."
            )
    run("docker", "stack", "config", "--compose-file=-", input=json.dumps(stack(model)))
    make_networks(model)


def needs(folder: Path) -> list[dict]:
    """Return which images of the version in a folder the nodes other than this one need, if they are ready."""
    model = common.model(folder)
    services = stack(model)["services"].values()
    found = []
    for node in nodes():
        if node["ready"] and node["active"] and not node["here"]:
            labels = node["labels"]
            images = {
                each["image"]
                for each in services
                if all(labels.get(name) == "true" for name in wanted(each))
            }
            found.append({"name": node["name"], "ssh": labels.get("ssh"), "images": sorted(images)})
    return found


def make_networks(model: dict) -> None:
    """Create the networks of the swarm that are missing, with the labels by which compose knows them."""
    for key, network in model.get("networks", {}).items():
        if output("docker", "network", "inspect", network["name"]):
            continue
        given = network.get("driver_opts", {}).items()
        # With this option, whatever its value, the network is encrypted.
        options = [
            f"--opt={name}={value}" for name, value in given if (name, value) != OPEN_NETWORK
        ]
        options += ["--internal"] if network.get("internal") else []
        labels = {"network": key, "project": model["name"]}
        options += [f"--label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        run(
            *("docker", "network", "create", f"--driver={network['driver']}", "--attachable"),
            *(*options, network["name"]),
        )


def services() -> dict[str, dict]:
    """Return the descriptions of the services of the project's stack by their names in compose."""
    label = f"--filter=label=com.docker.stack.namespace={common.project()}"
    ids = output("docker", "service", "ls", "--quiet", label).split()
    found = json.loads(run("docker", "service", "inspect", *ids)) if ids else []
    start = len(common.project()) + 1
    return {each["Spec"]["Name"][start:]: each for each in found}


def counts() -> dict[str, tuple[int, int, int, str]]:
    """Return how many tasks of each service run, should run, have done their work, and its image."""
    label = f"--filter=label=com.docker.stack.namespace={common.project()}"
    found, start = {}, len(common.project()) + 1
    for line in run("docker", "service", "ls", "--format=json", label).splitlines():
        row = json.loads(line)
        numbers: Any = re.match(r"(\d+)/(\d+)(?: \((\d+)/(\d+) completed\))?", row["Replicas"])
        running, wanted, done, all_done = numbers.groups()
        wanted = int(all_done or wanted)
        found[row["Name"][start:]] = (int(running), wanted, int(done or 0), row["Image"])
    return found


# Updates ------------------------------------------------------------------------------------------


def deploy(folder: Path, only: Iterable[str] | None, wait: int, **environment: str) -> None:
    """Deploy some services of the version in a folder, or all; wait. Failed when swarm rolls one back."""
    made = stack(common.model(folder), only)
    if "services" not in made:
        return
    for service in made["services"].values():
        service["environment"] |= environment
    before = services()
    prune = ["--prune"] if only is None else []
    # By standard input: no secret gets onto a disk.
    command = ["docker", "stack", "deploy", "--compose-file=-", "--resolve-image=never", *prune]
    run(*command, common.project(), input=json.dumps(made))
    after = services()
    changed = {
        name
        for name in made["services"]
        if name in before
        and before[name]["Spec"]["TaskTemplate"] != after[name]["Spec"]["TaskTemplate"]
    }
    converge(made["services"].keys(), changed, wait)


def converge(names: Iterable[str], changed: set[str], wait: int) -> None:
    """Wait until all tasks of services run, and show which do not. Failed after `wait` seconds without any progress."""
    said, end = "", time.monotonic() + wait
    failed_before = {name: failed_tasks(name).keys() for name in names}
    while True:
        found, there = services(), counts()
        waiting = []
        for name in sorted(names):
            running, wanted, done, _ = there[name]
            state = found[name].get("UpdateStatus", {}).get("State", "")
            if name in changed and state in ("rollback_completed", "rollback_paused", "paused"):
                raise Failed(f"{name} does not become healthy.{last_error(name)}")
            updating = name in changed and state != "completed" and not is_job(found[name])
            if updating or max(running, done) < wanted or is_job(found[name]) and done < wanted:
                waiting.append(f"{name} {max(running, done)}/{wanted}{' updating' * updating}")
        now = ", ".join(waiting)
        if not waiting:
            return
        if now != said:
            report(f"waiting for {now}")
            said, end = now, time.monotonic() + wait
        for name in [each.split()[0] for each in waiting]:
            # What is new has no version to which swarm would roll it back.
            failed = failed_tasks(name).keys() - failed_before[name]
            if name not in changed and not is_job(found[name]) and len(failed) >= 3:
                raise Failed(f"{name} does not become healthy.{last_error(name)}")
        if time.monotonic() > end:
            name = waiting[0].split()[0]
            raise Failed(f"Not healthy within {wait} s: {now}.{last_error(name)}")
        time.sleep(1)


def is_job(service: dict) -> bool:
    """Return whether a service runs once on each node."""
    return "GlobalJob" in service["Spec"]["Mode"] or "ReplicatedJob" in service["Spec"]["Mode"]


def last_error(name: str) -> str:
    """Return why the last task of a service failed, and show the end of its log."""
    full = f"{common.project()}_{name}"
    log = subprocess.run(
        ["docker", "service", "logs", "--tail=30", "--raw", full], capture_output=True, text=True
    )
    report(log.stdout + log.stderr)
    errors = list(filter(None, failed_tasks(name).values()))
    return f" {errors[0]}." if errors else ""


def failed_tasks(name: str) -> dict[str, str]:
    """Return the errors of a service's tasks that ended by themselves, the latest first, as far as swarm knows."""
    full = f"{common.project()}_{name}"
    rows = output("docker", "service", "ps", "--no-trunc", "--format=json", full).splitlines()
    found = [json.loads(row) for row in rows]
    ended = ("Complete", "Failed", "Rejected")
    errors = {row["ID"]: row["Error"].strip('"') for row in found}
    return {row["ID"]: errors[row["ID"]] for row in found if row["CurrentState"].startswith(ended)}


def own(folder: Path) -> list[str]:
    """Return the services of the project's image that stay up, sorted."""
    model = common.model(folder)
    found = stack(model)["services"].items()
    own_image = [name for name, each in found if each["image"].split(":")[0] == model["name"]]
    return sorted(set(own_image) - {"publish"})


def start_data_services(folder: Path) -> None:
    """Start database, broker and cache if the swarm does not run them yet; they are updated last."""
    model = common.model(folder)
    names = data_services(model) - services().keys()
    if names:
        report(f"starting {', '.join(sorted(names))}")
        deploy(folder, names, common.HEALTHY_WITHIN)


def data_services(model: dict) -> set[str]:
    """Return those of database, broker and cache that are containers."""
    return SERVERS & stack(model)["services"].keys()


def replace(folder: Path, wait: int) -> None:
    """Replace every task that is not of the version in a folder, one after another, without downtime."""
    if compose_containers():
        leave_compose()
    model = common.model(folder)
    deploy(folder, data_services(model), wait)
    report("static files for each proxy")
    deploy(folder, ["publish"], wait, LIVE="false")
    workers = [name for name in own(folder) if name.startswith("worker-")]
    report("workers: one replica at a time, each queue is consumed throughout")
    deploy(folder, workers, wait)
    others = [name for name in own(folder) if name not in workers]
    report(f"{', '.join(others)}: one replica at a time")
    deploy(folder, others, wait)
    report("the rest, and a look at all")
    deploy(folder, None, wait)
    remove_unused_configs(model["name"])


def remove_unused_configs(project: str) -> None:
    """Remove files that swarm distributed and no service uses any more."""
    label = f"--filter=label=com.docker.stack.namespace={project}"
    for name in output("docker", "config", "ls", "--quiet", label).split():
        # One in use is refused.
        subprocess.run(["docker", "config", "rm", name], capture_output=True)


# From one VM to several, and back -----------------------------------------------------------------


def moves(folder: Path, new: Path) -> bool:
    """Return whether the .env of a new version changes who runs the site that is in the folder."""
    if not (folder / ".env").exists():
        return False
    return bool(compose_containers() if common.in_swarm(new) else services())


def check_move(tag: str, live: str | None) -> None:
    """Raise Failed unless the version that moves is the one that is live: it is known to work."""
    if tag != live:
        raise Failed(f"Move the version that is live, then deploy: ops/deploy … --tag={live}.")


def compose_containers() -> list[str]:
    """Return the running containers of the project that compose has started, not a swarm."""
    label = f"--filter=label=com.docker.compose.project={common.project()}"
    ids = run("docker", "ps", "--quiet", label, f"--filter=label={common.ONE_OFF}=False").split()
    return [
        found["Id"] for found in common.inspect(ids) if SERVICE_ID not in found["Config"]["Labels"]
    ]


def leave_compose() -> None:
    """Stop and remove the containers that compose has started; the volumes stay."""
    report("stopping what ran on this VM alone; the site is down until the swarm has it")
    found = common.inspect(compose_containers())
    by_name: dict[str, list[str]] = {}
    for container in found:
        by_name.setdefault(container["Config"]["Labels"]["com.docker.compose.service"], []).append(
            container["Id"]
        )
    # Who works ends before the servers that it needs to come to an end.
    for group in (by_name.keys() - SERVERS, by_name.keys() & SERVERS):
        ids = [number for name in group for number in by_name[name]]
        if ids:
            run("docker", "stop", *ids)
            run("docker", "rm", *ids)


def leave_swarm() -> None:
    """Stop and remove the project's services in the swarm; the volumes stay."""
    report("stopping what the swarm runs; the site is down until this VM has it alone")
    there = services()
    scaled = [
        name
        for name, each in there.items()
        if name not in SERVERS and "Replicated" in each["Spec"]["Mode"]
    ]
    if scaled:
        # On all nodes, who works ends before the servers that it needs to come to an end.
        words = [f"{common.project()}_{name}=0" for name in scaled]
        run("docker", "service", "scale", "--detach", *words)
        while any(is_running(name) for name in scaled):
            time.sleep(1)
    for group in (there.keys() - SERVERS, there.keys() & SERVERS):
        names = [f"{common.project()}_{name}" for name in group]
        if names:
            run("docker", "service", "rm", *names)
            wait_until_gone(names)


def is_running(name: str) -> bool:
    """Return whether a node that is not lost runs a task of a service."""
    full = f"{common.project()}_{name}"
    rows = output("docker", "service", "ps", "--format=json", full).splitlines()
    lost = {node["name"] for node in nodes() if not node["ready"]}
    found = [json.loads(row) for row in rows]
    return any(
        row["CurrentState"].startswith("Running") and row["Node"] not in lost for row in found
    )


def wait_until_gone(names: list[str]) -> None:
    """Wait until this node, which has the data, runs no task of services that were removed."""
    while True:
        left = []
        for name in names:
            label = f"--filter=label=com.docker.swarm.service.name={name}"
            left += output("docker", "ps", "--quiet", label).split()
        if not left:
            return
        time.sleep(1)


# For people ---------------------------------------------------------------------------------------


def status() -> list[str]:
    """Print services and nodes; return what is not as it should be."""
    wrong = []
    for name, (running, wanted_, done, image) in sorted(counts().items()):
        print(f"{name:<24} {image:<48} {max(running, done)}/{wanted_}")
        if max(running, done) < wanted_:
            wrong.append(name)
    print()
    for node in sorted(nodes(), key=lambda node: node["name"]):
        state = "ready" if node["ready"] else "DOWN"
        labels = " ".join(sorted(key for key, value in node["labels"].items() if value == "true"))
        print(f"{node['name']:<24} {state}{'' if node['active'] else ', drained'}: {labels}")
        if not node["ready"]:
            wrong.append(f"the VM {node['name']}")
    return wrong


def logs(names: list[str], options: list[str]) -> None:
    """Show the logs of some services, or of all, of all nodes, until each ends or the person ends it."""
    there = services()
    if unknown := sorted(set(names) - there.keys()):
        raise Failed(
            f"No such service: {', '.join(unknown)}. There are {', '.join(sorted(there))}."
        )
    command = ["docker", "service", "logs", *options]
    processes = [
        subprocess.Popen([*command, f"{common.project()}_{name}"])
        for name in names or sorted(there)
    ]
    for process in processes:
        process.wait()
