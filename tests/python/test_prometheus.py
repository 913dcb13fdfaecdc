"""A real Prometheus scrapes two nodes: the seed's queries, the dashboard and the alerts."""

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from harness import PATIENCE, ROOT, eventually
from redis_harness import SLACK, Crowd, Pusher, Redis, free_port, node, run_all

pytestmark = pytest.mark.slow

DEPLOY = os.path.join(ROOT, "deploy")
RULES = os.path.join(DEPLOY, "prometheus/alerts.yml")
CONFIG = """
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["{rules}"]
scrape_configs:
  - job_name: ws-cluster
    static_configs:
      - targets: {targets}
"""
# The contract names these.
QUANTILE = "histogram_quantile(0.95, sum(rate(request_duration_bucket[5m])) by (le))"
SHARE = (
    'sum(rate(request_duration_bucket{le="0.3"}[5m])) by (job)'
    " / sum(rate(request_duration_count[5m])) by (job)"
)
URLS = 'request_url_total{job="ws-cluster"}'
REQUESTS = 'request_total{job="ws-cluster"}'
CONNECTIONS = 'ws_connection{job="ws-cluster"}'


class Prometheus:
    """A Prometheus on a free port that scrapes every second."""

    def __init__(self, folder, targets):
        self.config = os.path.join(folder, "prometheus.yml")
        with open(self.config, "w") as file:
            file.write(CONFIG.format(rules=RULES, targets=json.dumps(targets)))
        self.log = open(os.path.join(folder, "log"), "w+")
        for _ in range(10):
            self.port = free_port()
            self.process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={self.config}",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=self.log,
                stderr=subprocess.STDOUT,
            )
            if eventually(self._has_come, f"prometheus on {self.port}", SLACK) == "up":
                return
        self.log.seek(0)
        raise AssertionError(f"prometheus does not start: {self.log.read()[-2000:]}")

    def _has_come(self):
        if self.process.poll() is not None:
            # Somebody took the port.
            return "ended"
        with contextlib.suppress(OSError):
            self.get("/-/ready")
            return "up"
        return None

    def stop(self):
        self.process.terminate()
        self.process.wait(SLACK)
        self.log.close()

    def get(self, path, **params):
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(params)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=PATIENCE) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:
                    raise
                raise AssertionError(f"{params}: {error.read().decode()}") from None

    def series(self, query):
        """The labels and the `value` or `values` of each series of the query's result."""
        answer = json.loads(self.get("/api/v1/query", query=query))
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def values(self, query, *labels):
        """Values by these labels."""
        return {
            tuple(one["metric"].get(label) for label in labels): float(one["value"][1])
            for one in self.series(query)
        }

    def risen(self, name, **wanted):
        """The increase of each series over all scrapes, by instance and `le`."""
        matchers = ",".join(f'{label}="{value}"' for label, value in wanted.items())
        found = {}
        for one in self.series(f"{name}{{{matchers}}}[5m]"):
            numbers = [float(value) for _, value in one["values"]]
            labels = one["metric"]
            found[labels["instance"], labels.get("le")] = numbers[-1] - numbers[0]
        return found


def instance(server):
    return "%s:%d" % server.metrics_address


@pytest.fixture(scope="module")
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def redis(stack):
    """A Redis that these tests pause for a moment."""
    redis = Redis()
    stack.callback(redis.stop)
    return redis


@pytest.fixture(scope="module")
def nodes(stack, redis):
    """Two nodes, with three and two clients."""
    nodes = []
    for number in (201, 202):
        nodes.append(node(number, redis.url))
        stack.callback(nodes[-1].stop)
    crowd = stack.enter_context(Crowd())
    for server, count in zip(nodes, (3, 2)):
        for number in range(count):
            crowd.add(server, f"u{number}", tags=["t"])
    crowd.start()
    return nodes


