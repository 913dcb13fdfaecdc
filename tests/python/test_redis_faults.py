"""Redis killed, paused, restarted, cut off and promoted: the guarantees hold meanwhile."""

import collections
import contextlib
import itertools
import json
import random
import signal
import threading
import time

import pytest
from harness import eventually
from redis_harness import (
    SLACK,
    Crowd,
    Proxy,
    Pusher,
    RedisError,
    Resp,
    await_ready,
    await_unready,
    log_of,
    missed,
    readiness,
    run_all,
    sync,
    try_push,
)

# The contract promises 2 s; the rest is for a busy machine.
NOTICED = 4.0
PROJECT, NODE_7, NODE_8 = "wsc:{1}", "wsc:{1}:n:7", "wsc:{1}:n:8"


@pytest.fixture(params=["1", "2"], ids=["1-worker", "2-workers"])
def size(request):
    return request.param


# Whether the broker shares its worker's thread makes no difference to these tests.
ALONE = pytest.mark.parametrize("size", ["1"], indirect=True, ids=["1-worker"])
APART = pytest.mark.parametrize("size", ["2"], indirect=True, ids=["2-workers"])


@pytest.fixture
def pair(own_redis, own_node, size, many_projects):
    """A Redis to break, and two nodes on it."""
    redis = own_redis()
    args = ("--projects", many_projects)
    return redis, [own_node(number, redis.url, *args, workers=size) for number in (7, 8)]


@pytest.fixture
def couple(pair):
    """Two clients of the user u, one at each node."""
    _, nodes = pair
    with nodes[0].client("u") as one, nodes[1].client("u") as other:
        yield [one, other]


def status_now(server, **body):
    """The status of a push, which must be answered at once."""
    began = time.monotonic()
    status = try_push(server, "refused", **body)
    assert time.monotonic() - began < 1.9
    return status


def await_links(redis, count):
    eventually(lambda: len(redis.clients()) == count, f"{count} links", SLACK)


def test_redis_is_killed_and_comes_back(pair, couple):
    redis, nodes = pair
    for server in nodes:
        server.push("before", uids=["u"])
    assert sync(nodes, couple) == [['"before"'] * 2] * 2
    redis.kill()
    for server in nodes:
        assert await_unready(server)[0] < NOTICED
        assert status_now(server) == 503
        assert server.metric("ws_cluster_queue_ready") == 0
        assert server.metric("ws_connection") == 1
    for client in couple:
        assert json.loads(client.ask({"type": "heartbeat"}))["code"] == 1
        answer = json.loads(client.ask({"type": "subscribe", "tags": "while-down"}))
        assert answer["code"] == 1
    redis.start()
    await_ready(*nodes)
    for server in nodes:
        server.push("after", tags=["while-down"])
    assert sync(nodes, couple) == [['"after"'] * 2] * 2


@APART
def test_clients_that_come_while_redis_is_down(pair):
    redis, nodes = pair
    redis.kill()
    await_unready(*nodes)
    with contextlib.ExitStack() as stack:
        clients = []
        for server, number in itertools.product(nodes, range(3)):
            began = time.monotonic()
            # Projects that no node has used.
            client = stack.enter_context(server.client("late", pid=f"p{number}"))
            assert time.monotonic() - began < 1.9, "the welcome comes at once"
            clients.append((number, client))
        redis.start()
        await_ready(*nodes)
        for server, number in itertools.product(nodes, range(3)):
            server.push(server.number, pid=f"p{number}", uids=["late"])
        for _, client in clients:
            assert sorted([client.pushed(), client.pushed()]) == ["7", "8"]


