"""The live page and its console: their files, and how they look in a browser.

With WS_CLUSTER_PICTURES=docs the load runs for five minutes, and the pictures of docs/ are renewed
(`make pictures`)."""

import contextlib
import json
import math
import os
import re
import threading
import time
from urllib.parse import urljoin

import pytest
from browser import SLACK, Browser
from harness import PATIENCE, ROOT, Server, eventually
from redis_harness import Crowd, Pusher

pytestmark = pytest.mark.slow

PICTURES = os.environ.get("WS_CLUSTER_PICTURES")
TOKEN = "a-token-of-24-characters"
# WebDriver's key codes.
LEFT, END, ESCAPE = "\ue012", "\ue010", "\ue00c"


class Page(Browser):
    """A user at a node's live page."""

    def visit(self, server, target="/"):
        self.open("http://%s:%d%s" % (*server.swagger, target))
        # A changed hash alone does not reload it.
        self.run("location.reload()")

    def text(self, selector):
        return self.texts(selector)[0]

    def tiles(self):
        return dict(zip(self.texts("#tiles dt"), self.texts("#tiles dd")))

    def await_tile(self, name, pattern):
        said = lambda: re.fullmatch(pattern, self.tiles().get(name, ""))
        eventually(said, f"{name} like {pattern!r}, not {self.tiles()}", SLACK)

    def legend(self, chart):
        """The value beside the name of each series."""
        parts = (f"#chart-{chart} .legend {part}" for part in ("span", "b"))
        return dict(zip(*map(self.texts, parts)))

    def lines(self, chart):
        """The path of each series."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.outerHTML)"
        return self.run(script, f"#chart-{chart} .lines .line")

    def key(self, selector, key):
        """A key that types no character."""
        self.type(selector, key)

    def fill(self, selector, value):
        """Replaces the value of a field."""
        script = """
            const field = document.querySelector(arguments[0]);
            field.value = arguments[1];
            field.dispatchEvent(new Event("input", { bubbles: true }));
            field.dispatchEvent(new Event("change", { bubbles: true }));
        """
        self.run(script, selector, value)

    def frames(self):
        """Arrow, from, kind, and the text of each frame, the oldest first."""
        script = """
            const parts = [".arrow", ".from", ".kind", "code"];
            return [...document.querySelectorAll("#frames summary")].reverse().map((row) =>
              parts.map((part) => row.querySelector(part).textContent));
        """
        return [tuple(row) for row in self.run(script)]

    def await_frame(self, arrow, sender, kind, text=""):
        """Waits for a frame like that, and returns the text of the last one."""

        def found():
            like = [
                row[3] for row in self.frames()
                if row[:2] == (arrow, sender) and row[2].startswith(kind) and text in row[3]
            ]
            return like and like[-1:]

        return eventually(found, f"{arrow} {sender} {kind} {text}", SLACK)[0]

    def connect(self, uid, kind="1", **values):
        self.fill("#connect [name=type]", kind)
        for name, value in {"uid": uid, **values}.items():
            self.fill(f"#connect [name={name}]", value)
        self.click("#connect button")

    def choose(self, number):
        """The connection with that number, from 1."""
        self.click(f"#connections li:nth-child({number}) input")


@pytest.fixture(scope="module")
def page():
    page = Page()
    yield page
    page.stop()


@pytest.fixture
def serve(stack):
    def serve(*args, **options):
        server = Server("--workers", "2", *args, **options)
        stack.callback(server.stop)
        return server

    return serve


def get(server, path, **options):
    return server.request("GET", path, at=server.swagger, **options)


# Its files.


def test_the_page_is_one_set_of_files_that_browsers_may_keep(serve):
    server = serve()
    page = get(server, "/")
    assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "ws://127.0.0.1:*" in policy and "unsafe" not in policy
    assert page.headers["Referrer-Policy"] == "no-referrer"
    links = re.findall(r'(?:src|href)="((?:live/|token)[^"]+)"', page.text)
    wanted = {f"/{path}" for path in links}
    seen = {}
    while wanted - set(seen):
        path = (wanted - set(seen)).pop()
        seen[path] = get(server, path)
        imported = re.findall(r'from "(\.[^"]+)"', seen[path].text)
        wanted |= {urljoin(path, name) for name in imported}
    assert len(seen) == 11
    for path, file in {"/": page, **seen}.items():
        kind = "css" if path.endswith("css") else "html" if path == "/" else "javascript"
        assert file.status == 200 and f"text/{kind}" in file.headers["Content-Type"], path
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        assert file.headers["Cache-Control"] == "no-cache"
        # Nothing is loaded from elsewhere.
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[\w.]", file.text), path
        tag = file.headers["ETag"]
        kept = get(server, path, headers={"If-None-Match": f'"x", {tag}'})
        assert (kept.status, kept.body, kept.headers["ETag"]) == (304, b"", tag)
        assert get(server, path, headers={"If-None-Match": '"x"'}).body == file.body
    assert get(server, "/live/nothing.js").status == 404


def test_the_feed_says_what_the_metrics_say(serve):
    server = serve("--node", "7")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client(f"u{n}", tags="a")) for n in range(5)]
        stack.enter_context(server.business())
        for n in range(20):
            server.push(n, tags=["a"])
        server.received(clients)
        assert server.push_form({"pid": "1", "data": "x"}).status == 200
        assert server.post_json("/ws/push", {"pid": "1"}, secret="wrong").status == 401

        def settled():
            """Both, once nothing is in flight: a worker counts after it has sent."""
            answer, metrics = get(server, "/live.json"), server.metrics()
            deliveries = sum(worker["deliveries"] for worker in answer.json["workers"])
            return deliveries == metrics["ws_cluster_delivery_total"] and (answer, metrics)

        answer, metrics = eventually(settled, "the feed and the metrics agree")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    feed = answer.json
    assert (feed["node"], feed["env"], feed["draining"]) == (7, "dev", False)
    assert feed["nodes"] == [{"node": 7, "state": "up"}]
    assert feed["projects"] == [{"pid": "1", "clients": 5, "servers": 1}]
    assert {"worker-0", "worker-1", "ops"} <= {one["name"] for one in feed["threads"]}
    assert feed["memory_bytes"] > 1 << 20
    assert feed["queue"] == {"kind": "local", "ready": True}
    assert abs(feed["ts"] / 1000 - time.time()) < PATIENCE
    # By a clock that nobody sets; the milliseconds of the two do not change together.
    assert abs(feed["uptime_ms"] - (feed["ts"] - feed["epoch"])) <= 2
    assert 0 <= feed["uptime_ms"] < PATIENCE * 1000
    assert feed["ws"] == "%s:%d" % server.ws and feed["http"] == "%s:%d" % server.http
    assert len(feed["workers"]) == 2
    total = lambda name: sum(worker[name] for worker in feed["workers"])
    assert total("connections") == metrics["ws_connection"] == 6
    assert total("servers") == metrics["ws_cluster_business_server"] == 1
    assert total("deliveries") == metrics["ws_cluster_delivery_total"] >= 100
    assert total("envelopes") == metrics["ws_cluster_envelope_total"]
    for one in feed["requests"]:
        series = 'request_url_total{{url="{url}",code="{code}"}}'.format(**one)
        assert one["count"] == metrics[series], series
    assert {one["code"] for one in feed["requests"]} == {200, 401}
    assert feed["handshakes"] == {"101": 6}
    histogram = feed["request_duration"]
    assert len(histogram["counts"]) == len(histogram["bounds"]) + 1
    assert sum(histogram["counts"]) == metrics["request_duration_count"]
    pushes = feed["push_seconds"]
    assert sum(pushes["delivery"]["counts"]) == metrics["ws_cluster_push_delivery_seconds_count"] > 0
    for hop in ("queue", "receive", "write"):
        count = metrics[f'ws_cluster_push_hop_seconds_count{{hop="{hop}"}}']
        assert sum(pushes[hop]["counts"]) == count, hop
    for kind, prefix in (("wall", ""), ("own", "own_")):
        # Taken a moment apart: workers keep running turns.
        count = metrics[f"ws_cluster_worker_{prefix}pause_seconds_count"]
        assert 0 < sum(feed["pause_seconds"][kind]["counts"]) <= count, kind
        assert feed["longest_pause_us"][kind] >= 0
    for reason in feed["workers"][0]["drops"]:
        dropped = sum(worker["drops"][reason] for worker in feed["workers"])
        assert dropped == metrics[f'ws_cluster_drop_total{{reason="{reason}"}}']


def test_the_built_in_project_is_told_in_development_alone(serve, projects):
    built_in = {"pid": "1", "secret": "dev-secret"}
    assert get(serve(), "/live.json").json["dev_project"] == built_in
    for args in (["--env", "test"], ["--projects", projects]):
        assert "dev_project" not in get(serve(*args), "/live.json").json, args


def test_the_token_is_asked_for_and_leaves_the_address(serve, page):
    server = serve(env={"WS_CLUSTER_OPS_TOKEN": TOKEN})
    assert get(server, "/live/live.js").status == get(server, "/live/live.css").status == 200
    for path in ("/", "/live.json", "/live/", "/live/../live.json"):
        assert get(server, path).status == 401, path
    borne = {"Authorization": f"Bearer {TOKEN}"}
    assert get(server, "/live.json", headers=borne).json["node"] == 1
    by_browser = get(server, "/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert by_browser.status == 401 and "<form" in by_browser.text
    assert by_browser.headers["Cache-Control"] == "no-store"

    address = "return location.pathname + location.search + location.hash"
    page.visit(server, "/#console")
    page.await_text("#token label", "Ops token")
    assert not page.is_shown("main") and not page.is_shown(".banner")
    for typed, problem in (("wrong", "The node refuses this token"), ("träge", "printable ASCII")):
        page.type("#token-field", typed)
        page.click("#token button")
        page.await_text("#token-problem", problem)
    page.fill("#token-field", TOKEN)
    page.click("#token button")
    page.await_text("#status", "node 1 is up")
    page.run("location.reload()")
    page.await_text("#status", "node 1 is up")
    assert not page.is_shown("#token") and page.is_shown("main")
    page.click("#api")
    page.await_text("#swagger-ui .title", "HTTP API")
    assert page.run(address) == "/swagger/index.html"

    page.run("sessionStorage.clear()")
    page.visit(server, f"/?a=1&token={TOKEN}#console")
    page.await_text("#status", "node 1 is up")
    assert page.run(address) == "/?a=1#console"
    assert TOKEN not in page.run("return document.documentElement.outerHTML + document.cookie")
    assert page.complaints() == []


def test_a_browser_is_asked_for_the_token_at_every_port(serve, page):
    server = serve(env={"WS_CLUSTER_OPS_TOKEN": TOKEN})
    html = {"Accept": "text/html"}
    at = lambda address, path: "http://%s:%d%s" % (*address, path)
    address = "return location.href"
    for port, path, shown in (
        (server.metrics_address, "/metrics", "ws_connection"),
        (server.pprof, "/debug/pprof/heap", "committed"),
        (server.pprof, "/debug/pprof/", "Profiles of this node"),
        (server.swagger, "/openapi.yaml", "openapi: 3"),
    ):
        asked = server.request("GET", path, headers=html, at=port)
        assert asked.status == 401 and "<form" in asked.text, path
        assert asked.headers["WWW-Authenticate"].startswith("Bearer")
        told = server.request("GET", path, headers={"Accept": "*/*"}, at=port)
        assert told.status == 401 and "<" not in told.text, path
        assert "Authorization: Bearer" in told.text
        page.open(at(port, f"{path}?token={TOKEN}"))
        page.await_text("body", shown)
        assert page.run(address) == at(port, path)
        page.run("sessionStorage.clear()")
        page.open(at(port, path))
        page.type("#token-field", TOKEN)
        page.click("#token button")
        page.await_text("body", shown)
        assert page.run(address) == at(port, path)
    # A link on a page that was opened with the token works, and the drawing keeps its colours and
    # its script.
    page.open(at(server.pprof, "/debug/pprof/"))
    page.await_text("pre", "WS_CLUSTER_OPS_TOKEN")
    page.open(at(server.pprof, "/debug/pprof/flamegraph?seconds=1"))
    drawn = "return document.documentElement.tagName"
    eventually(lambda: page.run(drawn) == "svg", "a flame graph", SLACK)
    assert page.run(address).startswith("blob:") and page.complaints() == []


# Its charts.


class Load:
    """Clients, pushes, requests and failures, until it is stopped."""

    def __init__(self, nodes, stack):
        self.nodes = nodes
        self.is_over = threading.Event()
        self.crowd = stack.enter_context(Crowd())
        for number in range(40):
            server = nodes[number % len(nodes)]
            self.crowd.add(server, f"u{number}", tags=[f"t{number % 4}", "all"])
        self.crowd.start()
        tasks = [*(lambda node=node: self.push(node) for node in nodes), self.ask, self.visit]
        self.threads = [threading.Thread(target=task) for task in tasks]
        for thread in self.threads:
            thread.start()
        stack.callback(self.stop)

    def stop(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join(SLACK)

    def push(self, server):
        with Pusher(server) as pusher:
            for number in range(1 << 30):
                # A wave of 40 seconds.
                if self.is_over.wait(0.008 + 0.005 * math.sin(time.monotonic() / 6.4)):
                    return
                tag = "all" if number % 10 == 0 else f"t{number % 4}"
                pusher.push({"pid": "1", "tags": [tag], "data": {"number": number}})

    def ask(self):
        """A client at the first node, whose requests the last one's business server answers."""
        with self.nodes[-1].business("request") as server, self.nodes[0].client("asker") as client:
            number = 0
            while not self.is_over.wait(0.05):
                number += 1
                client.send({"type": "request", "id": str(number), "data": number})
                asked = server.json(SLACK)
                server.send({"type": "response", "id": asked["id"], "data": number})
                client.json(SLACK)

    def visit(self):
        number = 0
        while not self.is_over.wait(0.7):
            number += 1
            with self.nodes[0].client(f"guest{number}"):
                self.is_over.wait(0.3)


