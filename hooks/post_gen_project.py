"""Write .env with fresh secrets, and delete whole files that were not chosen."""

import os
import re
import runpy
import shutil
import sys
from pathlib import Path

# The example's files and folders.
NOT_CHOSEN = ["posts", "notifications", "docs/example.md"]
NOT_CHOSEN += ["tests/test_notifications.py", "tests/test_posts.py"]
# The packages that only the example needs; tornado then comes with flower alone.
PACKAGES = [
    ("pyproject.toml", r'^    "(feedparser|tornado)>.*\n', ""),
    ("requirements.txt", r"^feedparser.*==(.*\n)+?(?=\w)", ""),
    ("requirements.txt", r"(^tornado==(?:.*\n)+?    # via)\n.*app .*\n    #  ", r"\1"),
]
if "{{ cookiecutter.example }}" == "True":
    NOT_CHOSEN = PACKAGES = []


def main() -> None:
    """Finish the rendered project in the current folder."""
    for name in NOT_CHOSEN:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()

    for name, pattern, rest in PACKAGES:
        text = Path(name).read_text(encoding="utf-8")
        text = re.sub(pattern, rest, text, flags=re.MULTILINE)
        Path(name).write_text(text, encoding="utf-8", newline="\n")

    # Commands in a container write to the source, too. Root's they can write as its group only: no
    # container runs as root.
    if getattr(os, "getuid", lambda: 1)() == 0:
        for path in [Path(), *Path().rglob("*")]:
            os.chown(path, -1, 10001)
            path.chmod(path.stat().st_mode | (0o2020 if path.is_dir() else 0o20))

    sys.dont_write_bytecode = True
    sys.path.insert(0, "ops")
    runpy.run_path("ops/make-env")["make_env"]()


main()
