"""The ops ports: where they listen, and who may use them."""

import subprocess

import pytest
from harness import Raw, Server, eventually

TOKEN = "a token of 24 bytes".replace(" ", "-")


def ports(server):
    return {"metrics": server.metrics_address, "pprof": server.pprof, "swagger": server.swagger}


def test_they_listen_on_loopback_alone(start):
    server = start()
    assert all(host == "127.0.0.1" for host, _ in ports(server).values())
    assert server.request("GET", "/metrics", at=server.metrics_address).status == 200


def test_a_token_is_demanded_where_there_is_one(start):
    server = start("--ops_bind", "127.0.0.2", env={"WS_CLUSTER_OPS_TOKEN": TOKEN})
    for name, address in ports(server).items():
        assert address[0] == "127.0.0.2", name
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {TOKEN}"}):
            refused = server.request("GET", "/metrics", headers=headers, at=address)
            assert refused.status == 401 and "WS_CLUSTER_OPS_TOKEN" in refused.text, name
            assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        for path in ("/metrics", f"/metrics?token={TOKEN}"):
            headers = {"Authorization": f"Bearer {TOKEN}"} if "?" not in path else {}
            answer = server.request("GET", path, headers=headers, at=address)
            assert answer.status in (200, 404), name
        assert server.request("GET", "/metrics?token=no", at=address).status == 401


def test_other_machines_see_nothing_without_a_token():
    with pytest.raises(AssertionError, match="WS_CLUSTER_OPS_TOKEN"):
        Server("--ops_bind", "0.0.0.0")
    with pytest.raises(AssertionError, match="at least 16"):
        Server("--ops_bind", "0.0.0.0", env={"WS_CLUSTER_OPS_TOKEN": "short"})


def test_only_get_and_head(start):
    server = start()
    for name, address in ports(server).items():
        refused = server.request("POST", "/metrics", body="x", at=address)
        assert refused.status == 405 and refused.headers["Allow"] == "GET, HEAD", name
        head = server.request("HEAD", "/metrics", at=address)
        assert head.body == b"" and int(head.headers["Content-Length"]) > 0
        assert server.request("GET", "/%00", at=address).status == 404


def test_a_path_of_another_port_names_that_port(start):
    server = start()
    at = {"ws": server.ws, "http": server.http, "prometheus": server.metrics_address}
    at |= {"pprof": server.pprof, "swagger": server.swagger}
    ways = {"/ws/connect": "ws", "/ws/push": "http", "/readyz": "http", "/metrics": "prometheus"}
    ways |= {"/debug/pprof/heap": "pprof", "/swagger/index.html": "swagger", "/live.json": "swagger"}
    for path, home in ways.items():
        for port in {"prometheus", "pprof", "swagger"} - {home}:
            answer = server.request("GET", path, at=at[port])
            where = f"not found: {path} is on the port of --{home}_port, {at[home][1]}\n"
            assert (answer.status, answer.text) == (404, where)
    assert server.request("POST", "/ws/push", "{}", at=server.swagger).status == 404


def test_a_second_node_finds_other_ports_where_the_defaults_are_taken():
    def node(number):
        return Server("--node", number, given=("ws_port", "http_port", "prometheus_port"))

    first = node("1")
    second = node("2")
    try:
        assert first.pprof != second.pprof and first.swagger != second.swagger
        assert second.request("GET", "/", at=second.swagger).status in (200, 302, 404)
    finally:
        first.stop()
        second.stop()


def asked(server, address, path, **fields):
    fields = {name.replace("_", "-"): value for name, value in fields.items()}
    return server.request("GET", path, headers=fields, at=address)


def refused(server, reason):
    return server.metric("ws_cluster_refused_total", port="ops", reason=reason)


