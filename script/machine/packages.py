"""Packages of Debian and Ubuntu."""

import functools
import os
import platform
import shutil
import tempfile
from pathlib import Path

from . import StepFailed, run, step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@functools.cache
def system() -> dict[str, str]:
    """The fields of os-release; empty where there is none (macOS, Windows)."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def can_install() -> bool:
    """Whether this process may install packages of Debian or Ubuntu."""
    return (
        system().get("ID") in ("debian", "ubuntu")
        and os.geteuid() == 0
        and shutil.which("apt-get") is not None
    )


def apt(*words: str) -> str:
    """Run apt-get without questions and return what it printed.

    Raises:
        StepFailed: when apt-get ends with an error.
    """
    return run(
        *("apt-get", "-q", *words),
        way_out="mend apt's sources or the network, then run script/bootstrap again",
        env={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )


def install(*packages: str, options: tuple[str, ...] = ()) -> None:
    """Install packages without what they only recommend; never remove one."""
    with step(f"installing {', '.join(packages)}"):
        apt(*options, "update")
        apt(*options, "install", "-y", "--no-install-recommends", "--no-remove", *packages)


def debian_mirror() -> str | None:
    """The address from which this host takes Debian itself; None where it takes it from none."""
    words = ("indextargets", "--format=$(REPO_URI)", "Origin: Debian", "Label: Debian")
    known = apt(*words).split()
    if not known and can_install():
        # apt tells origins only of the lists it has.
        apt("update")
        known = apt(*words).split()
    return known[0] if known else None


def install_from(suite: str, *packages: str) -> None:
    """Install packages of a later Debian release, and what they need from this one.

    The later release is known only to this call: its source list and its package lists live
    in a folder that is removed afterwards.

    Raises:
        StepFailed: when there is no mirror to take it from, or apt-get fails.
    """
    mirror = debian_mirror()
    if mirror is None:
        raise StepFailed(f"apt has no Debian mirror to take {suite} from: add one to its sources.")
    with tempfile.TemporaryDirectory() as folder:
        # apt drops its rights while it downloads.
        os.chmod(folder, 0o755)
        Path(folder, "lists", "partial").mkdir(parents=True)
        own = Path("/etc/apt/sources.list")
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        sources = Path(folder, "sources.list")
        sources.write_text(
            (own.read_text("utf-8") if own.exists() else "")
            + f"\ndeb {signed}{mirror} {suite} main\n",
            "utf-8",
        )
        install(
            *(f"{name}/{suite}" for name in packages),
            options=(
                f"-oDir::Etc::SourceList={sources}",
                f"-oDir::State::Lists={folder}/lists",
                f"-oAPT::Default-Release={system()['VERSION_CODENAME']}",
            ),
        )
