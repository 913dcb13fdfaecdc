"""The Debian package in a clean root: it installs, its unit starts, reloads and stops, it goes."""

import json
import os
import re
import shutil
import subprocess
import tomllib

import pytest
from harness import BINARY, ROOT, Server, eventually
from units import Unit, inside

MANY_BYTES = 10_000_000
UNITS = ("ws-cluster.service", "ws-cluster@.service", "ws-cluster.socket")


def can_mount():
    return subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.getuid() != 0 or not shutil.which("mmdebstrap") or not can_mount(),
        reason="needs root that may mount, and mmdebstrap",
    ),
]


def run(*command, **options):
    options = {"capture_output": True, "text": True, "timeout": 600, **options}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    output = tmp_path_factory.mktemp("deb")
    run(os.path.join(ROOT, "systemd/deb.sh"), BINARY, str(output), timeout=1_200)
    (file,) = output.iterdir()
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory, package):
    """A minimal Debian of this machine's release, with the package installed."""
    root = tmp_path_factory.mktemp("debian") / "root"
    with open("/etc/os-release", encoding="utf-8") as file:
        release = re.search(r"^VERSION_CODENAME=(\w+)", file.read(), re.MULTILINE)[1]
    folder = "/etc/apt/sources.list.d"
    names = (name for name in sorted(os.listdir(folder)) if name.endswith((".list", ".sources")))
    sources = [os.path.join(folder, name) for name in names]
    sources += ["/etc/apt/sources.list"] * os.path.exists("/etc/apt/sources.list")
    settings = (f"--aptopt=/etc/apt/apt.conf.d/{name}" for name in os.listdir("/etc/apt/apt.conf.d"))
    run("mmdebstrap", "--mode=root", "--variant=minbase", *settings, release, str(root), *sources)
    shutil.copy(package, root / "package.deb")
    run(*inside(root, "dpkg", "-i", "/package.deb"))
    yield root
    subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=False)


@pytest.fixture
def unit(root):
    free = ("WS", "HTTP", "PROMETHEUS", "PPROF", "SWAGGER")
    ports = {f"WS_CLUSTER_{name}_PORT": "0" for name in free}
    own = {"WS_CLUSTER_BIND": "127.0.0.1", "WS_CLUSTER_PIN": "false", "WS_CLUSTER_DRAIN_MS": "2000"}
    unit = Unit(root, "ws-cluster.service", {**ports, **own})
    yield unit
    if unit.main and unit.main.poll() is None:
        unit.main.kill()
        unit.main.wait()


class Installed(Server):
    """The node that a unit started."""

    def __init__(self, unit):
        names = ("ws", "http", "metrics", "pprof", "swagger")
        pattern = "ws-cluster listening: " + " ".join(rf"{name}=(\S+?):(\d+)" for name in names)
        found = re.search(pattern, unit.journal()).groups()
        addresses = [(host, int(port)) for host, port in zip(found[::2], found[1::2])]
        self.ws, self.http, self.metrics_address, self.pprof, self.swagger = addresses
        self._kept, self._kept_at = None, 0.0


def projects(root):
    with open(root / "etc/ws-cluster/projects.toml", "rb") as file:
        return tomllib.load(file)["project"]


def push(node, secret, pid="1", uid="alice"):
    exp = 4_000_000_000
    with node.client(uid, secret=secret, pid=pid, exp=exp) as client:
        node.push({"hello": "world"}, secret, pid, uids=[uid], exp=exp)
        assert json.loads(client.text())["data"] == {"hello": "world"}


def test_the_package_starts_pushes_reloads_stops_and_leaves(root, unit):
    unit.start()
    node = Installed(unit)
    assert any(message.startswith("STATUS=") for message in "\n".join(unit.messages).split("\n"))
    assert node.request("GET", "/readyz").status == 200
    (project,) = projects(root)
    (secret,) = project["secrets"]
    assert len(secret) == 64
    push(node, secret)

    # A project that is new, and a secret that is.
    with open(root / "etc/ws-cluster/projects.toml", "a", encoding="utf-8") as file:
        file.write('[[project]]\npid = "new"\nsecrets = ["a-secret-of-the-new-project"]\n')
    unit.reload()
    push(node, "a-secret-of-the-new-project", "new")
    push(node, secret)

    # One with a mistake: `systemctl reload` fails, and the node keeps what it has.
    with open(root / "etc/ws-cluster/projects.toml", "a", encoding="utf-8") as file:
        file.write('[[project]]\npid = "new"\n')
    with pytest.raises(AssertionError, match="check-config.*projects.toml, line"):
        unit.reload()
    push(node, secret)

    assert unit.stop() == 0
    sent = "\n".join(unit.messages).split("\n")
    assert "STOPPING=1" in sent and "WATCHDOG=1" not in sent[:1]

    run(*inside(root, "dpkg", "--remove", "ws-cluster"))
    assert not (root / "usr/bin/ws-cluster").exists()
    assert (root / "etc/ws-cluster/projects.toml").exists()
    run(*inside(root, "dpkg", "--purge", "ws-cluster"))
    assert not (root / "etc/ws-cluster").exists()
    run(*inside(root, "dpkg", "-i", "/package.deb"))


