"""Two nodes on one Redis: a push at either reaches every matching client on both, and no other."""

import contextlib
import itertools
import json
import random
import threading

import pytest
from harness import eventually
from redis_harness import (
    Crowd,
    Pusher,
    Resp,
    await_ready,
    log_of,
    run_all,
    sync,
)

TWO = {"pid": "two", "secret": "old-secret-of-two"}


@pytest.fixture
def crowd(cluster, name):
    """Clients on both nodes, by name and node; `z` are another project's, with the same names."""
    with contextlib.ExitStack() as stack:
        x, y = f"{name}x", f"{name}y"
        clients = {}
        for key, server in zip("ab", cluster):
            clients |= {
                f"A1{key}": server.client(f"{name}A", device="ios", tags=x),
                f"A2{key}": server.client(f"{name}A", device="web", tags=f"{x},{y}"),
                f"B{key}": server.client(f"{name}B", device="ios", tags=y),
                f"only-{key}": server.client(f"{name}only-{key}"),
                f"z{key}": server.client(f"{name}A", device="ios", tags=f"{x},{y}", **TWO),
            }
        for client in clients.values():
            stack.enter_context(client)
        yield clients


CASES = [
    ({"uids": "A"}, "A1a A2a A1b A2b"),
    ({"uids": "A,only-a"}, "A1a A2a A1b A2b only-a"),
    ({"uids": "A,A,B"}, "A1a A2a Ba A1b A2b Bb"),
    ({"uids": "only-b"}, "only-b"),
    ({"uids": "nobody"}, ""),
    ({"uids": ""}, ""),
    ({"uids": "A,B,only-a,only-b," + ",".join(f"u{n}" for n in range(20))},
     "A1a A2a Ba only-a A1b A2b Bb only-b"),
    ({"tags": "x"}, "A1a A2a A1b A2b"),
    ({"tags": "x,y"}, "A1a A2a Ba A1b A2b Bb"),
    ({"cids": "A1a"}, "A1a"),
    ({"cids": "A1b"}, "A1b"),
    ({"cids": "A1a,A2a"}, "A1a A2a"),
    ({"cids": "A1a,Bb,za,zb"}, "A1a Bb"),
    ({"cids": "za"}, ""),
    ({"cids": "za,zb"}, ""),
    ({"cids": ""}, ""),
    ({"uids": "A,B", "devices": "ios"}, "A1a Ba A1b Bb"),
    ({"uids": "A", "tags": "y"}, "A2a A2b"),
    ({"uids": "A", "cids": "A1a,Bb,A2b"}, "A1a A2b"),
    ({"uids": "B", "cids": "A1a,Ba"}, "Ba"),
    ({"tags": "y", "except_cids": "A2a,Bb,za"}, "A2b Ba"),
    ({"uids": "A", "except_cids": "A1b"}, "A1a A2a A2b"),
    ({"cids": "A1a", "except_cids": "A1a"}, ""),
    ({"devices": "web", "tags": "x,y"}, "A2a A2b"),
]


def real(crowd, name, selectors):
    """The selectors of a case, as they are pushed."""
    lists = {}
    for selector, value in selectors.items():
        values = [one for one in value.split(",") if one]
        if selector in ("cids", "except_cids"):
            values = [crowd[one].cid for one in values]
        elif selector != "devices":
            values = [name + one for one in values]
        lists[selector] = values
    return lists


def test_a_push_at_either_node_reaches_exactly_the_matching(cluster, crowd, name):
    wanted = {key: [] for key in crowd}
    for number, (selectors, matching) in enumerate(CASES):
        for server in cluster:
            data = [server.number, number]
            server.push(data, **real(crowd, name, selectors))
            for key in matching.split():
                wanted[key].append(json.dumps(data, separators=(", ", ": ")))
    own = [key for key in crowd if not key.startswith("z")]
    others = [key for key in crowd if key.startswith("z")]
    got = dict(zip(own, sync(cluster, [crowd[key] for key in own])))
    got |= zip(others, sync(cluster, [crowd[key] for key in others], **TWO))
    for key, data in got.items():
        # In order from each node; there is no order between the nodes.
        for server in cluster:
            by = lambda items: [item for item in items if json.loads(item)[0] == server.number]
            assert by(data) == by(wanted[key]), key
        assert len(data) == len(wanted[key]), key


