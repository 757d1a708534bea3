"""What compose makes of the rendered files, on a laptop and in production."""

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

# These run once, or by hand; all others stay up.
ONE_SHOT = {"migrate", "web"}
DATA = {"broker", "cache", "db"}
# Of the proxy's image, and in need of no data.
PROXY = {"proxy", "certificates"}
INTERNAL = "inside"
BEAT = "beat"  # the network of beat and migrate, which .env can give outbound access

Services = dict[str, dict]


def seconds(duration: str) -> float:
    """Read a duration as compose writes it: 6m0s."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", duration)
    assert "".join(map("".join, parts)) == duration
    return sum(float(number) * units[unit] for number, unit in parts)


def mounts_source(service: dict) -> bool:
    """Return whether the project's folder is mounted."""
    return any(
        volume["type"] == "bind" and volume["target"] == "/app"
        for volume in service.get("volumes", [])
    )


def lasting(services: Services) -> Services:
    """Leave out what ends by itself."""
    return {name: service for name, service in services.items() if name not in ONE_SHOT}


def workers(services: Services) -> Services:
    """Pick the workers."""
    return {name: service for name, service in services.items() if name.startswith("worker-")}


def test_compose_starts_these_services(
    defaults: Path, compose: Callable[..., dict], mode: str
) -> None:
    own = {"laptop": {"web-a", "sample-site"}, "production": {"web-a", "web-b", "certificates"}}
    assert set(compose(defaults, mode, "")["services"]) == own[mode] | {
        *("proxy", "worker-default", "worker-crawl", "worker-notify", "beat", "flower"),
        *("broker", "cache", "db", "migrate"),
    }


def test_web_is_there_for_commands_and_never_started(
    defaults: Path, compose: Callable[..., dict], mode: str
) -> None:
    assert "web" not in compose(defaults, mode, "")["services"]
    web = compose(defaults, mode)["services"]["web"]
    assert web["profiles"] == ["run"]
    assert web["restart"] == "no"


def test_the_project_is_named_by_the_slug(project: Path, compose: Callable[..., dict]) -> None:
    assert compose(project, "laptop")["name"] == project.name


def test_the_line_in_env_chooses_production(
    defaults: Path, compose: Callable[..., dict], changed: Callable[..., Path]
) -> None:
    line = "COMPOSE_FILE=compose.yaml:compose.production.yaml"
    copy = changed(defaults, f"# {line}", line)
    chosen, production = compose(copy, "laptop"), compose(defaults, "production")
    assert set(chosen["services"]) == set(production["services"])
    assert chosen["services"]["proxy"]["ports"] == production["services"]["proxy"]["ports"]


def test_every_service_restarts_always(services: Services) -> None:
    assert {service["restart"] for service in lasting(services).values()} == {"always"}
    assert services["migrate"]["restart"] == "no"


def test_every_service_has_a_health_check(services: Services) -> None:
    without = [
        name
        for name, service in lasting(services).items()
        if not service.get("healthcheck", {}).get("test")
        or service["healthcheck"].get("disable")
        or service["healthcheck"]["test"][0] not in ("CMD", "CMD-SHELL")
    ]
    assert without == []


def test_a_health_check_is_quick_at_the_start_and_cheap_after_it(services: Services) -> None:
    for name, service in lasting(services).items():
        check = service["healthcheck"]
        assert seconds(check["start_interval"]) <= 5, name
        assert seconds(check["interval"]) >= 15, name
        assert seconds(check["timeout"]) < seconds(check["interval"]), name


def test_every_log_is_bounded(services: Services) -> None:
    for name, service in services.items():
        logging = service["logging"]
        assert logging["driver"] == "json-file", name
        assert {"max-size", "max-file"} <= set(logging["options"]), name


def test_one_setting_moves_the_logs_of_all_services(
    defaults: Path, changed: Callable[..., Path], compose: Callable[..., dict], mode: str
) -> None:
    journal = changed(defaults, "# LOG_DRIVER=json-file", "LOG_DRIVER=journald")
    for name, service in compose(journal, mode, "")["services"].items():
        assert service["logging"]["driver"] == "journald", name
        assert "max-size" not in service["logging"]["options"], name