def slow_consumer(server):
    """A client that does not read, until the node has dropped its unsent frames."""
    dropped = lambda: server.metric("ws_cluster_drop_total", reason="slow_consumer")
    before = dropped()
    raw = server.raw_ws("sloth", receive_buffer=4096)
    while dropped() == before:
        server.push("x" * 60_000, uids=["sloth"])
    raw.socket.close()


def picture(page, name, folder):
    page.screenshot(os.path.join(PICTURES or str(folder), name))


def test_the_charts_move_under_load(redis, own_node, name, stack, page, tmp_path):
    # The crowd answers no pings.
    args = ["--redis_prefix", name, "--idle_timeout_ms", "86400000"]
    nodes = [own_node(number, redis.url, *args) for number in (201, 202)]
    Load(nodes, stack)
    page.resize(1400, 1390)
    page.visit(nodes[0])
    page.await_text("#status", "node 201 is up")
    page.await_tile("Deliveries", r"[\d.]+k?/s")
    page.await_tile("Connections", r"2[1-3]")
    page.await_tile("Business servers", "0")
    page.await_text("#tiles dt", r"^Queue, lag (< )?[\d.]+ ms$")
    for tile in ("HTTP p99", "Delivery p99"):
        page.await_tile(tile, r"[\d.]+ (µs|ms)")
    page.await_tile("Memory", r"[\d.]+ MiB")
    page.await_tile("Longest own pause", r"(< 0.5|[\d.]+) (µs|ms)")
    assert page.texts("#nodes li") == ["node 201: up this one", "node 202: up"]
    # Both nodes push, and each receives the pushes of both.
    seen = eventually(lambda: rates(page, "queue"), "the queue's rates", SLACK)
    assert seen["received"] > seen["accepted"] > 10, seen
    assert rates(page, "deliveries")["deliveries"] > 100
    for chart in ("request", "delivery"):
        assert set(page.legend(chart)) == {"p50", "p95", "p99"}
    assert set(page.legend("pauses")) == {"pause", "worker's own part"}
    assert set(page.legend("hops")) == {"queue's reply", "to a worker", "writing"}
    eventually(lambda: rates(page, "answers").get("answered", 0) > 1, "requests", SLACK)

    before = page.lines("deliveries")
    eventually(lambda: page.lines("deliveries") != before, "charts that move", SLACK)
    assert [len(page.lines(chart)) for chart in ("connections", "deliveries")] == [2, 4]
    assert page.lines("drops") == [] and "nothing was dropped" in page.text("#chart-drops .empty")
    slow_consumer(nodes[0])
    eventually(lambda: page.legend("drops").keys() == {"slow consumer"}, "the drops", SLACK)
    assert len(page.lines("drops")) == 1 and page.text("#chart-drops .empty") == ""

    rows = page.run(
        "return [...document.querySelectorAll('#workers tr')].map((row) =>"
        " [...row.cells].map((cell) => cell.innerText.trim()))"
    )
    assert [row[0] for row in rows] == ["worker-0", "worker-1", "broker"]
    assert all(re.fullmatch(r"[\d.]+%", row[1]) and row[1] != "0%" for row in rows), rows
    assert all(re.fullmatch(r"[\d.]+k?/s", row[2]) and row[2] != "0/s" for row in rows[:2]), rows
    shares = page.run(
        "return [...document.querySelectorAll('.sparkline .line')].map((e) => e.getAttribute('d'))"
    )
    assert len(shares) == 3 and all("L" in share for share in shares)
    assert "/ws/push" in page.texts("#requests th") and page.texts("#projects th") == ["1"]
    # The connections that opened last: their addresses, projects, users.
    recent = [page.texts(f"#recent td:nth-child({column})") for column in (2, 3, 4)]
    assert len(recent[0]) > 1 and set(recent[0]) == {"127.0.0.1"} and set(recent[1]) == {"1"}
    assert all(recent[2])

    if PICTURES:
        # As long as the time span of the charts.
        time.sleep(240)
        slow_consumer(nodes[0])
        time.sleep(60)
    for theme in ("light", "dark"):
        eventually(lambda: click_theme(page, theme), f"the theme {theme}", SLACK)
        picture(page, f"live-{theme}.png", tmp_path)
    assert page.complaints() == []


