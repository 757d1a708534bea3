"""ops/deploy and ops/install: what goes to a VM, and what it accepts, without an engine."""

import importlib.util
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(defaults: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a command of ops/, which leaves nothing in the project."""
    pytest.importorskip("pwd", reason="ops/install is for Linux")
    monkeypatch.syspath_prepend(defaults / "ops")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(name: str) -> ModuleType:
        loader = SourceFileLoader(f"ops_{name}", str(defaults / "ops" / name))
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader(loader.name, loader)
        )
        loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("common", None)


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


# A bundle -----------------------------------------------------------------------------------------


@pytest.fixture
def content(tmp_path: Path, load: Load) -> Path:
    """What ops/deploy packs into a bundle."""
    content = tmp_path / "content"
    (content / "version" / "ops").mkdir(parents=True)
    (content / "version" / "ops" / "release").write_text("ours")
    (content / "images.tar.gz").write_bytes(b"images")
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
    "a file less": lambda folder: (folder / "images.tar.gz").unlink(),
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