def test_redis_is_paused(pair, couple):
    redis, nodes = pair
    for server in nodes:
        server.push("before", uids=["u"])
    assert sync(nodes, couple) == [['"before"'] * 2] * 2
    redis.pause()
    paused = time.monotonic()
    statuses = {}

    def push(server):
        push = {"pid": "1", "data": ["paused", server.number], "uids": ["u"]}
        answer = server.post_json("/ws/push", push)
        statuses[server.number] = (answer.status, answer.json["msg"])

    def watch(server):
        await_unready(server, timeout=paused + NOTICED - time.monotonic())

    run_all(*[lambda s=s: push(s) for s in nodes], *[lambda s=s: watch(s) for s in nodes])
    assert statuses == {7: (504, "outcome unknown"), 8: (504, "outcome unknown")}
    for server in nodes:
        assert status_now(server) == 503
    for client in couple:
        assert json.loads(client.ask({"type": "heartbeat"}))["code"] == 1
    redis.go_on()
    await_ready(*nodes)
    for server in nodes:
        server.push(["again", server.number], uids=["u"])
    for data in sync(nodes, couple):
        got = [tuple(json.loads(item)) for item in data]
        assert len(set(got)) == len(got), f"a push came twice: {got}"
        assert {item for item in got if item[0] == "again"} == {("again", 7), ("again", 8)}


@ALONE
def test_welcomes_while_redis_is_paused(pair):
    """The first client of a project waits for its subscription until the link is given up. Later
    ones do not wait at all."""
    redis, nodes = pair
    server = nodes[0]
    redis.pause()
    try:
        with server.client("first", pid="p0"):
            await_unready(server)
            for number in range(1, 6):
                began = time.monotonic()
                with server.client("next", pid=f"p{number}"):
                    assert time.monotonic() - began < 1.9
    finally:
        redis.go_on()
    await_ready(*nodes)
    with server.client("after", pid="p7") as client:
        nodes[1].push("after", pid="p7")
        assert client.pushed() == '"after"'


@ALONE
def test_a_push_whose_answer_is_late_is_delivered_once(own_redis, own_node, size):
    """Redis's answers are held back for less than the time after which the link is given up."""
    redis = own_redis()
    proxy = Proxy(lambda _: redis.port)
    try:
        server = own_node(7, proxy.url, "--queue_timeout_ms", "300", workers=size)
        with server.client("u") as client:
            proxy.hold()
            assert try_push(server, "late", uids=["u"], idempotency_key="late") == 504
            proxy.release()
            # Sent again under its key, as a client should.
            eventually(
                lambda: try_push(server, "late", uids=["u"], idempotency_key="late") == 200,
                "success under the same key", SLACK,
            )
            assert sync([server], [client]) == [['"late"']]
    finally:
        proxy.stop()


@APART
def test_after_a_504_the_same_key_reaches_those_who_missed_it(pair, couple):
    redis, nodes = pair
    sync(nodes, couple)
    for server in nodes:
        key = f"again-{server.number}"
        redis.pause()
        status = try_push(server, key, uids=["u"], idempotency_key=key)
        assert status in (503, 504)
        redis.go_on()
        await_ready(*nodes)
        for other in nodes:
            assert try_push(other, key, uids=["u"], idempotency_key=key) == 200
        assert sync(nodes, couple) == [[json.dumps(key)]] * 2


@pytest.mark.parametrize("link", ["publish", "subscribe"])
def test_a_link_is_killed(pair, couple, link):
    """Both links are lost together. Pushes of other nodes meanwhile may be missed, and are
    counted."""
    redis, nodes = pair
    first, second = nodes
    for server in nodes:
        server.push("baseline", uids=["u"])
    assert [len(data) for data in sync(nodes, couple)] == [2, 2]
    sent = 0
    for _ in range(5):
        await_links(redis, 4)
        victim = next(one for one in redis.clients() if one["name"] == f"ws-cluster-7-{link}")
        with Pusher(second) as pusher:
            bodies = [
                {"pid": "1", "data": number, "uids": ["u"]} for number in range(sent, sent + 200)
            ]
            for body in bodies[:100]:
                pusher.send(body)
            redis.command("CLIENT", "KILL", "ID", victim["id"])
            for body in bodies[100:]:
                pusher.send(body)
            assert {pusher.answer() for _ in bodies} == {200}
        sent += 200
        eventually(
            lambda: victim["id"] not in {one["id"] for one in redis.clients()}
            and len(redis.clients()) == 4,
            "two new links", SLACK,
        )
        await_ready(*nodes)
    one, other = couple
    got_one, got_other = sync([second], [one, other])
    assert [int(item) for item in got_other] == list(range(sent))
    got = [int(item) for item in got_one]
    assert got == sorted(set(got)), "in order, none twice"
    total = sent - len(got)
    eventually(lambda: missed(first).get((8, PROJECT), 0) == total, f"{total} counted as missed")
    assert (8, PROJECT) not in missed(second)
    assert not any(key[1] != PROJECT for key in missed(first))