def rates(page, chart):
    """The numbers of a legend, without unknown ones."""
    scale = {"": 1, "k": 1e3, "M": 1e6}
    found = {}
    for label, text in page.legend(chart).items():
        if rate := re.fullmatch(r"([\d.]+)([kM]?)/s", text):
            found[label] = float(rate[1]) * scale[rate[2]]
    return found


def click_theme(page, wanted):
    if page.text("#theme") == f"Theme: {wanted}":
        return True
    page.click("#theme")
    return False


def background(page):
    return page.run("return getComputedStyle(document.body).backgroundColor")


def test_themes_keys_and_a_narrow_screen(serve, page):
    server = serve()
    page.resize(1000, 900)
    page.visit(server)
    page.await_text("#status", "is up")
    grounds = {}
    for theme in ("light", "dark", "auto"):
        eventually(lambda: click_theme(page, theme), f"the theme {theme}", SLACK)
        grounds[theme] = background(page)
    assert grounds["light"] != grounds["dark"] and grounds["auto"] in grounds.values()
    eventually(lambda: click_theme(page, "dark"), "the theme dark", SLACK)
    page.visit(server)
    assert background(page) == grounds["dark"]
    eventually(lambda: click_theme(page, "auto"), "the theme auto", SLACK)

    # The arrow keys move through the points, and announce each.
    plot = "#chart-connections .plot"
    told = lambda: page.run("return document.querySelector(arguments[0]).ariaValueText", plot)
    eventually(lambda: len(page.lines("connections")[0]) > 100, "some points", SLACK)
    page.key(plot, LEFT)
    assert re.fullmatch(r"\d\d:\d\d:\d\d: WebSocket 0, HTTP 0", told())
    first = page.text(f"{plot} .tip .when")
    page.key(plot, LEFT)
    assert page.text(f"{plot} .tip .when") < first
    page.key(plot, ESCAPE)
    assert page.run("return document.querySelector(arguments[0]).hidden", f"{plot} .tip")

    # The data fills the chart from its left edge, whatever time span was chosen.
    first = lambda: float(re.search(r"M([\d.]+)", page.lines("connections")[0])[1])
    for span in ("300", "60"):
        page.fill("#span", span)
        eventually(lambda: first() < 70, f"a full chart of {span} s", SLACK)

    page.resize(390, 900)
    for view in ("live", "console"):
        page.run(f"location.hash = '{view}'")
        eventually(lambda: page.cut() == [], f"{view}: nothing that is cut", SLACK)
        assert page.run("return document.documentElement.scrollWidth") <= 390
    assert page.complaints() == []