def test_without_a_selector_all_of_the_project_get_it_and_no_other(cluster, crowd):
    for server in cluster:
        server.push(["all", server.number])
        server.push(["two", server.number], TWO["secret"], "two")
    own = [client for key, client in crowd.items() if not key.startswith("z")]
    others = [client for key, client in crowd.items() if key.startswith("z")]
    for word, clients, login in (("all", own, {}), ("two", others, TWO)):
        for data in sync(cluster, clients, **login):
            assert sorted(data) == sorted(json.dumps([word, node.number]) for node in cluster)


def test_a_batch_reaches_both_nodes_in_order(cluster, crowd, name):
    keys = [key for key in crowd if not key.startswith("z")]
    messages, wanted = [], {key: [] for key in keys}
    for number, (selectors, matching) in enumerate(CASES * 3):
        messages.append({"data": number, **real(crowd, name, selectors)})
        for key in matching.split():
            wanted[key].append(str(number))
    messages.insert(5, {"uids": [f"{name}A"]})
    answer = cluster[0].post_json("/ws/push/batch", {"pid": "1", "messages": messages})
    assert answer.status == 200, answer.text
    codes = [result["code"] for result in answer.json["results"]]
    assert codes == [1] * 5 + [0] + [1] * (len(messages) - 6)
    got = sync(cluster[:1], [crowd[key] for key in keys])
    assert got == [wanted[key] for key in keys]


@pytest.mark.parametrize("raw", [
    '"text"', "17", "-0.10e+5", "null", '{"b":1,"a":[1,  2]}', '"\\u00e9\\n\\ud83d\\ude00"',
    '"Zürich 🚀 日本"', '"' + "x" * 125 + '"', '"' + "long" * 50_000 + '"', "[\t1 ,\r\n 2]",
])
def test_data_and_id_arrive_byte_for_byte(cluster, crowd, name, raw):
    for server in cluster:
        body = f'{{"pid":"1","uids":["{name}A"],"data":{raw}}}'
        answer = server.post_json("/ws/push", body)
        assert answer.status == 200, answer.text
        for key in ("A1a", "A1b"):
            wanted = f'{{"type":"push","id":"{answer.json["id"]}","data":{raw}}}'
            assert crowd[key].text() == wanted


def test_a_generous_ttl_changes_nothing(cluster, crowd, name):
    first, _ = cluster
    first.push("in time", uids=[f"{name}only-b"], ttl_ms=600_000)
    assert crowd["only-b"].pushed() == '"in time"'


def test_a_megabyte_and_many_ids(cluster, crowd, name):
    data = "m" * 1_000_000
    cluster[1].push(data, uids=[f"{name}only-a"])
    assert crowd["only-a"].pushed() == json.dumps(data)
    ids = [str(n << 22 | 202 << 12) for n in range(1, 999)] + [crowd["A1a"].cid]
    cluster[1].push("cids", cids=ids)
    assert crowd["A1a"].pushed() == '"cids"'


def test_a_form_that_grows_sixfold_arrives(cluster, crowd, name):
    """The push was accepted and then dropped by all nodes, as longer than a node forwards."""
    data = b"\x01" * 1_000_000
    answer = cluster[1].push_raw_form(data, f"{name}only-a")
    assert answer.status == 200, answer.text
    assert crowd["only-a"].pushed() == '"' + "\\u0001" * len(data) + '"'
    assert cluster[0].push("next", uids=[f"{name}only-a"])
    assert crowd["only-a"].pushed() == '"next"'


# Order and at most once (guarantees 1 and 2).


