"""A reload: SIGHUP and `POST /reload` put another configuration in force while the node runs."""

import collections
import contextlib
import json
import os
import signal
import threading
import time

import pytest
from harness import Raw, eventually, handshake, sign_body, signed

TOKEN = "a-token-of-24-characters"


def project(pid, *secrets, **more):
    lines = ["[[project]]", f'pid = "{pid}"', f"secrets = {json.dumps(secrets or (f'secret-of-{pid}',))}"]
    return "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in more.items()]) + "\n"


class Files:
    """The config file and the projects file of a node."""

    def __init__(self, folder):
        self.config = folder / "config.toml"
        self.projects = folder / "projects.toml"
        self.write(project("1", "dev-secret"))

    def write(self, projects, **settings):
        self.projects.write_text(projects)
        settings = {"projects": str(self.projects), **settings}
        self.config.write_text("".join(f"{key} = {json.dumps(settings[key])}\n" for key in settings))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def node(start, files):
    return start("--config", str(files.config))


def post(server, token=None, method="POST", headers=None):
    headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    return server.request(method, "/reload", headers=headers, at=server.swagger)


def reload(server, **options):
    """Reloads, which must succeed, and returns the answer."""
    answer = post(server, **options)
    assert answer.status == 200, answer.text
    assert answer.json["code"] == 1, answer.text
    return answer.json


def generation(server):
    return server.metric("ws_cluster_config_generation")


def test_the_answer_says_what_changed(node, files):
    unchanged = reload(node)
    assert unchanged["changed"] == [] and unchanged["needs_restart"] == []
    assert generation(node) == 1
    files.write(project("1", "dev-secret", "hunter2hunter2") + project("two"), idle_timeout_ms=9_000, idempotency_keys=5_000)
    answer = reload(node)
    assert answer["changed"] == ["idle_timeout_ms"]
    assert answer["projects"] == {
        "added": ["two"],
        "changed": ["1"],
        "removed": [],
        "count": {"added": 1, "changed": 1, "removed": 0},
    }
    assert answer["needs_restart"] == [{"flag": "idempotency_keys", "value": "1000000"}]
    assert "hunter2" not in json.dumps(answer) and "secret-of-two" not in json.dumps(answer)
    assert generation(node) == 2
    # As soon as it is answered, every worker has it.
    for number in range(20):
        assert node.push("x", secret="hunter2hunter2")
        assert node.push("x", secret="secret-of-two", pid="two")
        node.open(f"u{number}", secret="secret-of-two", pid="two").close()
    assert node.metric("ws_cluster_reload_total", result="ok") == 2
    assert node.metric("ws_cluster_reload_total", result="error") == 0
    last = node.request("GET", "/live.json", at=node.swagger).json["reload"]
    assert last["ok"] is True and abs(last["ts"] / 1_000 - time.time()) < 60


def test_sighup_reloads_and_says_so_in_the_log(node, files):
    files.write(project("1", "dev-secret") + project("two"), max_tags=3, http_port=1)
    # The port is an argument, which takes precedence: nothing needs a restart.
    node.signal(signal.SIGHUP)
    eventually(lambda: generation(node) == 2, "the reload")
    done = lambda: [line for line in list(node.output) if "projects_added=1" in line]
    assert 'changed="max_tags"' in eventually(done, "a line about it")[0]
    with node.open("u", tags="a,b,c") as client:
        client.text()
    refused = Raw(node.ws)
    query = signed("/ws/connect", node.connect_params("u", tags="a,b,c,d"))
    refused.send(handshake(f"/ws/connect?{query}"))
    assert refused.read_response()[0] == 400


