"""How a site gets and renews its certificate, from a real ACME server."""

import base64
import http.client
import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from . import acme
from .alarm import Alarm
from .stack import PATIENCE, PRODUCTION, Stack, wait_for

HERE = Path(__file__).parent
NAMES = ["site.test", "www.site.test"]
# What a reader of .env sees of it; Pebble keeps nothing, so each has a root of its own.
AUTHORITIES = {"authority": 20, "other-authority": 6}  # days that a certificate is valid
SERVICES = ["proxy", "certificates", "web-a", "web-b"]

# What testssl.sh takes for more than "low", and why it stays.
ACCEPTED = {
    # These certificates are short, see AUTHORITIES, so that each look at them finds them due.
    "cert_expirationStatus",
    "cert_notAfter",
    # Pebble names no list of revoked ones, as Let's Encrypt does.
    "cert_revocation",
}


@dataclass
class Alone:
    """What a site is like whose authority does not answer."""

    health: dict[str, str]
    signed_by: dict  # as ssl.SSLSocket.getpeercert() has it
    status: int
    log: str


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A site that wants a certificate, beside two authorities that do not run yet."""
    stack = Stack(
        tmp_path_factory.mktemp("certificates"), PRODUCTION, queues="none", example="false"
    )
    try:
        stack.add_app(HERE / "probe")
        folder = stack.folder / "authority"
        folder.mkdir()
        acme.self_signed(folder, *AUTHORITIES)
        (folder / "key.pem").chmod(0o644)
        services: dict[str, dict] = {
            "proxy": {"networks": {"edge": {"aliases": NAMES}}},
            "certificates": {
                "environment": {"CURL_CA_BUNDLE": "/authority/cert.pem"},
                "volumes": ["./authority:/authority:ro"],
            },
        }
        for name, days in AUTHORITIES.items():
            (folder / f"{name}.json").write_text(acme.configuration(days, port=8080))
            services[name] = {
                "image": f"{stack.slug}-acme",
                "build": str(acme.HERE),
                "command": ["pebble", "-config", f"/authority/{name}.json"],
                "volumes": ["./authority:/authority:ro"],
                "networks": ["edge", "outside"],
                "profiles": ["acme"],
            }
        (stack.folder / "test.yaml").write_text(json.dumps({"services": services}))
        stack.set(COMPOSE_FILE=f"{PRODUCTION}:test.yaml", HTTPS="acme")
        stack.set(
            ALLOWED_HOSTS=f"{','.join(NAMES)},192.0.2.1",
            ACME_DIRECTORY="https://authority:14000/dir",
        )
        stack.compose("build", "authority")
        stack.up("--build", *SERVICES)
        wait_for("the site", lambda: plain(stack, "/healthz").status_code == 200)
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def alone(stack: Stack) -> Alone:
    """What the site is like before there is an authority."""
    with connect(stack) as connection:
        signed_by = connection.getpeercert()
    wait_for(
        "an attempt", lambda: "the next attempt is in" in stack.compose("logs", "certificates")
    )
    return Alone(
        health={name: stack.health(name) for name in SERVICES},
        signed_by=signed_by,
        status=get(stack, "/healthz")[0],
        log=stack.compose("logs", "certificates"),
    )


@pytest.fixture(scope="module")
def with_authority(stack: Stack, alone: Alone) -> Stack:
    """The site, with a certificate of the first authority."""
    before = served(stack)
    stack.compose("up", "--detach", "authority")
    # The second attempt comes after a minute, the third after three.
    wait_for("a certificate", lambda: served(stack) != before, seconds=2 * PATIENCE)
    return stack


@pytest.fixture
def site(with_authority: Stack) -> Iterator[Stack]:
    """The same; a test that changes its settings leaves it as it was."""
    env = with_authority.folder / ".env"
    before = env.read_text()
    yield with_authority
    if env.read_text() != before:
        env.write_text(before)
        with_authority.compose("up", "--detach", *SERVICES)
        wait_for("the first authority's certificate", lambda: is_trusted(with_authority))
        # The service was started again, and so it gets a new one, although this one is good.
        wait_for("no renewal", lambda: sleeps(with_authority))


def sleeps(site: Stack) -> bool:
    """Return whether the service has done what was due, and waits for the next time."""
    processes = site.containers()["certificates"].top(ps_args="-eo pid,args")["Processes"]
    return any(re.fullmatch(r"sleep \d+m", args) for _, args in processes)


def is_trusted(site: Stack) -> bool:
    """Return whether the certificate is one of the first authority."""
    try:
        return get(site, "/healthz", trusted=root(site))[0] == 200
    except OSError:
        return False


def alarms(site: Stack, folder: Path) -> list[str]:
    """Return what ops/alarm says of the certificate."""
    alarm = Alarm(site, folder / str(time.monotonic()))
    alarm.run()
    return [text for key, text in alarm.problems().items() if key.startswith("certificate-")]


def root(site: Stack, name: str = "authority") -> str:
    """Return the certificate that an authority signs with, as PEM."""
    url = f"https://{name}:15000/roots/0"
    return site.compose("exec", "--no-TTY", "certificates", "curl", "--silent", "--fail", url)


def connect(
    site: Stack, name: str = NAMES[0], trusted: str | None = None, **version: ssl.TLSVersion
) -> ssl.SSLSocket:
    """Open a connection for a name, to a site whose certificate must be `trusted` if given."""
    return acme.connect(("127.0.0.1", site.tls_port), name, trusted, **version)


def served(site: Stack) -> bytes:
    """Return the certificate that a new connection gets."""
    with connect(site) as connection:
        return connection.getpeercert(binary_form=True)


def get(
    site: Stack, path: str, name: str = NAMES[0], trusted: str | None = None
) -> tuple[int, http.client.HTTPMessage, str]:
    """GET over TLS; return status, headers and text."""
    return acme.get(("127.0.0.1", site.tls_port), name, path, trusted)


def plain(site: Stack, path: str, host: str = NAMES[0], **headers: str) -> requests.Response:
    """GET without TLS."""
    return site.get(path, headers={"Host": host, **headers})


def reissue(site: Stack) -> None:
    """Restart the service, which checks what is due, and wait for another certificate."""
    before = served(site)
    site.compose("restart", "certificates")
    wait_for("another certificate", lambda: served(site) != before)


def sign_elsewhere(site: Stack) -> None:
    """Change to the other authority, whose certificates last less than a week."""
    before = served(site)
    site.set(ACME_DIRECTORY="https://other-authority:14000/dir")
    site.compose("up", "--detach", "other-authority", "certificates")
    wait_for("another certificate", lambda: served(site) != before)


def test_without_an_authority_the_site_is_healthy_with_a_certificate_of_its_own(
    alone: Alone,
) -> None:
    assert alone.health == dict.fromkeys(SERVICES, "healthy")
    assert alone.signed_by == {}  # nobody signed it
    assert alone.status == 200
    assert "the next attempt is in" in alone.log


def test_when_the_authority_is_there_the_site_gets_a_certificate_with_all_names(
    site: Stack,
) -> None:
    trusted = root(site)
    for name in NAMES:
        assert get(site, "/healthz", name, trusted)[0] == 200
    with connect(site, trusted=trusted) as connection:
        names = connection.getpeercert()["subjectAltName"]
    assert sorted(names) == [("DNS", name) for name in NAMES]
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(site, "elsewhere.test", trusted)


def test_a_renewal_drops_no_connection_and_fails_no_request(site: Stack) -> None:
    trusted = root(site)
    proxy = site.containers()["proxy"].attrs["State"]["Pid"]
    kept, new, failures = [0, 0, 0], [0], []
    over = threading.Event()

    def keep(number: int) -> None:
        try:
            client = http.client.HTTPConnection(NAMES[0], site.tls_port)
            client.sock = connect(site, trusted=trusted)
            own = client.sock.fileno()
            while not over.wait(0.05):
                client.request("GET", "/healthz")
                assert client.getresponse().read() == b"ok"
                assert client.sock.fileno() == own  # the same connection throughout
                kept[number] += 1
        except Exception as error:
            failures.append(error)

    def renew_connections() -> None:
        while not over.wait(0.02):
            try:
                assert get(site, "/proxy-alive", trusted=trusted)[0] == 200
                new[0] += 1
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(len(kept))]
    threads.append(threading.Thread(target=renew_connections))
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            reissue(site)
        enough = [count + 10 for count in (*kept, *new)]
        wait_for("more", lambda: failures or all(map(int.__ge__, (*kept, *new), enough)))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert site.containers()["proxy"].attrs["State"]["Pid"] == proxy  # nor was it restarted


def test_a_certificate_that_is_not_due_is_left_alone(site: Stack) -> None:
    """Pebble's are always due; what the service says of one that is not, is asked of it."""
    script = (
        r"sed 's/^KEY_ALGO=.*/&\nRENEW_DAYS=10/' /etc/nginx/certificates.sh > /tmp/again.sh;"
        " sed -i 's/^    sleep .*/    exit/' /tmp/again.sh; bash /tmp/again.sh"
    )
    before = served(site)
    output = site.compose("exec", "--no-TTY", "certificates", "bash", "-c", script)
    assert "Skipping renew" in output
    assert served(site) == before