LABELS = """
    const boxes = (chart, anchor) => [...chart.querySelectorAll(".grid text")].map((text) => {
      const { left, right, top, bottom } = text.getBoundingClientRect();
      return { left, right, top, bottom, text: text.textContent };
    });
    const apart = (a, b) =>
      a.right <= b.left || b.right <= a.left || a.bottom - 3 <= b.top || b.bottom - 3 <= a.top;
    return [...document.querySelectorAll(".chart:not([hidden])")].flatMap((chart) => {
      const all = boxes(chart);
      const { left, right } = chart.getBoundingClientRect();
      const hit = all.flatMap((a, at) => all.slice(at + 1).filter((b) => !apart(a, b)).map((b) => [a, b]));
      const cut = all.filter((a) => a.left < left || a.right > right);
      return [...hit, ...cut].map((found) => [chart.id, JSON.stringify(found)]);
    });
"""


def test_labels_of_the_axes_keep_apart(serve, page):
    server = serve()
    page.visit(server)
    page.await_text("#status", "is up")
    for width in (1280, 390):
        page.resize(width, 900)
        # The charts follow with the next frame.
        eventually(lambda: page.run(LABELS) == [], "labels in their places", SLACK)
        for _ in range(3):
            assert page.run(LABELS) == []
            before = page.lines("connections")
            eventually(lambda: page.lines("connections") != before, "another second", SLACK)