@pytest.fixture(scope="module")
def prometheus(stack, nodes, redis, tmp_path_factory):
    """Has scraped the nodes before, while and after known pushes."""
    folder = str(tmp_path_factory.mktemp("prometheus"))
    prometheus = Prometheus(folder, [instance(server) for server in nodes])
    stack.callback(prometheus.stop)
    scrapes = lambda: prometheus.values("count_over_time(up[5m]) * up", "instance").values()
    eventually(lambda: [count >= 2 for count in scrapes()] == [True] * 2, "two scrapes", SLACK)
    for number in range(20):
        nodes[0].push(number, tags=["t"])
        nodes[1].push(number, uids=["u0"])
    for _ in range(5):
        assert nodes[0].post_json("/ws/push", {"pid": "1"}, secret="wrong").status == 401
    messages = {"pid": "1", "messages": [{"data": n} for n in range(10)]}
    assert nodes[1].post_json("/ws/push/batch", messages).status == 200
    slowly(redis, nodes)
    # The latest values have been scraped, too.
    wanted = {(instance(server),): server.metrics()["request_total"] for server in nodes}
    eventually(lambda: prometheus.values(REQUESTS, "instance") == wanted, "the last scrape", SLACK)
    return prometheus


def slowly(redis, nodes):
    """Four pushes at each node that take a second each."""

    def push(server):
        with Pusher(server) as pusher:
            assert pusher.push({"pid": "1", "data": "slow"}) == 200

    redis.pause()
    try:
        # Long enough for the bucket at 0.3, but short enough that no link is given up.
        run_all(*(lambda server=server: push(server) for server in nodes * 4), go_on_soon(redis))
    finally:
        redis.go_on()


def go_on_soon(redis):
    def wait():
        time.sleep(1)
        redis.go_on()

    return wait


# The queries of the contract.


def test_the_counts_are_exact(prometheus, nodes):
    one, two = map(instance, nodes)
    pushes = prometheus.values(URLS, "instance", "url", "code")
    assert pushes[one, "/ws/push", "200"] == 20 + 4
    assert pushes[one, "/ws/push", "401"] == 5
    assert pushes[two, "/ws/push", "200"] == 20 + 4
    assert pushes[two, "/ws/push/batch", "200"] == 1
    assert set(url for _, url, _ in pushes) == {"/ws/push", "/ws/push/batch", "/readyz"}
    requests = prometheus.values(REQUESTS, "instance", "job")
    for server in nodes:
        total = sum(count for (at, _, _), count in pushes.items() if at == instance(server))
        assert requests[instance(server), "ws-cluster"] == total
    connections = prometheus.values(CONNECTIONS, "instance", "job")
    assert connections == {(one, "ws-cluster"): 3, (two, "ws-cluster"): 2}


def test_the_share_within_the_bound_is_right(prometheus):
    fast = sum(prometheus.risen("request_duration_bucket", le="0.3").values())
    whole = sum(prometheus.risen("request_duration_count").values())
    # Requests after the first scrape: 20 and 5 and 20 and 1, and 8 that were slow. On a busy
    # machine others are slow, too.
    assert whole == 54 and 40 <= fast <= 46
    share = prometheus.values(SHARE, "job")
    assert share == {("ws-cluster",): pytest.approx(fast / whole, rel=0.02)}


def test_the_quantile_is_right(prometheus):
    # The same from the counts themselves, evenly spread within the bucket that contains it.
    counts = {}
    for (_, le), count in prometheus.risen("request_duration_bucket").items():
        counts[float(le)] = counts.get(float(le), 0) + count
    assert 0.3 in counts
    rank = 0.95 * counts[float("inf")]
    bounds = sorted(counts)
    at = next(index for index, le in enumerate(bounds) if counts[le] >= rank)
    below, lower = (counts[bounds[at - 1]], bounds[at - 1]) if at else (0, 0)
    expected = lower + (bounds[at] - lower) * (rank - below) / (counts[bounds[at]] - below)
    # 8 of 54 took a second, so the quantile is among them.
    assert 0.3 < expected <= 10
    assert prometheus.values(QUANTILE) == {(): pytest.approx(expected, rel=0.05)}