def test_another_authority_has_its_own_account_and_its_short_certificate_is_unhealthy(
    site: Stack, tmp_path: Path
) -> None:
    def healthy() -> str:
        health = "bash /etc/nginx/certificates.sh health >/dev/null && echo yes || echo no"
        return site.compose("exec", "--no-TTY", "certificates", "bash", "-c", health).strip()

    assert healthy() == "yes"
    assert alarms(site, tmp_path) == []
    sign_elsewhere(site)
    assert get(site, "/healthz", trusted=root(site, "other-authority"))[0] == 200
    accounts = site.compose(
        *("exec", "--no-TTY", "certificates", "sh", "-c"),
        "cat /srv/acme/*/accounts/*/account_key.pem | grep -c BEGIN",
    )
    assert accounts.strip() == "2"
    assert healthy() == "no"  # it ends within a week
    (alarm,) = alarms(site, tmp_path)
    assert alarm.startswith(f"The certificate of {NAMES[0]} expires on ")


def test_half_an_account_and_a_lock_of_the_dead_are_no_obstacle(site: Stack) -> None:
    site.compose(
        *("exec", "--no-TTY", "certificates", "sh", "-c"),
        "rm /srv/acme/*/accounts/*/registration_info.json; touch /srv/acme/https___authority_14000_dir/lock",
    )
    reissue(site)


