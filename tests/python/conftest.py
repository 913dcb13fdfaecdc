"""Servers for the tests: one shared by many, and one for each test that changes or breaks it."""

import contextlib
import hashlib
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from harness import PROD_SECRET, Server  # noqa: E402
from redis_harness import Redis, node  # noqa: E402

PROJECTS = """
[[project]]
pid = "1"
secrets = ["dev-secret"]

[[project]]
pid = "two"
secrets = ["new-secret-of-two", "old-secret-of-two"]
allowed_origins = ["https://app.example"]

[[project]]
pid = "none"
secrets = ["secret-of-none"]
subscribe = "none"
allowed_origins = ["*"]

[[project]]
pid = "signed"
secrets = ["secret-of-signed", "older-secret-of-signed"]
subscribe = "signed"
allowed_origins = []
"""


@pytest.fixture
def stack():
    """Closes what it is given when the test is over."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def projects(tmp_path_factory):
    file = tmp_path_factory.mktemp("projects") / "projects.toml"
    file.write_text(PROJECTS)
    return str(file)


@pytest.fixture(scope="session")
def prod_projects(tmp_path_factory):
    """The same, with a secret for project 1 that `prod` accepts: PROD_SECRET."""
    file = tmp_path_factory.mktemp("prod") / "projects.toml"
    file.write_text(PROJECTS.replace("dev-secret", PROD_SECRET).replace("of-none", "of-project-none"))
    return str(file)


@pytest.fixture(scope="session", params=["1", "3"], ids=["1-worker", "3-workers"])
def workers(request):
    return request.param


@pytest.fixture(scope="session")
def shared(workers, projects):
    """Several projects, shared by tests that change nothing; each test uses its own uids and
    tags."""
    server = Server("--workers", workers, "--node", "200", "--projects", projects)
    yield server
    server.stop()


@pytest.fixture
def start(workers):
    """Starts servers for one test: start(*args)."""
    with contextlib.ExitStack() as stack:

        def start(*args, **options):
            server = Server("--workers", workers, *args, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def name(request):
    """A name that no other test uses for its users and tags."""
    return f"t{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]}-"


# Slow tests come first: with two workers each starts with half of them, and none is left for the
# end, when the other worker idles.


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes seconds: a browser, Prometheus, log rotation")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# Nodes on a Redis.


@pytest.fixture(scope="session")
def redis():
    """A Redis that no test breaks."""
    server = Redis()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def many_projects(tmp_path_factory):
    """A file with the projects 1 and two, and fifty that no node has used: p0 to p49."""
    file = tmp_path_factory.mktemp("many") / "projects.toml"
    fresh = [f'\n[[project]]\npid = "p{n}"\nsecrets = ["dev-secret"]\n' for n in range(50)]
    file.write_text(PROJECTS + "".join(fresh))
    return str(file)


@pytest.fixture(
    scope="session",
    params=[
        ("1", "project"),
        ("1", "user", "--broker_thread", "true"),
        ("2", "project"),
        ("2", "user"),
    ],
    ids=["1-worker", "1-worker-2-threads-routing-user", "2-workers", "2-workers-routing-user"],
)
def cluster(request, redis, many_projects):
    """Two nodes on one Redis, for tests that change nothing."""
    workers, routing, *more = request.param
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in (201, 202):
            # Each pair has its own prefix, so the pairs do not receive each other's messages.
            args = ["--redis_prefix", f"pair-{workers}-{routing}", "--routing", routing]
            args += ["--projects", many_projects, *more]
            nodes.append(node(number, redis.url, *args, workers=workers))
            stack.callback(nodes[-1].stop)
            nodes[-1].routing = routing
        yield nodes


@pytest.fixture
def own_redis():
    """Starts Redis servers that the test may break: own_redis(*args)."""
    with contextlib.ExitStack() as stack:

        def start(*args, **options):
            server = Redis(*args, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def own_node():
    """Starts nodes: own_node(number, url, *args)."""
    servers = []

    def start(*args, **options):
        servers.append(node(*args, **options))
        return servers[-1]

    yield start
    # They are stopped together, not one after the other.
    for server in servers:
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
    for server in servers:
        server.stop()