@ALONE
def test_a_lost_tail_is_counted(pair, couple):
    """Nothing is pushed after the lost messages: the repeated sequence number reveals them."""
    redis, nodes = pair
    first, second = nodes
    second.push("baseline", uids=["u"])
    sync([second], couple)
    assert missed(first) == {}
    for number in range(3):
        await_links(redis, 4)
        victim = next(one for one in redis.clients() if one["name"] == "ws-cluster-7-subscribe")
        redis.command("CLIENT", "KILL", "ID", victim["id"])
        second.push(number, uids=["u"])
        await_ready(first)
    delivered = []

    def is_settled():
        with contextlib.suppress(TimeoutError):
            while True:
                delivered.append(couple[0].text(0.05))
        return len(delivered) + missed(first).get((8, PROJECT), 0) == 3

    eventually(is_settled, "each delivered or counted", SLACK)


@APART
def test_links_through_a_proxy_are_cut(own_redis, own_node, size):
    redis = own_redis()
    proxy = Proxy(lambda _: redis.port)
    try:
        first = own_node(7, proxy.url, workers=size)
        second = own_node(8, redis.url, workers=size)
        with first.client("u") as one, second.client("u") as other:
            for server in (first, second):
                server.push("baseline", uids=["u"])
            sync([first, second], [one, other])
            for turn in range(4):
                accepted = proxy.accepted
                # The publishing link, the subscribing one, both.
                proxy.cut([accepted - 1, accepted - 2, None, None][turn])
                if turn == 3:
                    proxy.hold()
                    assert await_unready(first)[0] < NOTICED
                    assert status_now(first) == 503
                    proxy.release()
                eventually(lambda: proxy.accepted >= accepted + 2, "new links", SLACK)
                await_ready(first)
                first.push(["from first", turn], uids=["u"])
                second.push(["from second", turn], uids=["u"])
                for data in sync([first, second], [one, other]):
                    assert sorted(json.loads(item)[0] for item in data) == [
                        "from first", "from second"
                    ]
            assert missed(first) == {} == missed(second)
    finally:
        proxy.stop()


@ALONE
def test_held_bytes_are_noticed_within_two_seconds(own_redis, own_node, size):
    redis = own_redis()
    proxy = Proxy(lambda _: redis.port)
    try:
        server = own_node(7, proxy.url, workers=size)
        proxy.hold()
        assert await_unready(server, word="does not answer")[0] < NOTICED
        proxy.release()
        await_ready(server)
    finally:
        proxy.stop()


@APART
def test_welcomes_when_redis_dies_with_a_subscription_under_way(pair):
    redis, nodes = pair
    server = nodes[0]
    redis.pause()
    waiting = threading.Thread(target=lambda: server.client("first", pid="p0").close())
    waiting.start()
    # It sends requests and gets no reply.
    handshakes = lambda: server.metric("ws_cluster_connect_total")
    threading.Event().wait(0.3)
    assert handshakes() == 0
    redis.kill()
    await_unready(server, word="refused")
    waiting.join(SLACK)
    # Attempts to connect are seconds apart by now: nothing waits for the next one.
    threading.Event().wait(2)
    began = time.monotonic()
    for number in range(1, 6):
        server.client("next", pid=f"p{number}").close()
    assert time.monotonic() - began < 1.5
    redis.start()
    await_ready(*nodes)