# What a visitor meets -----------------------------------------------------------------------------


def test_plain_http_leads_to_https_under_the_sites_own_names_only(site: Stack) -> None:
    for path in ("/admin/login/?next=/", "/static/none.css", "/media/x", "/flower/", "/"):
        answer = plain(site, path)
        assert answer.status_code == 301, path
        assert answer.headers["Location"] == f"https://{NAMES[0]}:{site.tls_port}{path}"
    forged = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    assert plain(site, "/", **forged).headers["Location"].startswith(f"https://{NAMES[0]}:")
    assert plain(site, "/", host="evil.example").status_code == 400


def test_challenges_and_the_health_check_are_answered_without_tls(site: Stack) -> None:
    write = "echo answer > /srv/certificates/challenges/token"
    site.compose("exec", "--no-TTY", "certificates", "sh", "-c", write)
    assert plain(site, "/.well-known/acme-challenge/token", "any.example").text == "answer\n"
    assert plain(site, "/.well-known/acme-challenge/other").status_code == 404
    assert plain(site, "/.well-known/acme-challenge/").status_code in (403, 404)
    assert plain(site, "/proxy-alive").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["../site.pem", "/../site.pem", "/%2e%2e/site.pem", "/..%2fsite.pem", "/x/../../site.pem"],
)
def test_no_path_leads_from_the_challenges_to_the_key(site: Stack, path: str) -> None:
    request = requests.Request("GET", site.url, headers={"Host": NAMES[0]}).prepare()
    request.url = f"{site.url}/.well-known/acme-challenge{path}"
    answer = requests.Session().send(request, allow_redirects=False, timeout=60)
    assert answer.status_code in (301, 400, 404)
    assert "PRIVATE KEY" not in answer.text