def test_order_over_nodes_workers_and_channels(cluster, name):
    """One pushing connection for each worker of each node; the selectors, and with them the
    channels, change from push to push."""
    first, second = cluster
    rounds = 150
    with Crowd() as crowd:
        members = [
            crowd.add(server, f"{name}{user}", tags=(f"{name}t", f"{name}{user}"))
            for server, user in itertools.product(cluster, "ab")
            for _ in range(2)
        ]
        crowd.start()
        on = {server.number: [m for m in members if m.server is server] for server in cluster}
        of = {user: [m for m in members if m.uid == name + user] for user in "ab"}
        ids = lambda some: [member.cid for member in some]
        kinds = [
            ({"cids": ids(on[first.number])}, on[first.number]),
            ({"tags": [f"{name}t"]}, members),
            ({"cids": ids(on[second.number])}, on[second.number]),
            ({"uids": [f"{name}a"]}, of["a"]),
            ({"cids": ids(members[1:6])}, members[1:6]),
            ({"uids": [f"{name}a", f"{name}b"]}, members),
            ({"cids": ids(members[:1])}, members[:1]),
            ({"tags": [f"{name}t"], "uids": [f"{name}b"]}, of["b"]),
            ({"uids": [f"{name}b"], "except_cids": ids(members[2:3])},
             [member for member in of["b"] if member is not members[2]]),
            ({}, members),
        ]
        pushers = [(number, server) for number, server in enumerate([first, second] * 2)]
        wanted = {member.number: {number: [] for number, _ in pushers} for member in members}
        plans = {}
        for number, _ in pushers:
            choices = random.Random(number)
            plan = plans[number] = []
            for index in range(rounds):
                selectors, matching = kinds[(index + choices.randrange(2)) % len(kinds)]
                plan.append({"pid": "1", "data": [name, number, index], **selectors})
                for member in matching:
                    wanted[member.number][number].append(index)

        def push(number, server):
            with Pusher(server) as pusher:
                for start in range(0, rounds, 10):
                    # Pipelined: up to ten are in flight at once.
                    part = plans[number][start : start + 10]
                    for body in part:
                        pusher.send(body)
                    for _ in part:
                        assert pusher.answer() == 200

        run_all(*(lambda one=one: push(*one) for one in pushers))

        def own(member):
            return [item for item in map(json.loads, list(member.got)) if item[0] == name]

        for member in members:
            total = sum(map(len, wanted[member.number].values()))
            eventually(lambda: len(own(member)) >= total, f"{total} pushes", 30)
        # A repeat would arrive after it.
        for server in cluster:
            with Pusher(server) as pusher:
                end = {"pid": "1", "data": [name, "end", server.number], "cids": ids(members)}
                assert pusher.push(end) == 200
        for member in members:
            eventually(lambda: [i[1] for i in own(member)].count("end") == 2, "both ends")
            got = own(member)
            for number, _ in pushers:
                assert [i[2] for i in got if i[1] == number] == wanted[member.number][number]


# Every subscription that was answered is in force.


def test_a_welcome_is_in_force_in_a_fresh_project(cluster):
    """The first client of each project makes its node subscribe; half of the projects are known to
    the other node."""
    first, second = cluster
    for number in range(50):
        pid = f"p{number}"
        here, there = (first, second) if number % 2 else (second, first)
        with contextlib.ExitStack() as stack:
            if number % 4 < 2:
                stack.enter_context(there.client("early", pid=pid))
            client = stack.enter_context(here.client(f"user-{number}", pid=pid, tags="t"))
            kinds = [{"cids": [client.cid]}, {"uids": [f"user-{number}"]}, {"tags": ["t"]}, {}]
            for kind in kinds[number % 4 :] + kinds[: number % 4]:
                there.push(["welcome", list(kind)], pid=pid, **kind)
            assert [json.loads(client.pushed())[1] for _ in kinds] == [
                list(kind) for kind in kinds[number % 4 :] + kinds[: number % 4]
            ]


def test_a_welcome_is_in_force_for_a_fresh_user(cluster, name):
    first, second = cluster
    for number in range(60):
        here, there = (first, second) if number % 2 else (second, first)
        uid = f"{name}fresh-{number}"
        with here.client(uid) as client:
            there.push(number, uids=[uid])
            assert client.pushed() == str(number)
            with here.client(uid) as again:
                here.push("both", uids=[uid])
                assert client.pushed() == again.pushed() == '"both"'


