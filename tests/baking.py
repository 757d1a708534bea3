"""Renders the template the way a person does, for the tests."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent.parent


def bake(folder: Path, **answers: object) -> Path:
    """
    Run the cookiecutter command of the running Python into `folder`.

    `answers` are for the questions of cookiecutter.json; the others keep their defaults. Returns
    the rendered folder. Raises RuntimeError, with what the command printed, when it fails.
    """
    command = shutil.which("cookiecutter", path=str(Path(sys.executable).parent))
    if command is None:
        raise RuntimeError("There is no cookiecutter beside this Python; run script/bootstrap.")
    with tempfile.TemporaryDirectory() as own:
        done = subprocess.run(
            [command, *arguments(folder, Path(own), **answers)],
            env=os.environ | {"TMPDIR": own},  # where it leaves the hooks that it ran
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    if done.returncode:
        raise RuntimeError(f"cookiecutter failed for {answers}:\n{done.stderr}{done.stdout}")
    (rendered,) = (path for path in folder.iterdir() if (path / "compose.yaml").exists())
    return rendered


def arguments(folder: Path, own: Path, **answers: object) -> list[str]:
    """Return cookiecutter's arguments; what it remembers goes into `own`, and no home is touched."""
    config = own / "config.yaml"
    config.write_text(json.dumps({"replay_dir": str(own)}), encoding="utf-8")
    options = ["--no-input", f"--config-file={config}", f"--output-dir={folder}", str(TEMPLATE)]
    return options + [f"{name}={value}" for name, value in answers.items()]


def repository_files() -> list[Path]:
    """Return every file of this repository that git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TEMPLATE,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [TEMPLATE / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]
