"""The oldest Django that the stack supports; all other tests have the newest."""

import re
from pathlib import Path

import pytest

from .stack import LAPTOP, Stack

# What the project's own settings have of Django 6.0 and 6.1.
NEWER = r"""(?m)^from django\.utils\.csp .*\n|^ +"django\.middleware\.csp.*\n|^SECURE_CSP = .*\n|^ +POST_OFFICE = .*\n"""


@pytest.mark.long
def test_the_tests_of_the_stack_pass_on_django_5_2(tmp_path: Path) -> None:
    stack = Stack(tmp_path, LAPTOP, example="false")
    try:
        stack.compose("build", "migrate")
        readme = (stack.folder / "stack/README.md").read_text()
        (pin,) = re.findall(r'`"(django>=5\.2,.*?)"`', readme)
        stack.edit("pyproject.toml", "django>=6.1,<6.2", pin)
        manual = (stack.folder / "docs/dependencies.md").read_text()
        stack.shell("\n".join(re.findall(r"^docker .* uv pip compile .*", manual, re.M)))
        settings = stack.folder / "config/settings.py"
        text = re.sub(NEWER, "", settings.read_text())
        settings.write_text(
            re.sub("MAILERS = .*", 'EMAIL_BACKEND = "post_office.EmailBackend"', text)
        )
        stack.compose("build", "migrate")
        stack.compose("up", "--detach", "--wait", "db", "cache", "broker")
        run = "docker compose run --rm --no-deps web"
        assert stack.shell(f"{run} ./manage.py version").startswith("5.2.")
        stack.shell(f"{run} ./manage.py check")
        # with a pool, as gunicorn has it
        query = "from stack.health import check_database as check; check(); check(); print('found')"
        pool = run.replace(" web", " --env DATABASE_POOL_SIZE=2 web")
        assert "found" in stack.shell(f'{pool} ./manage.py shell -c "{query}"')
        printed = stack.shell(f"{run} pytest -q -rs stack/tests")
        skipped = re.findall(r"^SKIPPED \[\d+\] .*?: (.*)", printed, re.M)
        assert skipped == ["Django 6.0 has it"]
        assert re.search(r"\d+ passed", printed)
    finally:
        stack.remove()
