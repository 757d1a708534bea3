"""A backup is worth what its restore gives back."""

import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.stack.stack import Stack, wait_for


def ops(stack: Stack, *command: str, answer: str = "", **env: str) -> subprocess.CompletedProcess:
    """Run a command of ops/ in the project and return what became of it."""
    return subprocess.run(
        [stack.folder / "ops" / command[0], *command[1:]],
        input=answer,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def backup(stack: Stack, folder: Path, *options: str, **env: str) -> Path:
    """Make a backup and return its file."""
    done = ops(stack, "backup", f"--to={folder}", *options, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.partition(".tar,")[0].split()[-1] + ".tar")


def restore(stack: Stack, file: Path, *options: str) -> None:
    """Put a backup back."""
    done = ops(stack, "restore", str(file), *options)
    assert done.returncode == 0, done.stdout + done.stderr


def upload(stack: Stack, name: str, content: str) -> str:
    """Store a media file; return its address."""
    answer = requests.post(f"{stack.url}/probe/upload", files={"file": (name, content)}, timeout=60)
    return answer.json()["url"]


def make_user(stack: Stack, name: str) -> None:
    """Insert a row."""
    stack.python(f"from accounts.models import User; User.objects.create(username='{name}')")


def users(stack: Stack) -> set[str]:
    """Select the rows."""
    code = (
        "from accounts.models import User; print(*User.objects.values_list('username', flat=True))"
    )
    return set(stack.python(code).split())


def private(stack: Stack, script: str) -> str:
    """Run a script in the volume of its own that the production stack has; return what it prints."""
    root = ["--user=root", "--cap-add=CHOWN", "--cap-add=DAC_OVERRIDE", "--workdir=/srv/private"]
    return stack.compose("run", "--rm", "--no-TTY", "--no-deps", *root, "web", "sh", "-c", script)


def in_db(stack: Stack, script: str) -> bytes:
    """Run a script as the superuser of the database; return what it prints."""
    container = stack.containers("db")["db"].id
    bash = ["docker", "exec", "--env=PGUSER=app_admin", container, "bash", "-euo", "pipefail", "-c"]
    return subprocess.run([*bash, script], check=True, capture_output=True).stdout


def dumps(stack: Stack, folder: Path, *statements: str) -> tuple[Path, Path]:
    """Dump a database like the site's, whose roles are not here; return it plain and custom."""
    psql = "psql --quiet --set=ON_ERROR_STOP=1"
    plain, custom = folder / "site.sql", folder / "site.dump"
    try:
        in_db(stack, f"{psql} -c 'CREATE ROLE bob' -c 'CREATE ROLE alice'")
        in_db(stack, f"{psql} -c 'CREATE DATABASE elsewhere OWNER bob'")
        in_db(stack, f"pg_dump | sed 's/ OWNER TO app;$/ OWNER TO bob;/' | {psql} elsewhere")
        for statement in ("GRANT SELECT ON ALL TABLES IN SCHEMA public TO alice", *statements):
            in_db(stack, f'{psql} elsewhere -c "{statement}"')
        plain.write_bytes(in_db(stack, "pg_dump elsewhere"))
        custom.write_bytes(in_db(stack, "pg_dump --format=custom elsewhere"))
    finally:
        in_db(
            stack, "psql -c 'DROP DATABASE IF EXISTS elsewhere' -c 'DROP ROLE IF EXISTS bob, alice'"
        )
    assert b" OWNER TO bob;" in plain.read_bytes()
    assert b" TO alice;" in plain.read_bytes()
    return plain, custom


def truncated(file: Path, folder: Path) -> Path:
    """Return a backup in `folder` whose dump has no end, and whose sum is right."""
    with tarfile.open(file) as archive:
        archive.extractall(folder / "parts", filter="data")
    dump = folder / "parts" / "database.dump"
    dump.write_bytes(dump.read_bytes()[:-2000])
    with tarfile.open(folder / file.name, "w") as archive:
        for part in ("media", "database.dump"):
            archive.add(folder / "parts" / part, part)
    sums = subprocess.run(["sha256sum", file.name], cwd=folder, capture_output=True, text=True)
    (folder / file.name).with_suffix(".tar.sha256").write_text(sums.stdout)
    return folder / file.name


def test_what_was_backed_up_comes_back_and_what_came_later_does_not(
    production: Stack, tmp_path: Path
) -> None:
    make_user(production, "early")
    early = upload(production, "early.txt", "early")
    private(production, "echo early > file && chmod 600 file && chown 999 file")
    file = backup(production, tmp_path)
    make_user(production, "late")
    late = upload(production, "late.txt", "late")
    private(production, "echo late > file && echo late > late")
    assert users(production) >= {"early", "late"}

    refused = ops(production, "restore", str(file), answer="no\n")
    assert refused.returncode == 1
    assert "Nothing was changed." in refused.stderr
    assert users(production) >= {"early", "late"}

    # A dump that cannot be loaded leaves the present database.
    (tmp_path / "truncated").mkdir()
    failed = ops(production, "restore", str(truncated(file, tmp_path / "truncated")), "--yes")
    assert failed.returncode == 1
    assert failed.stderr.endswith(" Nothing was changed.\n")
    assert "stopping" not in failed.stdout
    assert users(production) >= {"early", "late"}

    restore(production, file, "--yes")
    assert "early" in users(production)
    assert "late" not in users(production)
    assert production.get(early).text == "early"
    assert production.get(late).status_code == 404
    # In one of BACKUP_PATHS, with its owner.
    assert private(production, "ls -A && cat file") == "file\nearly\n"
    assert private(production, "stat --format='%u %a' file") == "999 600\n"


def databases(stack: Stack) -> set[str]:
    """Return the names of the databases."""
    query = "SELECT datname FROM pg_database WHERE NOT datistemplate"
    return set(in_db(stack, f'psql -tAc "{query}"').decode().split())


def test_another_sites_database_and_media_are_taken_over_whole_or_not_at_all(
    production: Stack, tmp_path: Path
) -> None:
    make_user(production, "their-user")
    plain, _ = dumps(production, tmp_path)
    make_user(production, "our-user")
    ours = upload(production, "ours.txt", "ours")
    media = tmp_path / "media" / "of"
    media.mkdir(parents=True)
    (media / "them.txt").write_text("theirs")
    (media / "them.txt").chmod(0o600)

    broken, text = tmp_path / "broken.sql", plain.read_bytes()
    table = b"CREATE TABLE public.accounts_user "
    assert text.count(table) == 1
    started = [each.attrs["State"]["StartedAt"] for each in production.containers().values()]
    for instead in (b"CREATE public.accounts_user ", b"\\! touch /tmp/escaped\n" + table):
        broken.write_bytes(text.replace(table, instead))
        done = ops(production, "restore", str(broken), "--yes")
        assert done.returncode == 1
        assert done.stderr.endswith("cannot be loaded, see above. Nothing was changed.\n")
    assert in_db(production, "ls /tmp") == b""
    assert databases(production) == {"app", "postgres"}
    assert "our-user" in users(production)
    now = [each.attrs["State"]["StartedAt"] for each in production.containers().values()]
    assert sorted(now) == sorted(started)

    compressed = tmp_path / "site.sql.gz"
    compressed.write_bytes(gzip.compress(text))
    restore(production, compressed, "--yes", f"--media={media.parent}")
    assert "their-user" in users(production)
    assert "our-user" not in users(production)
    assert production.get("/media/of/them.txt").text == "theirs"
    assert production.get(ours).status_code == 404
    query = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    assert in_db(production, f'psql -tAc "{query}"') == b"app\n"
    assert databases(production) == {"app", "postgres"}


@pytest.mark.long
def test_a_site_that_does_not_start_with_a_dump_has_its_own_data_again(
    production: Stack, tmp_path: Path
) -> None:
    # The first cannot be migrated.
    forget = "DELETE FROM django_migrations WHERE app = 'posts'"
    make_user(production, "their-second-user")
    _, bad = dumps(production, tmp_path, forget)
    (tmp_path / "good").mkdir()
    _, good = dumps(production, tmp_path / "good")
    make_user(production, "our-second-user")
    ours = upload(production, "ours.txt", "ours")
    (tmp_path / "media").mkdir()
    done = ops(production, "restore", str(bad), "--yes", f"--media={tmp_path / 'media'}")
    assert done.returncode == 1
    assert "posts.0001_initial" in done.stdout
    assert done.stderr.endswith(" The site has its former data again.\n")
    assert "our-second-user" in users(production)
    assert production.get(ours).text == "ours"

    restore(production, good, "--yes")
    assert "their-second-user" in users(production)
    assert "our-second-user" not in users(production)
    assert production.get(ours).text == "ours"


def test_a_folder_that_is_in_no_volume_is_not_backed_up(
    production: Stack, unchanged: None, tmp_path: Path
) -> None:
    production.set(BACKUP_PATHS="/srv/private,/srv/elsewhere")
    done = ops(production, "backup", f"--to={tmp_path / 'backups'}")
    assert done.returncode == 1
    assert done.stderr == (
        "Refused: BACKUP_PATHS in .env has /srv/elsewhere, which is in no volume of the service web in "
        "compose.yaml.\n"
    )


def test_a_backup_is_restored_onto_an_empty_machine(production: Stack, tmp_path: Path) -> None:
    make_user(production, "kept")
    kept = upload(production, "kept.txt", "kept")
    before = users(production)
    file = backup(production, tmp_path, "--with-env")
    env = (production.folder / ".env").read_text()
    production.compose("--profile", "*", "down", "--volumes", "--timeout", "10")
    (production.folder / ".env").unlink()

    restore(production, file)  # there is nothing to lose, so it does not ask

    assert users(production) == before
    assert production.get(kept).text == "kept"
    assert (production.folder / ".env").read_text() == env
    assert (production.folder / ".env").stat().st_mode & 0o777 == 0o600


def test_a_volume_in_which_the_sites_role_is_a_superuser_is_restored_and_changed(
    production: Stack, tmp_path: Path
) -> None:
    """Earlier versions made such volumes; the manual says how the role loses its rights."""
    make_user(production, "owner")
    before = users(production)
    file = backup(production, tmp_path)
    production.compose("--profile", "*", "down", "--volumes", "--timeout", "10")
    lines = [
        "services: {db: {entrypoint: [docker-entrypoint.sh, postgres], environment:",
        " {POSTGRES_USER: app, POSTGRES_PASSWORD: $POSTGRES_PASSWORD}}}",
    ]
    (tmp_path / "earlier.yaml").write_text("\n".join(lines))
    files = ["compose.yaml", "compose.production.yaml", tmp_path / "earlier.yaml"]
    options = [f"--file={name}" for name in files]
    production.compose(*options, "up", "--detach", "--wait", "db")
    assert is_superuser(production) == "on"

    restore(production, file)
    assert users(production) == before
    assert is_superuser(production) == "on"

    try:
        for command in production.manual("upgrade.md", "The role of the database"):
            production.shell(command)
        assert users(production) == before
        assert is_superuser(production) == "off"
    finally:
        shutil.rmtree(production.folder / "backups", ignore_errors=True)


def is_superuser(stack: Stack) -> str:
    """Return "on" when the site's role is a superuser."""
    psql = ["exec", "--no-TTY", "db", "psql", "-tA", "-c", "SHOW is_superuser"]
    return stack.compose(*psql).strip()


def test_a_damaged_backup_changes_nothing(production: Stack, tmp_path: Path) -> None:
    file = backup(production, tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    make_user(production, "untouched")
    done = ops(production, "restore", str(file), "--yes")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert "untouched" in users(production)


def test_old_backups_go_and_strange_files_stay(production: Stack, tmp_path: Path) -> None:
    strange = tmp_path / "holiday.tar"
    strange.touch()
    old = [tmp_path / f"{production.slug}-2020010{day}T000000Z.tar" for day in range(1, 5)]
    for file in old:
        file.touch()
    new = backup(production, tmp_path, "--keep=3")
    assert set(tmp_path.glob("*.tar")) == {*old[2:], new, strange}
    assert {file.stat().st_mode & 0o777 for file in (new, new.with_suffix(".tar.sha256"))} == {
        0o600
    }
    assert not list(tmp_path.glob(".unfinished-*"))


def test_a_backup_that_fails_says_so_and_leaves_no_file(production: Stack, tmp_path: Path) -> None:
    production.compose("stop", "db")
    try:
        done = ops(production, "backup", f"--to={tmp_path}")
    finally:
        production.start("db")
    assert done.returncode == 1
    assert "No backup was made. This failed: " in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def unchanged(production: Stack) -> Iterator[None]:
    """Let a test change .env and ops/, and put them back afterwards."""
    files = [production.folder / ".env", production.folder / "ops" / "backup"]
    before = [file.read_text() for file in files]
    yield
    for file, text in zip(files, before, strict=True):
        file.write_text(text)


@pytest.mark.usefixtures("unchanged")
def test_a_database_elsewhere_is_neither_backed_up_nor_restored(
    production: Stack, tmp_path: Path
) -> None:
    file = backup(production, tmp_path)
    make_user(production, "here")
    production.set(POSTGRES_HOST="database.elsewhere")
    made = ops(production, "backup", f"--to={tmp_path / 'more'}")
    put_back = ops(production, "restore", str(file), "--yes")
    for done in (made, put_back):
        assert done.returncode == 1
        assert done.stderr.startswith("Refused: the site uses the database on database.elsewhere")
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "more").exists()
    assert "here" in users(production)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--exclude-table-data=accounts_user", r"The database has (\d+) tables, .* has (?!\1)\d+ "),
        ("--filter=none", "The database could not be dumped, or has no tables"),
        ("| head -c 20000", "The dump that was made cannot be read"),
    ],
)
def test_a_dump_that_lacks_something_is_no_backup(
    production: Stack, tmp_path: Path, option: str, sentence: str
) -> None:
    production.edit("ops/backup", "--format=custom", f"--format=custom {option}")
    done = ops(production, "backup", f"--to={tmp_path}")
    assert done.returncode == 1, done.stdout
    assert re.match(rf"No backup was made\. {sentence}", done.stderr.splitlines()[-1]), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_while_the_site_writes_a_backup_has_all_of_one_moment(
    production: Stack, tmp_path: Path
) -> None:
    code = """
import itertools
from accounts.models import User
for number in itertools.count():
    User.objects.create(username=f"row-{number}")
    if User.objects.filter(username="enough").delete()[0]:
        break
User.objects.filter(username__startswith="row-").delete()
"""
    command = ["docker", "compose", "exec", "-T", "web-a", "./manage.py", "shell", "--no-imports"]
    command += ["--command", code]
    with subprocess.Popen(command, cwd=production.folder, env=production.environment()) as writer:
        try:
            wait_for("the first row", lambda: "row-0" in users(production))
            file = backup(production, tmp_path)
            assert writer.poll() is None
        finally:
            make_user(production, "enough")
    check = ["sha256sum", "--check", f"{file.name}.sha256"]
    assert subprocess.run(check, cwd=tmp_path).returncode == 0


