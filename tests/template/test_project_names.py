"""A project name arrives exactly as it was given, or is refused; it never runs."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Answer = Callable[..., object]
Refusals = Callable[..., list[str]]


class QuickLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Knows compose's own tags, such as !reset."""


QuickLoader.add_multi_constructor("!", lambda loader, tag, node: loader.construct_mapping(node))

# {marker} is a file that the name would create if any part of it ran.
KEPT = [
    "It's",
    "'''",
    "'; open('{marker}', 'w') #",
    "# not a comment",
    "$HOME $$ $(touch {marker})",
    "`touch {marker}`",
    "; import os",
    "| touch {marker}",
    "100% %s %(x)s",
    "</script><script>alert(1)</script>",
    "<b>R&D</b>",
    "- a: [b, *c] &d !e",
    "null",
    "…—“quoted”",
    "🎉",
    "한국어 프로젝트",
    "x" * 200,
    "한" * 200,
]

REFUSED = [
    'say "hi"',
    '"""',
    '"; open("{marker}", "w"); "',
    '""" + str(open("{marker}", "w")) + """',
    "C:\\new",
    "ends with \\",
    "\\u0022",
    "one\ntwo",
    "x\n{marker}",
    "x" * 201,
]

# Cookiecutter itself renders what comes by an option, so only a person who types can give these.
JINJA = [
    "{{ 7 * 7 }}",
    "{{ cookiecutter }}",
    "{{ cycler.__init__.__globals__.os.system('touch {marker}') }}",
    "{% raw %}",
    "{# note #}",
    "{{",
    "}}",
]


def works(project: Path, name: str) -> None:
    """Expect files that Python and YAML can read, and the name as it was given."""
    ruff = Path(sys.executable).with_name("ruff")
    # Knows the syntax of the project's Python, which may be newer than this one.
    done = subprocess.run(
        [ruff, "check", "--no-cache", "--quiet", "--select=E9,F", "--ignore=F401", project],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for path in project.rglob("*.yaml"):
        yaml.load(path.read_text(encoding="utf-8"), Loader=QuickLoader)
    settings = ast.parse((project / "config/settings.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in settings.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROJECT_NAME"
    )
    assert ast.literal_eval(value) == name
    assert (project / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that nothing may create."""
    return tmp_path / "it-ran"


@pytest.mark.parametrize("name", KEPT)
def test_a_name_is_kept_to_the_letter(answer: Answer, marker: Path, name: str) -> None:
    name = name.replace("{marker}", str(marker))
    outcome = answer(project_name=name, project_slug="shop")
    assert outcome.sentences == []
    works(outcome.project, name)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["'; open('{marker}', 'w') #", "한국어 # $(touch {marker}) </b>"])
def test_a_typed_name_is_kept_to_the_letter(answer: Answer, marker: Path, name: str) -> None:
    name = name.replace("{marker}", str(marker))
    outcome = answer(typed=[name])
    assert outcome.sentences == []
    works(outcome.project, name)
    assert not marker.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_would_need_escapes_is_refused(
    refusals: Refusals, marker: Path, name: str
) -> None:
    (sentence,) = refusals(project_name=name.replace("{marker}", str(marker)))
    assert sentence.startswith("Refused: project_name ")
    assert not marker.exists()


@pytest.mark.parametrize("name", JINJA)
def test_a_typed_name_with_braces_is_refused_and_not_rendered(
    answer: Answer, marker: Path, name: str
) -> None:
    outcome = answer(typed=[name.replace("{marker}", str(marker))])
    assert outcome.code != 0
    (sentence,) = outcome.sentences
    assert sentence.startswith("Refused: project_name ")
    assert outcome.left == []
    assert not marker.exists()


@pytest.mark.parametrize("question", ["project_slug", "domain_name", "email", "queues", "timezone"])
@pytest.mark.parametrize(
    "text",
    ["'); open('{marker}', 'w'); ('", '"""; open("{marker}", "w"); """', "$(touch {marker})"],
)
def test_no_other_answer_runs_either(
    refusals: Refusals, marker: Path, question: str, text: str
) -> None:
    sentences = refusals(**{question: text.replace("{marker}", str(marker))})
    assert sentences
    assert all(sentence.startswith("Refused: ") for sentence in sentences)
    assert not marker.exists()
