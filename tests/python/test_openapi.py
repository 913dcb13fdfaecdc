"""The description of the HTTP API against a running server: every response in it, its examples, and
whatever schemathesis generates from it."""

import json
import os
import re
import subprocess
import sys
import urllib.parse

import jsonschema_rs
import pytest
import yaml
from harness import ROOT, Raw, Server, eventually, sign_body
from redis_harness import Redis, await_ready, await_unready, node

# `make api-check` sets a higher number.
EXAMPLES = int(os.environ.get("API_EXAMPLES", "60"))
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
NO_NODE = "http://localhost:8912"
with open(os.path.join(ROOT, "docs/openapi.yaml"), encoding="utf-8") as file:
    SPEC = yaml.safe_load(file)
OPERATIONS = [
    (method, path, operation)
    for path, methods in SPEC["paths"].items()
    for method, operation in methods.items()
]


def schema(name):
    return SPEC["components"]["schemas"][name]


@pytest.fixture(scope="module")
def server():
    server = Server(
        "--workers", "1", "--request_timeout_ms", "500", "--ops_hosts", "node-1.example",
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def crowded():
    """A server with room for a single HTTP connection."""
    server = Server("--workers", "1", "--max_http_connections", "1")
    yield server
    server.stop()


def crowded_out(server, request):
    """The response to an incomplete request when a new connection needs its place."""
    with Raw(server.http) as first:
        first.send(request[:10])
        eventually(lambda: server.metric("ws_cluster_http_connection") == 1, "a connection")
        with Raw(server.http):
            return first.read_response()


@pytest.fixture(scope="module")
def paused():
    """Queries a node whose Redis has stopped, before the node has noticed."""
    redis = Redis()
    server = node(201, redis.url, "--queue_timeout_ms", "300", workers="1")

    def ask(question, *args):
        await_ready(server)
        redis.pause()
        try:
            return question(server, *args)
        finally:
            redis.go_on()

    yield ask
    redis.stop()
    server.stop()


@pytest.fixture(scope="module")
def without_queue():
    redis = Redis()
    server = node(202, redis.url, workers="1")
    redis.stop()
    await_unready(server)
    yield server
    server.stop()


# Where the description is served.


def described(server, path, host="localhost"):
    answer = server.request("GET", path, headers={"Host": f"{host}:9092"}, at=server.swagger)
    assert answer.status == 200
    return answer


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "node-1.example"])
def test_it_names_the_nodes_own_address(server, host):
    address = f"http://{host}:{server.http[1]}"
    expected = {**SPEC, "servers": [{"url": address}]}
    json_answer = described(server, "/openapi.json", host)
    assert json_answer.headers["Content-Type"] == JSON
    assert json_answer.json == expected
    yaml_answer = described(server, "/openapi.yaml", host)
    assert yaml_answer.headers["Content-Type"] == "application/yaml"
    assert yaml.safe_load(yaml_answer.text) == expected


def test_it_is_openapi_with_every_path_of_the_port(server):
    assert SPEC["openapi"] == "3.1.0" and SPEC["servers"] == [{"url": NO_NODE}]
    for method, path, _ in OPERATIONS:
        allow = server.request("OPTIONS", path).headers["Allow"].split(", ")
        expected = {"post": ["POST", "OPTIONS"], "get": ["GET", "HEAD", "OPTIONS"]}
        assert allow == expected[method], path
    version = server.request("GET", "/version").json["version"]
    assert SPEC["info"]["version"] == version


# Every response that it describes.


def raw(server, request):
    """One request on a connection of its own: status, fields, body."""
    with Raw(server.http) as connection:
        connection.send(request)
        return connection.read_response()


def head(method, path, *lines):
    return "\r\n".join([f"{method.upper()} {path} HTTP/1.1", "Host: x", *lines, "", ""])


def post(server, path, members, secret="dev-secret"):
    body = json.dumps(members)
    fields = {"Content-Type": JSON, "X-Sign": sign_body(path, body, secret)}
    answer = server.request("POST", path, body, fields)
    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, (
        answer.text
    )


def pushed(path, **members):
    """A push of one message in the format of `path`."""
    message = {"data": 1, **members}
    return {"pid": "1", "messages": [message]} if path.endswith("batch") else {"pid": "1"} | message


def answers(servers, method, path):
    """A function for each status that provokes it."""
    server, crowded, paused, without_queue = servers
    get = lambda at: lambda: raw(at, head(method, path))
    any_request = {
        400: lambda: raw(server, f"{method.upper()} {path} HTTP/1.1\r\n\r\n"),
        408: lambda: raw(server, f"{method.upper()} {path} HTTP/1.1\r\nHost: "),
        413: lambda: raw(server, head(method, path, f"Content-Length: {(1 << 20) + 1}")),
        431: lambda: raw(server, head(method, path, f"X: {'x' * 9000}")),
    }
    if method == "get":
        without_room = lambda: crowded_out(crowded, head(method, path))
        unavailable = get(without_queue) if path == "/readyz" else without_room
        return any_request | {200: get(server), 503: unavailable}
    return any_request | {
        200: lambda: post(server, path, pushed(path)),
        400: lambda: post(server, path, pushed(path, ttl_ms=0)),
        401: lambda: post(server, path, pushed(path), secret="another"),
        403: lambda: post(server, path, {**pushed(path), "pid": "nobody"}),
        411: lambda: raw(server, head(method, path, f"Content-Type: {JSON}")),
        415: lambda: raw(server, head(method, path, "Content-Encoding: gzip", "Content-Length: 0")),
        503: lambda: post(without_queue, path, pushed(path)),
        504: lambda: paused(post, path, pushed(path)),
    }


