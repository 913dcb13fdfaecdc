"""The README's snippets do what it says, against a real server."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from harness import BINARY, PATIENCE, ROOT, Server, eventually


def snippet(language):
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return re.search(rf"```{language}\n(.*?)```", file.read(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def server():
    server = Server("--workers", "1")
    yield server
    server.stop()


def here(server, text):
    """The snippet with this server's ports in the place of the default ones."""
    text = text.replace(":8912", f":{server.http[1]}").replace(":8812", f":{server.ws[1]}")
    assert ":8912" not in text and ":8812" not in text
    return text


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@needs("curl")
@needs("openssl")
def test_the_shell_snippet_pushes(server):
    with server.client("alice") as alice, server.client("bob") as bob:
        command = ["bash", "-euc", here(server, snippet("bash"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.stdout.startswith('{"code":1,"msg":"success","id":"'), done
        assert server.received([alice, bob]) == [['{"hello":"world"}'], []]


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


def test_the_python_snippet_signs_as_the_contract_does():
    scope = {}
    exec(snippet("python").split("target = ")[0], scope)
    target = scope["signed"]("/ws/connect", {"uid": "u 1", "pid": 1, "type": 1}, "dev-secret")
    sign = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9"
    assert target == f"/ws/connect?pid=1&type=1&uid=u%201&sign={sign}"


def test_the_snippets_name_files_that_exist():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        links = re.findall(r"\]\(([^)#:]+)\)", file.read())
    assert links
    for link in links:
        assert os.path.exists(os.path.join(ROOT, link)), link


def test_the_servers_help_names_every_flag_of_the_operations_page(server):
    done = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=PATIENCE)
    flags = set(re.findall(r"^  --([a-z-]+)", done.stdout, re.MULTILINE)) - {"version"}
    flags -= {"help"}
    with open(os.path.join(ROOT, "docs/operations.md"), encoding="utf-8") as file:
        documented = set(re.findall(r"^\| `--([a-z_]+)`", file.read(), re.MULTILINE))
    assert {flag.replace("-", "_") for flag in flags} == documented


def test_every_metric_is_in_the_operations_page(server):
    def names():
        text = server.request("GET", "/metrics", at=server.metrics_address).text
        return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))

    server.push(1)
    found = eventually(names, "metrics")
    with open(os.path.join(ROOT, "docs/operations.md"), encoding="utf-8") as file:
        page = file.read()
    for name in found:
        assert f"`{name}" in page, name