def test_each_response_has_one_hsts_header_over_https_and_none_without(site: Stack) -> None:
    # Django sends another one with the second of them.
    for path in ("/", "/probe/request", "/static/none", "/media/none", "/flower/", "/proxy-alive"):
        _, headers, _ = get(site, path)
        found = headers.get_all("Strict-Transport-Security")
        assert found == ["max-age=31536000; includeSubDomains"], path
        assert "Strict-Transport-Security" not in plain(site, path).headers, path


def test_flowers_cookie_is_sent_over_https_only_and_to_no_other_site(site: Stack) -> None:
    site.up("flower")
    user, password = site.settings["FLOWER_USER"], site.settings["FLOWER_PASSWORD"]
    authorization = base64.b64encode(f"{user}:{password}".encode()).decode()

    def cookie() -> str | None:
        with connect(site) as connection:
            client = http.client.HTTPConnection(NAMES[0])
            client.sock = connection
            client.request("GET", "/flower/", headers={"Authorization": f"Basic {authorization}"})
            return client.getresponse().headers["Set-Cookie"]

    attributes = wait_for("the cookie", cookie).split("; ")
    assert attributes[0].startswith("_xsrf=")
    assert {"Secure", "SameSite=Lax"} <= set(attributes)


def test_https_has_http_2_and_knows_its_port(site: Stack) -> None:
    _, headers, _ = get(site, "/admin/login/")
    cookie = headers["Set-Cookie"]
    assert "Secure" in cookie
    output = site.compose(
        *("exec", "--no-TTY", "proxy", "curl", "--silent", "--insecure", "--http2"),
        *("--connect-to", f"{NAMES[0]}:4443:localhost:8443", "--write-out", " %{http_version}"),
        f"https://{NAMES[0]}:4443/probe/request",
    )
    seen, version = output.rsplit(" ", 1)
    assert version == "2"
    assert json.loads(seen)["scheme"] == "https"
    assert json.loads(seen)["host"] == f"{NAMES[0]}:4443"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_only_tls_1_2_and_1_3_are_spoken(site: Stack) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with connect(site, version=version) as connection:
            assert connection.version() == version.name.replace("_", ".")
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
            connect(site, version=version)


def test_testssl_finds_nothing_that_is_not_explained(site: Stack) -> None:
    (site.folder / "authority" / "root.pem").write_text(root(site))
    printed = site.compose(
        *("run", "--rm", "--no-TTY", "--entrypoint=bash", "authority", "-c"),
        "testssl --quiet --warnings batch --add-ca /authority/root.pem --jsonfile /tmp/found"
        " --protocols --std --fs --server-preference --server-defaults --headers --vulnerable"
        f" {NAMES[0]}:8443 > /dev/null; cat /tmp/found",
        timeout=600,
    )
    found = json.loads(printed)
    fine = {one["id"] for one in found if one["severity"] == "OK"}
    assert {"TLS1_3", "heartbleed", "cert_chain_of_trust", "HSTS_subdomains"} <= fine
    harmless = ("DEBUG", "INFO", "OK", "LOW", "WARN")  # the last: what it could not look at
    grave = {one["id"]: one["finding"] for one in found if one["severity"] not in harmless}
    assert set(grave) == ACCEPTED, grave


# Other ways ---------------------------------------------------------------------------------------


