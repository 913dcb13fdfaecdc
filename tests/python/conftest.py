"""Servers for the tests: one shared by many, and one for each test that changes or breaks it."""

import contextlib
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from harness import Server  # noqa: E402

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


@pytest.fixture(scope="session")
def projects(tmp_path_factory):
    file = tmp_path_factory.mktemp("projects") / "projects.toml"
    file.write_text(PROJECTS)
    return str(file)


@pytest.fixture(scope="session", params=["1", "3"], ids=["1-worker", "3-workers"])
def workers(request):
    return request.param


@pytest.fixture(scope="session")
def shared(workers, projects):
    """Several projects, shared by tests that only ask; each test takes uids and tags of its own."""
    server = Server("--workers", workers, "--node", "200", "--projects", projects)
    yield server
    server.stop()


@pytest.fixture
def start(workers):
    """Starts servers of its own: start(*args)."""
    with contextlib.ExitStack() as stack:

        def start(*args, **options):
            server = Server("--workers", workers, *args, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def name(request):
    """Something that no other test's users and tags are called."""
    return "t%x-" % (abs(hash(request.node.nodeid)) % (1 << 40))