def test_a_request_names_this_node(start):
    """A page whose name was rebound to 127.0.0.1 read the node, and in dev its secret."""
    server = start("--ops_hosts", "node-1.example, proxy", "--env", "dev")
    for name, address in ports(server).items():
        path = {"metrics": "/metrics", "pprof": "/debug/pprof/", "swagger": "/live.json"}[name]
        for host in ("localhost", "127.0.0.1:80", "[::1]:9", "Node-1.example:9092", "proxy"):
            assert asked(server, address, path, Host=host).status == 200, (name, host)
        for host in ("evil.example", "evil.example:9092", "node-1.example.evil", "8.8.8.8"):
            answer = asked(server, address, path, Host=host)
            assert answer.status == 421 and "dev-secret" not in answer.text, (name, host)
            wanted = f"--ops_hosts {host.split(':')[0]}"
            assert wanted in answer.text and "localhost or 127.0.0.1" in answer.text
        with Raw(address) as old:
            old.send(f"GET {path} HTTP/1.0\r\n\r\n")
            assert old.read_response()[0] == 421
    assert refused(server, "host") == 15
    with pytest.raises(AssertionError, match="'a:1' is not a host name"):
        start("--ops_hosts", "a:1")


def test_other_sites_pages_are_shown_nothing(start):
    server = start()
    profile = (server.pprof, "/debug/pprof/profile?seconds=1")
    for address, path in ((server.swagger, "/live.json"), profile):
        for fields in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            assert asked(server, address, path, **fields).status == 403
    own = "http://%s:%d" % server.swagger
    answer = asked(server, server.swagger, "/live.json", Origin=own, Sec_Fetch_Site="same-origin")
    assert answer.status == 200 and "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert asked(server, server.swagger, "/", Sec_Fetch_Site="cross-site").status == 200
    assert refused(server, "site") == 4


def test_connections_that_may_not_ask_lock_nobody_out(stack):
    """256 silent connections blocked the ops ports for as long as their sender liked."""
    server = Server("--workers", "1", "--ops_bind", "127.0.0.2", env={"WS_CLUSTER_OPS_TOKEN": TOKEN})
    stack.callback(server.stop)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    operator = stack.enter_context(Raw(server.metrics_address))
    line = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    operator.send(line)
    assert operator.read_response()[0] == 200
    for address in ports(server).values():
        idle = [stack.enter_context(Raw(address)) for _ in range(300)]
        answer = server.request("GET", "/metrics", headers=bearer, at=address)
        assert answer.status in (200, 404)
        # The oldest was closed.
        assert idle[0].read_response()[0] == 503
    # The connection of an authorized client stays.
    operator.send(line)
    status, _, text = operator.read_response()
    assert status == 200
    ended = 'ws_cluster_refused_total{port="ops",reason="half_request"} '
    assert int(text.partition(ended)[2].split("\n")[0]) > 3 * 40
    # An unauthorized client gets no keep-alive.
    with Raw(server.swagger) as stranger:
        stranger.send("GET /live.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, fields, _ = stranger.read_response()
        assert (status, fields["connection"]) == (401, "close")
        assert stranger.ended()


def test_a_lack_of_descriptors_is_logged_once_in_ten_seconds(stack):
    """The error was logged ten times a second on each port, then once by each worker."""
    server = Server("--workers", "2")
    stack.callback(server.stop)
    metrics = stack.enter_context(Raw(server.metrics_address))

    def accept_errors():
        metrics.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = metrics.read_response()[2]
        return int(text.partition("\nws_cluster_accept_error_total ")[2].split("\n")[0])

    assert accept_errors() == 0
    process = f"--pid={server.process.pid}"
    subprocess.run(["prlimit", process, "--nofile=8:"], check=True)
    # Enough connections to reach both workers.
    ports = [server.pprof, server.swagger] + 12 * [server.http] + 12 * [server.ws]
    waiting = [stack.enter_context(Raw(at)) for at in ports]
    eventually(lambda: accept_errors() >= 60, "ten attempts of each port by each thread")
    lines = [line for line in server.output if "cannot accept connections" in line]
    for flag in ("http", "ws", "pprof", "swagger"):
        assert sum(f"--{flag}_port" in line for line in lines) == 1, lines
    assert all("LimitNOFILE=" in line for line in lines)
    subprocess.run(["prlimit", process, "--nofile=1000:"], check=True)
    for raw in waiting[:3]:
        raw.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.read_response()[0] in (200, 404)