def test_every_service_has_no_capability_and_can_gain_none(services: Services) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert not service.get("privileged"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_temporary_files_of_web_are_on_disk(services: Services) -> None:
    for name in {"web-a", "web-b", "web"} & set(services):
        web = services[name]
        volumes = {volume["target"] for volume in web["volumes"] if volume["type"] == "volume"}
        assert web["environment"]["TMPDIR"] in volumes, name


def test_every_root_file_system_is_read_only_but_where_source_is_mounted(
    services: Services, mode: str
) -> None:
    writable = {name for name, service in services.items() if not service.get("read_only")}
    mounted = {name for name, service in services.items() if mounts_source(service)}
    assert writable == mounted
    assert bool(mounted) is (mode == "laptop")


def test_source_is_mounted_into_every_python_process_on_a_laptop(
    defaults: Path, compose: Callable[..., dict]
) -> None:
    services = compose(defaults, "laptop")["services"]
    mounted = {name for name, service in services.items() if mounts_source(service)}
    assert mounted == set(services) - DATA - {"proxy", "web-b", "monitoring"}


def test_every_service_has_a_memory_limit(services: Services) -> None:
    for name, service in lasting(services).items():
        assert int(service["mem_limit"]) >= 64 * 2**20, name


def test_no_memory_limit_is_doubled_by_swap(services: Services) -> None:
    for name, service in services.items():
        assert service.get("memswap_limit") == service.get("mem_limit"), name


def test_every_service_has_a_limit_of_processes(
    defaults: Path, compose: Callable[..., dict], changed: Callable[..., Path], mode: str
) -> None:
    copy = changed(defaults, "# MAX_PROCESSES=500", "MAX_PROCESSES=321")
    for folder, limit in ((defaults, 500), (copy, 321)):
        services = compose(folder, mode)["services"]
        assert {service.get("pids_limit") for service in services.values()} == {limit}


def test_pages_get_the_cpu_before_tasks(services: Services) -> None:
    assert services["web-a"]["cpu_shares"] > services["worker-default"]["cpu_shares"]


@pytest.mark.parametrize("limit", [1, 7200])
def test_a_worker_may_take_its_time_limit_and_a_minute_to_stop(
    defaults: Path,
    compose: Callable[..., dict],
    changed: Callable[..., Path],
    mode: str,
    limit: int,
) -> None:
    copy = changed(defaults, "TASK_TIME_LIMIT=300", f"TASK_TIME_LIMIT={limit}")
    found = workers(compose(copy, mode)["services"])
    assert len(found) == 3
    for name, worker in found.items():
        assert seconds(worker["stop_grace_period"]) == limit + 60, name
        # The settings derive theirs from the same number.
        assert worker["environment"]["TASK_TIME_LIMIT"] == str(limit), name


def test_without_the_line_compose_and_the_settings_take_the_same_time_limit(
    defaults: Path, compose: Callable[..., dict], changed: Callable[..., Path], mode: str
) -> None:
    copy = changed(defaults, "TASK_TIME_LIMIT=300", "# no TASK_TIME_LIMIT")
    settings = (defaults / "stack/settings.py").read_text(encoding="utf-8")
    (default,) = re.findall(r'env\.int\("TASK_TIME_LIMIT", default=(\d+)\)', settings)
    for worker in workers(compose(copy, mode)["services"]).values():
        assert seconds(worker["stop_grace_period"]) == int(default) + 60


def test_gunicorn_stops_before_compose_kills_it(project: Path, services: Services) -> None:
    text = (project / "gunicorn.conf.py").read_text(encoding="utf-8")
    (graceful,) = re.findall(r"^graceful_timeout = (\d+)", text, re.MULTILINE)
    for name, service in services.items():
        if name.startswith("web-"):
            assert seconds(service["stop_grace_period"]) > int(graceful), name


def test_only_the_proxy_publishes_a_port(services: Services, mode: str) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["proxy"]
    assert [(port.get("host_ip"), port["published"]) for port in published["proxy"]] == {
        "laptop": [("127.0.0.1", "8080")],
        "production": [(None, "80"), (None, "443")],
    }[mode]


def test_the_port_is_chosen_in_env(
    defaults: Path, compose: Callable[..., dict], changed: Callable[..., Path], mode: str
) -> None:
    copy = changed(defaults, "# HTTP_PORT=8080", "HTTP_PORT=18080")
    port, *_ = compose(copy, mode)["services"]["proxy"]["ports"]
    assert port["published"] == "18080"


def test_no_service_uses_the_network_or_namespaces_of_the_host(services: Services) -> None:
    for name, service in services.items():
        assert not {"network_mode", "pid", "ipc", "devices", "userns_mode"} & set(service), name
        sources = [volume.get("source", "") for volume in service.get("volumes", [])]
        assert not any("docker.sock" in source for source in sources), name


def test_data_is_on_the_internal_network_only(
    project: Path, compose: Callable[..., dict], mode: str
) -> None:
    model = compose(project, mode)
    internal = {name for name, network in model["networks"].items() if network.get("internal")}
    assert internal == {INTERNAL, BEAT}
    for name in DATA:
        assert set(model["services"][name]["networks"]) == {INTERNAL}, name


def test_beat_and_migrate_reach_managed_services_if_env_says_so(
    defaults: Path, compose: Callable[..., dict], changed: Callable[..., Path], mode: str
) -> None:
    copy = changed(defaults, "# BEAT_INTERNAL=true", "BEAT_INTERNAL=false")
    model = compose(copy, mode)
    assert not model["networks"][BEAT].get("internal")
    assert model["networks"][INTERNAL]["internal"]
    on_it = {name for name, each in model["services"].items() if BEAT in each["networks"]}
    assert on_it == {"beat", "migrate"}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize(
    ("setting", "container"),
    [("POSTGRES_HOST", "db"), ("CELERY_BROKER_URL", "broker"), ("CACHE_URL", "cache"), ("X", None)],
)
def test_no_container_is_started_in_the_place_of_which_env_has_a_server(
    defaults: Path,
    compose: Callable[..., dict],
    tmp_path: Path,
    setting: str,
    container: str,
    broker: str,
) -> None:
    copy = shutil.copytree(defaults, tmp_path / defaults.name)
    with (copy / ".env").open("a", encoding="utf-8") as env:
        env.write(f"BROKER={broker}\n{setting}=server.example.com\n")
    model = compose(copy, "production")["services"]
    assert {name for name in model if model[name].get("scale") == 0} == {container} - {None}


def test_another_name_in_env_names_every_image_that_is_built(
    defaults: Path, compose: Callable[..., dict], tmp_path: Path
) -> None:
    copy = shutil.copytree(defaults, tmp_path / defaults.name)
    with (copy / ".env").open("a", encoding="utf-8") as env:
        env.write("COMPOSE_PROJECT_NAME=other\n")
    images = {service["image"] for service in compose(copy, "production")["services"].values()}
    assert [image for image in images if image.startswith(defaults.name)] == []
    assert {image for image in images if image.startswith("other")} == {
        "other:latest",
        "other-proxy:latest",
    }


def test_the_proxy_reaches_web_and_flower_but_no_data(services: Services) -> None:
    networks = {name: set(service["networks"]) for name, service in services.items()}
    assert INTERNAL not in networks["proxy"]
    reached = {name for name in networks if networks[name] & networks["proxy"]} - {"proxy"}
    assert reached == {"flower"} | {name for name in services if re.match("web-", name)}


def test_workers_can_reach_the_internet_and_the_data(services: Services) -> None:
    for name, worker in workers(services).items():
        assert INTERNAL in worker["networks"], name
        assert len(worker["networks"]) == 2, name


def test_what_needs_the_schema_waits_for_it(services: Services) -> None:
    for name, service in lasting(services).items():
        if name not in DATA | PROXY:
            needs = {key: value["condition"] for key, value in service["depends_on"].items()}
            assert needs == {
                "migrate": "service_completed_successfully",
                "broker": "service_healthy",
                "cache": "service_healthy",
            }, name
    assert services["migrate"]["depends_on"]["db"]["condition"] == "service_healthy"


def test_the_certificate_is_asked_for_when_the_proxy_can_answer(
    project: Path, compose: Callable[..., dict]
) -> None:
    needs = compose(project, "production")["services"]["certificates"]["depends_on"]
    assert {name: need["condition"] for name, need in needs.items()} == {"proxy": "service_healthy"}


def test_passwords_come_by_environment_and_never_in_a_command(
    project: Path, compose: Callable[..., dict], mode: str
) -> None:
    services = compose(project, mode)["services"]
    lines = (project / ".env").read_text(encoding="utf-8").splitlines()
    secrets = [line.partition("=")[2] for line in lines if re.match(r"\w+_(PASSWORD|KEY)=", line)]
    for name, service in services.items():
        commands = [service.get("command"), service.get("entrypoint"), service.get("healthcheck")]
        assert not any(secret in str(commands) for secret in secrets), name


def test_a_missing_password_is_reported_before_anything_starts(
    defaults: Path, compose: Callable[..., dict], changed: Callable[..., Path]
) -> None:
    lines = (defaults / ".env").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("POSTGRES_PASSWORD="))
    with pytest.raises(RuntimeError, match=r"POSTGRES_PASSWORD.*is missing in \.env"):
        compose(changed(defaults, line, "POSTGRES_PASSWORD="), "production")