def test_a_node_that_is_killed_is_shown_as_gone_and_comes_back(redis, own_node, name, stack, page):
    nodes = [own_node(number, redis.url, "--redis_prefix", name) for number in (201, 202)]
    other = Page()
    stack.callback(other.stop)
    page.resize(1000, 900)
    for one, node in ((page, nodes[0]), (other, nodes[1])):
        one.visit(node)
        one.await_text("#status", f"node {node.number} is up")
        one.await_tile("Connections", "0")
    nodes[0].process.kill()
    page.await_text("#status", "unreachable")
    words = r"node 201 has not responded since \d\d:\d\d:\d\d\. Retrying every second\."
    assert re.fullmatch(words, page.text("#gone"))
    assert page.run("return document.title").startswith("unreachable: node 201")
    # The last values stay, and the charts continue without new ones.
    assert page.tiles()["Connections"] == "0"
    before = page.lines("connections")
    eventually(lambda: page.lines("connections") != before, "charts that move", SLACK)
    assert other.text("#status") == "node 202 is up"
    other.await_text("#nodes li", "node 201: lost")

    port = str(nodes[0].swagger[1])
    given = ("ws_port", "http_port", "prometheus_port", "pprof_port")
    own_node(201, redis.url, "--redis_prefix", name, "--swagger_port", port, given=given)
    page.await_text("#status", "node 201 has restarted")
    assert page.text("#gone") == ""
    gaps = lambda: len(re.findall("M", page.lines("connections")[0]))
    eventually(lambda: gaps() == 2, "a gap in the line", SLACK)
    page.await_tile("Deliveries", r"0/s")
    other.await_text("#nodes li", "node 201: up")

    nodes[1].signal(19)
    other.await_text("#status", "unreachable")
    nodes[1].signal(18)
    other.await_text("#status", "node 202 is back after")
    assert page.complaints() == other.complaints() == []