def test_a_node_that_stood_still_misses_nothing(pair, couple):
    """Its links are intact, and messages that arrived meanwhile are in their sockets."""
    redis, nodes = pair
    first, second = nodes
    for server in nodes:
        server.push("baseline", uids=["u"])
    sync(nodes, couple)
    first.signal(signal.SIGSTOP)
    try:
        for number in range(100):
            second.push(number, uids=["u"])
        # Longer than the time after which a silent Redis is given up.
        threading.Event().wait(2)
    finally:
        first.signal(signal.SIGCONT)
    got = sync([second], couple)
    assert [len(data) for data in got] == [100, 100], missed(first)
    assert missed(first) == {}


def test_clients_come_and_go_while_links_break(pair):
    redis, nodes = pair
    is_over = threading.Event()
    clients = []

    def come(server):
        for number in range(40):
            clients.append((server, number, server.client(f"v{number}", pid=f"p{number}")))

    def kill():
        choices = random.Random(5)
        while not is_over.wait(0.02):
            links = redis.clients()
            if links:
                redis.command("CLIENT", "KILL", "ID", choices.choice(links)["id"])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_all(*[lambda s=s: come(s) for s in nodes])
    finally:
        is_over.set()
        killer.join()
    await_ready(*nodes)
    for number in range(40):
        nodes[number % 2].push(number, pid=f"p{number}", uids=[f"v{number}"])
    for _, number, client in clients:
        assert client.pushed() == str(number)
        client.close()


@APART
def test_what_is_over_its_ttl_is_dropped_and_counted(pair, couple):
    redis, nodes = pair
    sync(nodes, couple)
    for _ in range(20):
        statuses = []
        with Pusher(nodes[0]) as pusher:
            redis.pause()
            pusher.send({"pid": "1", "data": "stale", "uids": ["u"], "ttl_ms": 100})
            threading.Event().wait(0.4)
            redis.go_on()
            statuses.append(pusher.answer())
        await_ready(*nodes)
        assert sync(nodes, couple) == [[], []]
        if statuses == [200]:
            break
    assert statuses == [200]
    for server in nodes:
        assert server.metric("ws_cluster_drop_total", reason="ttl") == 1


@ALONE
def test_redis_cannot_save(own_redis, own_node, size, tmp_path):
    """Redis then refuses PING but not PUBLISH: the links were cut twice a second until the disk was
    repaired."""
    folder = tmp_path / "gone"
    folder.mkdir()
    redis = own_redis("--save", "3600 1000000", "--dir", str(folder))
    folder.rmdir()
    redis.command("SET", "something", "1")
    redis.command("BGSAVE")
    failed = lambda: b"rdb_last_bgsave_status:err" in redis.command("INFO", "persistence")
    eventually(failed, "it cannot save", SLACK)
    with pytest.raises(RedisError, match="MISCONF"):
        redis.command("PING")
    server = own_node(7, redis.url, workers=size)
    with server.client("u") as client:
        for number in range(12):
            assert status_now(server, uids=["u"]) == 200
            time.sleep(0.2)
        assert len(sync([server], [client])[0]) == 12
    assert server.metric("ws_cluster_queue_link_loss_total") == 0


@APART
def test_redis_is_busy(own_redis, own_node, size):
    """Redis answers everything with an error until the script ends."""
    redis = own_redis("--busy-reply-threshold", "50")
    server = own_node(7, redis.url, workers=size)
    with server.client("u") as client:
        with Resp(redis.port, SLACK) as script:
            runs = threading.Thread(
                target=lambda: pytest.raises(
                    RedisError, script.command, "EVAL", "while true do end", "0"
                )
            )
            runs.start()
            await_unready(server)
            assert status_now(server, uids=["u"]) == 503
            await_unready(server, word="BUSY")
            redis.command("SCRIPT", "KILL")
            runs.join(SLACK)
        await_ready(server)
        server.push("after", uids=["u"])
        assert sync([server], [client]) == [['"after"']]


