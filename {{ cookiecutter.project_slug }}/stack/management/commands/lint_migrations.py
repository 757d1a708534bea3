"""./manage.py lint_migrations: in development and in CI, where squawk is installed."""

import re
import subprocess
from io import StringIO
from pathlib import Path

from django.apps import apps
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

# What Django decides, and not who writes a migration.
EXCLUDED = [
    *("prefer-bigint-over-int", "prefer-bigint-over-smallint", "prefer-identity"),
    *("prefer-robust-stmts", "prefer-text-field", "prefer-timestamptz"),
    *("require-lock-timeout", "require-statement-timeout"),
]


def problems(sql: str, ignored: list[str]) -> list[str]:
    """Return what squawk finds in SQL, one line each, without the ignored rules."""
    exclude = f"--exclude={','.join([*EXCLUDED, *ignored])}"
    done = subprocess.run(  # noqa: S603
        ["squawk", "--reporter=gcc", exclude],  # noqa: S607
        input=sql,
        capture_output=True,
        text=True,
    )
    if done.stderr:
        raise CommandError(done.stderr.strip())
    return re.findall(r"^stdin:\d+:\d+: \w+: (.*)$", done.stdout, re.MULTILINE)


class Command(BaseCommand):
    help = (
        "Check that migrations are compatible with the previous version, which serves while they"
        " run and after a rollback, and that they lock no table for long; with squawk,"
        " https://squawkhq.com/docs/rules. A comment in the migration accepts what is meant:"
        " # squawk-ignore: ban-drop-column"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the arguments."""
        parser.add_argument(
            "file", nargs="*", type=Path, help="such as shop/migrations/0002_order_total.py"
        )

    def handle(self, *args: object, file: list[Path], **options: object) -> None:
        """Raise CommandError when one of the files is no migration, or has a problem."""
        found = [f"{path}: {problem}" for path in file for problem in self.check_file(path)]
        for line in found:
            self.stderr.write(line)
        if found:
            raise CommandError(f"Problems: {len(found)}.")
        self.stdout.write(f"Migrations without a problem: {len(file)}.")

    def check_file(self, path: Path) -> list[str]:
        """Return the problems of one migration."""
        folder = path.resolve().parent.parent
        labels = [app.label for app in apps.get_app_configs() if Path(app.path) == folder]
        if not labels or not path.exists():
            raise CommandError(f"{path} is no migration of an app of this project.")
        sql = StringIO()
        call_command("sqlmigrate", labels[0], path.stem, stdout=sql, no_color=True)
        ignored = re.findall(r"# squawk-ignore: (\S+)", path.read_text(encoding="utf-8"))
        return problems(sql.getvalue(), ignored)
