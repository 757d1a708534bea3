"""./manage.py publish: give the proxy this version's static files."""

import os
import shutil
import time
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand

PUBLISHED = Path("/srv/published")  # the volume that the proxy serves
KEPT = 30 * 24 * 3600  # seconds


class Command(BaseCommand):
    """Runs in "migrate", before this version serves; files of the image go into the volume."""

    help = (
        "Put this version's static files beside those of the versions before, whose pages are"
        " still open in browsers; drop what no version of the last 30 days has."
    )

    def handle(self, *args: object, **options: object) -> None:
        """Copy what is missing, mark what is in use, delete the rest."""
        for source in Path(settings.STATIC_ROOT).rglob("*"):
            target = PUBLISHED / source.relative_to(settings.STATIC_ROOT)
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif target.exists():
                os.utime(target)  # the hash in its name says that it is the same
            elif source.name != "staticfiles.json":
                half = target.with_name(f"{target.name}.half")  # nobody is served half a file
                shutil.copyfile(source, half)
                half.replace(target)
        for path in PUBLISHED.rglob("*"):
            if path.is_file() and path.stat().st_mtime < time.time() - KEPT:
                path.unlink()