def test_every_volume_is_declared_and_used(
    project: Path, compose: Callable[..., dict], mode: str
) -> None:
    # compose itself leaves out what nobody uses.
    names = {"laptop": ["compose.yaml"], "production": ["compose.yaml", "compose.production.yaml"]}
    declared = itertools.chain.from_iterable(
        yaml.safe_load((project / name).read_text(encoding="utf-8"))["volumes"]
        for name in names[mode]
    )
    volumes = itertools.chain.from_iterable(
        service.get("volumes", []) for service in compose(project, mode)["services"].values()
    )
    assert set(declared) == {volume["source"] for volume in volumes if volume["type"] == "volume"}


def test_every_image_is_built_in_one_way(
    project: Path, compose: Callable[..., dict], mode: str
) -> None:
    services = dict(compose(project, mode)["services"])
    if mode == "laptop":
        del services["web-b"]  # which nobody starts there
    builds = [(item["image"], str(item["build"])) for item in services.values() if "build" in item]
    built = {image for image, _ in builds}
    assert len(built) == len(set(builds)) == 2
    for name, service in services.items():
        own = service["image"].startswith(project.name)
        assert own is (name not in {*DATA, "monitoring"}), name
        if own and "build" not in service:
            assert service["image"] in built, name
            assert service["pull_policy"] == "never", name
