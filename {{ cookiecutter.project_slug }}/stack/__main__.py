"""
python -m stack worker|beat|flower: Celery's commands for services, each without what the others need.

"celery" loads all of its commands, Flower with Tornado and an interactive shell: 14 MB and 0.1 s of CPU in each
container. Options come from the command line and the environment, as those of "celery" do.
"""

# ruff: noqa: E402

import os
from importlib import import_module
from typing import Any

from celery import maybe_patch_concurrency

maybe_patch_concurrency()  # for --pool=gevent, before anything else is imported

import click
from celery.app.utils import find_app
from celery.bin.base import CLIContext

MODULES = {"beat": "celery.bin.beat", "flower": "flower.command", "worker": "celery.bin.worker"}


class Services(click.Group):
    """Imports a command when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return their names."""
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> Any:
        """Return the command, None for an unknown name."""
        return getattr(import_module(MODULES[name]), name) if name in MODULES else None


@click.group(cls=Services)
@click.pass_context
def main(context: Any) -> None:
    """Start a service of the Celery app that CELERY_APP names."""
    # "migrate" runs Django's checks; Celery would run them, and ignore what they find.
    os.environ.setdefault("CELERY_SKIP_CHECKS", "true")
    app = find_app(os.environ["CELERY_APP"])
    context.obj = CLIContext(app=app, no_color=False, workdir=None, quiet=True)
    name = context.invoked_subcommand
    command = main.get_command(context, name)
    command.params.extend([*app.user_options["preload"], *app.user_options[name]])


if __name__ == "__main__":
    main(auto_envvar_prefix="CELERY", prog_name="python -m stack")