# Its console.


@pytest.fixture
def console(serve, page):
    """A node, and its console."""
    server = serve()
    page.resize(1400, 1000)
    page.visit(server, "/#console")
    secret = "return document.querySelector('[name=secret]').value"
    eventually(lambda: page.run(secret), "the secret", SLACK)
    return server, page


def test_a_client_and_a_business_server_in_the_console(console, tmp_path):
    server, page = console
    page.connect("alice", device="web")
    page.await_frame("←", "client alice", "connect", '"code":1')
    page.click("#subscribe button[value=subscribe]")
    answer = page.await_frame("←", "client alice", "subscribe")
    assert json.loads(answer)["tags"] == ["news"]
    page.connect("billing", kind="2", events="request,subscribe")
    page.await_frame("←", "server billing", "connect")
    assert len(page.texts("#connections li")) == 2

    page.fill("#push [name=tags]", "news")
    page.fill("#push [name=data]", '{"n": 12345678901234567890, "text": "<b>Grüß dich</b>"}')
    page.click("#push button[value=http]")
    page.await_frame("←", "HTTP", "200 in")
    frame = page.await_frame("←", "client alice", "push")
    assert '"data":{"n": 12345678901234567890, "text": "<b>Grüß dich</b>"}' in frame
    page.click("#frames li:first-child summary")
    page.await_text("#frames pre", r'"(data|code)": ')

    page.choose(1)
    page.click("#request button")
    page.await_frame("←", "server billing", "request")
    page.choose(2)
    page.await_text("#asked", "1 unanswered")
    page.click("#of-server button")
    assert json.loads(page.await_frame("←", "client alice", "response in"))["data"] == {"ok": True}
    page.await_text("#asked", "no unanswered requests")
    page.click("#of-server [name=auto]")
    page.choose(1)
    page.fill("#request [name=data]", '"again"')
    page.click("#request button")
    page.await_frame("←", "server billing", "request", "again")
    answers = lambda: [kind for _, _, kind, _ in page.frames() if kind.startswith("response in")]
    eventually(lambda: len(answers()) == 2, "a second answer", SLACK)
    page.choose(2)
    page.fill("#push [name=data]", '"from the server"')
    page.click("#push-server")
    page.await_frame("←", "server billing", "push", '"code":1')
    page.await_frame("←", "client alice", "push", "from the server")

    page.choose(1)
    page.click("#heartbeat")
    page.await_frame("←", "client alice", "heartbeat")
    page.fill("#raw [name=text]", "not JSON")
    page.click("#raw button")
    page.await_frame("←", "client alice", "error")
    page.click("#subscribe button[value=unsubscribe]")
    answer = page.await_frame("←", "client alice", "unsubscribe")
    assert json.loads(answer)["tags"] == []
    page.run("scrollTo(0, 0)")
    picture(page, "console.png", tmp_path)

    page.click("#connections li:first-child button")
    assert "code 1000" in page.await_frame("·", "client alice", "closed")
    eventually(lambda: server.metric("ws_connection") == 1, "one connection", SLACK)
    assert page.complaints() == []