@ALONE
def test_redis_is_full(own_redis, own_node, size):
    redis = own_redis("--maxclients", "3")
    first = own_node(7, redis.url, workers=size)
    second = own_node(8, redis.url, workers=size, wait=False)
    await_unready(second, word="max number of clients")
    first.stop()
    await_ready(second)


def test_bytes_of_a_dead_link_that_come_late(own_redis, own_node, size):
    """The first link's bytes are held in the network while the node uses the next one, and reach
    Redis later."""
    redis = own_redis()
    proxy = Proxy(lambda _: redis.port)
    try:
        first = own_node(7, proxy.url, workers=size)
        second = own_node(8, redis.url, workers=size)
        with first.client("u") as one, second.client("u") as other:
            first.push("baseline", uids=["u"])
            sync([first], [one, other])
            proxy.hold([0, 1])
            with Pusher(first) as early:
                early.send({"pid": "1", "data": "held", "uids": ["u"], "idempotency_key": "h"})
                await_unready(first, word="does not answer")
                status = early.answer()
            await_ready(first)
            for number in range(20):
                first.push(number, uids=["u"])
            answers = [status]
            proxy.release()
            answers.append(try_push(first, "held", uids=["u"], idempotency_key="h"))
            for number in range(20, 40):
                first.push(number, uids=["u"])
            numbers = [str(number) for number in range(40)]
            for data in sync([first, second], [one, other]):
                assert [item for item in data if item != '"held"'] == numbers
                assert data.count('"held"') == 1
            assert answers[1] == 200
            repeated = lambda: second.metric("ws_cluster_queue_repeated_total")
            eventually(repeated, "the late bytes, left out", SLACK)
            assert missed(first) == missed(second) == {}
    finally:
        proxy.stop()


def test_a_node_that_drains_delivers_what_it_accepted(pair):
    redis, nodes = pair
    first, second = nodes
    accepted = {}

    def push(server):
        accepted[server.number] = []
        with Pusher(server) as pusher:
            for number in itertools.count():
                body = {"pid": "1", "data": [server.number, number], "uids": ["u"]}
                try:
                    status = pusher.push(body)
                except (AssertionError, OSError):
                    return
                if status != 200 or is_over.is_set():
                    return
                accepted[server.number].append(number)

    is_over = threading.Event()
    with Crowd() as crowd:
        member = crowd.add(first, "u")
        other = crowd.add(second, "u")
        crowd.start()
        pushing = [threading.Thread(target=push, args=(server,)) for server in nodes]
        for thread in pushing:
            thread.start()
        eventually(lambda: len(other.got) > 200, "200 pushes", SLACK)
        first.signal(signal.SIGTERM)
        assert first.wait(SLACK) == 0
        is_over.set()
        for thread in pushing:
            thread.join(SLACK)
        of = lambda member, node: [
            item[1] for item in map(json.loads, list(member.got)) if item[0] == node
        ]
        for node_number in (7, 8):
            eventually(
                lambda: len(of(other, node_number)) >= len(accepted[node_number]),
                "everything at the other node", SLACK,
            )
            got = of(member, node_number)
            assert got == list(range(len(got)))
        # What was accepted here before the end reached the client here.
        assert of(member, 7)[: len(accepted[7])] == accepted[7]


# The canary.


@ALONE
def test_a_replica_that_is_promoted_away(own_redis, own_node, size):
    """The publishing link is at the primary, the subscribing one at its replica, which works until
    the replica is promoted. PINGs are still answered."""
    primary = own_redis("--repl-diskless-sync-delay", "0")
    replica = own_redis("--replicaof", f"127.0.0.1 {primary.port}")
    is_synced = lambda: b"master_link_status:up" in replica.command("INFO", "replication")
    eventually(is_synced, "the replica to be in sync", SLACK)
    # Subscribing comes first.
    proxy = Proxy(lambda number: [replica.port, primary.port][number % 2])
    try:
        server = own_node(7, proxy.url, workers=size)
        with server.client("u") as client:
            server.push("through both", uids=["u"])
            assert client.pushed() == '"through both"'
            replica.command("REPLICAOF", "NO", "ONE")
            await_unready(server, timeout=10, word="do not come back")
            assert status_now(server, uids=["u"]) == 503
            # New links do not help, and the node reports it.
            accepted = proxy.accepted
            eventually(lambda: proxy.accepted >= accepted + 2, "new links", SLACK)
            for _ in range(50):
                assert readiness(server).status == 503
                assert try_push(server, "lost", uids=["u"]) == 503
                threading.Event().wait(0.02)
            replica.command("REPLICAOF", "127.0.0.1", primary.port)
            await_ready(server)
            server.push("again", uids=["u"])
            assert sync([server], [client]) == [['"again"']]
    finally:
        proxy.stop()


