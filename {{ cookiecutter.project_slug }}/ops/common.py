"""
What the commands in this folder share: the project's folder, commands, .env, the lock, health.

The deploy protocol: ops/deploy starts `ops/release --deploy` on the VM over ssh; then both send JSON, one
value per line.

1. release: {"architecture": …, "first": true without a .env, "layers": those that the engine has}
2. deploy: {NAME: VALUE}, lines for .env
3. release: {"lacking": [IMAGE, …] of the project's own, "pulled": [IMAGE, …], "others": {IMAGE: its
   content, [] if it is lacking}, which it could not pull, "nodes": other VMs of a swarm, each {"name":
   …, "ssh": user@host, "images": [IMAGE, …] that it needs}}
4. deploy, when it has shipped what it has to: {}
5. release: [IMAGE, …], those of which it still has not all; unless there are none, 4 and 5 again

From then on release prints its progress as text; its exit code is that of the deploy. Until 4, deploy
sends an empty line every five seconds, and after SILENCE release gives up: nothing was changed.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from getpass import getpass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent  # where commands run
NAME = "{{ cookiecutter.project_slug }}"
ON_VM = f"/srv/{NAME}"  # the folder that ops/install makes
SILENCE = 30  # seconds after which a connection is lost
SWARM = "compose.swarm.yaml"  # in COMPOSE_FILE: a swarm runs the project
ONE_OFF = "com.docker.compose.oneoff"  # a label: "True" for "docker compose run"
SERVICE = "com.docker.compose.service"  # another one
HEALTHY_WITHIN = 600  # seconds that a container may take, unless --wait says otherwise
# In the container of the database, for psql and the like: the role that owns all of the cluster.
SUPERUSER = """$(psql --dbname=postgres -tAc 'SELECT rolname FROM pg_roles WHERE oid = 10')"""
# For "docker compose run": files keep their owners.
AS_ROOT = ["--user=root", *(f"--cap-add={name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER"))]
# A dead network is noticed after 20 s.
SSH = ["ssh", "-oConnectTimeout=10", "-oServerAliveInterval=5", "-oServerAliveCountMax=4"]


class Failed(Exception):
    """Carries the sentence that a command ends with, and what a program printed before it failed."""

    printed = ""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of arguments that shows a description as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )


def add_move_queue(parser: argparse.ArgumentParser) -> None:
    """Add --move-queue, which ops/deploy hands on to ops/release: pairs of names."""

    def pair(text: str) -> tuple[str, str]:
        old, _, new = text.partition("=")
        if not old or not new:
            raise argparse.ArgumentTypeError(f"{text} is not OLD=NEW")
        return old, new

    parser.add_argument(
        "--move-queue",
        type=pair,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="move the tasks of a queue that this version no longer has; again for more",
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add --set, whose words `values` below reads."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a line of the VM's .env; again for more. Without a value it is asked for, or read\n"
        "from standard input, one line for each: a secret, since everybody on a machine can\n"
        "see its command lines",
    )


def values(words: list[str]) -> dict[str, str]:
    """Return names and values of --set. Failed for a wrong name, no value, a secret that all can see."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not re.fullmatch("[A-Z][A-Z0-9_]*", name):
            raise Failed(f"--set takes NAME=VALUE or NAME, not {word}.")
        if equals and re.search("(PASSWORD|KEY|SECRET|TOKEN|DSN|PING_URL)=|=.*://.*@", word):
            raise Failed(
                f"Others can see this command line: use --set {name}, which reads the value."
            )
        if not equals:
            terminal = sys.stdin.isatty()
            value = getpass(f"{name}: ") if terminal else sys.stdin.readline().rstrip("\n")
            if not value:
                raise Failed(f"Standard input has no value for {name}.")
        found[name] = value
    return found


def start(main: Callable[[], None], interrupted: str = "Interrupted.") -> None:
    """Run a command's main function; exit with one sentence when it fails or is interrupted."""
    try:
        remove_trial()
        main()
    except Failed as failed:
        sys.exit(str(failed))
    except KeyboardInterrupt:
        sys.exit(interrupted)


