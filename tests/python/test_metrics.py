"""The metrics after known traffic."""

import subprocess

from harness import eventually


def test_a_push_is_seen_on_its_way(start):
    server = start()
    with server.client("ann", tags="x") as ann, server.client("bob"), server.business("request"):
        for number in range(20):
            server.push("x" * 100, tags=["x"])
            ann.pushed()
        assert server.metric("ws_cluster_push_total", result="accepted") == 20
        eventually(lambda: server.metric("ws_cluster_push_delivery_seconds_count") == 20, "all are written")
        for hop in ("receive", "write"):
            assert server.metric("ws_cluster_push_hop_seconds_count", hop=hop) == 20
        assert 0 < server.metric("ws_cluster_push_delivery_seconds_sum") < 20
        assert server.metric("ws_cluster_push_delivery_seconds_bucket", le="+Inf") == 20
        assert server.metric("ws_cluster_sent_bytes_total") > 20 * 100
        sent = server.metric("ws_cluster_received_bytes_total")
        ann.ask({"type": "heartbeat"})
        assert server.metric("ws_cluster_received_bytes_total") > sent
        assert server.metric("ws_cluster_project_connection", project="1", type="client") == 2
        assert server.metric("ws_cluster_project_connection", project="1", type="server") == 1
        assert server.metric("ws_cluster_worker_connection") == server.metric("ws_connection") == 3
        assert server.metric("ws_cluster_worker_delivery_total") == server.metric("ws_cluster_delivery_total")
    eventually(lambda: server.metric("ws_cluster_project_connection") == 0, "all are gone")


def test_the_process_and_its_threads(start):
    server = start()
    series = server.metrics()
    busy = {name: value for name, value in series.items() if name.startswith("ws_cluster_thread_busy")}
    assert 'ws_cluster_thread_busy_seconds_total{thread="worker-0"}' in busy
    assert 'ws_cluster_thread_busy_seconds_total{thread="ops"}' in busy
    assert series["process_resident_memory_bytes"] > 1 << 20
    assert series["process_open_fds"] > 10 and series["process_threads"] >= 3
    assert series["process_cpu_seconds_total"] > 0
    clients = [server.client(f"u{number}") for number in range(50)]
    assert server.metric("process_open_fds") >= series["process_open_fds"] + 50
    for client in clients:
        client.close()


def test_projects_beyond_a_hundred_are_one(start, tmp_path):
    file = tmp_path / "projects.toml"
    names = [f"p{number}" for number in range(103)]
    project = '\n[[project]]\npid = "%s"\nsecrets = ["dev-secret"]\n'
    file.write_text("".join(project % name for name in names))
    server = start("--projects", str(file))
    clients = [server.client("u", pid=name) for name in names]
    clients += [server.client("u", pid="p7") for _ in range(3)]
    assert server.metric("ws_cluster_project_connection", project="p7", type="client") == 4
    assert server.metric("ws_cluster_project_connection", project="other", type="client") == 3
    assert server.metric("ws_cluster_project_connection", type="client") == 106
    for client in clients:
        client.close()


def test_the_hops_of_a_cluster(cluster, name):
    first, second = cluster
    with first.client(f"{name}a") as here, second.client(f"{name}a") as there:
        before = [node.metric("ws_cluster_push_hop_seconds_count", hop="queue") for node in cluster]
        for number in range(10):
            first.push(number, uids=[f"{name}a"])
            assert here.pushed() == there.pushed() == str(number)
        assert first.metric("ws_cluster_push_hop_seconds_count", hop="queue") == before[0] + 10
        assert second.metric("ws_cluster_push_hop_seconds_count", hop="receive") >= 10
        for node in cluster:
            assert node.metric("ws_cluster_node") == 2
            assert node.metric("ws_cluster_queue_sent_bytes_total") > 100
            assert 0 <= node.metric("ws_cluster_queue_lag_seconds") < 30


def test_promtool_reads_the_older_format(cluster, name):
    for server in cluster:
        with server.client(f"{name}x"):
            server.push(1, uids=[f"{name}x"])
            get = lambda accept: server.request(
                "GET", "/metrics", headers={"Accept": accept}, at=server.metrics_address
            )
            plain = get("text/plain")
            assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            done = subprocess.run(
                ["promtool", "check", "metrics"], input=plain.text, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            open_metrics = get("application/openmetrics-text, text/plain;q=0.5")
            assert "openmetrics-text; version=1.0.0" in open_metrics.headers["Content-Type"]
            assert open_metrics.headers["Vary"] == plain.headers["Vary"] == "Accept"
            assert open_metrics.text.endswith("# EOF\n") and "# EOF" not in plain.text
            # The same samples, in the same order.
            names = lambda text: [line.split(" ")[0] for line in text.splitlines() if line[0] != "#"]
            assert names(plain.text) == names(open_metrics.text) == list(server.metrics())