def test_many_clients_of_fresh_users_at_once(cluster, name):
    """Their subscriptions are in progress at the same time, on all workers."""
    first, second = cluster

    def visit(group):
        for number in range(15):
            uid = f"{name}{group}-{number % 5}"
            here, there = (first, second) if (number + group) % 2 else (second, first)
            with here.client(uid) as client, Pusher(there) as pusher:
                data = f"{group}.{number}"
                assert pusher.push({"pid": "1", "uids": [uid], "data": data}) == 200
                assert client.pushed() == json.dumps(data)

    run_all(*(lambda group=group: visit(group) for group in range(4)))


def test_a_subscribe_that_was_answered_is_in_force(cluster, name):
    first, second = cluster
    with first.client(f"{name}u") as one, second.client(f"{name}v") as other:
        for number in range(40):
            for client, there in ((one, second), (other, first)):
                tag = f"{name}{number}-{there.number}"
                answer = json.loads(client.ask({"type": "subscribe", "tags": tag}))
                assert answer["code"] == 1
                there.push(number, tags=[tag], cids=[client.cid])
                assert client.pushed() == str(number)
                answer = json.loads(client.ask({"type": "unsubscribe", "tags": tag}))
                assert answer["code"] == 1
                there.push("left", tags=[tag])
        assert sync(cluster, [one, other]) == [[], []]


# Other publishers on the channels.


def garbage():
    yield b""
    yield b"\0"
    yield b"garbage"
    yield b"\xff\xfe\x80" * 100
    yield b"\1" * 39
    yield b"\1" * 40
    yield b"\1" * 4_000
    yield bytes(range(256)) * 8
    yield b"\0" * 10_000_000
    yield b"\1" * 10_000_000
    source = random.Random(4)
    for size in (1, 8, 20, 33, 48, 64, 100, 300):
        for _ in range(8):
            yield bytes([1]) + source.randbytes(size)


def test_hostile_bytes_on_the_channels(cluster, redis, crowd, name):
    first, second = cluster
    prefix = f"pair-{first.process.args[first.process.args.index('--workers') + 1]}"
    prefix += f"-{first.routing}"
    channels = [f"{prefix}:{{1}}", f"{prefix}:node:201", f"{prefix}:{{1}}:n:202"]
    if first.routing == "user":
        channels.append(f"{prefix}:{{1}}:u:{name}A")
    # Real envelopes, to be corrupted.
    with Resp(redis.port) as ears:
        ears.command("SUBSCRIBE", channels[0])
        first.push("template", tags=[f"{name}x"])
        template = b""
        while b"template" not in template:
            template = ears.reply()[2]
    clients = [crowd[key] for key in ("A1a", "A1b", "only-a", "only-b")]
    sync(cluster, clients)
    broken = [template[:end] for end in range(0, len(template), 3)]
    broken += [template[:at] + b"\xff" + template[at + 1 :] for at in range(40, len(template))]
    # Bundles of envelopes, complete and truncated.
    bundle = b"\1\xff" + 2 * (len(template).to_bytes(4, "little") + template)
    broken += [bundle[:end] for end in range(1, len(bundle) + 1, 7)]
    broken += [b"\1\xff" + b"\xff" * 9, b"\1\xff\0\0\0\0"]
    heard = 0
    with Resp(redis.port) as voice:
        for payload in itertools.chain(garbage(), broken):
            for channel in channels:
                heard += voice.command("PUBLISH", channel, payload)
    assert heard > 0, "the nodes listen to those channels"
    # Two of them are 10 MB: the nodes take their time.
    for server in cluster:
        eventually(lambda: server.metric("ws_cluster_queue_malformed_total") > 100, "malformed ones counted")
    await_ready(*cluster)
    # A plausible sequence number was accepted: it holds until its node's next announcement.
    both = [crowd["A1a"].cid, crowd["A1b"].cid]
    for source, target in ((first, second), (second, first)):
        before = target.metric("ws_cluster_delivery_total")

        def crosses():
            source.push("probe", cids=both)
            return target.metric("ws_cluster_delivery_total") > before

        eventually(crosses, "what one node accepts reaches the other")
    # Some of it may have been valid envelopes: the clients stay connected, and get later pushes.
    for server in cluster:
        server.push("after", uids=[f"{name}A"], cids=[crowd["A1a"].cid, crowd["A1b"].cid])
    for key in ("A1a", "A1b"):
        data = []
        while data.count('"after"') < 2:
            data.append(crowd[key].pushed())
    for server in cluster:
        assert server.process.poll() is None
        assert "panic" not in log_of(server)
    with first.client(f"{name}late") as late:
        second.push("late", uids=[f"{name}late"])
        assert late.pushed() == '"late"'


