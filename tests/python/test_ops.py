"""The ops ports: where they listen, and who may ask."""

import pytest
from harness import Server

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
