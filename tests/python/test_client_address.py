"""The client's address behind proxies: who is believed, and what business servers receive."""

import concurrent.futures
import contextlib
import ipaddress
import json
import re
import resource
import struct

import pytest
from harness import (
    SECRET,
    Raw,
    Server,
    eventually,
    frame,
    handshake,
    sign_body,
    signed,
)

TRUSTED = "127.0.0.1, 10.0.0.0/8,2001:db8::/32, ::1"
# Peers that a test may connect from: the first is trusted, the second is not.
PROXY, STRANGER = "127.0.0.1", "127.0.0.2"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
UNIX = b"/tmp/a".ljust(108, b"\0")


@pytest.fixture(scope="module")
def server(workers):
    server = Server("--workers", workers, "--trusted_proxies", TRUSTED)
    yield server
    server.stop()


@pytest.fixture
def own(server):
    """A business server that gets the clients' connects."""
    with server.business("connect") as own:
        yield own


def v1(words):
    return f"PROXY {words}\r\n".encode()


def v2(source, command=0x21, extra=b"", family=None, addresses=None):
    """A header of version 2; `extra`: additions behind the addresses."""
    if addresses is None:
        packed = ipaddress.ip_address(source).packed
        addresses = packed + bytes(len(packed)) + struct.pack(">HH", 4711, 8812)
        family = family or {4: 0x11, 16: 0x21}[len(packed)]
    rest = addresses + extra
    return SIGNATURE + struct.pack(">BBH", command, family or 0, len(rest)) + rest


def target(server, uid, **params):
    return "/ws/connect?" + signed("/ws/connect", server.connect_params(uid, **params))


def request(server, uid, before=b"", fields=()):
    extra = "".join(f"{field}\r\n" for field in fields)
    return before + handshake(target(server, uid), extra=extra)


def connected(server, bytes_, source=None):
    raw = Raw(server.ws, source=source)
    raw.send(bytes_)
    head = raw.read_head()
    assert head.startswith("HTTP/1.1 101 "), head
    return raw


def address(server, own, uid, source=PROXY, **options):
    """The address that a business server receives for a client that connects like this."""
    with connected(server, request(server, uid, **options), source):
        event = own.json()
        while event["uid"] != uid:
            event = own.json()
        return event["ip"]


def refusal(at, bytes_, source=PROXY):
    """The status and the message of a refused request."""
    with Raw(at, source=source) as raw:
        raw.send(bytes_)
        status, _, body = raw.read_response()
        assert raw.ended()
        return status, json.loads(body)["msg"]


def forwarded(*lists):
    return [f"X-Forwarded-For: {entries}" for entries in lists]


# Who is believed.


def test_without_trusted_proxies_it_is_the_peer(shared, name):
    with shared.business("connect") as own:
        for source in (PROXY, STRANGER):
            fields = forwarded("192.0.2.1")
            assert address(shared, own, name, source, fields=fields) == source
    for at in (shared.ws, shared.http):
        for header in (v1("TCP4 192.0.2.1 10.0.0.1 1 2"), v2("192.0.2.1"), v1("UNKNOWN")):
            status, msg = refusal(at, header)
            assert status == 400 and "--trusted_proxies" in msg


def test_a_stranger_cannot_claim_an_address(server, own, name):
    for entries in ("192.0.2.1", "10.0.0.1", "127.0.0.1", "192.0.2.1, 10.0.0.1"):
        assert address(server, own, name, STRANGER, fields=forwarded(entries)) == STRANGER
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for at, what in ((server.ws, request(server, name)), (server.http, get)):
        for header in (v1("TCP4 192.0.2.1 10.0.0.1 1 2"), v2("192.0.2.1"), v2("", 0x20, b"", 0, b"")):
            status, msg = refusal(at, header + what, STRANGER)
            assert status == 400 and "--trusted_proxies" in msg


