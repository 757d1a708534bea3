"""What ops/restore leaves out of another site's dump, and what it takes for a dump."""

import gzip
from pathlib import Path

import pytest

from tests import ops

HEAD = "--\n-- PostgreSQL database dump\n--\n\n"
END = "--\n-- PostgreSQL database dump complete\n--\n"
# As pg_dump writes them. What is about roles, which the site does not have, is marked.
DUMP = r"""
\restrict abcDEF123 <-
SET client_encoding = 'UTF8';
CREATE EXTENSION IF NOT EXISTS plpgsql WITH SCHEMA pg_catalog;
COMMENT ON EXTENSION plpgsql IS 'PL/pgSQL procedural language'; <-
-- Name: doesn't matter; Type: FUNCTION; Schema: public; Owner: bob
CREATE FUNCTION public.allow() RETURNS void
    LANGUAGE plpgsql
    AS $_$ BEGIN
GRANT SELECT ON posts TO PUBLIC;
ALTER TABLE posts OWNER TO $1;
END $_$;
ALTER FUNCTION public.allow() OWNER TO bob; <-
CREATE TABLE public.posts (text text, "it's" integer);
ALTER TABLE public.posts OWNER TO bob; <-
COMMENT ON TABLE public.posts IS 'it''s
GRANT ALL ON TABLE public.posts TO bob;
-- "$$';
COPY public.posts (text, "it's") FROM stdin;
GRANT ALL ON TABLE public.posts TO bob;	1
it's $$	2
\.
INSERT INTO public.posts VALUES ('of rows: --
REVOKE ALL ON TABLE public.posts FROM bob;
', 3);
GRANT SELECT ON TABLE public.posts TO bob; <-
REVOKE ALL ON SCHEMA public FROM bob; <-
ALTER DEFAULT PRIVILEGES FOR ROLE bob GRANT SELECT ON TABLES TO alice; <-
\unrestrict abcDEF123 <-
"""


def test_lines_about_roles_are_left_out_of_a_dump_and_stay_in_its_values(defaults: Path) -> None:
    restore = ops.load(defaults, "restore")
    lines = DUMP.splitlines(keepends=True)
    dump = [line.replace(" <-", "").encode() for line in lines]
    kept = [line.encode() for line in lines if "<-" not in line]
    assert list(restore.without_roles(dump)) == kept


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PGDMP\x01...", "custom"),
        (f"{HEAD}{DUMP}{END}".encode(), "plain"),
        (gzip.compress(f"{HEAD}{DUMP}{END}".encode()), "plain"),
        (f"{HEAD}{DUMP}".encode(), "its end is missing"),
        (gzip.compress(f"{HEAD}{DUMP}{END}".encode())[:-20], "or it is damaged"),
        (b"-- PostgreSQL database cluster dump\n", "neither a backup"),
        (b"", "neither a backup"),
    ],
    ids=("custom", "plain", "gzipped", "no end", "cut", "of a cluster", "empty"),
)
def test_a_dump_is_known_by_its_content(
    defaults: Path, tmp_path: Path, content: bytes, found: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    restore = ops.load(defaults, "restore")
    if " " in found:
        with pytest.raises(SystemExit, match=found):
            restore.kind(file)
    else:
        assert restore.kind(file) == found
