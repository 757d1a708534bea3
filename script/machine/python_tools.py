"""The Python tools in .venv/: what requirements.txt pins, checked against its hashes."""

import hashlib
import re
import sys
from pathlib import Path

from . import ROOT, VENV, StepFailed, output, python_tool, report, run, step
from .packages import can_install, install

REQUIREMENTS = ROOT / "script" / "requirements.txt"


def ensure_python_tools() -> None:
    """Put the tools into .venv/ unless a stamp says that they are there.

    Raises:
        StepFailed: without a venv module that could be installed, or without a package index.
    """
    # Commands in a virtual environment hold its path: a moved clone needs a new one.
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + str(VENV).encode()).hexdigest()
    stamp = VENV / "installed.sha256"
    # The import fails when the Python below has been replaced by another.
    if (
        stamp.exists()
        and stamp.read_text("utf-8") == wanted
        and output(python_tool("python"), "-c", "import pluggy") is not None
    ):
        report("Python tools: up to date")
        return
    report("Python tools:")
    # Not a virtual environment's own link, which may be the one that is replaced.
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    if output(interpreter, "-c", "import ensurepip, venv") is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if not can_install():
            raise StepFailed(
                "This Python cannot make virtual environments: install its venv module "
                f"(Debian and Ubuntu: {package})."
            )
        install(package)
    with step("installing script/requirements.txt into .venv/"):
        way_out = "let this machine reach a Python package index, then run script/bootstrap again"
        run(interpreter, "-m", "venv", "--clear", VENV, way_out=way_out)
        # pip brings uv, checked against the same hashes; uv is fast and removes what is unlisted.
        uv = re.search(r"^uv==.*(?:\n +--hash.*)*", REQUIREMENTS.read_text("utf-8"), re.MULTILINE)
        only_uv = VENV / "uv.txt"
        only_uv.write_text(uv[0].rstrip(" \\") + "\n", "utf-8")
        pip = (python_tool("python"), "-m", "pip", "--disable-pip-version-check", "install")
        run(*pip, "--require-hashes", "--requirement", only_uv, way_out=way_out)
        run(
            *(python_tool("uv"), "--no-config", "pip", "sync", "--require-hashes", REQUIREMENTS),
            way_out=way_out,
            # The system's certificates, as pip uses them: a company's own may be among them.
            env={"UV_SYSTEM_CERTS": "true", "VIRTUAL_ENV": str(VENV)},
        )
    stamp.write_text(wanted, "utf-8")


def add_python_tools(requirements: Path) -> None:
    """Install into .venv/ what else a file pins, until the tools there change.

    Raises:
        StepFailed: without a package index.
    """
    report(f"Python tools of {requirements.relative_to(ROOT)}:")
    run(
        *(python_tool("uv"), "--no-config", "pip", "install", "--require-hashes"),
        *("--requirement", requirements),
        way_out="let this machine reach a Python package index, then run script/bootstrap again",
        env={"UV_SYSTEM_CERTS": "true", "VIRTUAL_ENV": str(VENV)},
    )
