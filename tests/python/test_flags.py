"""A wrong value names itself and the fix, with exit code 2."""

import json
import os
import re
import subprocess

import pytest
from harness import BINARY, Server


def run(*args, env=None):
    command = [BINARY, *args]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--ws_port", "x"], ["--ws_port", "'x'"]),
        (["--http-port", "70000"], ["--http_port", "'70000'"]),
        (["--node", "1024"], ["--node", "1023"]),
        (["--workers", "0"], ["--workers", "1 to 64"]),
        (["--queue", "kafka"], ["--queue", "local"]),
        (["--queue", "redis-stream"], ["--queue redis-stream", "later", "--queue redis or local"]),
        (["--redis", "127.0.0.1:6379"], ["--redis", "redis://host:port"]),
        (["--redis", "rediss://host"], ["--redis", "TLS", "stunnel"]),
        (["--redis_prefix", "{a}"], ["--redis_prefix", "'{a}'", "1 to 64"]),
        (["--queue_timeout_ms", "99"], ["--queue_timeout_ms", "100 to 60000"]),
        (["--routing", "tag"], ["--routing", "project", "user"]),
        (["--workers", "2", "--broker-thread", "false"], ["--broker_thread", "--workers 1"]),
        (["--idempotency_keys", "1"], ["--idempotency_keys", "1000"]),
        (["--env", "staging"], ["--env", "prod"]),
        (["--bind", "here"], ["--bind", "127.0.0.1"]),
        (["--drain_ms", "1s"], ["--drain_ms", "'1s'"]),
        (["--max_connections", "-1"], ["--max_connections"]),
        (["--max_head_bytes", "65K"], ["--max_head_bytes", "'65K'", "1024 to 65536"]),
        (["--max_head_fields", "257"], ["--max_head_fields", "16 to 256"]),
        (["--max_tags", "0"], ["--max_tags", "1 to 1024", "--max_tags 256"]),
        (["--max-selector-ids", "10001"], ["--max_selector_ids", "1 to 10000"]),
        (["--max_batch", "1K"], ["--max_batch", "'1K'", "1 to 10000"]),
        (["--max_pid_bytes", "256"], ["--max_pid_bytes", "1 to 255"]),
        (["--max_uid_bytes", "256"], ["--max_uid_bytes", "1 to 255"]),
        (["--max_tag_bytes", "256"], ["--max_tag_bytes", "1 to 255"]),
        (["--max_device_bytes", "256"], ["--max_device_bytes", "1 to 255"]),
        (["--projects", "/nowhere.toml"], ["--projects", "/nowhere.toml"]),
        (["--env", "prod"], ["--env prod", "--projects"]),
        (["--env", "prod", "--echo"], ["--echo", "--env prod"]),
        (["--log_format", "xml"], ["--log_format", "text or json"]),
        (["--log", "warning"], ["--log 'warning'", "'warning' is neither", "warn,"]),
        (["--log", "info,hyper"], ["--log 'info,hyper'", "'hyper' is neither"]),
        (["--log_rotate", "weekly"], ["--log_rotate", "hourly, daily or never"]),
        (["--log_max_bytes", "1"], ["--log_max_bytes", "65536"]),
        (["--log_keep", "0"], ["--log_keep", "1 to 10000"]),
        (["--nonsense"], ["--nonsense", "--help"]),
        (["--ws_port", "1", "--http_port", "1"], ["--ws_port", "--http_port"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_flags(args, named):
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    for part in named:
        assert part in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_wrong_variables_of_the_environment():
    done = run(env={"WS_CLUSTER_WS_PORT": "x"})
    assert done.returncode == 2 and "WS_CLUSTER_WS_PORT 'x'" in done.stderr


def test_variables_that_are_not_the_nodes_are_warned_of_and_their_values_are_not_shown():
    env = {"WS_CLUSTER_WSPORT": "hidden", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    env |= {"OTEL_TRACES_SAMPLER": "often", "OTEL_EXPORTER_OTLP_HEADERS": "hidden"}
    with Server(env=env) as server:
        warnings = "".join(line for line in server.output if "WARN" in line)
        assert "WS_CLUSTER_WSPORT is not a variable of ws-cluster" in warnings
        assert "WS_CLUSTER_WS_PORT is" in warnings and "WS_CLUSTER_BIN" not in warnings
        assert "OTEL_TRACES_SAMPLER 'often' is unknown" in warnings
        assert "OTEL_EXPORTER_OTLP_HEADERS is not a list" in warnings
        assert "hidden" not in warnings


def test_what_is_not_utf_8_is_complained_of():
    command = [BINARY.encode(), b"--bind", b"\xff"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "--bind" in done.stderr, done
    env = {**os.environ, "WS_CLUSTER_BIND": b"\xff"}
    done = subprocess.run([BINARY], capture_output=True, text=True, timeout=20, env=env)
    assert done.returncode == 2 and "WS_CLUSTER_BIND" in done.stderr, done


def test_a_redis_password_is_not_repeated():
    for url in ["user:hidden@host", "redis://user:hidden", "rediss://:hidden@host"]:
        for done in [run("--redis", url), run(env={"WS_CLUSTER_REDIS": url}), run(url)]:
            assert done.returncode == 2 and "hidden" not in done.stderr + done.stdout, done


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no project"),
        ("[[project]]\npid = 'a b'\nsecrets = ['s']", "a b"),
        (f"[[project]]\npid = '{'a' * 65}'\nsecrets = ['s']", "--max_pid_bytes"),
        ("[[project]]\npid = 'a'", "secrets"),
        ("[[project]]\npid = 'a'\nsecrets = []", "secrets"),
        ("[[project]]\npid = 'a'\nsecrets = ['s']\nsubscribe = 'maybe'", "maybe"),
        ("[[project]]\npid = 'a'\nsecrets = ['s']\nallowed_origins = ['x/']", "x/"),
        ("[[project]]\npid = 'a'\nsecrets = ['s']\n" * 2, "pid 'a' is already used"),
        ("[[project]\n", "line 1"),
        ("[project]\npid = 'a'\nsecrets = ['s']\n", "line 1: [project] is a single table"),
        ("[[project]]\npid = 1\nsecrets = ['s']\n", 'line 2: pid = 1 is a number: put it in quotes'),
        ("[[project]]\npid = 'a'\nsecret = ['s']\n", 'line 3: unknown key "secret"; did you mean'),
        ("[[project]]\npid = 'a'\nsecrets = [\"s\\n\"]\n", "line 3: secret 1 of project 'a' ends in"),
        ("[[project]]\npid = 'a'\nsecrets = ['hidden']\nsecret = 1", "secret"),
    ],
    ids=lambda value: value[:40],
)
def test_wrong_projects_files(tmp_path, text, named):
    file = tmp_path / "projects.toml"
    file.write_text(text)
    done = run("--projects", str(file))
    assert done.returncode == 2 and named in without_column(done.stderr), done.stderr
    assert "hidden" not in done.stderr


def without_column(text):
    return re.sub(r", column \d+", "", text)


def test_prod_refuses_weak_secrets_and_dev_warns(tmp_path):
    file = tmp_path / "projects.toml"
    shared = "hidden-from-everybody"
    for secrets, named in (
        (("hidden", shared), "line 3: secret 1 of project 'a' has only 6 bytes"),
        ((shared, shared), "line 6: secret 1 of project 'b' is also that of project 'a' on line 3"),
    ):
        projects = zip("ab", secrets)
        text = (f"[[project]]\npid = '{pid}'\nsecrets = ['{secret}']\n" for pid, secret in projects)
        file.write_text("".join(text))
        done = run("--projects", str(file), "--env", "prod")
        assert done.returncode == 2 and named in without_column(done.stderr), done.stderr
        with Server("--projects", str(file)) as server:
            assert [one for one in server.output if "WARN" in one and named in without_column(one)]
            assert "hidden" not in "".join(server.output) + done.stderr


def test_help_and_version():
    done = run("--help")
    assert done.returncode == 0 and "--ws_port" in done.stdout
    done = run("--version")
    assert done.returncode == 0 and done.stdout.startswith("ws-cluster ")


def test_an_output_that_ends_early_or_is_full_causes_no_panic():
    """`ws-cluster print-config | head -1` now and then ended with a stack trace."""
    for args in (["--help"], ["--version"], ["print-config"], ["print-config", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [BINARY, *args], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=20
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, ""), done
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [BINARY, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=20
            )
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done
        assert done.stderr.startswith("ws-cluster: standard output cannot be written: "), done


def test_an_empty_variable_does_not_hide_the_log_format_of_the_config_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("log_format = 'json'\nnode = 5000\n")
    done = run("--config", str(file), env={"WS_CLUSTER_LOG_FORMAT": ""})
    assert done.returncode == 2 and "node" in json.loads(done.stderr)["msg"], done


def test_a_config_file_and_a_secret_in_a_file_of_its_own(tmp_path):
    token, file = tmp_path / "token", tmp_path / "config.toml"
    token.write_text("hidden-from-everybody\n")
    file.write_text(f"node = 9\nws_port = 0\nworkers = 2\nops_token = 'file:{token}'\n")
    done = run("print-config", "--json", "--config", str(file), env={"WS_CLUSTER_WORKERS": "3"})
    assert done.returncode == 0 and "hidden" not in done.stdout, done
    found = {one["name"]: one for one in json.loads(done.stdout)["settings"]}
    assert (found["node"]["value"], found["node"]["source"]) == ("9", f"{file}, line 1")
    assert (found["workers"]["value"], found["workers"]["source"]) == ("3", "WS_CLUSTER_WORKERS")
    assert found["ops_token"]["value"] == "***" and found["ops_token"]["secret"]
    with Server("--config", str(file)) as server:
        assert server.request("GET", "/version").json["node"] == 9
        assert server.request("GET", "/metrics", at=server.metrics_address).status == 401
    # Its own output is a valid config file.
    file.write_text(run("print-config", "--node", "11").stdout)
    with Server("--config", str(file), "--workers", "1") as server:
        assert server.request("GET", "/version").json["node"] == 11
    file.write_text("node = 9\n  wsport = 0\n")
    done = run("--config", str(file))
    wanted = f'ws-cluster: {file}, line 2, column 3: unknown key "wsport"; did you mean "ws_port"?'
    assert (done.returncode, done.stderr.strip()) == (2, wanted)


def test_flags_of_the_environment_and_of_the_seed():
    env = {"WS_CLUSTER_WORKERS": "2", "WS_CLUSTER_NODE": "7"}
    server = Server("--queue", "local", "--env", "dev", "--max-connections=5", env=env)
    try:
        assert server.request("GET", "/version").json["node"] == 7
    finally:
        server.stop()


def test_the_lines_for_a_first_push(tmp_path):
    """The lines printed at the start in dev can be pasted into a shell."""
    server = Server("--workers", "1")
    try:
        with server.client("alice", tags="news") as client:
            from harness import eventually

            eventually(lambda: any("All flags" in line for line in server.output), "all lines")
            text = "".join(server.output)
            curl = text[text.index("  curl ") :].split("\n\n")[0]
            done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=20)
            assert '"code":1' in done.stdout, done
            assert client.pushed() == '{"hello":"world"}'
            connect = next(line for line in text.splitlines() if "ws/connect?" in line)
            url = connect.split("'")[1]
            from websockets.sync.client import connect as ws_connect

            with ws_connect(url, proxy=None) as pasted:
                assert '"connect"' in pasted.recv(10)
    finally:
        server.stop()
