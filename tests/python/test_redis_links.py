"""How a node connects to its Redis: addresses, passwords, databases, old protocols, and no
Redis."""

import re
import signal

import pytest
from harness import PATIENCE, SECRET, Raw, eventually, handshake, signed
from redis_harness import (
    await_ready,
    await_unready,
    log_of,
    readiness,
    try_push,
)

PASSWORD = "pass:w@rd/of the test"
QUOTED = "pass%3Aw%40rd%2Fof%20the%20test"


def works(server):
    """A push goes through Redis to a client."""
    with server.client("w") as client:
        server.push("works", uids=["w"])
        assert client.pushed() == '"works"'


def assert_secret(server, *secrets):
    told = log_of(server) + readiness(server).text
    for secret in secrets:
        assert secret not in told


def url(redis, login="", db="", host="127.0.0.1"):
    return f"redis://{login}{host}:{redis.port}{db}"


@pytest.fixture(params=["1", "2"], ids=["1-worker", "2-workers"])
def size(request):
    return request.param


# Whether the broker shares its worker's thread makes no difference to these tests.
ALONE = pytest.mark.parametrize("size", ["1"], indirect=True, ids=["1-worker"])
APART = pytest.mark.parametrize("size", ["2"], indirect=True, ids=["2-workers"])


def test_a_password(own_redis, own_node, size):
    redis = own_redis("--requirepass", PASSWORD, login=[PASSWORD])
    server = own_node(7, url(redis, f":{QUOTED}@"), workers=size)
    works(server)
    assert_secret(server, PASSWORD, QUOTED)
    # As an argument it works as well, with a warning.
    warned = own_node(
        8, "", "--redis", url(redis, f":{QUOTED}@"), workers=size,
        env={"WS_CLUSTER_REDIS": ""},
    )
    works(warned)
    assert "WS_CLUSTER_REDIS" in log_of(warned)
    assert_secret(warned, PASSWORD, QUOTED)


@ALONE
def test_a_user_that_may_only_what_is_needed(own_redis, own_node, size):
    redis = own_redis()
    redis.command(
        "ACL", "SETUSER", "app", "on", f">{PASSWORD}", "resetchannels", "&wsc:*",
        "+publish", "+subscribe", "+unsubscribe", "+ping",
    )
    redis.command("ACL", "SETUSER", "default", "off")
    works(own_node(7, url(redis, f"app:{QUOTED}@"), workers=size))


@APART
def test_a_wrong_password_and_then_the_right_one(own_redis, own_node, size):
    redis = own_redis("--requirepass", "another", login=["another"])
    server = own_node(7, url(redis, f":{QUOTED}@"), workers=size, wait=False)
    _, words = await_unready(server, word="WRONGPASS")
    assert "WS_CLUSTER_REDIS" in words
    assert try_push(server, 1) == 503
    eventually(lambda: "WRONGPASS" in log_of(server), "the reason in the log")
    assert_secret(server, PASSWORD, QUOTED)
    redis.command("CONFIG", "SET", "requirepass", PASSWORD)
    await_ready(server)
    works(server)


@ALONE
def test_a_password_that_was_not_given(own_redis, own_node, size):
    redis = own_redis("--requirepass", "another", login=["another"])
    server = own_node(7, url(redis), workers=size, wait=False)
    _, words = await_unready(server, word="NOAUTH")
    assert "WS_CLUSTER_REDIS" in words
    redis.command("CONFIG", "SET", "requirepass", "")
    redis.login = ()
    await_ready(server)
    works(server)


def test_a_user_that_is_unknown_or_may_too_little(own_redis, own_node):
    redis = own_redis()
    server = own_node(7, url(redis, f"app:{QUOTED}@"), wait=False)
    await_unready(server, word="WRONGPASS")
    redis.command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "+ping", "+subscribe", "&*")
    await_unready(server, word="publish")
    redis.command("ACL", "SETUSER", "app", "+publish", "resetchannels", "&wsc:node*")
    # The node is ready without a client; the first client needs more.
    await_ready(server)
    assert refused(server, "1")
    assert readiness(server).status == 200
    assert_secret(server, PASSWORD, QUOTED)


