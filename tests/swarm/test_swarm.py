"""From one VM with data to three, and what holds there."""

import json
import secrets

import pytest

from tests.stack.stack import wait_for
from tests.vm.load import Load, Visitors

from .swarm import FILES, Swarm

MIB = 2**20
MEMORY = {"proxy": 128, "web-a": 512, "worker-crawl": 512, "beat": 256, "db": 512, "cache": 128}


def test_a_swarm_is_made_once_and_named_by_plain_commands(swarm: Swarm) -> None:
    made = swarm.made
    assert "docker swarm init" in made
    assert "docker swarm join --token SECRET" in made
    assert "4789/udp" in made
    assert "docker" not in swarm.make()  # a second time changes nothing
    for vm in swarm.vms:
        assert json.loads(vm.run("cat", "/etc/docker/daemon.json"))["live-restore"] is False


def test_a_move_keeps_tasks_in_flight_rows_and_media(swarm: Swarm) -> None:
    assert "the site is down until the swarm has it" in swarm.printed
    wait_for("all tasks", lambda: swarm.all_done("moved", swarm.before))
    assert swarm.get("/media/kept.txt").text == "kept"
    assert swarm.get("/readyz").status_code == 200
    assert swarm.get("/admin/login/").status_code == 200
    page = swarm.get("/static/admin/css/base.css")
    assert page.status_code == 200


def test_each_service_runs_where_its_label_says(swarm: Swarm) -> None:
    where = swarm.where()
    assert where["worker-crawl"] == ["vm2", "vm3"]
    for service in ("proxy", "certificates", "beat", "flower", "db", "broker", "cache"):
        assert where[service] == ["vm1"], service
    names = swarm.python(
        "from config.celery import app; print(sorted(app.control.inspect(timeout=5).ping()))"
    )
    for name in ("crawl@{}-1", "crawl@{}-2", "default@{}-1"):
        assert repr(name.format(swarm.stack.slug)) in names


def test_the_running_tasks_have_the_limits_of_the_compose_files(swarm: Swarm) -> None:
    tasks = swarm.tasks()
    for service, (task, *_) in tasks.items():
        config = task["HostConfig"]
        assert config["ReadonlyRootfs"], service
        assert config["CapDrop"] == ["ALL"], service
        assert not config["Privileged"], service
        assert config["PidsLimit"] == 500, service
        assert task["Config"]["User"] not in ("", "0", "root"), service
        assert task["Config"]["Healthcheck"]["Test"], service
        assert config["LogConfig"]["Config"] == {"max-file": "5", "max-size": "10m"}, service
        (status,) = {
            row.split()[1]
            for row in task["vm"].run("cat", f"/proc/{task['State']['Pid']}/status").splitlines()
            if row.startswith("NoNewPrivs")
        }
        assert status == "1", service  # by daemon.json: swarm has no security_opt
        mounts = {mount["Target"]: mount for mount in config.get("Mounts") or []}
        if service != "certificates":
            assert mounts.get("/tmp", {}).get("Type") in ("tmpfs", None), service
        # What does not hold, as docs/swarm.md says: no priority, and swap as much as memory.
        assert config["CpuShares"] == 0, service
        assert config["MemorySwap"] != config["Memory"], service
    for service, size in MEMORY.items():
        assert tasks[service][0]["HostConfig"]["Memory"] == size * MIB, service
    for service in ("web-a", "worker-crawl", "beat", "flower"):
        assert tasks[service][0]["HostConfig"]["Init"], service
    # Swarm waits as long as TASK_TIME_LIMIT and a minute; the engine itself, at a shutdown, 10 s.
    (service,) = json.loads(
        swarm.run("docker", "service", "inspect", f"{swarm.stack.slug}_worker-crawl")
    )
    assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] == 80 * 10**9
    assert "StopTimeout" not in tasks["worker-crawl"][0]["Config"]
    assert tasks["proxy"][0]["Config"]["StopSignal"] == "SIGQUIT"
    assert tasks["db"][0]["HostConfig"]["ShmSize"] > 0
    shm = swarm.here("docker compose exec -T db df --output=size --block-size=1M /dev/shm")
    assert shm.split()[-1] == "128"
    # Only the proxy is published, and what is internal has no outbound access.
    published = {name for name, (task, *_) in tasks.items() if task["HostConfig"]["PortBindings"]}
    assert published == {"proxy"}
    for service in ("db", "broker", "cache", "beat"):
        networks = tasks[service][0]["NetworkSettings"]["Networks"]
        assert all("inside" in name or "beat-true" in name for name in networks), networks
    route = "docker compose exec -T db cat /proc/net/route"
    assert "00000000" not in [line.split()[1] for line in swarm.here(route).splitlines()[1:]]


