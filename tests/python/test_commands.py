"""The commands besides serve, each with the program itself: good, bad, JSON, help, a broken pipe."""

import errno
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import time

import pytest
from harness import BINARY, PORTS, SECRET, Server, canonical, hmac_hex, signed
from redis_harness import Redis
from seccomp import refuse

COMMANDS = (
    "serve", "check-config", "print-config", "sign", "verify-sign", "doctor", "health", "version",
    "completions", "man",
)
PATIENCE = 60


def run(*args, env=None, stdin=None):
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [BINARY, *args], capture_output=True, text=True, timeout=PATIENCE, env=environment,
        input=stdin,
    )


# All commands.


def test_help_lists_every_command_and_each_explains_itself_with_an_example():
    done = run("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", done.stdout, re.M), command
        own = run(command, "--help")
        assert (own.returncode, own.stderr) == (0, "")
        if command != "serve":
            assert own.stdout.startswith(f"ws-cluster {command}: "), own.stdout
            assert f"Usage: ws-cluster {command}" in own.stdout and "\nExample:\n" in own.stdout
            assert max(map(len, own.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["chek-config"], "unknown command: chek-config (did you mean check-config?)"),
        (["helth"], "did you mean health?"),
        (["frobnicate"], "unknown command: frobnicate; see ws-cluster --help"),
        (["doctor", "--jsn"], "unknown argument: --jsn (did you mean --json?); see ws-cluster doctor"),
        (["version", "--node", "1"], "unknown argument: --node"),
        (["health", "extra"], "unknown argument: extra; see ws-cluster health --help"),
        (["completions"], "the shell is missing"),
        (["completions", "fish"], "use bash or zsh"),
        (["--ws_prt", "1"], "(did you mean --ws_port?)"),
        (["sign", "--secret"], "missing value for --secret"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2_and_names_the_nearest(args, named):
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "") and named in done.stderr, done
    assert len(done.stderr.splitlines()) == 1, done


@pytest.mark.parametrize(
    "args",
    [
        ["check-config"], ["check-config", "--json"], ["print-config"], ["version"], ["man"],
        ["completions", "bash"], ["completions", "zsh"], ["sign", "/ws/connect?pid=1"],
        ["verify-sign", "/ws/connect?pid=1&sign=0"], ["health", "--http_port", "1"],
        ["doctor", "--json"],
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_causes_no_panic(args):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([BINARY, *args], stdout=writer, stderr=subprocess.PIPE, timeout=PATIENCE)
    os.close(writer)
    assert done.returncode in (0, 1) and done.stderr == b"", done


def test_version():
    done = run("version")
    assert done.returncode == 0 and done.stdout == run("--version").stdout
    found = json.loads(run("version", "--json").stdout)
    assert done.stdout == f"ws-cluster {found['version']}+{found['commit']}\n"


# check-config.


def test_every_mistake_is_reported_with_its_place(tmp_path):
    config, projects = tmp_path / "config.toml", tmp_path / "projects.toml"
    config.write_text(f"node = 5000\nwsport = 1\nprojects = '{projects}'\nlog_keep = 3\n")
    projects.write_text(
        "[[project]]\npid = 'a'\nsecrets = ['hidden']\nsubscribe = 'maybe'\n"
        "[[project]]\npid = 'a'\nsecrets = ['hidden-from-everybody']\norigins = []\n"
    )
    args = ["check-config", "--config", str(config), "--workers", "99"]
    done = run(*args, env={"WS_CLUSTER_BIND": "here"})
    assert (done.returncode, done.stderr) == (1, ""), done
    lines = done.stdout.splitlines()
    for start in (
        "--workers '99' is not a number of workers: use a number from 1 to 64",
        "WS_CLUSTER_BIND 'here' is not an IP address",
        f"{config}, line 1, column 1: node '5000' is not a node number",
        f'{config}, line 2, column 1: unknown key "wsport"; did you mean "ws_port"?',
        f"{projects}, line 4, column 13: subscribe 'maybe' of project 'a' is unknown",
        f'{projects}, line 8, column 1: unknown key "origins"; known are',
        f"{projects}, line 3, column 12: warning: secret 1 of project 'a' has only 6 bytes",
        f"{config}, line 4, column 1: warning: log_keep has no effect without a log file",
    ):
        assert [line for line in lines if line.startswith(start)], (start, lines)
    assert lines[-1].startswith("6 errors, 2 warnings") and "hidden" not in done.stdout, lines
    found = json.loads(run(*args, "--json").stdout)
    assert [one["level"] for one in found].count("error") == 5
    [node] = [one for one in found if one["message"].startswith("node ")]
    assert (node["file"], node["line"], node["column"]) == (str(config), 1, 1)


def test_a_good_configuration_opens_no_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("check-config", "--ws_port", port)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == "no errors, no warnings, 1 usable project\n"
    assert run("check-config", "--json").stdout == "[]\n"


def test_ten_thousand_projects_are_checked_in_a_moment(tmp_path):
    """Each error's line was counted from the beginning of the file."""

    def seconds(count):
        file = tmp_path / f"{count}.toml"
        project = "[[project]]\npid = 'p{0}'\nsecrets = ['secret-of-{0:08}', 'old-secret-of-{0:08}']\n"
        file.write_text("".join(project.format(index) for index in range(count)) + "x = 1\n")
        began = time.monotonic()
        done = run("check-config", "--projects", str(file), "--env", "prod")
        assert done.returncode == 1 and "1 error," in done.stdout, done.stdout[-300:]
        assert f"{count} warnings, {count - 1} usable projects" in done.stdout
        return time.monotonic() - began

    few, many = seconds(1_000), seconds(10_000)
    assert many < 40 * (few + 0.05), (few, many)


# sign and verify-sign.


def test_what_is_signed_is_accepted_by_a_node_and_by_verify_sign(tmp_path):
    with Server("--workers", "1") as server:
        url = "ws://%s:%d/ws/connect?pid=1&uid=u 1é&tags=a,b" % server.ws
        done = run("sign", "--exp", "60s", url)
        assert (done.returncode, done.stderr) == (0, ""), done
        from websockets.sync.client import connect

        with connect(done.stdout.strip(), proxy=None) as client:
            assert '"code":1' in client.recv(PATIENCE)
        assert run("verify-sign", done.stdout.strip()).stdout == "valid\n"
        done = run("sign", "--subprotocol", "/ws/connect?pid=1&uid=u 2")
        offered = done.stdout.strip()
        with connect(
            "ws://%s:%d/ws/connect" % server.ws, subprotocols=offered.split(", "), proxy=None
        ) as client:
            assert '"code":1' in client.recv(PATIENCE)
        assert run("verify-sign", offered).stdout == "valid\n"
        body = '{"pid": "1", "data": [1, 2]}'
        done = run("sign", "--json-body", "/ws/push", body)
        name, sign = done.stdout.strip().split(": ")
        headers = {"Content-Type": "application/json", name: sign}
        assert server.request("POST", "/ws/push", body, headers).status == 200
        done = run("verify-sign", "--sign", sign, "--json-body", "/ws/push", "-", stdin=body)
        assert (done.returncode, done.stdout) == (0, "valid\n")
        done = run("sign", "--form", "/ws/push", "pid=1&data=1+2")
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert server.request("POST", "/ws/push", done.stdout.strip(), headers).status == 200
        done = run("verify-sign", "--form", "/ws/push", done.stdout.strip())
        assert (done.returncode, done.stdout) == (0, "valid\n")


def test_the_vector_of_the_contract():
    sign = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9"
    done = run("sign", "--secret", SECRET, "ws://h:8812/ws/connect?pid=1&uid=u 1&type=1")
    assert done.stdout == f"ws://h:8812/ws/connect?pid=1&uid=u%201&type=1&sign={sign}\n"
    found = json.loads(run("sign", "--json", "/ws/connect?type=1&uid=u+1&pid=1").stdout)
    assert found["sign"] == sign and found["text"] == "/ws/connect\npid=1&type=1&uid=u%201"


def test_secrets_come_from_a_file_the_environment_or_the_projects_file(tmp_path):
    secret, projects = tmp_path / "secret", tmp_path / "projects.toml"
    secret.write_text("hidden-from-everybody\n")
    projects.write_text(
        "[[project]]\npid = 'shop'\nsecrets = ['new-secret', 'hidden-from-everybody']\n"
        "[[project]]\npid = 'other'\nsecrets = ['secret-of-another']\n"
    )
    wanted = hmac_hex("hidden-from-everybody", "/ws/push\n" + canonical({"pid": "shop"}))
    form = ["--form", "/ws/push", "pid=shop"]
    for args, env in (
        (["--secret", f"file:{secret}"], {}),
        (["--secret", "hidden-from-everybody"], {}),
        ([], {"WS_CLUSTER_SECRET": "hidden-from-everybody"}),
        ([], {"WS_CLUSTER_SECRET": f"file:{secret}"}),
    ):
        assert run("sign", *args, *form, env=env).stdout == f"pid=shop&sign={wanted}\n"
    by_file = run("sign", "--projects", str(projects), *form).stdout
    assert by_file == signed("/ws/push", {"pid": "shop"}, "new-secret") + "\n"
    verify = ["verify-sign", "--projects", str(projects), "--form", "/ws/push"]
    for key, code, named in (
        ("new-secret", 0, "valid"),
        ("hidden-from-everybody", 0, "valid"),
        ("secret-of-another", 1, "key: signed with a secret of project 'other'"),
        ("new-secret\n", 1, "key: the key ends with a newline"),
        ("guessed", 1, "neither this text with this key nor a usual mistake"),
    ):
        done = run(*verify, signed("/ws/push", {"pid": "shop"}, key))
        assert done.returncode == code and named in done.stdout, done
        assert "hidden" not in done.stdout and "secret-of" not in done.stdout
    done = run("sign", "--projects", str(projects), "--form", "/ws/push", "pid=shp")
    assert done.returncode == 2 and 'has no project "shp"; did you mean "shop"?' in done.stderr
    done = run("sign", "--form", "/ws/push", "pid=shop")
    assert done.returncode == 2 and "the secret of project 'shop' is not known" in done.stderr


def test_verify_sign_names_the_step_that_differs():
    def verdict(query):
        done = run("verify-sign", "--json", f"/ws/connect?{query}")
        found = json.loads(done.stdout)
        assert done.returncode == (0 if found["valid"] else 1), done
        return [(one["step"], one["message"]) for one in found["differences"]]

    query = "uid=a%20b&pid=1"
    of = lambda text: hmac_hex(SECRET, text)
    assert verdict(f"{query}&sign={of('/ws/connect' + chr(10) + 'pid=1&uid=a%20b')}") == []
    [(step, what)] = verdict(f"{query}&sign={of('/ws/connect' + chr(10) + 'pid=1&uid=a+b')}")
    assert step == "text" and "a space is written as +" in what
    good = of("/ws/connect\npid=1&uid=a%20b")
    [(step, what)] = verdict(f"{query}&sign={good.upper()}")
    assert step == "encoding" and "upper-case" in what
    past = signed("/ws/connect", {"pid": "1", "exp": int(time.time()) - 60})
    [(step, what)] = verdict(past)
    assert step == "exp" and "s ago" in what
    late = signed("/ws/connect", {"pid": "1", "exp": int(time.time() * 1000)})
    [(step, what)] = verdict(late)
    assert step == "exp" and "milliseconds" in what
    done = run("verify-sign", "--env", "prod", "/ws/connect?" + signed("/ws/connect", {"pid": "1"}),
               "--secret", SECRET)
    assert done.returncode == 1 and "exp is missing: --env prod demands" in done.stdout, done


# health.


def test_health_follows_a_node(tmp_path):
    with Server("--workers", "1") as server:
        port = str(server.http[1])
        done = run("health", "--http_port", port)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == f"ready: http://127.0.0.1:{port}/readyz answered 200\n"
        config = tmp_path / "config.toml"
        config.write_text(f"http_port = {port}\nbind = '0.0.0.0'\nprojects = '/nowhere'\n")
        assert run("health", env={"WS_CLUSTER_CONFIG": str(config)}).returncode == 0
        found = json.loads(run("health", "--json", env={"WS_CLUSTER_HTTP_PORT": port}).stdout)
        assert found["ready"] and found["status"] == 200
    done = run("health", "--http_port", port)
    assert done.returncode == 1 and "connection refused" in done.stdout, done


def test_health_of_a_node_that_is_not_ready():
    with Server("--workers", "1", "--queue", "redis", "--redis", "redis://127.0.0.1:1") as server:
        done = run("health", "--http_port", str(server.http[1]))
        assert done.returncode == 1 and len(done.stdout.splitlines()) == 1, done
        assert "answered 503: " in done.stdout, done


def test_health_waits_no_longer_than_it_is_told():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        began = time.monotonic()
        done = run("health", "--http_port", port, "--timeout_ms", "300")
        assert done.returncode == 1 and "no answer in time" in done.stdout, done
        assert 0.3 <= time.monotonic() - began < 20


# Completions and the man page.

zsh_is_there = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")


def completed(*words):
    """What bash offers for the last of these words."""
    line = " ".join(words)
    script = f"""
        source <({BINARY} completions bash)
        COMP_WORDS=({" ".join("'%s'" % word for word in words)})
        COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
        _ws_cluster
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.split()


def test_bash_completes_commands_flags_and_values(tmp_path):
    assert completed("ws-cluster", "ch") == ["check-config"]
    assert set(COMMANDS) <= set(completed("ws-cluster", ""))
    assert completed("ws-cluster", "--ws_") == ["--ws_port"]
    assert completed("ws-cluster", "--ws-") == ["--ws-port"]
    assert completed("ws-cluster", "doctor", "--js") == ["--json"]
    assert completed("ws-cluster", "--env", "") == ["dev", "test", "prod"]
    assert completed("ws-cluster", "serve", "--queue", "r") == ["redis"]
    assert completed("ws-cluster", "--log-format", "=", "j") == ["json"]
    assert completed("ws-cluster", "--env", "=") == ["dev", "test", "prod"]
    assert completed("ws-cluster", "completions", "") == ["bash", "zsh", "--help"]
    assert completed("ws-cluster", "sign", "--ex") == ["--exp"]
    assert completed("ws-cluster", "--node", "") == []
    (tmp_path / "my-config.toml").touch()
    start = str(tmp_path / "my-")
    assert completed("ws-cluster", "--config", start) == [str(tmp_path / "my-config.toml")]


@zsh_is_there
def test_zsh_accepts_its_completions(tmp_path):
    script = tmp_path / "_ws-cluster"
    script.write_text(run("completions", "zsh").stdout)
    check = f"autoload -Uz compinit && compinit -u -d {tmp_path}/dump && source {script} && " \
        "whence _ws_cluster && print ${_comps[ws-cluster]}"
    done = subprocess.run(["zsh", "-f", "-c", check], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.split()[-1] == "_ws_cluster"


def shown_by_zsh(script, folder, keys, wanted):
    """Types keys into an interactive zsh until it shows what is wanted."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "TERM": "dumb", "PS1": "> "}
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
    shown = ""

    def until(text):
        nonlocal shown
        deadline = time.monotonic() + PATIENCE
        while text not in shown and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65_536).decode(errors="replace")
        assert text in shown, (keys, text, shown)

    try:
        load = f"autoload -Uz compinit && compinit -u -d {folder}/dump && source {script}"
        os.write(terminal, f"{load}; print read''y\n".encode())
        until("\nready")
        shown = ""
        os.write(terminal, keys.encode())
        until(wanted)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)


@zsh_is_there
@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("ws-cluster chec\t", "check-config"),
        ("ws-cluster doctor --js\t", "--json"),
        ("ws-cluster sign --ex\t", "--exp"),
        ("ws-cluster serve --queue r\t", "redis"),
        ("ws-cluster --env p\t", "prod"),
        ("ws-cluster completions z\t", "zsh"),
    ],
)
def test_zsh_completes_commands_options_and_values(tmp_path, keys, wanted):
    script = tmp_path / "_ws-cluster"
    script.write_text(run("completions", "zsh").stdout)
    shown_by_zsh(script, tmp_path, keys, wanted)


