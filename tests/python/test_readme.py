"""The README's snippets work as described, against a real server."""

import contextlib
import glob
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading

import pytest
from harness import BINARY, PATIENCE, ROOT, Server, eventually


def snippet(language, after=""):
    """The first snippet in that language below that heading."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        text = file.read().partition(after)[2] if after else file.read()
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


@pytest.fixture(scope="module")
def server():
    server = Server("--workers", "1")
    yield server
    server.stop()


def here(server, text):
    """The snippet with this server's ports instead of the default ones."""
    text = text.replace(":8912", f":{server.http[1]}").replace(":8812", f":{server.ws[1]}")
    assert ":8912" not in text and ":8812" not in text
    return text


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


# The two nodes.


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def is_open(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def answers_ping(port):
    with contextlib.suppress(OSError):
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith(b"+PONG")
    return False


def said(port, *commands):
    """The replies of Redis to these commands."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as link:
        link.sendall("".join(f"{command}\r\n" for command in (*commands, "QUIT")).encode())
        with link.makefile(encoding="utf-8") as answers:
            return answers.read().splitlines()


@contextlib.contextmanager
def running(redis_line, directory):
    """Runs the Redis of a command line on a free port instead of the usual one; returns the
    port."""
    port = free_port()
    command = [str(port) if word == "6379" else word for word in shlex.split(redis_line)]
    assert command[0] == "redis-server" and str(port) in command
    # Its own directory: whatever it writes is deleted with it.
    redis = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: answers_ping(port), "Redis")
        yield port
    finally:
        redis.kill()
        redis.wait()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Starts the three processes on free ports."""
    redis_line, *node_lines = snippet("sh", "## Two nodes").splitlines()
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(running(redis_line, tmp_path_factory.mktemp("redis")))
        nodes = []
        for line in node_lines:
            *cargo, flags = line.partition(" -- ")
            assert cargo == ["cargo run --release", " -- "], line
            # The harness gives each its own ports.
            flags = re.sub(r" --\w+_port \d+", "", flags).split()
            flags += ["--redis", f"redis://127.0.0.1:{port}"]
            nodes.append(Server(*flags))
            stack.callback(nodes[-1].stop)
        for node in nodes:
            eventually(lambda: node.request("GET", "/readyz").status == 200, "a ready node")
        yield nodes


def printed(node, start):
    """The command that the node prints, from its first word on, with this Python."""
    pattern = re.compile(rf"^  ({start}.*?[^\\])\n", re.MULTILINE | re.DOTALL)
    found = eventually(lambda: pattern.search("".join(node.output)), start)
    return found[1].replace("python3", shlex.quote(sys.executable), 1)


@needs("curl")
@needs("openssl")
def test_the_shell_snippet_pushes(server):
    with server.client("alice") as alice, server.client("bob") as bob:
        command = ["bash", "-euc", here(server, snippet("bash"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.stdout.startswith('{"code":1,"msg":"success","id":"'), done
        assert server.received([alice, bob]) == [['{"hello":"world"}'], []]


@needs("curl")
@needs("redis-server")
def test_the_two_node_walk(nodes):
    assert len(nodes) == 2
    one, two = nodes
    with subprocess.Popen(
        shlex.split(printed(one, "python3 -m websockets")),
        stdin=subprocess.PIPE,  # it ends with its input
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as client:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(client.stdout))
        reader.start()
        try:
            eventually(lambda: '"type":"connect","code":1' in "".join(lines), "the welcome")
            command = ["bash", "-euc", printed(two, "curl")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            assert done.stdout.startswith('{"code":1,"msg":"success","id":"'), done
            eventually(lambda: '"data":{"hello":"world"}' in "".join(lines), "the push")
        finally:
            client.kill()
            reader.join(PATIENCE)
    assert one.request("GET", "/version").json["node"] == 1
    assert two.request("GET", "/version").json["node"] == 2


@needs("redis-server")
def test_the_access_rules_of_the_cluster_page_are_enough(tmp_path):
    with open(os.path.join(ROOT, "docs/cluster.md"), encoding="utf-8") as file:
        rule = re.search(r"^ACL SETUSER .*", file.read(), re.MULTILINE)[0]
    redis_line = snippet("sh", "## Two nodes").splitlines()[0]
    with running(redis_line, tmp_path) as port:
        assert said(port, rule, "ACL SETUSER default off")[:2] == ["+OK", "+OK"]
        url = f"redis://ws-cluster:secret@127.0.0.1:{port}/2"
        node = Server("--queue", "redis", "--routing", "user", env={"WS_CLUSTER_REDIS": url})
        try:
            eventually(lambda: node.request("GET", "/readyz").status == 200, "a ready node")
            with node.client("alice") as alice:
                node.push("to alice", uids=["alice"])
                node.push("to all")
                assert node.received([alice]) == [['"to alice"', '"to all"']]
            assert "NOPERM" not in "".join(node.output + node.errors)
        finally:
            node.stop()


@needs("node")
def test_the_node_snippet_pushes(server):
    with server.client("bob", tags="news") as bob:
        command = ["node", "-e", here(server, snippet("js"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert "msg: 'success'" in done.stdout, done
        assert server.received([bob]) == [['{"hello":"world"}']]


def test_the_python_snippet_connects(server):
    command = [sys.executable, "-c", here(server, snippet("python"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline().startswith('{"type":"connect","code":1')
        server.push("hello", uids=["alice"], tags=["news"])
        assert '"data":"hello"' in client.stdout.readline()
        client.kill()


@needs("nginx")
def test_clients_and_pushes_pass_the_proxy_snippet(server, tmp_path, stack):
    port = free_port()
    servers = here(server, snippet("nginx"))
    assert servers.count("listen 80;") == 1
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nevents {{ }}\n"
        + "http {\naccess_log off;\n"
        + "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
        + servers.replace("listen 80;", f"listen 127.0.0.1:{port};")
        + "}\n"
    )

    def started(*command, **options):
        process = stack.enter_context(subprocess.Popen(command, **options))
        stack.callback(process.kill)
        return process

    started("nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(config))
    eventually(lambda: is_open(port), "nginx")
    text = snippet("python").replace(":8812", f":{port}")
    client = started(sys.executable, "-c", text, stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline().startswith('{"type":"connect","code":1')
    command = ["bash", "-euc", snippet("bash").replace(":8912", f":{port}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.startswith('{"code":1,"msg":"success","id":"'), done
    assert '"data":{"hello":"world"}' in client.stdout.readline()


def test_the_python_snippet_signs_as_the_contract_does():
    scope = {}
    exec(snippet("python").split("target = ")[0], scope)
    target = scope["signed"]("/ws/connect", {"uid": "u 1", "pid": 1, "type": 1}, "dev-secret")
    sign = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9"
    assert target == f"/ws/connect?pid=1&type=1&uid=u%201&sign={sign}"


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    with open(page, encoding="utf-8") as file:
        text = re.sub(r"^```.*?^```", "", file.read(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    bare = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in bare}


def test_links_between_pages_name_files_and_headings_that_exist():
    pages = [*glob.glob(os.path.join(ROOT, "*.md")), *glob.glob(os.path.join(ROOT, "*/*.md"))]
    found = 0
    for page in pages:
        with open(page, encoding="utf-8") as file:
            links = re.findall(r"\]\(([^)\s:#]*)(?:#([^)\s]*))?\)", file.read())
        for path, anchor in links:
            target = os.path.join(os.path.dirname(page), path) if path else page
            assert os.path.exists(target), f"{page}: {path}"
            if anchor and target.endswith(".md"):
                assert anchor in anchors(target), f"{page}: {path}#{anchor}"
            found += 1
    assert found > 50, found


def test_the_servers_help_names_every_flag_of_the_configuration_page(server):
    done = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=PATIENCE)
    flags = set(re.findall(r"^  --([a-z_]+)", done.stdout, re.MULTILINE)) - {"version"}
    with open(os.path.join(ROOT, "docs/configuration.md"), encoding="utf-8") as file:
        documented = set(re.findall(r"^\| `--([a-z_]+)`", file.read(), re.MULTILINE))
    assert flags == documented


@needs("redis-server")
def test_every_metric_is_in_the_monitoring_page(server, nodes):
    def names(server):
        text = server.request("GET", "/metrics", at=server.metrics_address).text
        assert text.endswith("\n# EOF\n"), text
        return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))

    server.push(1)
    nodes[0].push(1)
    found = names(server)
    assert "ws_cluster_queue_ready" in found and "ws_cluster_queue_missed" not in found
    assert server.metric("ws_cluster_queue_ready") == 1
    assert found < names(nodes[0])
    found = names(nodes[0])
    assert nodes[0].metric("ws_cluster_queue_ready") == 1
    assert nodes[0].metric("ws_cluster_queue_publish_total", result="accepted") >= 1
    with open(os.path.join(ROOT, "docs/monitor.md"), encoding="utf-8") as file:
        page = file.read()
    for name in found:
        assert f"`{name}" in page or f"`{name}_info`" in page, name
