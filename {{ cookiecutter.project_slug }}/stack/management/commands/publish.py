"""./manage.py publish: give the proxy this version's static files."""

import filecmp
import os
import shutil
import time
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand

from stack.environment import env

PUBLISHED = Path("/srv/published")  # the volume that the proxy serves
KEPT = 30 * 24 * 3600  # seconds


class Command(BaseCommand):
    """Runs in "migrate", before this version serves; files of the image go into the volume."""

    help = (
        "Put this version's static files beside those of the versions before, whose pages are"
        " still open in browsers; drop what no version of the last 30 days has."
    )

    def handle(self, *args: object, **options: object) -> None:
        """Copy what is missing or has changed, mark what is in use, delete the rest."""
        # A name without a hash has other contents in other versions: while one of those serves, and
        # ops/release tries this one, files are only added.
        replace = env.bool("LIVE", default=True)
        for source in Path(settings.STATIC_ROOT).rglob("*"):
            target = PUBLISHED / source.relative_to(settings.STATIC_ROOT)
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif source.name != "staticfiles.json":
                if not target.exists() or replace and differ(source, target):
                    put(source, target)
                mark(target)
                if replace and not source.with_name(f"{source.name}.gz").exists():
                    target.with_name(f"{target.name}.gz").unlink(missing_ok=True)
        for path in PUBLISHED.rglob("*"):
            if path.is_file() and path.stat().st_ctime < time.time() - KEPT:
                path.unlink()


def differ(source: Path, target: Path) -> bool:
    """Return whether two files have different contents."""
    return not filecmp.cmp(source, target, shallow=False)


def put(source: Path, target: Path) -> None:
    """Copy a file as a whole. Its time is another one than before, since nginx makes its ETag of that."""
    half = target.with_name(f"{target.name}.half")
    shutil.copyfile(source, half)
    if target.exists():
        now = max(time.time(), target.stat().st_mtime + 1)
        os.utime(half, (now, now))
    half.replace(target)


def mark(target: Path) -> None:
    """Set the time of the last change of a file's attributes, and no other, to now."""
    found = target.stat()
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
