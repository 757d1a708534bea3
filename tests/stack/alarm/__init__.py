"""ops/alarm, with a mail server and a receiver of pings that it reaches."""

import json
import secrets
import shutil
import subprocess
from pathlib import Path

from tests.stack.stack import Stack, wait_for
from tests.systemd.machine import docker

HERE = Path(__file__).parent
KEY = "the-ping-key"
MAILS = """
import json, mailbox
mails = list(mailbox.Maildir("/tmp/mail", create=False))
mails.sort(key=lambda mail: mail.get_date())
read = lambda mail: mail.get_payload(decode=True).decode()
print(json.dumps([(" ".join(mail["Subject"].split()), read(mail)) for mail in mails]))
"""
# Makes what was seen so many seconds older, and what the last run complained of unknown.
AGE = """
import json, pathlib
file = pathlib.Path(".alarm.json")
state = json.loads(file.read_text())
for known in state["known"].values():
    known["since"] -= {seconds}
    known["seen"] -= {seconds}
file.write_text(json.dumps(state))
"""


class Receivers:
    """A mail server and a receiver of pings, in containers of this machine's engine."""

    def __init__(self) -> None:
        """Start both."""
        self.name = f"dcctest-alarm-{secrets.token_hex(4)}"
        self.mail, self.pinged = f"{self.name}-mail", f"{self.name}-pings"
        docker("build", "--quiet", f"--tag={self.name}", str(HERE.parent / "mail"))
        catch = (HERE / "catch.py").read_text()
        docker("run", "--detach", f"--name={self.mail}", self.name)
        docker("run", "--detach", f"--name={self.pinged}", self.name, "python", "-uc", catch)
        wait_for("the mail server", lambda: "mail" in docker("exec", self.mail, "ls", "/tmp"))

    def remove(self) -> None:
        """Remove both."""
        docker("rm", "--force", "--volumes", self.mail, self.pinged, check=False)
        docker("image", "rm", "--force", self.name, check=False)

    def settings(self) -> dict[str, str]:
        """Return the lines of .env that name them."""
        mail, pings = (
            json.loads(docker("inspect", name))[0]["NetworkSettings"]["IPAddress"]
            for name in (self.mail, self.pinged)
        )
        return {
            "EMAIL_HOST": mail,
            "EMAIL_PORT": "8025",
            "EMAIL_USE_TLS": "'false'",
            "ALARM_EMAIL": "ops@example.com, chief@example.com # both",
            "PING_URL": f"http://{pings}:9000/{KEY}",
        }

    def mails(self) -> list[tuple[str, str]]:
        """Return subject and text of each mail, the first one first."""
        return [
            tuple(mail) for mail in json.loads(docker("exec", self.mail, "python", "-c", MAILS))
        ]

    def pings(self, name: str) -> list[tuple[str, str]]:
        """Return what followed the key and a name in the path of each ping, and its body."""
        found = [json.loads(line) for line in docker("logs", self.pinged).splitlines()]
        start = f"/{KEY}/{name}"
        return [(path.removeprefix(start), body) for path, body in found if path.startswith(start)]


class Alarm:
    """ops/alarm of a stack, in a folder of its own with the same project in another .env."""

    def __init__(self, stack: Stack, folder: Path, **settings: str) -> None:
        """Copy what it needs."""
        self.folder = folder
        shutil.copytree(stack.folder / "ops", folder / "ops")
        # How full this machine's disk is has nothing to do with the tests.
        path = folder / "ops" / "alarm"
        path.write_text(path.read_text().replace("DISK = 0.85", "DISK = 2"))
        values = {"COMPOSE_PROJECT_NAME": stack.slug} | stack.settings | settings
        env = "".join(f"{name}={value}\n" for name, value in values.items())
        (folder / ".env").write_text(env)
        self.env = stack.environment()

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run it; return what it printed."""
        command = [self.folder / "ops" / "alarm", *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def age(self, seconds: float) -> None:
        """Let so many seconds pass."""
        exec_in(self.folder, AGE.format(seconds=seconds))

    def problems(self) -> dict[str, str]:
        """Return the sentence of each problem that the last run has seen, by its key."""
        state = json.loads((self.folder / ".alarm.json").read_text())
        known = state["known"]
        looks = [seen[-1][0] for seen in state["restarts"].values()]
        last = max([*looks, *(entry["seen"] for entry in known.values())])
        return {key: each["sentence"] for key, each in known.items() if each["seen"] == last}

    def is_on(self, key: str) -> bool:
        """Return whether a problem has lasted."""
        return json.loads((self.folder / ".alarm.json").read_text())["known"][key]["on"]


def exec_in(folder: Path, code: str) -> None:
    """Run code in a folder."""
    subprocess.run(["python3", "-c", code], cwd=folder, check=True)
