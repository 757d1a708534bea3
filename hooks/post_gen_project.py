"""Write .env with fresh secrets and drop whole files that were not chosen."""

import os
import re
import secrets
import shutil
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

    # Every empty "…_PASSWORD=" or "…_KEY=" of the manual gets a secret of its own. URL-safe, so
    # that it needs no quoting in a URL, in .env (where compose expands "$") or in a shell.
    text = re.sub(
        r"^(\w+_(?:PASSWORD|KEY))=$",
        lambda match: f"{match[1]}={secrets.token_urlsafe(48)}",
        Path(".env.example").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    # Files made in a container then belong to the person; root keeps the image's own user,
    # because no process of the stack runs as root.
    if getattr(os, "getuid", lambda: 0)():
        text = re.sub(r"^DEV_UID=.*$", f"DEV_UID={os.getuid()}", text, flags=re.MULTILINE)
    env = os.open(".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(env, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


main()
