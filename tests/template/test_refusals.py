"""What cannot work is refused in one plain sentence, and nothing is left behind."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Answer = Callable[..., object]
Refusals = Callable[..., list[str]]

SERVICES = "beat broker cache certificates db flower migrate monitoring proxy sample-site web web-a web-b worker"


def one(sentences: list[str], about: str) -> None:
    """Expect one sentence that has the words `about`."""
    (sentence,) = sentences
    assert re.fullmatch(r"Refused: .*\w.*\.", sentence)
    assert about in sentence


@pytest.mark.parametrize(
    ("answers", "about"),
    [
        ({"project_name": "a\nb"}, "project_name"),
        ({"project_slug": "Shop"}, "project_slug"),
        ({"project_slug": "sh\nop"}, "project_slug"),
        ({"domain_name": "exa mple.com"}, "domain_name"),
        ({"email": "jane"}, "email"),
        ({"queues": "Crawl"}, 'Queue "Crawl"'),
        ({"queues": "crawl, default"}, "always exists"),
        ({"queues": "beat"}, "the name of a service"),
        ({"queues": "a-b, a_b"}, "given twice"),
        ({"timezone": "Berlin"}, "timezone"),
        ({"queues": "crawl"}, 'asks for the queues "crawl" and "notify"'),
    ],
    ids=str,
)
def test_a_refused_answer_gets_one_sentence_and_leaves_nothing_behind(
    answer: Answer, answers: dict[str, str], about: str
) -> None:
    outcome = answer(**answers)
    assert outcome.code != 0
    one(outcome.sentences, about)
    assert outcome.left == []


@pytest.mark.parametrize(
    "slug",
    [
        *("Shop", "SHOP", "2shop", "_shop", "-shop", "shop_", "shop-", "s_-hop", "s___hop"),
        *("my shop", "shop.django", "shop/", "shöp", "가게", "shop;id", "$(id)", 'sh"op', "shop'"),
        *("s" * 41, " ", "shop\n", "sh\nop"),
    ],
)
def test_a_slug_that_docker_would_not_take_is_refused(refusals: Refusals, slug: str) -> None:
    one(refusals(project_slug=slug), "project_slug")


@pytest.mark.parametrize("slug", ["s", "shop2", "my-shop", "my_shop", "a--b__c", "s" * 40])
def test_a_slug_that_docker_takes_is_taken(refusals: Refusals, slug: str) -> None:
    assert refusals(project_slug=slug) == []


@pytest.mark.parametrize("slug", ["", ".", "..", "../shop"])
def test_a_slug_that_would_lead_out_of_the_folder_creates_nothing(
    answer: Answer, tmp_path: Path, slug: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = answer(project_slug=slug)
    assert outcome.code != 0
    after = sorted(path for path in tmp_path.rglob("*") if "memory" not in path.parts)
    assert [path for path in after if path not in before] == []


@pytest.mark.parametrize(
    "queue",
    [
        *("Crawl", "2nd", "_x", "-x", "x_", "x-", "x_-y", "a.b", "a b", "a/b", "ü", "큐"),
        *("$(id)", "a;b", "a:b", 'a"b', "a'b", "a\nb", "a\tb", "#", "*", "q" * 41),
    ],
)
def test_a_queue_name_that_cannot_name_a_service_is_refused(refusals: Refusals, queue: str) -> None:
    one(refusals(queues=f"crawl, {queue}"), f'Queue "{" ".join(queue.split())}"')


@pytest.mark.parametrize("queues", ["default", "crawl, default", " default ,crawl"])
def test_a_queue_called_default_is_refused(refusals: Refusals, queues: str) -> None:
    one(refusals(queues=queues), "always exists")


@pytest.mark.parametrize("queue", SERVICES.split())
def test_a_queue_called_like_a_service_is_refused(refusals: Refusals, queue: str) -> None:
    one(refusals(queues=queue), "the name of a service")


def test_every_service_name_is_among_the_refused_ones(
    defaults: Path, compose: Callable[..., dict]
) -> None:
    services = compose(defaults, "production")["services"]
    assert {name for name in services if not name.startswith("worker-")} <= set(SERVICES.split())


@pytest.mark.parametrize(
    "queues", ["a, a", "a,b,a", "a-b, a_b", "a_b,a-b", "crawl, crawl, crawl", "a,a "]
)
def test_a_queue_given_twice_is_refused(refusals: Refusals, queues: str) -> None:
    one(refusals(queues=queues), "given twice")


def test_none_beside_a_queue_is_refused(refusals: Refusals) -> None:
    one(refusals(queues="none, crawl"), '"none"')


@pytest.mark.parametrize("queues", ["", "none", "crawl", "notify", "images, crawl", "notify-crawl"])
def test_the_example_without_its_queues_is_refused(refusals: Refusals, queues: str) -> None:
    one(refusals(queues=queues), 'asks for the queues "crawl" and "notify"')
    assert refusals(queues=queues, example="false") == []


@pytest.mark.parametrize("queues", ["crawl,notify", "notify, images, crawl"])
def test_the_example_beside_other_queues_is_taken(refusals: Refusals, queues: str) -> None:
    assert refusals(queues=queues) == []


@pytest.mark.parametrize("queues", ["crawl notify", "crawl; notify", "crawl / notify"])
def test_queues_without_commas_between_them_are_refused(refusals: Refusals, queues: str) -> None:
    one(refusals(queues=queues), queues)


@pytest.mark.parametrize("queues", ["a,b", " a , b ", ",a,,b,", "a,b,"])
def test_blanks_and_spare_commas_between_queues_do_no_harm(answer: Answer, queues: str) -> None:
    project = answer(queues=queues, example="false").project
    settings = (project / "config/settings.py").read_text(encoding="utf-8")
    assert 'QUEUES = ["default", "a", "b"]\n' in settings


@pytest.mark.parametrize(
    "domain",
    [
        *("", " ", "exa mple.com", "-a.com", "a-.com", "example..com", ".example.com"),
        *("example.com.", "https://example.com", "example.com/", "example.com:80", "a,b.com"),
        *("Example.com", "münchen.de", "ex_ample.com", 'a".com', "a'.com", "a\n.com", "*.a.com"),
        *("$(id).com", "a" * 64 + ".com", "a." * 127 + "com"),
    ],
)
def test_a_bad_domain_is_refused(refusals: Refusals, domain: str) -> None:
    one(refusals(domain_name=domain), "domain_name")


@pytest.mark.parametrize(
    "domain", ["localhost", "example.com", "www.xn--mnchen-3ya.de", "a" * 63 + ".com", "1.example"]
)
def test_a_good_domain_is_taken(refusals: Refusals, domain: str) -> None:
    assert refusals(domain_name=domain) == []


@pytest.mark.parametrize(
    "email",
    [
        *("", "jane", "@example.com", "jane@", "ja ne@example.com", "jane@@example.com"),
        *("jane@exa mple.com", "j..d@example.com", ".j@example.com", "j.@example.com"),
        *('j"d@example.com', "j'd@example.com", "j@example.com\n", "Jane <j@example.com>"),
        *("$(id)@example.com", "j#d@example.com", "j\\d@example.com", "j@-a.com", "j@d@a.com"),
    ],
)
def test_a_bad_address_is_refused(refusals: Refusals, email: str) -> None:
    one(refusals(email=email), "email")


@pytest.mark.parametrize("email", ["j@example.com", "jane.doe+x-y_z@mail.example.com"])
def test_a_good_address_is_taken(refusals: Refusals, email: str) -> None:
    assert refusals(email=email) == []


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Port-au-Prince", "Etc/GMT+1"])
def test_a_time_zone_of_the_database_is_taken(refusals: Refusals, zone: str) -> None:
    assert refusals(timezone=zone) == []


@pytest.mark.parametrize(
    "zone", ["", "Berlin", "europe/berlin", "Europe/Berlin ", "UTC+1", "../UTC", 'UTC"', "U\nTC"]
)
def test_an_unknown_time_zone_is_refused(refusals: Refusals, zone: str) -> None:
    one(refusals(timezone=zone), "timezone")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "x" * 201,
        "a\nb",
        "a\tb",
        "\x1b[31m",
        "a\u202eb",
        'say "hi"',
        "back\\slash",
        "a}b",
    ],
)
def test_a_name_that_cannot_be_shown_is_refused(refusals: Refusals, name: str) -> None:
    one(refusals(project_name=name), "project_name")


def test_each_wrong_queue_has_a_sentence_of_its_own(refusals: Refusals) -> None:
    sentences = refusals(queues="default, Crawl, d, d")
    assert all(sentence.startswith("Refused: ") for sentence in sentences)
    assert len(sentences) == 3


def test_a_broker_that_is_not_offered_leaves_nothing(answer: Answer) -> None:
    outcome = answer(broker="kafka")  # cookiecutter itself says so
    assert outcome.code != 0
    assert outcome.left == []


@pytest.mark.parametrize(
    ("typed", "about"),
    [
        (['"'], "project_name"),
        (["Shop", "Shop"], "project_slug"),
        (["", "", "a b"], "domain_name"),
        (["", "", "", "jane"], "email"),
        (["", "", "", "", "crawl, default"], "always exists"),
        (["", "", "", "", "crawl", "", "yes"], 'asks for the queues "crawl" and "notify"'),
        (["", "", "", "", "", "", "", "Mars"], "timezone"),
    ],
    ids=str,
)
def test_a_typed_answer_is_refused_before_the_next_question(
    answer: Answer, typed: list[str], about: str
) -> None:
    outcome = answer(typed=typed)
    assert outcome.code != 0
    one(outcome.sentences, about)
    assert outcome.left == []
    assert len(sys.stdin.read()) == 20 - 1  # all lines after the last one typed


def test_a_person_is_asked_every_question_and_may_take_every_default(
    answer: Answer, defaults: Path
) -> None:
    project = answer(typed=[]).project
    for name in ("config/settings.py", "compose.yaml", ".env.example"):
        assert (project / name).read_bytes() == (defaults / name).read_bytes()
    assert len(sys.stdin.read()) == 20 - 8  # there are eight questions