def test_what_is_secret_is_readable_by_root_alone(root):
    for name in ("projects.toml", "redis", "ops_token"):
        status = os.stat(root / "etc/ws-cluster" / name)
        assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600), name


def test_root_checks_and_signs_with_the_files_of_the_package(root):
    config = ("--config", "/etc/ws-cluster/config.toml")
    checked = run(*inside(root, "ws-cluster", "check-config", *config))
    assert "no errors, no warnings, 1 usable project" in checked
    url = "ws://127.0.0.1/ws/connect?pid=1&uid=alice"
    signed = run(*inside(root, "ws-cluster", "sign", *config, "--exp", "60s", url))
    assert run(*inside(root, "ws-cluster", "verify-sign", *config, signed.strip())) == "valid\n"


def test_a_mistake_in_the_config_file_keeps_the_unit_from_starting(root, unit):
    file = root / "etc/ws-cluster/config.toml"
    good = file.read_text()
    file.write_text(good + "\nidle_timeout = 5\n")
    try:
        with pytest.raises(AssertionError, match="check-config.*idle_timeout_ms"):
            unit.start()
    finally:
        file.write_text(good)
    unit.start()
    assert unit.stop() == 0


def test_the_units_are_valid_and_confined(root):
    folder = root / "usr/lib/systemd/system"
    # An instance, because a template cannot be verified.
    shutil.copy(folder / "ws-cluster@.service", folder / "ws-cluster@7.service")
    names = ["ws-cluster.service", "ws-cluster@7.service", "ws-cluster.socket"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in names)],
        capture_output=True,
        text=True,
    )
    # The program is in the root, not on this machine.
    missing = "Command /usr/bin/ws-cluster is not executable"
    problems = [line for line in done.stderr.splitlines() if missing not in line and "ws-cl" in line]
    assert not problems, done
    for name in names[:2]:
        path = str(folder / name)
        text = run("systemd-analyze", "security", "--offline=yes", "--no-pager", path)
        level = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)[1]
        assert float(level) <= 1.5, text


def test_the_template_differs_only_where_it_names_its_instance():
    def lines(name):
        with open(os.path.join(ROOT, "systemd", name), encoding="utf-8") as file:
            return [line for line in file.read().splitlines() if not line.startswith("#")]

    one = lines("ws-cluster.service")
    many = [line for line in lines("ws-cluster@.service") if line != "Environment=WS_CLUSTER_NODE=%i"]
    bare = [line.replace(", node %i", "").replace("node-%i", "config").replace("-%i", "") for line in many]
    assert bare == one


def test_install_puts_everything_below_its_prefix(tmp_path):
    run(os.path.join(ROOT, "systemd/install.sh"), BINARY, str(tmp_path), "/opt/ws")
    unit = (tmp_path / "opt/ws/lib/systemd/system/ws-cluster.service").read_text()
    assert "ExecStart=/opt/ws/bin/ws-cluster\n" in unit
    assert "/usr/bin/ws-cluster" not in unit
    names = {os.path.basename(path) for _, _, files in os.walk(tmp_path) for path in files}
    assert {"ws-cluster", "ws-cluster.1.gz", "_ws-cluster", "install.md", *UNITS} <= names
    eventually(lambda: os.listdir(tmp_path) == ["opt"], "nothing beside the prefix")
    # The pages find each other and the examples.
    pages = tmp_path / "opt/ws/share/doc/ws-cluster"
    for link in re.findall(r"\]\((\.\./[^)#]+)", (pages / "docs/proxies.md").read_text()):
        assert (pages / "docs" / link).exists(), link


def test_the_package_is_small(package):
    # That of a debug build has more code; `make deb` prints the size of the release.
    assert package.stat().st_size < 3 * MANY_BYTES