@pytest.mark.parametrize(
    "lists, ip",
    [
        ([], PROXY),
        ([""], PROXY),
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.9, 192.0.2.1"], "192.0.2.1"),
        (["192.0.2.9, 192.0.2.1, 10.1.1.1,2001:db8::5"], "192.0.2.1"),
        (["192.0.2.9", "192.0.2.1 , 10.1.1.1"], "192.0.2.1"),
        (["192.0.2.9, 192.0.2.1", "10.1.1.1", "10.1.1.2"], "192.0.2.1"),
        (["10.0.0.3, 10.0.0.2", "10.0.0.1"], "10.0.0.3"),
        (["2001:DB9:0::7"], "2001:db9::7"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, ::ffff:10.0.0.1"], "192.0.2.1"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["[2001:db9::7]:4711, 10.0.0.1:80"], "2001:db9::7"),
        (["[2001:db9::7]"], "2001:db9::7"),
        (["192.0.2.1, unknown, 10.0.0.1"], "10.0.0.1"),
        (["192.0.2.1, 10.0.0.1, unknown"], PROXY),
        (["192.0.2.1, 10.0.0.256"], PROXY),
        (["unknown, 192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1,, 10.0.0.1,"], "192.0.2.1"),
    ],
    ids=str,
)
def test_x_forwarded_for_of_a_trusted_proxy(server, own, name, lists, ip):
    assert address(server, own, name, fields=forwarded(*lists)) == ip
    lower = [field.lower() for field in forwarded(*lists)]
    assert address(server, own, name + "2", fields=lower) == ip


@pytest.mark.parametrize(
    "header, ip",
    [
        (v1("TCP4 192.0.2.1 10.0.0.1 65535 8812"), "192.0.2.1"),
        (v1("TCP4 10.0.0.7 10.0.0.1 1 2"), "10.0.0.7"),
        (v1("TCP6 2001:db9::1 ::1 1 2"), "2001:db9::1"),
        (v1("TCP6 ::ffff:192.0.2.1 ::1 1 2"), "192.0.2.1"),
        (v1("UNKNOWN"), PROXY),
        (v1("UNKNOWN ffff::1 ffff::2 1 2"), PROXY),
        (v2("192.0.2.1"), "192.0.2.1"),
        (v2("2001:db9::1"), "2001:db9::1"),
        (v2("::ffff:192.0.2.1"), "192.0.2.1"),
        # Additions: a checksum (not checked), an authority.
        (v2("192.0.2.1", extra=b"\x03\0\x04abcd\x02\0\x04a.bc"), "192.0.2.1"),
        (v2("192.0.2.1", extra=bytes(4_000)), "192.0.2.1"),
        # LOCAL, whatever else it says; UNSPEC; AF_UNIX.
        (v2("192.0.2.1", command=0x20), PROXY),
        (v2("", 0x20, b"", 0, b""), PROXY),
        (v2("", 0x21, b"\x04\0\x01x", 0, b""), PROXY),
        (v2("", 0x21, b"", 0x31, UNIX + UNIX), PROXY),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else value,
)
def test_the_proxy_protocol_of_a_trusted_proxy(server, own, name, header, ip):
    assert address(server, own, name, before=header) == ip
    # It takes precedence.
    fields = forwarded("192.0.2.77")
    assert address(server, own, name + "2", before=header, fields=fields) == ip
    with Raw(server.http) as raw:
        # Once for each connection, before its first request.
        for before in (header, b"", b""):
            raw.send(before + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.read_response()[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n",
        v1("TCP4 192.0.2.1 10.0.0.1 1 65536"),
        v1("TCP4 192.0.2.256 10.0.0.1 1 2"),
        v1("TCP4 ::1 ::1 1 2"),
        v1("TCP4 192.0.2.1 10.0.0.1 1 2 3"),
        v1("UDP4 192.0.2.1 10.0.0.1 1 2"),
        b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
        v2("192.0.2.1", command=0x22),
        v2("192.0.2.1", command=0x11),
        v2("192.0.2.1", family=0x12),
        v2("", 0x21, b"", 0x11, bytes(11)),
        v2("192.0.2.1", extra=bytes(9_000))[:16],
        # One header is enough.
        v1("TCP4 192.0.2.1 10.0.0.1 1 2") + v2("192.0.2.1"),
    ],
    ids=lambda value: value[:40],
)
def test_a_malformed_header_is_400(server, name, header):
    assert refusal(server.ws, request(server, name, header))[0] == 400
    assert refusal(server.http, header + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 400


@pytest.mark.parametrize(
    "header", [v1("TCP6 2001:db9::1 ::1 65535 65535"), v2("2001:db9::1", extra=b"\x04\0\x01x")]
)
def test_a_header_may_come_byte_by_byte(server, own, name, header):
    heartbeat = frame(1, '{"type":"heartbeat","id":"first"}')
    with Raw(server.ws) as raw:
        for byte in request(server, name, header) + heartbeat:
            raw.send(bytes([byte]))
        assert raw.read_head().startswith("HTTP/1.1 101 ")
        assert own.json()["ip"] == "2001:db9::1"
        assert b'"connect"' in raw.read_frame()[1]
        assert json.loads(raw.read_frame()[1])["id"] == "first"
    body = json.dumps({"pid": "1", "data": 1, "uids": [name]}).encode()
    head = (
        f"POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"X-Sign: {sign_body('/ws/push', body)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with Raw(server.http) as raw:
        for byte in header + head.encode() + body:
            raw.send(bytes([byte]))
        assert raw.read_response()[0] == 200
        # In one packet with two requests.
    with Raw(server.http) as raw:
        raw.send(header + 2 * (head.encode() + body))
        assert [raw.read_response()[0] for _ in range(2)] == [200, 200]


def test_a_header_that_does_not_come_whole_is_408(start):
    server = start("--trusted_proxies", TRUSTED, "--request_timeout_ms", "300")
    whole = v2("192.0.2.1")
    cases = [b"P", v1("TCP4 192.0.2.1 10.0.0.1 1 2")[:-1], whole[:5], whole[:-1], whole]
    for at in (server.ws, server.http):
        for part in cases:
            status, _ = refusal(at, part)
            assert status == 408, part
        # A connection that sends nothing is late as well.
        with Raw(at) as raw:
            assert raw.read_response()[0] == 408


def test_a_proxy_is_a_client_itself_if_it_sends_neither(server, name):
    assert server.push(1, uids=[name])
    with server.client(name) as client:
        server.push("hello", uids=[name])
        assert client.pushed() == '"hello"'


# What events carry.


def test_every_event_and_request_carries_it(server, name):
    header = v1("TCP4 192.0.2.1 10.0.0.1 1 2")
    with server.business(None) as own:
        with connected(server, request(server, name, header)) as raw:
            raw.read_frame()
            for message in (
                {"type": "subscribe", "tags": "a"},
                {"type": "unsubscribe", "tags": "a"},
                {"type": "request", "data": 1},
            ):
                raw.frame(1, json.dumps(message))
            told = [own.json() for _ in range(4)]
        told.append(own.json())
        kinds = ["connect", "subscribe", "unsubscribe", "request", "disconnect"]
        assert [one["type"] for one in told] == kinds
        for one in told:
            one = one.get("from", one)
            assert (one["uid"], one["ip"]) == (name, "192.0.2.1")


def test_ipv6_peers(workers, name):
    for bind, peer, ip in (("::1", "::1", "::1"), ("::", "::1", "::1"), ("::", "127.0.0.1", "127.0.0.1")):
        server = Server("--workers", workers, bind=bind)
        with contextlib.closing(server.keep()), contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            server.ws = (peer, server.ws[1])
            own = stack.enter_context(server.business("connect,request"))
            assert address(server, own, name, None, fields=forwarded("192.0.2.1")) == ip
            client = stack.enter_context(server.client(name))
            assert own.json()["ip"] == ip
            client.send({"type": "request", "data": 1})
            assert own.json()["from"]["ip"] == ip
    server = Server("--workers", workers, "--trusted_proxies", "::1", bind="::1")
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        own = stack.enter_context(server.business("connect"))
        assert address(server, own, name, None, fields=forwarded("2001:db9::1")) == "2001:db9::1"
        assert address(server, own, name + "2", None, before=v2("192.0.2.1")) == "192.0.2.1"


def test_business_servers_of_other_nodes_are_told(redis, own_node, name):
    args = ("--redis_prefix", name, "--trusted_proxies", TRUSTED)
    a, b = (own_node(number, redis.url, *args) for number in (211, 212))
    with b.business("connect,disconnect,request") as own:
        known = lambda: a.metric("ws_cluster_business_server_known") >= 1
        eventually(known, "the business server is known at the other node")
        for index, ip in enumerate(["192.0.2.1", "2001:db9::1"]):
            uid = f"{name}{index}"
            with connected(a, request(a, uid, fields=forwarded(ip))) as raw:
                event = own.json()
                assert (event["type"], event["uid"], event["ip"], event["node"]) == (
                    "connect", uid, ip, 211,
                )
                raw.read_frame()
                raw.frame(1, '{"type":"request","id":"r","data":1}')
                asked = own.json()
                assert (asked["type"], asked["from"]["uid"], asked["from"]["ip"]) == (
                    "request", uid, ip,
                )
                own.send({"type": "response", "id": asked["id"], "data": 2})
                assert json.loads(raw.read_frame()[1])["data"] == 2
            event = own.json()
            assert (event["type"], event["uid"], event["ip"]) == ("disconnect", uid, ip)


def test_the_log_and_the_live_page_show_it(start, name):
    server = start("--trusted_proxies", TRUSTED, "--log", "info,ws_cluster=debug")
    with connected(server, request(server, name, v1("TCP4 192.0.2.1 10.0.0.1 1 2"))):
        recent = server.request("GET", "/live.json", at=server.swagger).json["recent"]
    assert [(one["uid"], one["pid"], one["ip"]) for one in recent] == [(name, "1", "192.0.2.1")]
    assert re.fullmatch(r"\d+", recent[0]["client_id"]) and recent[0]["ts"] > 0
    bad = handshake("/ws/connect?pid=1", extra="X-Forwarded-For: 192.0.2.2\r\n")
    assert refusal(server.ws, bad)[0] == 400
    push = b"POST /ws/push HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.3\r\nContent-Length: 0\r\n\r\n"
    with Raw(server.http) as raw:
        raw.send(push)
        assert raw.read_response()[0] >= 400
    assert refusal(server.http, v1("TCP4 192.0.2.4 10.0.0.1 1 2") + b"nonsense\r\n\r\n")[0] == 400
    for ip, text in (
        ("192.0.2.1", "opened a connection"),
        ("192.0.2.2", "refused a handshake"),
        ("192.0.2.3", "refused a request"),
        ("192.0.2.4", "refused a request"),
    ):
        shown = lambda: any(text in line and f"ip={ip}" in line for line in list(server.output))
        eventually(shown, f"{text!r} with {ip} in the log")


@pytest.mark.slow
def test_ten_thousand_clients_keep_their_addresses(start):
    """All connected at the same time, half of them over IPv6, which is stored elsewhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, (hard if hard > 0 else 20_000) - 2_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = start("--trusted_proxies", TRUSTED)

    def ip_of(number):
        base = "192.0.0.0" if number % 2 else "2001:db9::"
        return str(ipaddress.ip_address(base) + number)

    def connect(number):
        return connected(server, request(server, f"u{number}", v2(ip_of(number))))

    def told(own, kind):
        seen = {}
        for _ in range(count):
            event = own.json(60)
            assert event["type"] == kind and event["uid"] not in seen
            seen[event["uid"]] = event["ip"]
        assert seen == {f"u{number}": ip_of(number) for number in range(count)}

    try:
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(server.business("connect,disconnect"))
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                clients = list(pool.map(connect, range(count)))
            told(own, "connect")
            for client in clients:
                client.socket.close()
            told(own, "disconnect")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_reload_changes_whom_the_node_believes(start, name, tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('trusted_proxies = "192.0.2.0/24"\n')
    server = start("--config", str(file))
    fields = forwarded("198.51.100.7")
    with server.business("connect") as own:
        assert address(server, own, name, fields=fields) == PROXY
        for networks, ip in ((f"192.0.2.0/24,{PROXY}", "198.51.100.7"), ("192.0.2.0/24", PROXY)):
            file.write_text(f'trusted_proxies = "{networks}"\n')
            answer = server.request("POST", "/reload", at=server.swagger)
            assert answer.status == 200 and answer.json["changed"] == ["trusted_proxies"]
            # Each worker takes it on its next turn.
            now_it_is = lambda: address(server, own, name, fields=fields) == ip
            eventually(now_it_is, f"the client is {ip}")
        file.write_text('trusted_proxies = "192.0.2.1/24"\n')
        answer = server.request("POST", "/reload", at=server.swagger)
        assert answer.status in (400, 422) and "192.0.2.1/24" in answer.text
        assert address(server, own, name, fields=fields) == PROXY