def test_after_a_mistake_the_old_configuration_stays(start, files):
    good = "an-excellent-secret"
    files.write(project("1", good))
    node = start("--env", "prod", "--bind", "127.0.0.1", "--config", str(files.config), bind=None)
    exp = int(time.time()) + 3_600
    projects = files.projects.read_text()
    config = files.config.read_text()
    mistakes = [
        (lambda: files.projects.write_text("[[project]\n"), "projects.toml, line 1"),
        (lambda: files.projects.write_text(projects + "colour = 1\n"), 'unknown key "colour"'),
        (lambda: files.projects.write_text(project("1", "weak")), "secret 1 of project '1'"),
        (lambda: files.projects.unlink(), "cannot be read"),
        (lambda: files.config.write_text(config + "idle_timout_ms = 1\n"), 'mean "idle_timeout_ms"?'),
        (lambda: files.config.write_text(config + "idle_timeout_ms = 1\n"), "line 2, column 1"),
        (lambda: files.config.unlink(), "cannot be read"),
    ]
    for count, (make, wanted) in enumerate(mistakes, 1):
        files.projects.write_text(projects)
        files.config.write_text(config)
        make()
        answer = post(node)
        assert answer.status == 422 and wanted in answer.json["msg"], answer.text
        assert answer.json["code"] == 0 and "weak" not in answer.text
        assert node.push("x", secret=good, exp=exp)
        assert node.metric("ws_cluster_reload_total", result="error") == count
    node.signal(signal.SIGHUP)
    failed = lambda: node.metric("ws_cluster_reload_total", result="error") == len(mistakes) + 1
    eventually(failed, "the reload by the signal")
    assert sum("was not reloaded" in line for line in list(node.output)) >= len(mistakes)
    assert generation(node) == 1
    files.projects.write_text(projects)
    files.config.write_text(config)
    assert reload(node)["changed"] == []


def test_sighup_during_the_start_reloads_after_it(start, tmp_path):
    """It ended a node that was still reading its configuration."""
    file = tmp_path / "projects.toml"
    os.mkfifo(file)
    failures = []

    def reader():
        with contextlib.suppress(OSError):
            return os.open(file, os.O_WRONLY | os.O_NONBLOCK)

    def feed():
        try:
            pipe = eventually(reader, "the node reads its projects")
            pid = int(eventually((tmp_path / "pid").read_text, "its id"))
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGUSR1)
            os.unlink(file)
            file.write_text(project("1", "dev-secret") + project("two"))
            os.write(pipe, project("1", "dev-secret").encode())
            os.close(pipe)
        except BaseException as error:
            failures.append(error)

    feeding = threading.Thread(target=feed)
    feeding.start()
    shell = ["sh", "-c", f'echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec "$@"', "sh"]
    node = start("--projects", str(file), wrapper=shell)
    feeding.join()
    assert failures == []
    eventually(lambda: node.metric("ws_cluster_reload_total", result="ok"), "the reload")
    assert node.push("x", secret="secret-of-two", pid="two")