def test_a_page_may_read_when_to_come_back(without_queue):
    for path in ("/ws/push", "/ws/push/batch"):
        message = {"pid": "1", "messages": [{"data": 1}]} if "batch" in path else {"pid": "1", "data": 1}
        answer = without_queue.post_json(path, message, headers={"Origin": "https://a.example"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"


@pytest.mark.parametrize("method, path, operation", OPERATIONS, ids=lambda part: str(part)[:20])
def test_every_answer_is_as_described(
    server, crowded, paused, without_queue, method, path, operation
):
    servers = (server, crowded, paused, without_queue)
    wanted = answers(servers, method, path)
    assert {str(status) for status in wanted} == set(operation["responses"])
    for status, bring_about in wanted.items():
        got, fields, body = bring_about()
        assert got == status, body
        response = operation["responses"][str(status)]
        assert set(map(str.lower, response.get("headers", {}))) <= set(fields), status
        assert list(response["content"]) == [fields["content-type"]]
        wanted_body = {**response["content"][JSON]["schema"], "components": SPEC["components"]}
        jsonschema_rs.validate(wanted_body, json.loads(body))


# Its examples.


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def test_its_vectors_hold(server):
    text = SPEC["info"]["description"]
    vectors = re.findall(r"^\| `(/ws/\S+)\\n(.+)` \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert len(vectors) == 3
    for path, rest, sign in vectors:
        assert sign_body(path, rest) == sign
    path, query, body = (vector[1] for vector in vectors)
    assert body == compact(schema("Push")["example"])
    [(method, target)] = re.findall(r"`(POST) (/ws/push\?\S+)`", text)
    with server.client("alice") as client:
        assert server.request(method, target).status == 200
        assert client.pushed() == '"hello"'


def test_its_examples_are_pushed(server):
    with server.client("alice", tags="news") as client:
        for name, path in (("Push", "/ws/push"), ("Batch", "/ws/push/batch")):
            answer = server.post_json(path, compact(schema(name)["example"]))
            assert answer.status == 200, answer.text
            assert {result["code"] for result in answer.json.get("results", [])} <= {1}
        form = urllib.parse.urlencode(schema("PushForm")["example"])
        assert server.request("POST", "/ws/push", form, {"Content-Type": FORM}).status == 200
        expected = ['{"hello":"world"}', '"for alice"', "2", '"hello"']
        assert [client.pushed() for _ in expected] == expected


def examples_of(value):
    """Every example with the schema that it belongs to."""
    if isinstance(value, dict):
        if "schema" in value:
            named = value.get("examples", {})
            inline = [value["example"]] if "example" in value else []
            for example in inline + [one["value"] for one in named.values()]:
                yield value["schema"], example
        elif "example" in value:
            yield {name: part for name, part in value.items() if name != "example"}, value["example"]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from examples_of(part)


def test_its_examples_fit_their_schemas():
    examples = list(examples_of(SPEC))
    assert len(examples) > 15
    for wanted, example in examples:
        jsonschema_rs.validate({**wanted, "components": SPEC["components"]}, example)


# Where it requires a signature.


def test_what_is_not_signed_is_401(server):
    for method, path, operation in OPERATIONS:
        if "security" not in operation:
            continue
        body = compact(pushed(path))
        requests = [(path, body, JSON)]
        if FORM in operation["requestBody"]["content"]:
            requests += [(path, "pid=1&data=x", FORM), (f"{path}?pid=1&data=x", None, JSON)]
        for target, body, content_type in requests:
            answer = server.request(method.upper(), target, body, {"Content-Type": content_type})
            answer.assert_refused(401)


# Whatever schemathesis generates from it.


def test_schemathesis_finds_nothing(server, tmp_path):
    """Thousands of requests made from the schemas, good ones and bad ones, all of them signed."""
    host, port = server.http
    schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [schemathesis, "run", f"http://{host}:{server.swagger[1]}/openapi.json"]
    command += ["--url", f"http://{host}:{port}", "--no-color", "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    # OpenAPI has no place for a signature in a form, so the check mistakes signed forms for missing
    # authentication.
    command += ["--checks", "all", "--exclude-checks", "ignored_auth"]
    # Limits are in bytes, lengths in schemas are in characters.
    command += ["--generation-codec", "ascii", "--suppress-health-check", "all"]
    if "API_EXAMPLES" in os.environ:
        command += ["--generation-database", "none"]
    else:
        command.append("--generation-deterministic")
    hooks = os.path.join(os.path.dirname(__file__), "openapi_hooks.py")
    # schemathesis creates a directory where it runs.
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": hooks},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(run.stdout)
    assert run.returncode == 0
    # Check that requests were sent.
    assert int(re.search(r"(\d+) generated", run.stdout)[1]) > 2 * EXAMPLES
