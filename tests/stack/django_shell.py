"""Python in a container's Django without its start, which is a second of CPU each time."""

import contextlib
import json
import subprocess
import threading
from pathlib import Path

# Imports Django once; each piece of code then runs in a fork of its own, so that none sees what
# another one left behind.
SERVER = """
import json, os, sys, tempfile, traceback
import django
django.setup()
nothing = os.open(os.devnull, os.O_RDONLY)
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(nothing, 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = 1
            try:
                exec(json.loads(line), {"__name__": "__main__"})
                status = 0
            except SystemExit as error:
                status = 1 if error.code else 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        print(json.dumps([status, out.read().decode(), err.read().decode()]), flush=True)
"""


class DjangoShell:
    """One such process, in one container."""

    def __init__(
        self, container: str, environment: dict[str, str], sources: dict[Path, int]
    ) -> None:
        """Start it in the container of this id, with the code as it is: `sources`."""
        self.sources = sources
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            ["docker", "exec", "--interactive", container, "python", "-c", SERVER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, code: str) -> tuple[int, str, str] | None:
        """Run `code`; return exit status, stdout and stderr, or None when the container is gone."""
        try:
            self.process.stdin.write(json.dumps(code) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            return None
        return tuple(json.loads(answer)) if answer else None

    def close(self) -> None:
        """End it, if it still runs."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what it could not take any more
                stream.close()
