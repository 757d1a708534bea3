"""What a swarm gets of the compose files."""

import copy
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import ops

FILES = "compose.yaml:compose.production.yaml:compose.swarm.yaml"


def config(project: Path, *options: str, **settings: str) -> str:
    """Return what compose prints of the project's files, or of its complaint."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
    done = subprocess.run(
        ["docker", "compose", *options],
        cwd=project,
        env=env | {"COMPOSE_FILE": FILES} | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cluster(defaults: Path) -> ModuleType:
    """The module of the default project."""
    return ops.load(defaults, "cluster.py")


@pytest.fixture
def model(project: Path) -> dict[str, Any]:
    """What compose makes of the files."""
    return json.loads(config(project, "--profile=swarm", "config", "--format=json"))


def test_up_starts_nothing_where_a_swarm_does(project: Path) -> None:
    assert config(project, "config", "--services").split() == []


def test_the_swarm_takes_what_the_filter_gives(
    project: Path, cluster: ModuleType, model: dict
) -> None:
    cluster.common.PROJECT = project
    found = cluster.stack(model)
    done = subprocess.run(
        ["docker", "stack", "config", "--compose-file=-"],
        input=json.dumps(found),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # It reports what it does not do.
    assert done.stderr == ""
    once = {"migrate", "web"}
    assert found["services"].keys() == model["services"].keys() - once
    for name, service in found["services"].items():
        deploy = service["deploy"]
        assert deploy["placement"]["constraints"], name
        assert deploy["restart_policy"]["condition"] in ("any", "on-failure"), name
        if name != "publish":
            assert deploy["endpoint_mode"] == "dnsrr", name
            assert deploy["update_config"]["failure_action"] == "rollback", name
            assert deploy["resources"]["limits"].keys() == {"memory", "pids"}, name
    for name in ("web-a", "web-b", "worker-default"):
        assert found["services"][name]["deploy"]["update_config"]["order"] == "start-first"
    for name in ("beat", "db", "broker", "cache", "flower"):
        service = found["services"][name]
        assert service["deploy"]["update_config"]["order"] == "stop-first", name
        assert service["deploy"]["placement"]["constraints"] == ["node.labels.data == true"], name
        if name == "flower":
            continue
        words = service.get("entrypoint") or service["command"]
        (volume,) = [each["target"] for each in service["volumes"] if each["type"] == "volume"]
        assert words[:3] == ["flock", "--no-fork", f"{volume}/.lock"], name
    ports = found["services"]["proxy"]["ports"]
    assert {(port["published"], port["mode"]) for port in ports} == {(80, "host"), (443, "host")}
    assert all("ports" not in each for name, each in found["services"].items() if name != "proxy")
    assert all(network["external"] for network in found["networks"].values())


def test_networks_between_vms_are_encrypted(model: dict) -> None:
    for name, network in model["networks"].items():
        assert network["driver"] == "overlay", name
        assert network["driver_opts"] == {"encrypted": "true"}, name
    assert {name for name, each in model["networks"].items() if each.get("internal")} == {
        "beat",
        "inside",
    }


def test_replicas_and_labels_come_from_env(defaults: Path) -> None:
    settings = {"WORKER_CRAWL_REPLICAS": "3", "WORKER_CRAWL_NODES": "jobs", "WEB_REPLICAS": "2"}
    printed = config(defaults, "--profile=swarm", "config", "--format=json", **settings)
    services = json.loads(printed)["services"]
    assert services["worker-crawl"]["deploy"]["replicas"] == 3
    assert services["worker-crawl"]["deploy"]["placement"] == {
        "constraints": ["node.labels.jobs == true"]
    }
    assert services["web-a"]["deploy"]["replicas"] == 2
    assert services["worker-notify"]["deploy"]["replicas"] == 1


def test_each_worker_replica_has_a_name_of_its_own(cluster: ModuleType, defaults: Path) -> None:
    printed = config(defaults, "--profile=swarm", "config", "--format=json", SECRET_KEY="a{{b")
    model = json.loads(printed)
    model["services"]["worker-default"]["environment"]["SECRET_KEY"] = "a{{b"
    env = cluster.stack(model)["services"]["worker-default"]["environment"]
    assert env["CELERY_WORKER_HOSTNAME"] == "default@my_project-{{.Task.Slot}}"
    # What merely looks like a template stays what it is.
    assert env["SECRET_KEY"] == 'a{{"{{"}}b'


def test_a_changed_file_of_the_project_has_another_name(
    cluster: ModuleType, defaults: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.conf").write_text("one")
    mount = {"source": str(tmp_path), "target": "/srv/nginx"}
    (before,) = cluster.files("shop", mount)
    (tmp_path / "a.conf").write_text("two")
    (after,) = cluster.files("shop", mount)
    assert before[0] != after[0]
    assert after[2] == "/srv/nginx/a.conf"


def test_an_option_that_would_be_lost_is_refused(cluster: ModuleType, defaults: Path) -> None:
    cluster.common.PROJECT = defaults
    model = json.loads(config(defaults, "--profile=swarm", "config", "--format=json"))
    other = copy.deepcopy(model)
    other["services"]["web-a"]["devices"] = ["/dev/kvm"]
    with pytest.raises(cluster.common.Failed, match="does not know devices of the service web-a"):
        cluster.stack(other)
    other = copy.deepcopy(model)
    other["services"]["proxy"]["ports"][0]["host_ip"] = "127.0.0.1"
    with pytest.raises(cluster.common.Failed, match=r"publishes 127\.0\.0\.1:80"):
        cluster.stack(other)