def test_every_selector_goes_out(console):
    server, page = console
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(server.client(uid, tags=tags, device=device))
            for uid, tags, device in (("a", "t", "web"), ("a", "t", "app"), ("b", "t", "web"))
        ]
        one = clients[0].cid
        for values, expected in (
            ({}, [1, 1, 1]),
            ({"uids": "a"}, [1, 1, 0]),
            ({"uids": "a, b", "devices": "web"}, [1, 0, 1]),
            ({"tags": "t", "cids": one}, [1, 0, 0]),
            ({"tags": "t", "except_cids": one, "ttl_ms": "60000"}, [0, 1, 1]),
            ({"uids": "a", "idempotency_key": "k"}, [1, 1, 0]),
            ({"uids": "b", "idempotency_key": "k"}, [0, 0, 0]),
        ):
            names = ("uids", "tags", "devices", "cids", "except_cids", "ttl_ms", "idempotency_key")
            for field in names:
                page.fill(f"#push [name={field}]", values.get(field, ""))
            page.click("#clear")
            page.click("#push button[value=http]")
            page.await_frame("←", "HTTP", "200 in")
            got = [len(pushes) for pushes in server.received(clients)]
            assert got == expected, values


def test_what_is_malformed_is_named_and_not_sent(console):
    server, page = console
    page.connect("alice")
    page.await_frame("←", "client alice", "connect")
    page.connect("billing", kind="2")
    page.await_frame("←", "server billing", "connect")
    page.click("#push summary")
    push = "#push button[value=http]"
    for chosen, field, value, button, words in (
        (1, "#push [name=ttl_ms]", "abc", push, 'ttl_ms must be a whole number .* not "abc"'),
        (1, "#push [name=cids]", "7,x", push, 'cids must be a list of client ids.* "x"'),
        (1, "#push [name=except_cids]", ",", push, "except_cids has only commas"),
        (1, "#push [name=devices]", "Web", push, "devices must be a list of"),
        (1, "#push [name=data]", "{", push, "data is not JSON"),
        (1, "#project [name=pid]", "", push, "pid is empty"),
        (1, "#project [name=http]", "localhost", push, "HTTP must be http://"),
        (1, "#project [name=ws]", "http://x", "#connect button", "WebSocket must be ws://"),
        (1, "#connect [name=uid]", "a,b", "#connect button", "uid must be a user id"),
        (1, "#connect [name=events]", "kick", "#connect button", "events must be a list of"),
        (1, "#subscribe [name=tags]", "", "#subscribe button", "tags must name at least one"),
        (1, "#request [name=data]", "x", "#request button", "request is not JSON"),
        (2, "#push [name=ttl_ms]", "1.5", "#push-server", "ttl_ms must be a whole number"),
        (2, "#of-server [name=data]", "x", "#of-server button", "answer is not JSON"),
    ):
        page.choose(chosen)
        before = page.run("return document.querySelector(arguments[0]).value", field)
        page.fill(field, value)
        sent = page.frames()
        page.click(button)
        page.await_text("#problem", words)
        assert page.run("return document.activeElement.matches(arguments[0])", field), field
        assert page.run("return document.querySelectorAll('[aria-invalid]').length") == 1
        assert page.frames() == sent, field
        page.fill(field, before)
    page.choose(1)
    page.click(push)
    page.await_frame("←", "HTTP", "200 in")
    assert page.text("#problem") == "" and page.complaints() == []