# The files of deploy/.


def dashboard():
    with open(os.path.join(DEPLOY, "grafana/ws-cluster.json"), encoding="utf-8") as file:
        return json.load(file)


def panel_queries():
    """The title of each panel and its queries, as sent to Prometheus."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "$" not in query, query
            yield panel["title"], query


def rule_queries():
    with open(RULES, encoding="utf-8") as file:
        text = file.read()
    found = re.findall(r"^ +expr: (?:>-\n)?((?:.|\n)*?)(?=\n +(?:for|labels):)", text, re.MULTILINE)
    assert len(found) == text.count("- alert:") > 5
    return [" ".join(query.split()) for query in found]


def metrics_in(query):
    """The metric names in a query: without labels, durations, functions and keywords."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring) *\([^)]*\)", " ", bare)
    names = re.findall(r"\b[a-z_][a-z0-9_]*\b(?! *\()", bare)
    # Without durations, which no bracket encloses, and names that every Prometheus has.
    return set(names) - {"and", "or", "unless", "offset", "up"}


def exposed(server):
    """The names of all series that a node may have, including those without values now."""
    text = server.request("GET", "/metrics", at=server.metrics_address).text
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE):
        ends = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_count", "_sum"],
            "info": ["_info"],
        }
        names |= {name + end for end in ends.get(kind, [""])}
    return names


def test_every_metric_of_the_dashboard_and_the_rules_is_there(nodes):
    query = 'sum(rate(a_b{le="x", job="y"}[5m])) by (z) / c offset 5m > 0 or d'
    assert metrics_in(query) == {"a_b", "c", "d"}
    queries = [query for _, query in panel_queries()] + rule_queries()
    named = set().union(*map(metrics_in, queries))
    assert len(named) > 30
    assert named - exposed(nodes[0]) == set()


def test_every_panel_shows_something(prometheus):
    titles = set()
    for title, query in panel_queries():
        # Nothing was missed, so there are no series.
        if metrics_in(query) != {"ws_cluster_queue_missed_total"}:
            assert prometheus.series(query), (title, query)
        titles.add(title)
    queries = [query for _, query in panel_queries()]
    for query in (QUANTILE, SHARE, URLS, REQUESTS, CONNECTIONS):
        assert query in queries
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids) > len(titles) > 30


def test_promtool_is_content():
    folder = os.path.join(DEPLOY, "prometheus")
    for check in (
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ):
        done = subprocess.run(["promtool", *check], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with open(os.path.join(folder, "alerts_test.yml"), encoding="utf-8") as file:
        tested = set(re.findall(r"alertname: (\w+)", file.read()))
    with open(RULES, encoding="utf-8") as file:
        assert tested == set(re.findall(r"- alert: (\w+)", file.read()))


def test_the_alerts_are_those_of_the_monitoring_page():
    with open(os.path.join(ROOT, "docs/monitor.md"), encoding="utf-8") as file:
        section = file.read().partition("## What to alert on")[2].partition("```promql")[2]
    page = "".join(section.partition("```")[0].split())
    for query in rule_queries():
        # The page omits the job, and breaks lines differently.
        bare = re.sub(r'job="ws-cluster"(, )?', "", query).replace("{}", "")
        assert "".join(bare.split()) in page, query


def test_a_queue_that_is_down_raises_its_alert(prometheus, nodes, redis):
    alert = 'ALERTS{alertname="WsClusterQueueDown"}'
    assert prometheus.series(alert) == []
    for group in json.loads(prometheus.get("/api/v1/rules"))["data"]["groups"]:
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
    redis.pause()
    try:
        pending = lambda: prometheus.values(alert, "instance", "alertstate")
        both = {(instance(server), "pending"): 1.0 for server in nodes}
        eventually(lambda: pending() == both, "an alert that is pending", SLACK)
    finally:
        redis.go_on()
