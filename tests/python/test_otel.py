"""Traces: what a collector receives, decoded from its protobuf."""

import contextlib
import hashlib
import http.server
import signal
import socket
import threading

import pytest
from harness import eventually
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from redis_harness import node
from test_redis_servers import await_known
from test_servers import answer_one, request

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """An OTLP receiver over HTTP."""

    def __init__(self):
        collector = self
        self.requests = []
        self.status = 200

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.status == 200:
                    found = ExportTraceServiceRequest.FromString(body)
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    collector.requests.append((self.path, headers, found))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def env(self):
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:%d" % self.server.server_port}

    def spans(self):
        return [
            (attributes(each.resource), span)
            for _, _, found in list(self.requests)
            for each in found.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]

    def named(self, name, count=1):
        """Waits for this number of spans with that name, and returns them."""
        found = lambda: [one for one in self.spans() if one[1].name == name]
        eventually(lambda: len(found()) >= count, f"{count} spans '{name}'")
        return found()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def attributes(of):
    return {
        one.key: one.value.string_value or one.value.int_value for one in of.attributes
    }


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.stop()


def push(server, data, traceparent=None, **members):
    headers = {"traceparent": traceparent} if traceparent else {}
    answer = server.post_json("/ws/push", {"pid": "1", "data": data, **members}, headers=headers)
    assert answer.status == 200
    return answer.json["id"]


def test_a_push_is_traced_through_one_node(start, collector):
    server = start("--node", "7", env=collector.env)
    with server.client("ann") as ann:
        sent = push(server, "x", f"00-{TRACE}-{PARENT}-01", uids=["ann"])
        ann.pushed()
    (resource, accepted), = collector.named("push accepted")
    (_, received), = collector.named("push received")
    (_, written), = collector.named("push written")
    assert resource["service.name"] == "ws-cluster"
    assert resource["service.instance.id"] == "7"
    assert {one.trace_id.hex() for one in (accepted, received, written)} == {TRACE}
    assert accepted.parent_span_id.hex() == PARENT
    assert received.parent_span_id == accepted.span_id
    assert written.parent_span_id == received.span_id
    assert accepted.start_time_unix_nano <= received.start_time_unix_nano
    assert received.start_time_unix_nano <= written.start_time_unix_nano
    assert written.end_time_unix_nano - accepted.start_time_unix_nano < 30_000_000_000
    for span in (accepted, received, written):
        assert attributes(span)["messaging.message.id"] == sent
    assert attributes(received)["ws.connections"] == 1
    path, headers, _ = collector.requests[0]
    assert path == "/v1/traces" and headers["content-type"] == "application/x-protobuf"


def test_a_trace_goes_on_at_the_other_node(collector, redis):
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in (41, 42):
            args = ["--redis_prefix", "otel"]
            nodes.append(node(number, redis.url, *args, env=collector.env))
            stack.callback(nodes[-1].stop)
        a, b = nodes
        ann = stack.enter_context(b.client("ann"))
        push(a, "x", f"00-{TRACE}-{PARENT}-01", uids=["ann"])
        ann.pushed()
        (at_a, accepted), = collector.named("push accepted")
        (_, queued), = collector.named("push queued")
        (at_b, received), = collector.named("push received")
        assert (at_a["service.instance.id"], at_b["service.instance.id"]) == ("41", "42")
        assert queued.parent_span_id == received.parent_span_id == accepted.span_id
        assert {span.trace_id.hex() for span in (accepted, queued, received)} == {TRACE}
        # Also a request, to the other node and back.
        server = stack.enter_context(a.business("request"))
        await_known(1, a, b)
        request(ann, 1)
        answer_one(server)
        assert ann.json()["code"] == 1
        (at_b, asked), = collector.named("request")
        (at_a, response), = collector.named("response")
        assert (at_a["service.instance.id"], at_b["service.instance.id"]) == ("41", "42")
        assert response.trace_id == asked.trace_id
        assert response.parent_span_id == asked.span_id and asked.parent_span_id == b""


def test_who_calls_decides_and_a_share_of_the_rest_is_taken(start, collector):
    share = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret%20key"}
    server = start(env=collector.env | share | headers)
    with server.client("ann") as ann:
        for number in range(20):
            push(server, number, uids=["ann"])
        push(server, "no", f"00-{TRACE}-{PARENT}-00", uids=["ann"])
        push(server, "bad", "what is this", uids=["ann"])
        push(server, "yes", f"00-{TRACE}-{PARENT}-01", uids=["ann"])
        for _ in range(23):
            ann.pushed()
    collector.named("push written")
    assert len(collector.named("push accepted")) == 1
    assert collector.requests[0][1]["api-key"] == "secret key"


def test_a_collector_that_is_away_costs_nobody(start, collector):
    collector.status = 503
    server = start(env=collector.env | {"OTEL_EXPORTER_OTLP_TIMEOUT": "300"})
    with server.client("ann") as ann:
        for number in range(500):
            push(server, number, uids=["ann"])
            assert ann.pushed() == str(number)
        eventually(lambda: any("collector" in line for line in server.errors + server.output), "a warning")
        collector.status = 200
        push(server, "again", uids=["ann"])
        collector.named("push accepted")


def test_the_last_spans_are_sent_before_the_node_ends(start, collector):
    """Those of the last half second were lost with the process."""
    server = start(env=collector.env)
    with server.client("ann") as ann:
        for number in range(20):
            push(server, number, uids=["ann"])
            ann.pushed()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    names = [span.name for _, span in collector.spans()]
    assert {name: names.count(name) for name in set(names)} == {
        "push accepted": 20, "push received": 20, "push written": 20
    }


def test_a_collector_that_never_answers_does_not_keep_the_node(start):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = "http://127.0.0.1:%d" % silent.getsockname()[1]
        server = start(env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        push(server, "x")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_headers_of_the_request_itself_cost_no_spans(start, collector):
    """With a Content-Length of its own every request failed."""
    list_of_all = "Content-Length=3,Transfer-Encoding=chunked,Host=other,Content-Type=a,User-Agent=me"
    server = start(env=collector.env | {"OTEL_EXPORTER_OTLP_HEADERS": list_of_all})
    push(server, "x")
    collector.named("push accepted")
    headers = collector.requests[0][1]
    assert headers["content-type"] == "application/x-protobuf" and headers["user-agent"] == "me"
    assert headers["host"] == "127.0.0.1:%d" % collector.server.server_port


def test_nodes_with_the_same_share_trace_the_same_requests_of_a_backend(start, collector):
    """The decision was a lot that each node drew: traces had holes."""
    share = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    traces = [hashlib.sha256(b"%d" % number).hexdigest()[:32] for number in range(100)]
    for _ in range(2):
        server = start(env=collector.env | share)
        for trace in traces:
            push(server, "x", f"00-{trace}-{PARENT}-01")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    traced = [span.trace_id.hex() for _, span in collector.spans() if span.name == "push accepted"]
    # OpenTelemetry's rule for a share of one half.
    wanted = [trace for trace in traces if int(trace[16:], 16) >> 1 < 1 << 62]
    assert sorted(traced) == sorted(2 * wanted) and 30 < len(wanted) < 70


def test_without_a_propagator_a_callers_trace_is_not_continued(start, collector):
    server = start(env=collector.env | {"OTEL_PROPAGATORS": "none"})
    push(server, "x", f"00-{TRACE}-{PARENT}-00")
    (_, accepted), = collector.named("push accepted")
    assert accepted.trace_id.hex() != TRACE and accepted.parent_span_id == b""