def test_files_of_ones_own_are_used_at_once_and_wrong_ones_refused(
    site: Stack, tmp_path: Path
) -> None:
    site.set(HTTPS="files")
    remove = "rm /srv/certificates/site.pem"
    site.compose("exec", "--no-TTY", "proxy", "sh", "-c", remove)
    site.up(*SERVICES)
    # With a certificate that stands in.
    wait_for("the site", lambda: get(site, "/healthz")[0] == 200)
    assert "there is no certificate to get" in site.compose("logs", "certificates")
    (alarm,) = alarms(site, tmp_path)
    assert alarm.startswith("The site has no certificate")
    (command,) = site.manual("production.md", "HTTPS")
    acme.self_signed(site.folder, *NAMES)
    own = (site.folder / "cert.pem").read_text()
    (site.folder / "cert.pem").rename(site.folder / "fullchain.pem")
    (site.folder / "key.pem").rename(site.folder / "privkey.pem")
    site.shell(command)
    for name in NAMES:
        assert get(site, "/healthz", name, own)[0] == 200
    acme.self_signed(site.folder, *NAMES)
    (site.folder / "key.pem").rename(site.folder / "privkey.pem")  # of another certificate
    with pytest.raises(AssertionError, match="Refused: give a private key"):
        site.shell(command)
    assert get(site, "/healthz", trusted=own)[0] == 200


def test_only_a_trusted_load_balancer_is_believed(site: Stack) -> None:
    (network,) = site.containers()["proxy"].attrs["NetworkSettings"]["Networks"].values()
    # Which is where connections to the published port come from.
    site.set(HTTPS="balancer", TRUSTED_PROXIES=f"198.51.100.0/24,{network['Gateway']}")
    site.set(HSTS="max-age=60")
    site.up(*SERVICES)
    wait_for("the site", lambda: plain(site, "/healthz").status_code == 200)
    told = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "6.6.6.6, 203.0.113.9"}
    answer = plain(site, "/probe/request", **told)
    assert answer.headers["Strict-Transport-Security"] == "max-age=60"
    assert answer.json()["scheme"] == "https"
    assert answer.json()["client"] == "203.0.113.9"
    answer = plain(site, "/probe/request", **(told | {"X-Forwarded-Proto": "http"}))
    assert answer.headers["Location"] == f"https://{NAMES[0]}/probe/request"
    code = (
        "import http.client as h; c = h.HTTPConnection('proxy', 8080);"
        f"c.request('GET', '/probe/request', headers={ {'Host': NAMES[0]} | told!r});"
        "print(c.getresponse().status)"
    )
    from_inside = site.compose("exec", "--no-TTY", "web-a", "python", "-c", code)
    assert from_inside.strip() == "301"
    with pytest.raises(OSError, match=r"(?i)reset|eof|refused"):
        connect(site)

    def log_in(address: str) -> int:
        forwarded = {"Host": NAMES[0], "X-Forwarded-Proto": "https", "X-Forwarded-For": address}
        return requests.post(f"{site.url}/admin/login/", headers=forwarded, timeout=60).status_code

    # All addresses of a subscriber are one client; IPv4 addresses in IPv6 notation are not.
    begun = time.monotonic()
    codes = [log_in(f"2001:db8:0:1:{number:x}::1") for number in range(1, 41)]
    let_through = [code for code in codes if code != 429]
    assert set(let_through) == {403}  # they lack a CSRF token
    assert 11 <= len(let_through) <= 12 + (time.monotonic() - begun) / 3
    assert log_in("2001:db8:0:2::1") == 403
    assert {log_in(f"::ffff:203.0.113.{number}") for number in range(1, 21)} == {403}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"HTTPS": "true"}, 'HTTPS in .env is "true"; make it acme, files, balancer or false.'),
        ({"HTTPS": "balancer"}, "name the balancer's addresses in TRUSTED_PROXIES."),
        ({"UPLOAD_PATHS": "/admin/,/"}, "For all paths there is MAX_BODY."),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    site: Stack, settings: dict[str, str], sentence: str
) -> None:
    done = subprocess.run(
        [
            *["docker", "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp"],
            *[f"--env={name}={value}" for name, value in settings.items()],
            f"{site.slug}-proxy",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_django_refuses_it_too_before_anything_is_replaced(site: Stack) -> None:
    output = site.compose(
        *(
            "run",
            "--rm",
            "--no-TTY",
            "--no-deps",
            "--env=HTTPS=true",
            "web",
            "./manage.py",
            "check",
        ),
        check=False,
    )
    assert re.search(r'HTTPS in \.env is "true"; make it acme, files, balancer or false\.', output)