def test_a_file_that_is_no_file_keeps_nobody_waiting(start, files, tmp_path):
    """A pipe that nobody writes to blocked this reload, and so every later one."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    node = start("--config", str(files.config), "--ops_token", f"file:{token}")
    for file in (files.projects, files.config, token):
        text = file.read_text()
        file.unlink()
        os.mkfifo(file)
        answer = post(node, TOKEN)
        assert answer.status == 422 and "not a regular file" in answer.text, answer.text
        file.unlink()
        file.symlink_to("/dev/zero")
        answer = post(node, TOKEN)
        assert answer.status == 422 and "not a regular file" in answer.text, answer.text
        file.unlink()
        file.write_text(text)
        reload(node, token=TOKEN)


def test_clients_of_a_removed_project_are_closed_and_others_stay(node, files):
    both = project("1", "dev-secret") + project("two")
    files.write(both)
    reload(node)
    two = {"secret": "secret-of-two", "pid": "two"}
    stays = [node.client(f"u{number}") for number in range(10)]
    goes = [node.client(f"u{number}", **two) for number in range(10)]
    listener = node.business("disconnect", **two)
    files.write(project("1", "dev-secret"))
    assert reload(node)["projects"]["removed"] == ["two"]
    assert [client.close_code() for client in goes] == [(1008, "project removed")] * 10
    told = [listener.json() for _ in goes]
    assert {one["client_id"] for one in told} == {client.cid for client in goes}
    assert {one["reason"] for one in told} == {"project_removed"}
    assert listener.close_code() == (1008, "project removed")
    refused = node.post_json("/ws/push", {"pid": "two", "data": 1}, secret="secret-of-two")
    refused.assert_refused(403)
    assert node.received(stays) == [[]] * 10
    assert node.metric("ws_cluster_close_total", reason="project_removed") == 11
    assert node.metric("ws_connection") == 10
    # It comes back as it was.
    files.write(both)
    assert reload(node)["projects"]["added"] == ["two"]
    back = node.client("u", **two)
    assert node.received([back], **two) == [[]]


def test_limits_timeouts_and_ops_settings_take_effect(start, files, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    ops = {"ops_token": f"file:{token}"}
    files.write(project("1", "dev-secret"), **ops)
    node = start("--config", str(files.config))
    client = node.client("u")
    assert node.request("POST", "/ws/push", "x" * 3_000).status != 413
    token.write_text("another-token-of-32-characters!!")
    ops |= {"ops_hosts": "node-1.example", "idle_timeout_ms": 400, "max_body_bytes": 1_024,
            "worker_inbound_bytes": "4M", "max_message_bytes": 128}
    files.write(project("1", "dev-secret"), **ops)
    # The old token is required for the reload that replaces it.
    assert post(node, token="another-token-of-32-characters!!").status == 401
    answer = reload(node, token=TOKEN)
    assert set(answer["changed"]) >= {"ops_token", "ops_hosts", "idle_timeout_ms", "max_body_bytes"}
    assert "token-of" not in json.dumps(answer)
    assert post(node, token=TOKEN).status == 401
    named = {"Host": "node-1.example"}
    assert post(node, token="another-token-of-32-characters!!", headers=named).status == 200
    assert node.request("POST", "/ws/push", "x" * 3_000).status == 413
    mute = node.raw_ws("mute")
    began = time.monotonic()
    assert mute.close_code() == 4002 and time.monotonic() - began < 8
    client.send("x" * 200)
    assert client.close_code()[0] == 1009


def test_the_maximum_of_connections_can_be_lowered_and_raised_again(start, files):
    files.write(project("1", "dev-secret"), max_connections=5)
    node = start("--config", str(files.config))
    clients = [node.client(f"u{number}") for number in range(3)]
    for most, is_full in ((3, True), (4, False), (2, True), (5, False)):
        files.write(project("1", "dev-secret"), max_connections=most)
        assert reload(node)["changed"] == ["max_connections"]
        assert node.metric("ws_cluster_connections_limit") == most
        assert (node.request("GET", "/readyz").status == 503) == is_full
        refused = Raw(node.ws)
        refused.send(handshake("/ws/connect?" + signed("/ws/connect", node.connect_params("more"))))
        head = refused.read_head()
        assert head.startswith("HTTP/1.1 503 " if is_full else "HTTP/1.1 101 "), head
        refused.socket.close()
        eventually(lambda: node.metric("ws_connection") == 3, "the end of the last one")
    files.write(project("1", "dev-secret"), max_connections=6)
    assert reload(node)["needs_restart"] == [{"flag": "max_connections", "value": "5"}]
    assert node.received(clients) == [[]] * 3


def test_who_may_reload(start):
    node = start(env={"WS_CLUSTER_OPS_TOKEN": TOKEN})
    assert post(node).status == 401 and post(node, token="no").status == 401
    for method in ("GET", "HEAD", "PUT"):
        refused = post(node, token=TOKEN, method=method)
        assert (refused.status, refused.headers["Allow"]) == (405, "POST"), method
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
        assert post(node, token=TOKEN, headers=headers).status == 403
    assert post(node, token=TOKEN, headers={"Host": "evil.example"}).status == 421
    for address in (node.metrics_address, node.pprof):
        assert node.request("GET", "/reload", headers={"Authorization": f"Bearer {TOKEN}"}, at=address).status == 404
    assert reload(node, token=TOKEN)["changed"] == []


def test_the_log_filter_changes_while_the_node_runs(node, files):
    lines = lambda text: [line for line in list(node.output) if text in line]
    node.client("quiet").close()
    files.write(project("1", "dev-secret"), log="ws_cluster=trace")
    assert reload(node)["changed"] == ["log"]
    node.client("loud").close()
    eventually(lambda: lines("opened a connection"), "a line of the new filter")
    files.write(project("1", "dev-secret"), log="off")
    reload(node)
    eventually(lambda: lines("closed a connection"), "the last lines")
    count = len(lines("opened a connection"))
    node.client("silent").close()
    files.write(project("1", "dev-secret"), log="info")
    reload(node)
    files.write(project("1", "dev-secret"), log="info", max_tags=5)
    reload(node)
    eventually(lambda: lines('changed="max_tags"'), "a line of the last reload")
    assert len(lines("opened a connection")) == count


def test_reloads_at_once_come_one_after_the_other(node, files):
    files.write(project("1", "dev-secret") + project("two"))
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(node))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status for answer in answers] == [200] * 8
    assert sum(answer.json["projects"]["added"] == ["two"] for answer in answers) == 1
    assert node.metric("ws_cluster_reload_total", result="ok") == 8
    assert generation(node) == 2


class Pushers:
    """Threads that send signed requests, many at once on each connection, until they are stopped."""

    def __init__(self, server, secrets, threads=2, pid="1"):
        self.server = server
        self.secrets = secrets
        self.pid = pid
        self.statuses = collections.Counter()
        self.first_refusal = None
        self.is_over = threading.Event()
        # What the answered requests of each thread were signed with.
        self.current = [secrets[-1]] * threads
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self):
        self.began = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join(60)
        self.seconds = time.monotonic() - self.began

    def _run(self, number):
        path, body = "/ws/push", json.dumps({"pid": self.pid, "data": 1, "uids": ["nobody"]}).encode()
        with Raw(self.server.http, timeout=60) as raw:
            while not self.is_over.is_set():
                self.current[number] = secret = self.secrets[-1]
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                head += f"Content-Length: {len(body)}\r\nX-Sign: {sign_body(path, body, secret)}\r\n\r\n"
                raw.send((head.encode() + body) * 50)
                for _ in range(50):
                    status, _, text = raw.read_response()
                    # More than a busy machine can take is no refusal of what was signed.
                    is_refused = status != 200 and "overloaded" not in text
                    self.statuses["refused" if is_refused else "taken"] += 1
                    if is_refused:
                        self.first_refusal = self.first_refusal or (secret, text)

    @property
    def sent(self):
        return sum(self.statuses.values())


def test_a_secret_is_rotated_under_load_without_one_refusal(node, files):
    """Both are listed in between; whoever signs changes to the new one as soon as it is."""
    secrets = ["dev-secret"]
    with Pushers(node, secrets) as pushers:
        for number in range(1, 11):
            old, new = secrets[-1], f"rotated-secret-{number}"
            for listed in ((new, old), (new,)):
                files.write(project("1", *listed))
                assert reload(node)["projects"]["changed"] == ["1"]
                # From the answer on the new one is accepted by every worker.
                secrets.append(new)
                eventually(lambda: set(pushers.current) == {new}, "requests by the new secret")
    assert set(pushers.statuses) == {"taken"}, (pushers.statuses, pushers.first_refusal)
    print(f"{pushers.sent / pushers.seconds:.0f} signed requests a second, 20 reloads")


def test_a_hundred_reloads_under_load(node, files):
    clients = [node.client(f"u{number}") for number in range(20)]
    with Pushers(node, ["dev-secret"]) as pushers:
        for number in range(100):
            more = "".join(project(f"p{other}") for other in range(number % 7))
            files.write(project("1", "dev-secret") + more, max_tags=3 + number % 3, keep_alive_ms=600_000 + number)
            assert "keep_alive_ms" in reload(node)["changed"]
    assert set(pushers.statuses) == {"taken"}, (pushers.statuses, pushers.first_refusal)
    assert node.received(clients) == [[]] * 20
    assert generation(node) == 101


@pytest.mark.slow
def test_ten_thousand_projects_are_reloaded_under_load(node, files):
    """Building and freeing them is no work of a worker. How long its own pauses are is measured by
    bench/reload.py; here, without optimization, only that nothing is refused or closed."""
    of = lambda secret: "".join(project(f"p{number}", f"{secret}-secret-of-{number}") for number in range(10_000))
    own = project("1", "dev-secret")
    clients = [node.client(f"u{number}") for number in range(50)]
    files.write(own + of("first"))
    with Pushers(node, ["dev-secret"], threads=1) as pushers:
        assert reload(node)["projects"]["count"] == {"added": 10_000, "changed": 0, "removed": 0}
        others = [node.client(f"u{number}", secret=f"first-secret-of-{number}", pid=f"p{number}") for number in range(20)]
        files.write(own + of("second"))
        answer = reload(node)
        assert answer["projects"]["count"] == {"added": 0, "changed": 10_000, "removed": 0}
        assert len(answer["projects"]["changed"]) == 100
        assert node.received(clients) == [[]] * 50
        files.write(own)
        assert reload(node)["projects"]["count"] == {"added": 0, "changed": 0, "removed": 10_000}
    assert set(pushers.statuses) == {"taken"}, (pushers.statuses, pushers.first_refusal)
    assert {client.close_code() for client in others} == {(1008, "project removed")}
    assert node.metric("ws_cluster_close_total", reason="project_removed") == 20
    assert node.received(clients) == [[]] * 50


def test_a_reload_that_a_drain_overtakes_changes_nothing(start, files):
    """It removed projects in the middle of the drain."""
    node = start("--config", str(files.config), "--drain_ms", "30000", "--linger_ms", "30000")
    stays = node.raw_ws("stays")
    files.write("".join(project(f"p{number}") for number in range(20_000)))
    with Raw(node.swagger, timeout=30) as raw:
        raw.send("POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.05)
        node.signal(signal.SIGTERM)
        assert raw.read_response()[0] == 503
    assert generation(node) == 1
    stays.socket.close()
    assert node.wait(30) == 0
    assert not any("was not reloaded" in line for line in node.output)


def test_a_draining_node_does_not_reload(start, files):
    node = start("--config", str(files.config), "--drain_ms", "3000")
    raw = node.raw_ws("stays")
    node.signal(signal.SIGTERM)
    eventually(lambda: any("draining" in line for line in node.output), "the drain")
    answer = post(node)
    assert answer.status == 503 and "draining" in answer.json["msg"]
    node.signal(signal.SIGHUP)
    raw.socket.close()
    assert node.wait() == 0
    assert not any("was not reloaded" in line for line in node.output)


@pytest.mark.parametrize("count", ["1", "2"], ids=["inline-broker", "threaded-broker"])
def test_a_project_that_is_new_to_two_nodes_works_between_them(count, own_redis, own_node, files):
    redis = own_redis()
    args = (redis.url, "--config", str(files.config))
    nodes = [own_node(number, *args, workers=count) for number in (21, 22)]
    two = {"secret": "secret-of-two", "pid": "two"}
    files.write(project("1", "dev-secret") + project("two"))
    reload(nodes[0])
    # The second does not know the project yet when its business server is announced.
    server = nodes[0].business("connect,request", **two)
    reload(nodes[1])
    known = lambda: nodes[1].metric("ws_cluster_business_server_known") == 1
    eventually(known, "the business server of the other node")
    client = nodes[1].client("u", **two)
    told = server.json()
    assert (told["type"], told["client_id"]) == ("connect", client.cid)
    assert nodes[0].push("hello", uids=["u"], **two)
    assert client.pushed() == '"hello"'

    def answered():
        client.send({"type": "request", "id": "q", "data": 1})
        answer = client.json()
        return answer.get("msg") != "no server" and answer

    threading.Thread(target=lambda: answer_one(server), daemon=True).start()
    assert eventually(answered, "an answer of the other node's business server")["data"] == 2
    files.write(project("1", "dev-secret"))
    for node in nodes:
        reload(node)
    assert client.close_code() == (1008, "project removed")
    assert server.close_code()[0] == 1008
    files.write(project("1", "dev-secret") + project("two"))
    for node in nodes:
        reload(node)
    again = nodes[1].client("u", **two)
    assert nodes[0].push("again", uids=["u"], **two)
    assert again.pushed() == '"again"'


def answer_one(server):
    while True:
        request = server.json()
        if request["type"] == "request":
            return server.send({"type": "response", "id": request["id"], "data": request["data"] + 1})
