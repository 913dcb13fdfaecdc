"""Wrong wall clocks: not set at the start, and set back before a restart."""

import json
import os
import signal
import subprocess
import time

import pytest
from harness import BINARY, eventually
from redis_harness import await_ready, log_of, node, readiness

YEARS_S = 40 * 365 * 86_400


@pytest.fixture(scope="module")
def off_by(tmp_path_factory):
    """The environment of a process whose clock is off by this number of seconds."""
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = os.path.join(os.path.dirname(__file__), "clock_shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), source], check=True)
    return lambda seconds: {"LD_PRELOAD": str(library), "CLOCK_OFFSET_S": str(seconds)}


def test_a_clock_that_was_never_set_is_named(off_by):
    ended = subprocess.run(
        [BINARY, "--ws_port", "0", "--http_port", "0"],
        env={**os.environ, **off_by(-2 * YEARS_S)}, capture_output=True, text=True, timeout=20,
    )
    assert ended.returncode == 1
    assert "the system clock is at 1970-01-01T00:00:00" in ended.stderr + ended.stdout
    assert "time-sync.target" in ended.stderr + ended.stdout


@pytest.mark.parametrize("size", ["1", "2"], ids=["1-worker", "2-workers"])
def test_a_restart_with_the_clock_behind_repeats_no_id_and_is_known_at_once(
    own_redis, own_node, off_by, size
):
    redis = own_redis()
    other = own_node(8, redis.url, workers=size)
    first = node(7, redis.url, workers=size)
    with first.business("request"), first.client("u") as client:
        eventually(lambda: other.metric("ws_cluster_business_server_known") == 1, "its business server")
        last = int(client.cid)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    second = own_node(7, redis.url, workers=size, env=off_by(-30))
    with second.business("request") as server, second.client("u") as client:
        assert int(client.cid) > last and int(client.cid) >> 22 > last >> 22
        began = time.monotonic()
        eventually(lambda: other.metric("ws_cluster_business_server_known") == 1, "its business server")
        assert time.monotonic() - began < 5
        with other.client("asker") as asker:
            asker.send({"type": "request", "id": "r", "data": 1})
            request = server.json()
            server.send({"type": "response", "id": request["id"], "data": 2})
            answer = json.loads(asker.text())
            assert (answer["type"], answer["code"], answer["data"]) == ("response", 1, 2)
        assert second.metric("ws_cluster_ids_kept") == 1


def test_clients_that_came_before_redis_are_sent_away_if_their_ids_may_be_old(
    own_redis, own_node, off_by
):
    """Redis is away when the node restarts, so it is unknown how far its clock is behind."""
    redis = own_redis()
    first = node(7, redis.url)
    first.stop()
    number = redis.command("GET", "wsc:ids:7")
    redis.pause()
    second = own_node(7, redis.url, wait=False, env=off_by(-30))
    eventually(lambda: "does not answer" in readiness(second).text, "an attempt that failed")
    with second.client("u") as client:
        redis.go_on()
        code, reason = client.close_code()
        assert code == 1001 and "reconnect_after_ms" in json.loads(reason)
    await_ready(second)
    with second.client("u") as client:
        assert (int(client.cid) >> 22) + 1_704_067_200_000 > int(number)


def test_a_user_without_the_right_to_keep_ids_gets_a_warning_and_a_node_that_works(
    own_redis, own_node
):
    redis = own_redis()
    rules = "resetkeys resetchannels &wsc:* +publish +subscribe +unsubscribe +ping +select"
    redis.command("ACL", "SETUSER", "old", "on", ">pw", *rules.split(" "), "+client|setname")
    url = redis.url.replace("redis://", "redis://old:pw@")
    server = own_node(7, url)
    with server.client("u") as client:
        server.push(1, uids=["u"])
        assert client.pushed() == "1"
    assert server.metric("ws_cluster_ids_kept") == 0
    assert log_of(server).count("INCRBY on the key wsc:ids:7") == 1


def test_a_redis_that_takes_no_writes_is_named_and_the_node_works(own_redis, own_node):
    """Without INCRBY the node publishes as usual: nothing else showed that ids were not
    recorded."""
    redis = own_redis()
    redis.command("CONFIG", "SET", "min-replicas-to-write", "1")
    server = own_node(7, redis.url)
    with server.client("u") as client:
        server.push(1, uids=["u"])
        assert client.pushed() == "1"
    assert server.metric("ws_cluster_ids_kept") == 0
    log = log_of(server)
    assert log.count("make Redis accept writes") == 1 and "NOREPLICAS" in log
    assert "allow INCRBY" not in log