def test_what_is_refused_says_why(console):
    server, page = console
    page.fill("#project [name=secret]", "wrong")
    page.connect("alice")
    assert "refused with 401" in page.await_frame("·", "client alice", "closed")
    page.await_text("#connections li", "refused with 401")
    assert page.text("#problem").startswith("client alice: refused with 401")
    page.click("#push button[value=http]")
    refused = json.loads(page.await_frame("←", "HTTP", "401 in"))
    assert page.text("#problem") == f"POST /ws/push: 401: {refused['msg']}"
    page.fill("#project [name=pid]", "nobody")
    page.connect("bob")
    assert "refused with 403" in page.await_frame("·", "client bob", "closed")
    page.fill("#project [name=pid]", "1")
    page.fill("#project [name=secret]", "dev-secret")
    # The maximum length of a uid is a flag of the node, unknown to the page.
    page.connect("a" * 129)
    assert "refused with 400" in page.await_frame("·", "client " + "a" * 129, "closed")
    page.fill("#project [name=ws]", "ws://127.0.0.1:1")
    page.connect("carol")
    assert "not reached" in page.await_frame("·", "client carol", "closed")
    page.fill("#project [name=http]", "http://127.0.0.1:1")
    page.click("#push button[value=http]")
    page.await_text("#problem", "no answer: the node was not reached")


def test_a_page_of_another_origin_is_not_let_in(serve, projects, page):
    server = serve("--projects", projects)
    page.visit(server, "/#console")
    page.fill("#project [name=pid]", "two")
    page.fill("#project [name=secret]", "new-secret-of-two")
    page.await_text("#status", "is up")
    page.connect("alice")
    assert "refused with 403" in page.await_frame("·", "client alice", "closed")
    page.click("#push button[value=http]")
    assert "allowed_origins" in page.await_frame("·", "HTTP", "no answer")
    assert all("CORS policy" in complaint for complaint in page.complaints())
    # This one accepts pages of every origin.
    page.fill("#project [name=pid]", "none")
    page.fill("#project [name=secret]", "secret-of-none")
    page.connect("bob")
    page.await_frame("←", "client bob", "connect")


def test_the_list_is_bounded_filtered_paused_and_cleared(console):
    server, page = console
    page.connect("alice")
    page.await_frame("←", "client alice", "connect")
    with Pusher(server) as pusher:
        for number in range(600):
            pusher.push({"pid": "1", "uids": ["alice"], "data": f"n{number} of many"})
        page.await_text("#tally", "500 of 500, at most 500")
        eventually(lambda: "n599 " in page.text("#frames code"), "the last", SLACK)
        assert len(page.texts("#frames li")) == 500

        page.fill("#filter", "ALICE n59")
        page.await_text("#tally", "10 of 500")
        page.fill("#filter", "")
        page.fill("#direction", "out")
        page.await_text("#tally", "0 of 500")
        page.fill("#direction", "all")

        page.click("#pause")
        pusher.push({"pid": "1", "uids": ["alice"], "data": "while it is paused"})
        page.await_text("#pause", r"Resume \(1 new\)")
        assert "n599 " in page.text("#frames code")
        page.click("#pause")
        assert "while it is paused" in page.text("#frames code")
        page.click("#clear")
        page.await_text("#tally", "0 of 0")
        pusher.push({"pid": "1", "uids": ["alice"], "data": "after it was cleared"})
        page.await_frame("←", "client alice", "push", "after it was cleared")
    assert page.complaints() == []