def report(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def confirmed(question: str, *yes: str) -> bool:
    """Return whether the answer to a question is one of `yes`; without a terminal it is not."""
    try:
        return input(question).strip().lower() in yes
    except EOFError:
        print()
        return False


# Commands -----------------------------------------------------------------------------------------


def run(*command: str, folder: Path | None = None, **options: Any) -> str:
    """Run a command; return what it prints. Failed, with its last words, when it fails."""
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if "input" not in options:
        kept |= {"stdin": subprocess.DEVNULL}
    done = subprocess.run(command, cwd=folder or PROJECT, text=True, **kept | options)
    if done.returncode:
        words = f"{done.stdout or ''}{done.stderr or ''}"[-4000:].strip()
        if words:
            print(words, file=sys.stderr, flush=True)
        failed = Failed(f"This failed: {' '.join(command)}.")
        failed.printed = words
        raise failed
    return done.stdout or ""


def output(*command: str, timeout: float | None = None) -> str:
    """Return what a command prints; "" when it fails, does not exist or takes longer."""
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired:
        return ""
    return "" if done.returncode else done.stdout.strip()


def compose(*arguments: str, folder: Path | None = None, **options: Any) -> str:
    """Run docker compose; return what it prints. Failed, with its last words, when it fails."""
    command = ["docker", "compose", "--progress", "quiet", *arguments]
    file = (folder or PROJECT) / ".env"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    env = os.environ | made_with(text) | swarm_profile(text)
    return run(*command, folder=folder, env=env, **options)


def swarm_profile(env: str) -> dict[str, str]:
    """Return what shows compose the services of a swarm, which a person's "up" must not start."""
    names = settings(env)
    if SWARM not in names.get("COMPOSE_FILE", ""):
        return {}
    return {"COMPOSE_PROFILES": ",".join(filter(None, [names.get("COMPOSE_PROFILES"), "swarm"]))}


def in_swarm(folder: Path | None = None) -> bool:
    """Return whether a swarm runs the project, or is to run the version in `folder`."""
    env = (folder or PROJECT) / ".env"
    return bool(swarm_profile(env.read_text(encoding="utf-8")) if env.exists() else "")


def refuse_in_swarm(instead: str) -> None:
    """Raise Failed, with what to do instead, when a swarm runs the project."""
    if in_swarm():
        raise Failed(f"Refused: a swarm runs this project. {instead} See docs/swarm.md.")


@functools.cache
def made_with(env: str) -> dict[str, str]:
    """
    Return the passwords with which data services were made, where those in the text of a .env are newer.

    With these variables compose sees no change, for which it would make a new container.
    """
    found, values = {}, settings(env)
    names = {"db": "POSTGRES_PASSWORD", "broker": "BROKER_PASSWORD", "cache": "CACHE_PASSWORD"}
    for service, container in data_services().items():
        given, now = variables(container), values.get(names[service], "")
        for name in {"ROLE_PASSWORD", "RABBITMQ_DEFAULT_PASS", "REDISCLI_AUTH"} & given.keys():
            # The first two count for an empty volume only.
            if given[name] != now and (name != "REDISCLI_AUTH" or accepts(container, now)):
                found[f"{service.upper()}_MADE_WITH"] = given[name]
    return found


def data_services() -> dict[str, dict]:
    """Return the descriptions of the running containers of database, broker and cache, by service."""
    wanted = {number: name for number, name in rows() if name in ("db", "broker", "cache")}
    return {wanted[each["Id"]]: each for each in inspect(list(wanted))}


def variables(container: dict) -> dict[str, str]:
    """Return the environment of a container."""
    return dict(line.split("=", 1) for line in container["Config"]["Env"])


def accepts(container: dict, password: str) -> bool:
    """Return whether a Redis accepts a password."""
    command = ["docker", "exec", "--env=REDISCLI_AUTH", container["Id"], "redis-cli", "ping"]
    env = os.environ | {"REDISCLI_AUTH": password}
    return subprocess.run(command, env=env, capture_output=True).stdout.strip() == b"PONG"


def become_ssh(host: str, command: list[str]) -> None:
    """Replace this process by a command in the project's folder on a VM."""
    remote = f"cd {ON_VM} && exec {shlex.join(command)}"
    os.execvp("ssh", ["ssh", host, remote])  # noqa: S606


# Containers ---------------------------------------------------------------------------------------


@functools.cache
def model(folder: Path | None = None) -> dict:
    """
    Return what compose makes of the project's files, or of those in `folder`.

    It is read once: call `model.cache_clear()` after a change of the files.
    """
    return json.loads(compose("config", "--format=json", folder=folder))


def is_started(service: dict) -> bool:
    """Return whether "up" starts a service of the model: not where .env has a server of your own."""
    return service.get("scale") != 0


def check_database() -> None:
    """Raise Failed unless the site uses the database in the container db."""
    if host := model()["services"]["web-a"]["environment"].get("POSTGRES_HOST"):
        raise Failed(
            f"Refused: the site uses the database on {host}, and only the one in the container db "
            "is backed up and restored here; see docs/production.md, “Backup”."
        )


def folders() -> dict[str, str]:
    """
    Return the folders that are backed up, as the service web has them, each with its name in the file.

    Failed when one of BACKUP_PATHS is in no volume.
    """
    services = json.loads(compose("--profile=run", "config", "--format=json"))["services"]
    mounted = [Path(volume["target"]) for volume in services["web"]["volumes"]]
    env = services["web"]["environment"]
    found = {"/srv/media": "media"}
    for name in (env.get("BACKUP_PATHS") or "").split(","):
        if path := name.strip().rstrip("/"):
            if not any(Path(path).is_relative_to(target) for target in mounted):
                raise Failed(
                    f"Refused: BACKUP_PATHS in .env has {path}, which is in no volume of the service "
                    "web in compose.yaml."
                )
            found[path] = path.lstrip("/")
    return found


def containers(*services: str) -> list[str]:
    """Return the ids of the containers of some services, or of all; running or not."""
    return [number for number, name in rows("--all") if not services or name in services]


def rows(*options: str) -> list[tuple[str, str]]:
    """Return id and service of the project's containers, but those of "docker compose run"."""
    found = []
    label = f"--filter=label=com.docker.compose.project={project()}"
    command = ["docker", "ps", "--no-trunc", "--format=json", label, *options]
    for line in run(*command).splitlines():
        row = json.loads(line)
        labels = dict(pair.partition("=")[::2] for pair in row["Labels"].split(","))
        # A container of "docker run" has labels, too: those that compose gave to the image.
        if labels.get(ONE_OFF) == "False":
            found.append((row["ID"], labels[SERVICE]))
    return found


def inspect(ids: list[str]) -> list[dict]:
    """Return the descriptions of containers."""
    return json.loads(run("docker", "inspect", *ids)) if ids else []


def image(name: str) -> dict:
    """Return the description of an image; an empty one when the engine does not have it."""
    return json.loads(output("docker", "image", "inspect", name) or "[{}]")[0]


def content(name: str) -> list[str]:
    """
    Return the time and the layers of an image; nothing when the engine does not have it.

    Its id is another one in the classic image store than in containerd's.
    """
    found = image(name)
    return [found["Created"], *found["RootFS"]["Layers"]] if found else []


def in_containerd() -> bool:
    """Return whether the engine keeps images in containerd's store, not in the classic one."""
    return "io.containerd.snapshotter" in run("docker", "info")


def pull(name: str) -> bool:
    """Pull an image; return whether that worked."""
    return not subprocess.run(["docker", "pull", "--quiet", name], capture_output=True).returncode


def healthy(container: dict) -> bool:
    """Return whether a container that `inspect` describes runs and passes its health check."""
    state = container["State"]
    return state["Running"] and state.get("Health", {}).get("Status", "healthy") == "healthy"


def succeeded(container: dict) -> bool:
    """Return whether a container that `inspect` describes runs only once, and has done its work."""
    state, policy = container["State"], container["HostConfig"]["RestartPolicy"]["Name"]
    return policy in ("", "no") and state["Status"] == "exited" and state["ExitCode"] == 0


def unhealthy_after(ids: list[str], seconds: float) -> list[str]:
    """
    Wait for containers; return the services of those that do not become healthy, and show their logs.

    The wait is over as well when one restarts.
    """
    end = time.monotonic() + seconds
    restarts = [container["RestartCount"] for container in inspect(ids)]
    while True:
        found = inspect(ids)
        ill = [each for each in found if not healthy(each) and not succeeded(each)]
        again = [container["RestartCount"] for container in found] != restarts
        if not ill or again or time.monotonic() > end:
            for container in ill:
                show_log(container["Id"])
            return sorted({each["Config"]["Labels"][SERVICE] for each in ill})
        time.sleep(0.2)


def up(*arguments: str, wait: int = HEALTHY_WITHIN, folder: Path | None = None) -> None:
    """Start services, or all, with options for compose in front. Failed unless all get healthy."""
    end = time.monotonic() + wait
    waiting = ["--detach", "--wait", f"--wait-timeout={wait}"]
    compose("up", *waiting, *arguments, folder=folder)
    # Compose 2.26 and 2.40 now and then end with 0 when the time is over, so we look ourselves.
    names = [word for word in arguments if not word.startswith("-")]
    if ill := unhealthy_after(containers(*names), end - time.monotonic()):
        raise Failed(f"Not healthy within {wait} s: {', '.join(ill)}.")


def project_settings() -> dict[str, str]:
    """Return the names and values in .env; none without it."""
    env = PROJECT / ".env"
    return settings(env.read_text(encoding="utf-8")) if env.exists() else {}


def project() -> str:
    """Return compose's name of the project, also when the compose files are half replaced."""
    if name := project_settings().get("COMPOSE_PROJECT_NAME"):
        return name
    file = PROJECT / "compose.yaml"
    found = re.search(r"^name: *(\S+)", file.read_text(), re.MULTILINE) if file.exists() else None
    return found[1] if found else NAME


def trial() -> str:
    """Return the name of the container in which ops/release tries the web of a new version."""
    return f"{project()}-trial"


def remove_trial() -> None:
    """Remove the container that an ops/release which was killed has left."""
    path = PROJECT / "versions" / "lock"
    look = ("docker", "ps", "--all", "--quiet", f"--filter=name=^{trial()}$")
    # That the engine hangs is for ops/alarm to report.
    if path.exists() and output(*look, timeout=10):
        with suppress(Failed, OSError):  # a deploy is under way, or this is not the user's
            locked = lock(path, "the removal of what a deploy left")
            output("docker", "rm", "--force", trial())
            os.close(locked)


def show_log(container: str) -> None:
    """Print the last lines of a container's log."""
    log = subprocess.run(["docker", "logs", "--tail=30", container], capture_output=True, text=True)
    report(log.stdout + log.stderr)


# Files --------------------------------------------------------------------------------------------


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file as a whole."""
    half = path.with_name(f"{path.name}.half")
    half.unlink(missing_ok=True)
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    half.replace(path)


def with_values(text: str, values: dict[str, str]) -> str:
    """Return the text of a .env in which these names have these values."""
    for name, value in values.items():
        line = f"{name}={value}"
        # As a template of re, in which a backslash means something.
        escaped = line.replace("\\", r"\\")
        text, found = re.subn(rf"^(# )?{name}=.*$", escaped, text, count=1, flags=re.MULTILINE)
        if not found:
            text = f"{text.rstrip()}\n{line}\n"
    return text


def settings(text: str) -> dict[str, str]:
    """Return the names and values in the text of a .env."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def lacking(text: str, manual: str) -> dict[str, str]:
    """Return what a .env lacks of .env.example, with a fresh secret for each empty password or key."""
    have, found = settings(text), {}
    for name, value in settings(manual).items():
        secret = not value and re.fullmatch(r"\w+_(PASSWORD|KEY)", name)
        if name not in have or secret and not have[name]:
            # URL-safe: it needs no quotes in a URL, in .env (where compose expands "$") or in a shell.
            found[name] = secrets.token_urlsafe(48) if secret else value
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path) -> str:
    """Return what sha256sum prints for the files of a bundle, without the file that holds this."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [str(name) for name in files if str(name) != "SHA256SUMS"]
    return "".join(f"{digest(folder / name)}  {name}\n" for name in names)


def describe_backup(file: Path) -> str:
    """Return the path and the size of a backup, and what is known of its content."""
    sums = file.with_suffix(".tar.sha256")
    content = sums.read_text().partition("# ")[2].strip() if sums.exists() else ""
    return ", ".join(filter(None, [str(file), f"{file.stat().st_size / 1e6:.1f} MB", content]))


def lock(path: Path, what: str) -> int:
    """
    Lock a file until the returned descriptor is closed; `what` is under way then.

    Failed when another process has locked it; what that does is in the sentence.
    """
    import fcntl  # not on Windows, where ops/make-env runs, too

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(file, 200).decode() or "something else"
        raise Failed(
            f"Refused: {other} is under way here. Try again when that has ended."
        ) from None
    os.ftruncate(file, 0)
    os.write(file, f"{what} (since {time.strftime('%H:%M')})".encode())
    return file