def refused(server, pid, **params):
    """Whether the handshake of a client of the project is refused as it must be."""
    query = signed("/ws/connect", {"pid": pid, "uid": "u", **params}, SECRET)
    raw = Raw(server.ws)
    try:
        raw.send(handshake("/ws/connect?" + query))
        status, fields, body = raw.read_response()
        assert int(fields["retry-after"]) > 0
        return status == 503 and "subscribe" in body and "log" in body
    finally:
        raw.socket.close()


def test_a_project_whose_channels_are_forbidden(own_redis, own_node, size, many_projects):
    """The first client of a forbidden project ended the links of all projects, again and again."""
    redis = own_redis()
    redis.command("ACL", "SETUSER", "app", "on", "nopass", "+@all", "allchannels")
    server = own_node(
        7, url(redis, "app:x@"), "--projects", many_projects, workers=size
    )
    with server.client("one") as one, server.client("old", pid="p0") as old:
        # Redis closes the links of subscribers that lose a right.
        redis.command(
            "ACL", "SETUSER", "app", "-ping", "resetchannels", "&wsc:node*", "&wsc:{1}*", "&wsc:{p1}*"
        )
        eventually(lambda: server.metric("ws_cluster_queue_link_loss_total") == 1, "a new link", 30)
        await_ready(server)
        eventually(lambda: refused(server, "p0"), "clients of p0 to be refused")
        assert refused(server, "p2") and refused(server, "p2", type="2")
        with server.client("two", pid="p1"):
            server.push("works", uids=["one"])
            assert one.pushed() == '"works"'
        answer = server.post_json("/ws/push", {"pid": "p0", "data": 1})
        assert answer.status == 503 and "refused" in answer.json["msg"], answer.text
        assert readiness(server).status == 200
        refusals = lambda: server.metric("ws_cluster_queue_channel_refused")
        eventually(lambda: refusals() == 4, "two channels of p0 and of p2")
        # Clients stay connected, and receive again once it is permitted.
        redis.command("ACL", "SETUSER", "app", "allchannels")
        eventually(lambda: refusals() == 0, "all channels", 30)
        server.push("again", pid="p0", uids=["old"])
        assert old.pushed() == '"again"'
        with server.client("new", pid="p0") as new:
            server.push("new", pid="p0", uids=["new"])
            assert new.pushed() == '"new"'
        assert server.metric("ws_cluster_queue_link_loss_total") == 1
    log = log_of(server)
    for channel in ("wsc:{p0}", "wsc:{p0}:n:7", "wsc:{p2}"):
        named = re.findall(rf"channel={re.escape(channel)}\s.*ERROR|ERROR.*channel={re.escape(channel)}\s", log)
        assert len(named) == 1, log
    assert "ACL SETUSER app &wsc:*" in log
    assert log.count("grant this node's user +ping") == 1


@APART
def test_a_database_and_the_names_of_the_links(own_redis, own_node, size):
    redis = own_redis()
    for number, db in ((7, "/3"), (8, "")):
        works(own_node(number, url(redis, db=db), workers=size))
    links = sorted((link["name"], link["db"]) for link in redis.clients())
    assert links == [
        ("ws-cluster-7-publish", "3"), ("ws-cluster-7-subscribe", "3"),
        ("ws-cluster-8-publish", "0"), ("ws-cluster-8-subscribe", "0"),
    ]


def test_a_database_that_is_not_there(own_redis, own_node):
    redis = own_redis()
    server = own_node(7, url(redis, db="/99"), wait=False)
    await_unready(server, word="DB index is out of range")


@ALONE
def test_a_unix_socket(own_redis, own_node, size):
    redis = own_redis("--unixsocket", "SOCKET", "--requirepass", PASSWORD)
    address = f"unix://:{QUOTED}@{redis.socket_path}?db=2"
    server = own_node(7, address, workers=size)
    works(server)
    redis.kill()
    await_unready(server)
    redis.start()
    await_ready(server)
    works(server)