def test_the_man_page_is_valid_roff(tmp_path):
    page = tmp_path / "ws-cluster.1"
    page.write_text(run("man").stdout)
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii", str(page)], capture_output=True, text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        text = re.sub("\x1b\\[[0-9;]*m|.\b", "", done.stdout)
        for part in ("check-config", "--ws_port", "EXIT STATUS", "WS_CLUSTER_SECRET"):
            assert part in text, part
    if shutil.which("mandoc"):
        done = subprocess.run(
            ["mandoc", "-Tlint", "-Wwarning", str(page)], capture_output=True, text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout
    assert not [line for line in page.read_text().splitlines() if len(line) > 200]


# doctor.


def free_ports():
    args = []
    for flag in PORTS:
        args += [f"--{flag}", "0"]
    return args


def test_doctor_checks_this_machine():
    done = run("doctor", "--json", "--workers", "1", "--max_connections", "100", *free_ports())
    found = json.loads(done.stdout)
    checks = {one["name"]: one for one in found["checks"]}
    names = {
        "kernel", "open files", "fs.nr_open", "fs.file-max", "locked memory", "threads",
        "net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_mem",
        "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", "net.ipv4.ip_local_port_range", "conntrack",
        "io_uring", "kernel.io_uring_disabled", "descriptor tables", "huge pages", "clock", "cores",
        "CPU quota", "frequency", "memory", "swap", "port of WebSocket", "port of HTTP",
    }
    assert names <= set(checks), names - set(checks)
    failed = [one for one in found["checks"] if one["status"] == "fail"]
    assert done.returncode == (1 if failed else 0), done
    # A node of the same build runs here.
    assert checks["io_uring"]["status"] == checks["descriptor tables"]["status"] == "ok"
    assert all(one["costs"] and one["is"] for one in found["checks"])
    assert all(bool(one["fix"]) == (one["status"] != "ok") for one in found["checks"])
    assert found["capacity"]["connections"] == 100
    assert found["capacity"]["bounded_by"] == "--max_connections"


def test_doctor_prints_an_aligned_table_without_colours():
    done = run("doctor", "--workers", "1", *free_ports())
    assert done.returncode in (0, 1) and "\x1b" not in done.stdout, done
    table = done.stdout.split("\n\n")[0].splitlines()
    rows = [line for line in table if not line.startswith(" ")]
    assert all(re.match(r"(ok  |warn|FAIL)  \S", row) for row in rows), rows
    assert re.search(r"This host can hold [\d,]+ connections, bounded by ", done.stdout)
    assert re.search(r"^\d+ ok, \d+ warn, \d+ fail$", done.stdout, re.M)


def test_doctor_names_what_keeps_a_node_from_starting(tmp_path):
    projects = tmp_path / "projects.toml"
    projects.write_text("[[project]]\npid = '1'\nsecrets = ['hidden-from-everybody']\n")
    projects.chmod(0o644)
    # In a folder that others may not enter, the mode of the file would say nothing.
    tmp_path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            "doctor", "--json", *free_ports()[2:], "--ws_port", str(port), "--projects",
            str(projects), "--queue", "redis", "--redis", "redis://:hidden@127.0.0.1:1",
        )
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1 and "hidden" not in done.stdout, done
    assert checks["port of WebSocket"]["status"] == "fail"
    assert f":{port}" in checks["port of WebSocket"]["fix"]
    assert checks["redis"]["status"] == "fail" and "refused" in checks["redis"]["is"]
    assert checks["projects file"]["status"] == "warn"
    assert "chmod o-rwx" in checks["projects file"]["fix"]


def test_doctor_sees_io_uring_that_is_forbidden():
    done = subprocess.run(
        [BINARY, "doctor", "--json", *free_ports()], capture_output=True, text=True,
        timeout=PATIENCE, preexec_fn=refuse("io_uring_setup", errno.EPERM),
    )
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1 and checks["io_uring"]["status"] == "fail", done
    assert "allow io_uring_setup" in checks["io_uring"]["fix"], checks["io_uring"]


def test_doctor_knows_a_node_that_runs_here():
    with Server("--workers", "1", "--node", "77") as server:
        args = ["--ws_port", str(server.ws[1]), "--http_port", str(server.http[1])]
        done = run("doctor", "--json", *free_ports()[4:], *args)
        checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
        for name in ("port of WebSocket", "port of HTTP"):
            assert checks[name]["status"] == "ok" and "node 77 runs here" in checks[name]["is"]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_doctor_asks_redis(stack, kind):
    redis = Redis("--unixsocket", "SOCKET", "--requirepass", "hidden", login=("hidden",))
    stack.callback(redis.stop)
    address = f"127.0.0.1:{redis.port}" if kind == "tcp" else redis.socket_path
    scheme = "redis" if kind == "tcp" else "unix"
    env = {"WS_CLUSTER_REDIS": f"{scheme}://:hidden@{address}"}
    args = ["doctor", "--json", *free_ports(), "--queue", "redis"]
    done = run(*args, env=env)
    assert "hidden" not in done.stdout
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert checks["redis"]["status"] == "ok" and "role master" in checks["redis"]["is"], checks
    assert checks["redis output buffer"]["is"].startswith("pubsub 32 MiB, 8 MiB for 60 s"), checks
    assert re.match(r"[\d,]+ us, median of 20 PINGs", checks["redis latency"]["is"]), checks
