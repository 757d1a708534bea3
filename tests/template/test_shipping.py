"""ops/deploy and ops/install: what goes to a VM, and what it accepts, without an engine."""

import functools
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests import ops

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(defaults: Path) -> Load:
    """Import a command of ops/."""
    pytest.importorskip("pwd", reason="ops/install is for Linux")
    return functools.partial(ops.load, defaults)


# Versions -----------------------------------------------------------------------------------------


def test_a_newer_base_image_makes_another_version(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy, ids = load("deploy"), {}
    git = {("rev-parse", "--short=12", "HEAD"): "0123456789ab"}  # and nothing changed since
    monkeypatch.setattr(deploy, "output", lambda _, *words: git.get(words, ""))
    monkeypatch.setattr(deploy.common, "image", lambda name: {"Id": ids[name]} if ids else {})
    bare = deploy.version(), deploy.proxy_version()
    assert bare[0] == "0123456789ab"
    ids |= dict.fromkeys((name for name, _ in deploy.base_images()), "sha256:old")
    old = deploy.version(), deploy.proxy_version()
    ids[next(name for name, stage in deploy.base_images() if stage == "base")] = "sha256:new"
    new = deploy.version(), deploy.proxy_version()
    assert re.fullmatch("0123456789ab-[0-9a-f]{8}", old[0])
    assert len({bare[0], old[0], new[0]}) == 3
    assert new[1] == old[1] != bare[1]


def test_with_pull_images_of_others_are_shipped_if_lacking_or_newer_here(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy = load("deploy")
    there = {"lacking": [], "same": ["monday", "a"], "newer": ["monday", "b"], "built": ["today"]}
    here = {"lacking": ["x"], "same": ["monday", "a"], "newer": ["tuesday", "b"], "built": ["old"]}
    monkeypatch.setattr(deploy.common, "content", here.get)
    monkeypatch.setattr(deploy.common, "pull", lambda name: name != "built")
    assert deploy.to_ship(there, pull=True) == ["lacking", "newer"]
    stays = "built can be pulled neither there nor here: it stays as it is on the VM"
    assert stays in capsys.readouterr().out


# Images -------------------------------------------------------------------------------------------


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def blob(content: bytes) -> str:
    """Return the name of a file in an archive of images."""
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def engine_with(folder: Path, layers: list[bytes], pack: Callable[[bytes], bytes]) -> None:
    """Make a docker with one image, whose layers its archive has as `pack` makes them."""
    ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": ids}}).encode()
    files = {blob(pack(layer)): pack(layer) for layer in layers} | {blob(config): config}
    manifest = {"Config": blob(config), "Layers": [blob(pack(layer)) for layer in layers]}
    (folder / "image").write_text(json.dumps([{"RootFS": {"Layers": ids}}]))
    with tarfile.open(folder / "save", "w") as tar:
        for name in sorted(files):  # before what describes them, as engines do
            add(tar, name, files[name])
        add(tar, "manifest.json", json.dumps([manifest]).encode())
    program = folder / "docker"
    program.write_text('#!/bin/sh\ncat "$(dirname "$0")/$1"\n')
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("store", "pack"),
    [("overlay2", bytes), ("overlayfs, io.containerd.snapshotter.v1", zlib.compress)],
    ids=["classic", "containerd"],
)
@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_only_the_layers_that_the_vm_lacks_are_shipped(
    tmp_path: Path,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    pack: Callable[[bytes], bytes],
    there: int,
) -> None:
    layers = [name.encode() * 999 for name in ("base", "packages", "source")]
    engine_with(tmp_path, layers, pack)
    (tmp_path / "info").write_text(store)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    deploy = load("deploy")
    chain = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers[:there]]
    # Another image has the last layer, but not on top of these.
    other = [f"sha256:{hashlib.sha256(layers[-1]).hexdigest()}"]
    known = deploy.known_layers(["x"], [other, chain])
    for program in ("zstd", "gzip"):
        if program == "gzip":
            monkeypatch.setattr(deploy.shutil, "which", {}.get)
        shipped = io.BytesIO()
        assert deploy.save(["x"], known, shipped) == len(shipped.getvalue())
        plain = subprocess.check_output([program, "-dc"], input=shipped.getvalue())
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            names = tar.getnames()
        assert "manifest.json" in names
        assert [blob(pack(layer)) in names for layer in layers] == [False] * there + [True] * (
            3 - there
        )


def test_what_is_not_taken_any_more_stops_the_shipping(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_with(tmp_path, [os.urandom(30_000_000)], bytes)
    (tmp_path / "info").write_text("overlay2")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as ended:
        ended.wait()
        with pytest.raises(BrokenPipeError):
            load("deploy").save(["x"], set(), ended.stdin)


def test_an_image_that_could_not_be_unpacked_has_no_layers_there(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = load("release")
    found = json.dumps([{"RootFS": {"Layers": ["base"]}}, {"RootFS": {}}])
    monkeypatch.setattr(release, "run", lambda *words: "one two" if "ls" in words else found)
    assert release.chains() == [["base"], []]


# A bundle -----------------------------------------------------------------------------------------


@pytest.fixture
def content(tmp_path: Path, load: Load) -> Path:
    """What ops/deploy packs into a bundle."""
    content = tmp_path / "content"
    (content / "version" / "ops").mkdir(parents=True)
    (content / "version" / "ops" / "release").write_text("ours")
    (content / "images.tar").write_bytes(b"images")
    (content / "SHA256SUMS").write_text(load("deploy").common.sums(content))
    return content


def pack(content: Path) -> Path:
    """Pack it; return the bundle."""
    bundle = content.with_name("site.tar")
    subprocess.run(
        ["tar", "--create", f"--file={bundle}", f"--directory={content}", "."], check=True
    )
    return bundle


def test_a_bundle_is_unpacked(content: Path, tmp_path: Path, load: Load) -> None:
    (tmp_path / "there").mkdir()
    load("install").unpack(pack(content), tmp_path / "there")
    assert (tmp_path / "there" / "version" / "ops" / "release").read_text() == "ours"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=content, check=True)


FOREIGN = {
    "a list that is empty": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "no list": lambda folder: (folder / "SHA256SUMS").unlink(),
    "another file": lambda folder: (folder / "version/ops/release").write_text("foreign"),
    "a file that is not listed": lambda folder: (folder / "version/ops/backup").write_text("x"),
    "a file less": lambda folder: (folder / "images.tar").unlink(),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_a_bundle_with_other_files_than_listed_is_refused(
    content: Path, tmp_path: Path, load: Load, how: str
) -> None:
    FOREIGN[how](content)
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match="damaged or no bundle"):
        load("install").unpack(pack(content), tmp_path / "there")


def test_the_checksum_of_a_bundle_is_asked_for(
    content: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    install, bundle = load("install"), pack(content)
    digest = install.common.digest(bundle)
    install.check(bundle, digest)
    with pytest.raises(SystemExit, match="has another checksum"):
        install.check(bundle, digest[::-1])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit, match="Name the checksum of"):
        install.check(bundle, None)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: f" {digest}\n")
    install.check(bundle, None)
