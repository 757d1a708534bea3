"""The base images: pulled or, where no registry answers, built from Debian packages."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from . import ROOT, StepFailed, output, report, run, step
from .packages import can_install, debian_mirror, install

IMAGES = ROOT / "images"
# The Debian release that has the versions which the template names, and those that have the versions
# before, for the tests of ops/upgrade-data.
SUITE = "forky"
EARLIER = {
    "postgres:17": "trixie",
    "rabbitmq:4.0-management": "trixie",
    "redis:7.0": "bookworm",
}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Programs with certificates of their own are told by these to use the system's.
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
UNREAD = ("doc", "info", "lintian", "locale", "man")


def external_images(project: Path) -> list[str]:
    """Names that a project's Dockerfile and Compose files take from outside, in order.

    Names with a variable or a question in them are the project's own, and are left out.
    """
    names: dict[str, None] = {}
    stages = set()
    pattern = r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?"
    for name, stage in re.findall(pattern, (project / "Dockerfile").read_text("utf-8"), re.M):
        if name not in stages:
            names[name] = None
        stages.add(stage)
    for file in sorted(project.rglob("*.yaml")):
        found = re.findall(r"^\s*image:\s*[\"']?([^\s\"'#]+)", file.read_text("utf-8"), re.M)
        names |= dict.fromkeys(found)
    return [name for name in names if "{" not in name]


def suite(name: str) -> str:
    """Return the Debian release that an image is built from."""
    return EARLIER.get(name, SUITE)


def made_of(name: str) -> str:
    """Changes with anything that a stand-in is made of, the host's certificates included."""
    digest = hashlib.sha256(suite(name).encode())
    for file in (IMAGES / "check-version", *sorted(recipe(name).rglob("*")), CERTIFICATES):
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def recipe(name: str) -> Path:
    """The folder with the stand-in for a name such as "redis:8.0"."""
    return IMAGES / name.split(":")[0]


def debian(suite: str) -> str:
    """Return the name of an image with nothing but a Debian release; the first call builds it.

    Raises:
        StepFailed: when mmdebstrap is missing and cannot be installed, or fails.
    """
    certificates = CERTIFICATES.read_bytes() if CERTIFICATES.exists() else b""
    name = f"stand-in-base:{suite}-{hashlib.sha256(certificates).hexdigest()[:12]}"
    if output("docker", "image", "inspect", name) is not None:
        return name
    if not shutil.which("mmdebstrap"):
        if not can_install():
            raise StepFailed(
                "No registry answers, and stand-ins for the base images need mmdebstrap: "
                "install it, or pull or load the images by hand."
            )
        install("mmdebstrap", "debian-archive-keyring")
    options = ["--variant=minbase", "--include=ca-certificates"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in UNREAD]
    # What this host tells apt about proxies and dates holds inside, too.
    settings = output("apt-config", "dump", "--format", '%f "%v";%n', "Acquire") or ""
    inherited = re.findall(r'^Acquire::(?:Check-|http|Retries)\S* ".+";$', settings, re.M)
    options += [f"--aptopt={line}" for line in (*inherited, 'Acquire::Languages "none";')]
    changes = []
    if certificates:
        options.append(f"--customize-hook=copy-in {CERTIFICATES} {CERTIFICATES.parent}")
        used = filter(os.environ.get, CERTIFICATE_VARIABLES)
        changes = [f"--change=ENV {variable}={CERTIFICATES}" for variable in used]
    # Without a mirror in apt's sources, mmdebstrap knows one itself.
    mirror = debian_mirror() if shutil.which("apt-get") else None
    with step(f"making Debian {suite}"), tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/debian.tar"
        way_out = "let this machine reach a Debian mirror, then run script/bootstrap again"
        where = [suite, archive, *([mirror] if mirror else [])]
        run("mmdebstrap", *options, *where, way_out=way_out)
        run("docker", "import", *changes, archive, name, way_out="read the engine's log")
    return name


def build(name: str) -> None:
    """Build a stand-in from Debian packages under an official name.

    Raises:
        StepFailed: when images/ has none for it, or Debian has another version.
    """
    tag = re.fullmatch(r"[\w/-]+:v?(\d+(?:\.\d+)*)(?:-(\S+))?", name)
    dockerfile = recipe(name) / "Dockerfile"
    if not tag or not dockerfile.exists():
        raise StepFailed(
            f"No registry answers, and images/ has no stand-in for {name}: pull or load it by hand."
        )
    base = debian(suite(name))
    with step(f"building {name} from Debian packages"):
        run(
            *("docker", "build", f"--file={dockerfile}", f"--tag={name}", "--network=host"),
            *(f"--label=stand-in={made_of(name)}", f"--build-arg=BASE={base}"),
            *(f"--build-arg=VERSION={tag[1]}", f"--build-arg=VARIANT={tag[2] or ''}", IMAGES),
            way_out=f"read the lines below, or pull or load {name} by hand",
            env={"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"},
        )


def ensure_images(names: list[str]) -> None:
    """Make every image available, and every stand-in up to date with images/."""
    wanted = {}
    for name in names:
        labels = output("docker", "image", "inspect", "--format={{json .Config.Labels}}", name)
        stand_in = (json.loads(labels or "null") or {}).get("stand-in")
        if labels is None or stand_in not in (None, made_of(name)):
            wanted[name] = stand_in
    report(f"Base images: {', '.join(wanted or names)}{' (missing or outdated)' if wanted else ''}")
    # A stand-in that is only out of date says already that no registry answers.
    registry = not any(wanted.values()) and not os.environ.get("STAND_INS")
    for name in wanted:
        if registry:
            report(f"  pulling {name} ...")
            registry = output("docker", "pull", "--quiet", name, timeout=900) is not None
            if registry:
                continue
            report("    no registry answers: building from Debian packages instead")
        build(name)
