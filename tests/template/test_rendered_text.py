"""A reader cannot tell that a template made the files."""

import json
import re
import tomllib
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import yaml

# What other answers than the given ones would have left, by the answer.
UNCHOSEN = {
    "example": {
        "false": r"[Tt]he example|sample.site|\bposts\b|notifications|(?<!WORKER_)CRAWL_|feedparser"
    },
    "queues": {
        "crawl": r"(?i)notify",
        "none": r"(?i)crawl|notify",
        "images, daily-reports, send_mail": r"(?i)crawl|notify",
        "q": r"(?i)crawl|notify",
    },
    "project_name": {"": r"My Project"},
    "project_slug": {"": r"my_project"},
    "domain_name": {"": r"example\.com"},
    "email": {"": r"admin@"},
    "timezone": {"": r"\bUTC\b"},
}


def texts(project: Path) -> dict[str, str]:
    """Read every file of a project but .env, which is a copy of .env.example and secrets."""
    return {
        path.relative_to(project).as_posix(): path.read_bytes().decode("utf-8")
        for path in sorted(project.rglob("*"))
        if path.is_file() and path.name != ".env"
    }


def lines_with(pattern: str, project: Path, *, besides: str = r"(?!)") -> list[str]:
    """Find lines in the files whose name does not match `besides`."""
    return [
        f"{name}:{number}: {line}"
        for name, text in texts(project).items()
        if not re.search(besides, name)
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


# Templates of Django, of Prometheus and of Grafana.
OTHER_BRACES = r"(^|/)templates/|^monitoring/alerts|^docs/grafana\.json"


def test_no_jinja_is_left(project: Path) -> None:
    assert lines_with(r"\{%|%\}|(?<!\$)\{\{(?!\.)|\{#", project, besides=OTHER_BRACES) == []
    # The manual names what an owner may have called to render the project.
    assert lines_with(r"(?i)cookiecutter|jinja", project, besides="docs/upgrade.md") == []


def test_no_line_ends_in_blanks(project: Path) -> None:
    assert lines_with(r"\s$|\r|\t", project) == []


def test_files_end_with_one_line_break_and_start_with_text(project: Path) -> None:
    ragged = [name for name, text in texts(project).items() if text != text.strip("\n") + "\n"]
    empty = [name for name, text in texts(project).items() if not text]
    assert ragged == empty
    assert {Path(name).name for name in empty} <= {"__init__.py"}


def test_jinja_leaves_no_blank_lines(project: Path) -> None:
    def ragged(name: str, text: str) -> bool:
        # Python has two between functions; code has none after a line that opens a block.
        too_many = (
            "\n\n\n\n" if name.endswith((".py", ".md")) or name.startswith("ops/") else "\n\n\n"
        )
        after_opening = not name.endswith(".md") and re.search(r"[\[({:|]\n\n(?=[ ]+\S)", text)
        return too_many in text or bool(after_opening)

    assert [name for name, text in texts(project).items() if ragged(name, text)] == []


def test_nothing_mentions_what_was_not_chosen(project: Path, variant: dict[str, str]) -> None:
    found = []
    for question, answer in variant.items():
        patterns = UNCHOSEN.get(question, {})
        pattern = patterns.get(answer) or patterns.get("", r"(?!)")
        found += lines_with(pattern, project, besides=r"^requirements")
    assert found == []


def test_every_answer_is_found_where_it_belongs(render: Callable[..., Path]) -> None:
    project = render(
        domain_name="www.shop.example", email="jane@mail.example", timezone="Asia/Seoul"
    )
    settings = (project / "config/settings.py").read_text(encoding="utf-8")
    manual = (project / ".env.example").read_text(encoding="utf-8")
    assert 'TIME_ZONE = "Asia/Seoul"' in settings
    assert "ALLOWED_HOSTS=www.shop.example\n" in manual
    assert "EMAIL_FROM=jane@mail.example\n" in manual


def test_every_file_that_a_text_names_exists(project: Path) -> None:
    missing = []
    for name, text in texts(project).items():
        links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text) if ".md" in name else []
        missing += [
            f"{name}: {link}" for link in links if not ((project / name).parent / link).exists()
        ]
        missing += [
            f"{name}: {path}"
            for path in re.findall(
                r"(?<![\w./-])(?:accounts|brokers|celery|config|docs|nginx|ops|stack|static|templates)/[\w./-]*\w",
                text,
            )
            if re.search(r"\.\w+$", path)
            and not any(project.rglob(path))  # templates and static files are somewhere below
            and not ((project / name).parent / path).exists()
        ]
    assert missing == []


def test_the_readme_is_read_in_a_few_minutes(project: Path) -> None:
    assert len((project / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


class Yaml(yaml.SafeLoader):
    """Knows compose's own tags, such as !reset."""


Yaml.add_multi_constructor("!", lambda loader, tag, node: loader.construct_mapping(node))


def test_yaml_toml_json_and_xml_are_well_formed(project: Path) -> None:
    parsers = {
        ".yaml": lambda text: yaml.load(text, Loader=Yaml),
        ".yml": yaml.safe_load,
        ".toml": tomllib.loads,
        ".json": json.loads,
        ".svg": xml.etree.ElementTree.fromstring,
    }
    parsed = [
        parsers[Path(name).suffix](text)
        for name, text in texts(project).items()
        if Path(name).suffix in parsers
    ]
    assert len(parsed) >= 5
    assert None not in parsed


def test_yaml_names_nothing_twice(project: Path) -> None:
    # PyYAML keeps the last of two equal keys without a word.
    def keys_once(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"{keys} in {node.start_mark}"
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node))

    class Strict(Yaml):
        pass

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, keys_once)
    for path in project.rglob("*.yaml"):
        yaml.load(path.read_text(encoding="utf-8"), Loader=Strict)


def test_the_same_answers_give_the_same_text(answer: Callable[..., object], defaults: Path) -> None:
    assert texts(answer().project) == texts(defaults)


def test_docstrings_begin_with_what_a_function_does(project: Path) -> None:
    odd = r'""" *(Give|Tell|Have|Say|Name|Do as|Speak|Make sure)\b'
    assert lines_with(odd, project) == []


def test_texts_use_the_terms_that_readers_search_for(project: Path) -> None:
    # The glossary is in CONTRIBUTING.md.
    riddles = r"(?i)\b(is|are) away\b|on a laptop|\banew\b|\bthe equal of\b|\bwhoever\b|(?<!-)\ba web\b(?! (server|inst))"
    assert lines_with(riddles, project) == []
