from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from stack.management.commands.lint_migrations import problems

ACCOUNTS = Path("accounts/migrations/0001_initial.py")


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ('ALTER TABLE "a" DROP COLUMN "x" CASCADE;', "ban-drop-column"),
        ('ALTER TABLE "a" RENAME COLUMN "x" TO "y";', "renaming-column"),
        ('ALTER TABLE "a" ADD COLUMN "x" integer NOT NULL;', "adding-required-field"),
        ('CREATE INDEX "i" ON "a" ("x");', "require-concurrent-index-creation"),
    ],
)
def test_what_the_previous_version_cannot_live_with_is_found(sql: str, rule: str) -> None:
    (problem,) = problems(sql, [])
    assert problem.startswith(f"{rule} ")
    assert problems(sql, [rule]) == []


@pytest.mark.django_db
def test_a_new_table_is_no_problem(capsys) -> None:
    call_command("lint_migrations", ACCOUNTS)
    assert capsys.readouterr().out == "Migrations without a problem: 1.\n"


def test_what_is_no_migration_is_refused() -> None:
    with pytest.raises(CommandError, match="is no migration of an app"):
        call_command("lint_migrations", "manage.py")
