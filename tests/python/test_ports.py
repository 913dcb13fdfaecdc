"""Where a node listens, and its errors when it cannot."""

import re
import socket
import subprocess

import pytest
from harness import BINARY, PORTS, Server, eventually
from websockets.sync.client import connect as ws_connect



def fails(*args, as_nobody=False):
    """Runs a node that cannot start, which must print exactly one line."""
    command = [BINARY, "--workers", "2", "--pin", "false", *args]
    for flag in PORTS:
        command += [] if f"--{flag}" in args else [f"--{flag}", "0"]
    if as_nobody:
        command = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set=-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1, done
    return done


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("flag", ["ws", "http", "prometheus", "pprof", "swagger"])
def test_a_port_in_use_names_its_flag_and_how_to_find_its_owner(flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = fails(f"--{flag}_port", str(port))
    assert f"cannot listen on --{flag}_port 127.0.0.1:{port} (" in done.stderr, done
    assert f"ss -ltnp 'sport = :{port}'" in done.stderr, done


@pytest.mark.parametrize(
    ("given", "port"), [("bind", "ws"), ("http_bind", "http"), ("ops_bind", "prometheus")]
)
def test_an_address_of_another_machine_names_the_flag_that_gave_it(given, port, monkeypatch):
    monkeypatch.setenv("WS_CLUSTER_OPS_TOKEN", "0123456789abcdef")
    # TEST-NET-1 (RFC 5737) is never assigned.
    done = fails(f"--{given}", "192.0.2.1")
    assert f"cannot listen on --{port}_port 192.0.2.1:0 (" in done.stderr, done
    assert f"--{given} 192.0.2.1 is not an address of this machine" in done.stderr, done


@pytest.mark.parametrize("flag", ["ws", "http", "prometheus", "pprof", "swagger"])
def test_a_port_for_the_privileged_names_the_capability(flag):
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        if int(file.read()) < 80:
            pytest.skip("every user may listen on all ports here")
    done = fails(f"--{flag}_port", "79", as_nobody=True)
    assert f"cannot listen on --{flag}_port 127.0.0.1:79 (Permission denied" in done.stderr
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in done.stderr, done


def test_in_dev_nobody_else_reaches_a_node_that_was_not_told_otherwise():
    with Server(bind=None) as server:
        assert (server.ws[0], server.http[0]) == ("127.0.0.1", "127.0.0.1")
        assert not any("dev-secret" in line for line in server.output)
    with Server(bind="0.0.0.0") as server:
        assert (server.ws[0], server.http[0]) == ("0.0.0.0", "0.0.0.0")
        [warning] = [line for line in server.output if "dev-secret" in line]
        assert "--bind 0.0.0.0 is reachable from other machines" in warning


def test_prod_listens_on_all_addresses(tmp_path):
    file = tmp_path / "projects.toml"
    file.write_text("[[project]]\npid = 'p'\nsecrets = ['0123456789abcdef0123456789abcdef']\n")
    with Server("--env", "prod", "--projects", str(file), bind=None) as server:
        assert (server.ws[0], server.http[0]) == ("0.0.0.0", "0.0.0.0")


def test_the_http_port_may_have_an_address_of_its_own():
    with Server("--http_bind", "127.0.0.2") as server:
        assert (server.ws[0], server.http[0]) == ("127.0.0.1", "127.0.0.2")
        assert server.request("GET", "/healthz").status == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.http[1]))


@ipv6
@pytest.mark.parametrize("bind", ["::1", "[::1]", "::", "[::]"])
def test_over_ipv6_the_printed_lines_can_be_pasted(bind):
    with Server(bind=bind) as server:
        eventually(lambda: any("All flags" in line for line in server.output), "all lines")
        text = "".join(server.output)
        assert re.search(rf" ws=\[{bind.strip('[]')}\]:\d+ http=", text), text
        connect = next(line for line in text.splitlines() if "ws/connect?" in line)
        curl = text[text.index("  curl ") :].split("\n\n")[0]
        with ws_connect(connect.split("'")[1], proxy=None) as client:
            assert '"connect"' in client.recv(10)
            done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=20)
            assert '"code":1' in done.stdout, done
            assert '"hello":"world"' in client.recv(10)
        hosts = ["::1"] if "1" in bind else ["::1", "127.0.0.1"]
        for host in hosts:
            socket.create_connection((host, server.ws[1])).close()


def test_two_ports_of_two_addresses_may_have_one_number():
    """They were refused with "both 8812"."""
    with socket.create_server(("127.0.0.3", 0)) as free:
        port = str(free.getsockname()[1])
    given = ("prometheus_port", "pprof_port", "swagger_port")
    one = ("--ws_port", port, "--http_port", port)
    with Server(*one, "--http_bind", "127.0.0.3", given=given) as server:
        assert server.http == ("127.0.0.3", int(port)) and server.ws[1] == int(port)
        assert server.request("GET", "/healthz").status == 200
        server.client("alice").close()
    with pytest.raises(AssertionError, match=f"both {port}"):
        Server(*one, "--http_bind", "127.0.0.3", given=given, bind="0.0.0.0")