def test_unknown_channels_and_projects_are_nothing(cluster, redis):
    with Resp(redis.port) as voice:
        for channel in ("wsc:{nobody}", "wsc:node:77", "x", "pair-2-project:{nobody}"):
            voice.command("PUBLISH", channel, b"\1" * 50)
    answer = cluster[0].post_json("/ws/push", {"pid": "nobody", "data": 1})
    assert answer.status == 403
    await_ready(*cluster)


# Idempotency keys.


def test_a_key_at_both_nodes_reaches_each_client_once(cluster, crowd, name):
    keys = ["A1a", "A2a", "Ba", "A1b", "A2b", "Bb"]
    count = 30
    barrier = threading.Barrier(4)

    def push(server):
        with Pusher(server) as pusher:
            for number in range(count):
                barrier.wait(30)
                body = {"pid": "1", "data": number, "tags": [f"{name}x", f"{name}y"]}
                status = pusher.push({**body, "idempotency_key": f"{name}{number}"})
                assert status == 200

    run_all(*(lambda server=server: push(server) for server in cluster * 2))
    for data in sync(cluster, [crowd[key] for key in keys]):
        assert sorted(map(int, data)) == list(range(count))


def test_another_key_or_project_is_another_push(cluster, crowd, name):
    first, second = cluster
    clients = [crowd["A1a"], crowd["A1b"]]
    key = f"{name}same"
    first.push("one", uids=[f"{name}A"], idempotency_key=key)
    second.push("one", uids=[f"{name}A"], idempotency_key=key)
    second.push("two", uids=[f"{name}A"], idempotency_key=key + ".")
    second.push("none", uids=[f"{name}A"])
    second.push("none", uids=[f"{name}A"])
    first.push("other", TWO["secret"], "two", uids=[f"{name}A"], idempotency_key=key)
    for data in sync(cluster, clients):
        assert sorted(data) == ['"none"', '"none"', '"one"', '"two"']
    for data in sync(cluster, [crowd["za"], crowd["zb"]], **TWO):
        assert data == ['"other"']


def test_a_key_with_several_users_reaches_all_of_them(cluster, crowd, name):
    """With --routing user each user has its own message, all with the same key."""
    users = [f"{name}A", f"{name}B", f"{name}only-a", f"{name}only-b"]
    keys = ["A1a", "A2a", "Ba", "only-a", "A1b", "A2b", "Bb", "only-b"]
    for server in cluster + cluster:
        server.push("once", uids=users, idempotency_key=f"{name}many")
    assert sync(cluster, [crowd[key] for key in keys]) == [['"once"']] * len(keys)


def test_a_batch_with_one_key_delivers_it_once(cluster, crowd, name):
    message = {"data": "b", "uids": [f"{name}A"], "idempotency_key": f"{name}batch"}
    for server in cluster:
        answer = server.post_json("/ws/push/batch", {"pid": "1", "messages": [message] * 5})
        assert answer.status == 200 and {one["code"] for one in answer.json["results"]} == {1}
    assert sync(cluster, [crowd["A1a"], crowd["A1b"]]) == [['"b"'], ['"b"']]


def test_keys_with_the_local_queue(shared, name):
    """One node, one and three workers."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        clients = [enter(shared.client(f"{name}u", tags=f"{name}t")) for _ in range(9)]
        barrier = threading.Barrier(4)

        def push():
            with Pusher(shared) as pusher:
                for number in range(20):
                    barrier.wait(30)
                    body = {"pid": "1", "data": number, "tags": [f"{name}t"]}
                    assert pusher.push({**body, "idempotency_key": f"{name}{number}"}) == 200

        run_all(*[push] * 4)
        shared.push("without", tags=[f"{name}t"])

        def drain(client):
            data = []
            while len(data) < 21:
                data.append(client.pushed())
            return data

        for client in clients:
            assert sorted(drain(client)) == sorted([*map(str, range(20)), '"without"'])
        for data in shared.received(clients):
            assert data == []