def test_of_the_tables_of_an_extension_those_count_that_a_dump_contains(
    production: Stack, tmp_path: Path
) -> None:
    psql = ["exec", "--no-TTY", "db", "psql", "--username=app_admin", "--set=ON_ERROR_STOP=1", "-c"]
    # As an extension's script does with pg_extension_config_dump.
    statements = """
        CREATE EXTENSION hstore;
        CREATE TABLE settings AS SELECT generate_series(1, 3) AS number;
        CREATE TABLE fixed AS SELECT generate_series(1, 3) AS number;
        ALTER EXTENSION hstore ADD TABLE settings;
        ALTER EXTENSION hstore ADD TABLE fixed;
        UPDATE pg_extension
        SET extconfig = ARRAY['settings'::regclass::oid], extcondition = ARRAY['WHERE number > 1']
        WHERE extname = 'hstore';
    """
    production.compose(*psql, statements)
    try:
        backup(production, tmp_path)
    finally:
        production.compose(*psql, "DROP EXTENSION hstore")


def test_status_describes_the_last_backup_and_raises_an_alarm_when_it_shrank(
    production: Stack,
) -> None:
    folder = production.folder / "backups"
    try:
        last = backup(production, folder)
        size, tables, rows = measures(production)
        assert size == f"{last.stat().st_size / 1e6:.1f}"
        assert int(tables) > 5
        assert int(rows) > 5

        earlier = folder / f"{production.slug}-20200101T000000Z.tar"
        earlier.touch()
        earlier.with_suffix(".tar.sha256").write_text(f"# {2 * int(tables)} tables, 1 rows")
        assert ops(production, "status").returncode == 0
        earlier.with_suffix(".tar.sha256").write_text(f"# {2 * int(tables) + 1} tables, 1 rows")
        alarm = ops(production, "status")
        assert alarm.returncode == 1
        assert f"ALARM: the backup shrank: {last.name} has {tables} tables, " in alarm.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measures(stack: Stack) -> tuple[str, ...]:
    """Return size, tables and rows of the last backup, as ops/status shows them."""
    done = ops(stack, "status")
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(
        r"last backup: .*\.tar, (.*) MB, (\d+) tables, (\d+) rows", done.stdout
    ).groups()