def test_the_network_is_encrypted_unless_env_says_otherwise(swarm: Swarm) -> None:
    look = ["docker", "network", "inspect", f"{swarm.stack.slug}_swarm-inside"]
    (network,) = json.loads(swarm.run(*look))
    # The option alone encrypts; this kernel has no ESP, without which nothing would get through.
    assert "encrypted" not in network["Options"]
    assert network["Internal"]


def test_what_compose_would_start_a_second_time_is_locked(swarm: Swarm) -> None:
    assert "no service selected" in swarm.here("docker compose up --detach 2>&1", check=False)
    for service, folder in (("beat", "/srv/beat"), ("db", "/var/lib/postgresql")):
        locked = f"docker compose exec -T {service} flock --nonblock {folder}/.lock true"
        assert swarm.here(f"{locked} || echo locked").strip() == "locked", service


def test_a_deploy_under_load_fails_no_request_and_loses_no_task(swarm: Swarm) -> None:
    before = swarm.version()
    (swarm.stack.folder / "probe/changed.txt").write_text(secrets.token_hex())
    with Load(swarm) as load:
        printed = swarm.deploy("--wait=400")
    assert load.failures == []
    code = (
        "from config.celery import app;"
        f'print([app.AsyncResult(task).get(timeout=180)[:4] for task in {load.tasks!r}].count("Done"))'
    )
    assert int(swarm.python(code)) == len(load.tasks) > 0
    assert swarm.version() != before
    assert load.versions == {before, swarm.version()}
    assert printed.count(": shipped ") == 2  # to the other two


def test_the_commands_of_ops_work_on_the_vm_with_the_data(swarm: Swarm) -> None:
    printed = swarm.ops("status", "--host", swarm.host)
    assert "worker-crawl" in printed
    assert "2/2" in printed
    assert "ready." in swarm.ops("logs", "--host", swarm.host, "--no-follow", "worker-crawl")
    assert " tables, " in swarm.here("ops/backup")
    assert "a swarm runs this project" in swarm.here("ops/restore x.tar 2>&1", check=False)


@pytest.mark.long
def test_a_version_that_does_not_start_is_rolled_back(swarm: Swarm) -> None:
    before = swarm.version()
    bad = swarm.image(
        "bad", 'USER 0\nRUN echo "raise SystemExit(3)" > /app/stack/__main__.py\nUSER 10001'
    )
    with Visitors(swarm) as visitors:
        printed = swarm.deploy(bad, "--wait=200", code=1)
    assert visitors.failures == []
    assert f"{before} is live again" in printed
    assert swarm.version() == before


@pytest.mark.long
def test_a_node_that_is_drained_or_lost_loses_no_task(swarm: Swarm) -> None:
    swarm.send("work", "drained", 6, 5)
    printed = swarm.swarm("drain", "vm2")
    assert "--availability=drain" in printed
    assert "vm2" not in {name for names in swarm.where().values() for name in names}
    swarm.swarm("activate", "vm2")
    wait_for("all tasks", lambda: swarm.all_done("drained", 6))
    swarm.send("work", "lost", 40, 1)
    (name,) = swarm.where()["worker-default"]
    swarm.others[int(name[-1]) - 2].cut_power()
    wait_for("all tasks", lambda: swarm.all_done("lost", 40), seconds=180)
    swarm.wait_for(worker_default=1, worker_crawl=2, web_a=1, web_b=1)


@pytest.mark.long
def test_a_node_leaves_and_joins_again(swarm: Swarm) -> None:
    printed = swarm.swarm("remove", "vm3")
    assert "docker swarm leave" in printed
    assert "docker node rm" in printed
    assert "vm3" not in swarm.run("docker", "node", "ls")
    assert swarm.where()["worker-crawl"] == ["vm2", "vm2"]
    assert "without which nothing runs" in swarm.swarm("drain", "vm1", code=1)
    swarm.swarm("join", swarm.others[1].host)
    swarm.swarm("label", "vm3", "crawl")
    assert "docker" not in swarm.swarm("label", "vm3", "crawl")
    assert "--label-rm=crawl" in swarm.swarm("label", "vm3", "crawl", "--remove")


@pytest.mark.long
def test_the_site_moves_back_to_one_vm(swarm: Swarm) -> None:
    rows = swarm.count("count(*)", "%")
    printed = swarm.move(FILES.rpartition(":")[0])
    assert "until this VM has it alone" in printed
    assert swarm.get("/media/kept.txt").text == "kept"
    assert swarm.count("count(*)", "%") == rows
    assert swarm.get("/readyz").status_code == 200