@APART
def test_a_name_of_a_host(own_redis, own_node, size):
    works(own_node(7, url(own_redis(), host="localhost"), workers=size))


def test_a_name_that_is_none(own_node):
    server = own_node(7, "redis://no-such-host.invalid:6379", wait=False)
    await_unready(server, word="no-such-host.invalid")
    assert try_push(server, 1) == 503


@pytest.mark.parametrize("has_password", [False, True], ids=["open", "password"])
def test_resp2_where_hello_is_unknown(own_redis, own_node, size, has_password):
    """As with Redis before version 6."""
    args, login = ["--rename-command", "HELLO", ""], ""
    if has_password:
        args += ["--requirepass", PASSWORD]
        login = f":{QUOTED}@"
    redis = own_redis(*args, login=[PASSWORD] if login else ())
    first = own_node(7, url(redis, login, "/1"), workers=size)
    second = own_node(8, url(redis, login, "/1"), workers=size)
    assert {link["resp"] for link in redis.clients()} == {"2"}
    assert len(redis.clients()) == 4
    with first.client("u") as one, second.client("u") as other:
        second.push("two", uids=["u"])
        assert one.pushed() == other.pushed() == '"two"'
        # Long enough for several pings on either link.
        eventually(
            lambda: all(int(link["age"]) >= 2 for link in redis.clients()),
            "links that live for two seconds", 30,
        )
        first.push("one", uids=["u"])
        assert one.pushed() == other.pushed() == '"one"'


def test_no_redis_at_the_start(own_redis, own_node, size):
    redis = own_redis()
    redis.kill()
    server = own_node(7, redis.url, workers=size, wait=False)
    answer = readiness(server)
    assert answer.status == 503
    _, words = await_unready(server, word="127.0.0.1")
    assert re.search("refused", words), words
    assert server.request("GET", "/healthz").status == 200
    refused = server.post_json("/ws/push", {"pid": "1", "data": 1})
    refused.assert_refused(503)
    assert refused.headers["Retry-After"]
    batch = server.post_json("/ws/push/batch", {"pid": "1", "messages": [{"data": 1}] * 2})
    assert batch.status == 503, batch.text
    # Clients are accepted at once, and get pushes once Redis is available.
    with server.client("u") as client:
        redis.start()
        await_ready(server)
        server.push("first", uids=["u"])
        assert client.pushed() == '"first"'


def test_something_else_than_redis(own_redis, own_node):
    host, port = own_node(8, own_redis().url).http
    server = own_node(7, f"redis://{host}:{port}", wait=False)
    await_unready(server, word="RESP")
    assert server.process.poll() is None


@APART
def test_two_nodes_with_the_same_number(own_redis, own_node, size):
    redis = own_redis()
    older = own_node(7, redis.url, workers=size)
    newer = own_node(7, redis.url, workers=size)
    words = eventually(
        lambda: next((line for line in log_of(older).splitlines() if "ERROR" in line), None),
        "an error in the log of the older one", 30,
    )
    assert "--node" in words
    assert older.metric("ws_cluster_queue_foreign_total") > 0
    newer.stop()
    works(older)


@pytest.mark.parametrize("how", ["killed", "paused", "absent"])
def test_sigterm_while_redis_is_down(own_redis, own_node, size, how):
    redis = own_redis()
    if how == "absent":
        redis.kill()
    server = own_node(
        7, redis.url, "--drain_ms", "5000", workers=size, wait=how != "absent"
    )
    with server.client("u") as client:
        if how == "paused":
            redis.pause()
        elif how == "killed":
            redis.kill()
        server.signal(signal.SIGTERM)
        assert client.close_code()[0] == 1001
    assert server.wait(PATIENCE) == 0
    redis.go_on()


def test_a_redis_that_is_away_does_not_fill_the_log(own_redis, own_node):
    redis = own_redis()
    redis.kill()
    server = own_node(7, redis.url, wait=False)
    await_unready(server, word="refused")
    attempts = lambda: log_of(server).count("the queue is down")
    redis.start()
    await_ready(server)
    assert 1 <= attempts() <= 3, log_of(server)