# Under load.


class Load:
    """Pushers at both nodes with a total rate of pushes per second, until they are stopped.

    Every push of a channel matches a client at each node that is subscribed to the channel: so a
    node has missed what it did not deliver, and must have counted it."""

    def __init__(self, nodes, crowd, rate):
        self.nodes = nodes
        self.crowd = crowd
        self.is_over = threading.Event()
        on = {server.number: [m for m in crowd.members if m.server is server] for server in nodes}
        of = {user: [m for m in crowd.members if m.uid == user] for user in "ab"}
        ids = lambda some: [member.cid for member in some]
        mixed = [on[7][0], on[8][1], on[8][2]]
        # Channel, selectors, who matches.
        self.kinds = [
            (PROJECT, {"uids": ["a"]}, of["a"]),
            (NODE_7, {"cids": ids(on[7][:2])}, on[7][:2]),
            (PROJECT, {"tags": ["t"]}, crowd.members),
            (NODE_8, {"cids": ids(on[8][1:])}, on[8][1:]),
            (PROJECT, {"cids": ids(mixed)}, mixed),
            (PROJECT, {}, crowd.members),
            (PROJECT, {"uids": ["b"], "tags": ["t"]}, of["b"]),
        ]
        # Of each pusher: a list of (kind, status).
        self.pushers = [nodes[0], nodes[1], nodes[0], nodes[1]]
        self.logs = [[] for _ in self.pushers]
        self.rate = rate / len(self.pushers)
        self.threads = []

    def push(self, number):
        server, log = self.pushers[number], self.logs[number]
        choices = random.Random(number)
        head = json.dumps({"pid": "1"})[:-1]
        bodies = [f"{head}, {json.dumps(selectors)[1:-1]}" for _, selectors, _ in self.kinds]
        bodies = [body.rstrip(", ") for body in bodies]
        began = time.monotonic()
        with Pusher(server) as pusher:
            while not self.is_over.is_set():
                kind = choices.randrange(len(self.kinds))
                body = f'{bodies[kind]},"data":[{number},{len(log)}]}}'
                log.append((kind, pusher.push(body.encode())))
                ahead = began + len(log) / self.rate - time.monotonic()
                if ahead > 0:
                    self.is_over.wait(ahead)

    def start(self):
        for number in range(len(self.pushers)):
            thread = threading.Thread(target=self.push, args=(number,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def count(self, status):
        return sum(entry[1] == status for log in self.logs for entry in list(log))

    def finish(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join(SLACK)
            assert not thread.is_alive()

    def flood_ends(self):
        """A last, undisturbed push of every kind from every node, which reveals gaps."""
        for index, server in enumerate(self.nodes):
            with Pusher(server) as pusher:
                for channel, selectors, _ in self.kinds:
                    body = {"pid": "1", "data": ["end", index], **selectors}
                    assert pusher.push(body) == 200
        for member in self.crowd.members:
            wanted = sum(member in matching for _, _, matching in self.kinds) * len(self.nodes)
            ends = lambda: sum(item.startswith(b'["end"') for item in list(member.got))
            eventually(lambda: ends() == wanted, f"{wanted} last pushes", SLACK)

    def check(self):
        """Returns the numbers of deliveries that were missed, and that were counted."""
        got = {}
        for member in self.crowd.members:
            of_pushers = collections.defaultdict(list)
            for item in member.got:
                if item.startswith(b'["'):
                    continue
                number, index = json.loads(item)
                of_pushers[number].append(index)
            for number, indices in of_pushers.items():
                assert all(a < b for a, b in itertools.pairwise(indices)), (
                    f"client {member.number}, pusher {number}: out of order, or twice"
                )
            got[member.number] = {n: set(indices) for n, indices in of_pushers.items()}
        at_least, at_most = collections.Counter(), collections.Counter()
        for number, log in enumerate(self.logs):
            origin = self.pushers[number].number
            for index, (kind, status) in enumerate(log):
                channel, _, matching = self.kinds[kind]
                assert status in (200, 503, 504), status
                for server in self.nodes:
                    members = [member for member in matching if member.server is server]
                    if not members:
                        continue
                    has_it = {index in got[m.number].get(number, ()) for m in members}
                    assert len(has_it) == 1, "all of a node get it, or none"
                    if status == 503:
                        assert has_it == {False}, "refused, and delivered"
                    elif has_it == {False}:
                        at_most[server.number, origin, channel] += 1
                        if status == 200:
                            at_least[server.number, origin, channel] += 1
                for member in self.crowd.members:
                    if member not in matching:
                        assert index not in got[member.number].get(number, ())
        for server in self.nodes:
            counted = missed(server)
            for origin, channel in itertools.product((7, 8), (PROJECT, NODE_7, NODE_8)):
                place = server.number, origin, channel
                count = counted.get((origin, channel), 0)
                assert at_least[place] <= count <= at_most[place], (
                    f"node, origin, channel {place}: {at_least[place]} were accepted and not "
                    f"delivered, {count} are counted as missed"
                )
        return sum(at_least.values())


@contextlib.contextmanager
def load(nodes, rate=2_000):
    """Two users with the tag t at each node, under load."""
    with Crowd() as crowd:
        for server in nodes:
            for user in "aab":
                crowd.add(server, user, tags=["t"])
        crowd.start()
        running = Load(nodes, crowd, rate)
        # Every receiver has got messages of every origin on every channel: from here on, misses are
        # counted.
        running.flood_ends()
        for member in crowd.members:
            member.got.clear()
        running.start()
        try:
            yield running
        finally:
            running.finish()
        await_ready(*nodes)
        running.flood_ends()
        assert crowd.ended == [], "the sockets stay open"
        running.missed = running.check()


def let_pass(running, count, status=200):
    target = running.count(status) + count
    eventually(lambda: running.count(status) >= target, f"{count} answers {status}", SLACK)


def test_kill_and_restart_under_load(pair):
    redis, nodes = pair
    with load(nodes) as running:
        for _ in range(2):
            let_pass(running, 1_500)
            redis.kill()
            await_unready(*nodes)
            let_pass(running, 100, 503)
            redis.start()
            await_ready(*nodes)
        let_pass(running, 1_500)
    for server in nodes:
        assert "panic" not in log_of(server)
        assert server.metric("ws_cluster_queue_publish_total", result="accepted") > 0
        assert server.metric("ws_cluster_queue_link_loss_total") == 2
        assert server.metric("ws_cluster_drop_total") == 0


@ALONE
def test_a_pause_under_load(pair):
    redis, nodes = pair
    with load(nodes) as running:
        let_pass(running, 500)
        # Shorter than the detection time, then longer.
        redis.pause()
        threading.Event().wait(0.4)
        redis.go_on()
        let_pass(running, 500)
        redis.pause()
        await_unready(*nodes)
        redis.go_on()
        await_ready(*nodes)
        let_pass(running, 500)


def test_links_are_killed_under_load(pair):
    redis, nodes = pair
    choices = random.Random(8)
    with load(nodes) as running:
        for _ in range(8):
            let_pass(running, 200)
            links = redis.clients()
            if links:
                redis.command("CLIENT", "KILL", "ID", choices.choice(links)["id"])
            await_ready(*nodes)
        let_pass(running, 200)
    assert running.count(200) > 1_500
