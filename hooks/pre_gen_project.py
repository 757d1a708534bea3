"""Refuse a folder that has something in it; cookiecutter.json has the answers checked earlier."""

import sys
from pathlib import Path

if any(Path().iterdir()):
    sys.exit(f"Refused: the folder {Path().resolve().name} is not empty and stays as it is.")