@pytest.fixture
def repository(production: Stack, tmp_path: Path) -> Path:
    """A restic repository that .env.backup names; it does not exist yet."""
    repository = tmp_path / "repository"
    settings = production.folder / ".env.backup"
    settings.write_text(f"RESTIC_REPOSITORY={repository}\nRESTIC_PASSWORD='p$ss w#rd'\n")
    yield repository
    settings.unlink()


def test_restic_gets_each_backup_and_gives_it_back(
    production: Stack, repository: Path, tmp_path: Path
) -> None:
    cache = {"RESTIC_CACHE_DIR": str(tmp_path / "cache")}
    backup(production, tmp_path / "local", **cache)
    make_user(production, "second")
    file = backup(production, tmp_path / "local", **cache)
    shutil.rmtree(tmp_path / "local")
    env = os.environ | cache
    env |= {"RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD": "p$ss w#rd"}
    subprocess.run(
        ["restic", "restore", "latest", "--target", tmp_path / "back"], env=env, check=True
    )
    restored = tmp_path / "back" / file.relative_to("/")
    assert tarfile.is_tarfile(restored)


def test_missing_restic_is_reported_in_one_sentence(
    production: Stack, repository: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").symlink_to(shutil.which("docker"))
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    done = ops(production, "backup", f"--to={tmp_path}", PATH=str(programs))
    assert done.returncode == 1
    assert done.stderr.strip().endswith("restic is not installed: apt install restic")
