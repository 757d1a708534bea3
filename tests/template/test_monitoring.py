"""The profile "monitoring": its service, its rules, and the dashboard for Grafana."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.runbook import sections

Compose = Callable[..., dict]


def rules(project: Path) -> list[dict]:
    """Return the rules of all groups."""
    text = (project / "monitoring/alerts.yaml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def own(project: Path) -> dict[str, str]:
    """Return the problem of each alert but the one that hands on what the stack finds by itself."""
    found = {rule["alert"]: rule["labels"].get("problem", "") for rule in rules(project)}
    assert found.pop("StackProblem") == ""
    return found


def exposed(project: Path) -> set[str]:
    """Return the names at /metrics, as stack/exposition.py and docs/monitoring.md have them."""
    manual = (project / "docs/monitoring.md").read_text(encoding="utf-8")
    table = {
        name
        for line in re.findall(r"^\| `stack_.*", manual, re.MULTILINE)
        for name in re.findall(r"stack_\w+", line)
    }
    code = (project / "stack/exposition.py").read_text(encoding="utf-8")
    made = {
        f"stack_{name}" for name in re.findall(r'(?:gauge|histogram)\(\s*(?:"\w+", )?"(\w+)"', code)
    }
    counters = re.findall(r'CounterMetricFamily\(\s*"(\w+)"', code)
    made |= {f"{name}_total" for name in counters}
    assert table >= made, "docs/monitoring.md lacks a metric"
    return table


def asked(expression: str) -> set[str]:
    """Return the metrics in a query, histograms and counts by their own name."""
    names = re.findall(r"stack_\w+", re.sub(r'"[^"]*"', "", expression))
    return {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name) for name in names}


def queries(value: object) -> Iterator[str]:
    """Yield each query in a dashboard."""
    if isinstance(value, dict):
        if "expr" in value:
            yield value["expr"]
        for each in value.values():
            yield from queries(each)
    elif isinstance(value, list):
        for each in value:
            yield from queries(each)


def test_prometheus_is_there_with_the_profile_only(
    defaults: Path, compose: Compose, mode: str
) -> None:
    assert "monitoring" not in compose(defaults, mode, "")["services"]
    service = compose(defaults, mode, "monitoring")["services"]["monitoring"]
    assert service["profiles"] == ["monitoring"]


def test_prometheus_is_as_hardened_as_flower(defaults: Path, compose: Compose, mode: str) -> None:
    services = compose(defaults, mode, "monitoring")["services"]
    one, other = services["monitoring"], services["flower"]
    same = ["cap_drop", "logging", "pids_limit", "restart", "security_opt"]
    assert [one[name] for name in same] == [other[name] for name in same]
    assert one["read_only"]
    assert one["mem_limit"] == one["memswap_limit"]
    assert "ports" not in one
    assert "environment" not in one  # it has no secret
    # It reaches no data, and writes to its volume alone.
    assert set(one["networks"]) == {"edge"}
    written = [volume["target"] for volume in one["volumes"] if not volume.get("read_only")]
    assert written == ["/prometheus"]


def test_it_asks_whichever_web_instance_answers(
    defaults: Path, compose: Compose, mode: str
) -> None:
    text = (defaults / "monitoring/prometheus.yaml").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["web:8000"]}]
    services = compose(defaults, mode)["services"]
    named = {
        name
        for name, service in services.items()
        if "web" in (service["networks"].get("edge") or {}).get("aliases", [])
    }
    assert named - {"web"} == {"web-a", "web-b"}


def test_each_alert_has_a_section_in_the_runbook_and_tests(defaults: Path) -> None:
    found = own(defaults)
    assert len(found) > 5
    assert set(found.values()) <= sections(defaults).keys()
    text = (defaults / "monitoring/alerts-test.yaml").read_text(encoding="utf-8")
    tests = [case for test in yaml.safe_load(text)["tests"] for case in test["alert_rule_test"]]
    fire = {test["alertname"] for test in tests if test.get("exp_alerts")}
    quiet = {test["alertname"] for test in tests if not test.get("exp_alerts")}
    assert fire == quiet == {*found, "StackProblem"}


def test_each_alert_names_subject_severity_and_what_to_do(defaults: Path) -> None:
    for rule in rules(defaults):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["summary"]) > 30
        assert rule["alert"] == "StackProblem" or "subject" in rule["labels"]


def test_an_alertmanager_gets_no_alert_twice(defaults: Path) -> None:
    (last,) = (rule for rule in rules(defaults) if rule["alert"] == "StackProblem")
    left_out = re.search(r'problem!~"(.*?)"', last["expr"])[1].split("|")
    assert sorted(left_out) == sorted(own(defaults).values())


def test_no_alert_has_the_name_of_a_problem_that_the_stack_finds_by_itself(defaults: Path) -> None:
    code = (defaults / "stack/problems.py").read_text(encoding="utf-8")
    assert not set(re.findall(r'Problem\(\s*"([\w-]+)"', code)) & set(own(defaults).values())


def test_each_metric_of_rules_and_dashboard_exists(defaults: Path) -> None:
    known = exposed(defaults)
    dashboard = json.loads((defaults / "docs/grafana.json").read_text(encoding="utf-8"))
    expressions = [rule["expr"] for rule in rules(defaults)] + [*queries(dashboard)]
    assert len(expressions) > 30
    for expression in expressions:
        found = asked(expression)
        assert found, expression
        assert found <= known, expression


def test_grafana_can_import_the_dashboard(defaults: Path) -> None:
    dashboard = json.loads((defaults / "docs/grafana.json").read_text(encoding="utf-8"))
    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] >= 36
    (source,) = dashboard["__inputs"]
    assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
    panels = dashboard["panels"]
    assert Counter(panel["id"] for panel in panels).most_common(1)[0][1] == 1
    required = {one["id"] for one in dashboard["__requires"] if one["type"] == "panel"}
    assert required == {panel["type"] for panel in panels} - {"row"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == f"${{{source['name']}}}"
