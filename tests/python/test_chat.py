"""The chat of examples/chat as users see it: browsers, two nodes on one Redis, and its server."""

import base64
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from browser import SLACK, Browser
from harness import PATIENCE, ROOT, SECRET, Server, eventually, signed

pytestmark = pytest.mark.slow

CHAT = os.path.join(ROOT, "examples/chat")


class ChatServer:
    """Runs server.py, by default on a free port."""

    def __init__(self, *args, secret=None):
        command = [sys.executable, os.path.join(CHAT, "server.py"), "--listen", "127.0.0.1:0"]
        env = {name: value for name, value in os.environ.items() if name != "CHAT_SECRET"}
        self.process = subprocess.Popen(
            [*command, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**env, **({"CHAT_SECRET": secret} if secret else {})},
        )
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    @property
    def output(self):
        return "".join(self.lines)

    def said(self, pattern):
        """Waits until the output matches the pattern, and returns the match."""
        return eventually(lambda: re.search(pattern, self.output), pattern, SLACK)

    @property
    def url(self):
        return self.said(r"chat listening: (http://\S+)")[1]

    def ended(self):
        """Its exit code and its output."""
        code = self.process.wait(SLACK)
        self.reader.join(SLACK)
        return code, self.output

    def get(self, path):
        """Status, headers and body."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url + path, timeout=PATIENCE) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def kill(self):
        self.process.kill()
        self.process.wait(SLACK)
        self.reader.join(SLACK)
        self.process.stdout.close()


class Person(Browser):
    """Somebody with a browser at the chat page."""

    def __init__(self, url, name, room="lobby"):
        super().__init__()
        try:
            self.open(f"{url}/?room={room}")
            self.type("#join [name=name]", name)
        except BaseException:
            self.stop()
            raise

    def join(self):
        self.click("#join button")
        self.await_status("connected to node")

    def status(self):
        return self.texts("#status")[0]

    def await_status(self, start):
        eventually(lambda: self.status().startswith(start), f"the status {start!r}", SLACK)

    def members(self):
        return self.texts("#members li")

    def await_members(self, *names):
        eventually(lambda: self.members() == [*names], f"{names} in the room", SLACK)

    def await_notice(self, text, count=1):
        """Waits until the notice was shown this number of times."""
        seen = lambda: self.texts(".notice").count(text) == count
        eventually(seen, f"{count} times {text!r}", SLACK)

    def lines(self):
        """Name and text of each."""
        return list(zip(self.texts(".line .name"), self.texts(".line .text")))

    def await_line(self, name, text):
        seen = lambda: (name, text) in self.lines()
        eventually(seen, f"the line {text!r} of {name}", SLACK)

    def say(self, text):
        """Types a line, and returns the answer that the page shows."""
        self.type("#composer input", text)
        self.click("#composer button")
        answer = lambda: self.texts(".own .answer")[-1]
        return eventually(lambda: answer() != "sending" and answer(), f"an answer to {text}", SLACK)

    def say_until(self, text, answer):
        """Sends the line until the answer matches: a node learns of changes at another one
        later."""
        eventually(lambda: self.say(text) == answer, f"{answer} to {text}", SLACK)


@pytest.fixture
def chat_server(stack):
    def start(*nodes, **options):
        args = [word for node in nodes for word in ("--ws", "ws://%s:%d" % node.ws)]
        server = ChatServer(*args, **options)
        stack.callback(server.kill)
        return server

    return start


@pytest.fixture
def nodes(redis, own_node, name):
    """Two nodes on one Redis, with a prefix of their own."""
    return [own_node(number, redis.url, "--redis_prefix", name) for number in (201, 202)]


@pytest.fixture
def people(stack):
    """Starts browsers: people(url, *names)."""

    def start(url, *names):
        people = []
        for name in names:
            people.append(Person(url, name))
            stack.callback(people[-1].stop)
        for person in people:
            person.join()
        return people

    return start


def test_two_people_talk_over_two_nodes(nodes, chat_server, people):
    server = chat_server(*nodes)
    server.said("connected to ws://%s:%d" % nodes[0].ws)
    alice, bob = people(server.url, "alice", "bob")
    # The tokens name the nodes in turn, and the business server is at the first.
    assert [alice.status(), bob.status()] == ["connected to node 201", "connected to node 202"]
    alice.await_notice("bob joined")
    alice.await_members("alice (you)", "bob")
    bob.await_members("alice", "bob (you)")

    assert alice.say("Hello <b>bob</b> & all") == "sent"
    bob.await_line("alice", "Hello <b>bob</b> & all")
    assert bob.say("Grüß dich, 艾莉丝 👋") == "sent"
    alice.await_line("bob", "Grüß dich, 艾莉丝 👋")
    # Each line once: the sender does not get its own line pushed.
    assert alice.lines() == bob.lines() and len(bob.lines()) == 2

    bob.click("#leave")
    alice.await_notice("bob left")
    alice.await_members("alice (you)")
    bob.join()
    alice.await_notice("bob joined", count=2)
    bob.await_members("alice", "bob (you)")

    server.kill()
    alice.say_until("Nobody answers", "refused: no server")
    bob.say_until("Nobody answers", "refused: no server")
    # A client whose request is refused stays connected, and sees no lines.
    assert bob.texts(".line:not(.own)") == []

    for person in (alice, bob):
        person.run("document.getElementById('members').replaceChildren()")
    server = chat_server(*nodes)
    # A business server that has just started asks who is there.
    alice.await_members("alice (you)", "bob")
    bob.await_members("alice", "bob (you)")
    alice.say_until("Again", "sent")
    bob.await_line("alice", "Again")
    bob.say_until("And again", "sent")
    alice.await_line("bob", "And again")
    bob.click("#leave")
    alice.await_notice("bob left", count=2)
    alice.await_members("alice (you)")
    assert alice.complaints() == bob.complaints() == []


def test_a_node_goes_and_everybody_comes_back_at_the_other(nodes, chat_server, people):
    server = chat_server(*nodes)
    server.said("connected to ws://%s:%d" % nodes[0].ws)
    alice, bob = people(server.url, "alice", "bob")
    nodes[0].signal(signal.SIGTERM)
    server.said("connected to ws://%s:%d" % nodes[1].ws)
    alice.await_status("connected to node 202")
    alice.await_notice("Reconnected. Lines sent in the meantime are not shown.")
    alice.say_until("I am back", "sent")
    bob.await_line("alice", "I am back")
    bob.await_members("alice", "bob (you)")
    assert nodes[0].wait(SLACK) == 0


def test_a_node_that_dies_takes_its_people_along(nodes, chat_server, people):
    server = chat_server(*nodes)
    server.said("connected to ws://%s:%d" % nodes[0].ws)
    alice, bob = people(server.url, "alice", "bob")
    alice.await_members("alice (you)", "bob")
    nodes[1].process.kill()
    bob.click("#leave")
    # There is no event for him, only the loss of his node.
    alice.await_notice("bob left")
    alice.await_members("alice (you)")


def test_a_server_that_stands_still_is_shown(stack, chat_server, people):
    node = Server("--workers", "1", "--request_timeout_ms", "2000")
    stack.callback(node.stop)
    server = chat_server(node)
    server.said("connected to")
    [alice] = people(server.url, "alice")
    server.process.send_signal(signal.SIGSTOP)
    assert alice.say("Is it there?") == "no answer in time: perhaps sent"
    server.process.send_signal(signal.SIGCONT)
    assert alice.say("Now it is") == "sent"


def test_a_name_in_two_windows_is_one_and_rooms_are_apart(nodes, chat_server, people):
    server = chat_server(nodes[1])
    server.said("connected to")
    alice, bob, other = people(server.url, "alice", "bob", "alice")
    for window in (alice, other):
        window.await_members("alice (you)", "bob")
    assert alice.say("Said in one window") == "sent"
    for window in (bob, other):
        window.await_line("alice", "Said in one window")
    assert len(other.texts(".own")) == 1
    assert "alice joined" not in bob.texts(".notice")
    # She has left once her last window is closed.
    other.click("#leave")
    alice.click("#leave")
    bob.await_members("bob (you)")
    bob.await_notice("alice left")

    alice.run("document.querySelector('[name=room]').value = 'attic'")
    alice.join()
    alice.await_members("alice (you)")
    assert bob.say("Is anybody here?") == "sent"
    assert alice.say("Nobody") == "sent"
    assert alice.lines() == [("alice", "Nobody")]
    bob.await_members("bob (you)")


# The token page and the command line.


@pytest.fixture(scope="module")
def token_page():
    """Tokens are issued without a node."""
    server = ChatServer("--ws", "ws://127.0.0.1:1", "--ws", "wss://127.0.0.1:1", "--pid", "shop")
    yield server
    server.kill()


def token(server, **params):
    status, headers, body = server.get(f"/token?{urllib.parse.urlencode(params)}")
    assert headers["Content-Type"] == "application/json" and headers["Cache-Control"] == "no-store"
    return status, json.loads(body)


def test_a_token_is_a_signature_for_each_node_in_turn(token_page):
    starts = []
    for _ in range(4):
        status, answer = token(token_page, name="zoë @home", room="room-1")
        assert status == 200 and list(answer) == ["url", "protocols"]
        # Not in the URL, which proxies log.
        starts.append(answer["url"])
        selected, encoded = answer["protocols"]
        assert selected == "ws-cluster" and re.fullmatch(r"q\.[\w-]+", encoded)
        query = base64.urlsafe_b64decode(encoded[2:] + "==").decode()
        assert SECRET not in query
        params = dict(urllib.parse.parse_qsl(query, strict_parsing=True))
        sign, expires = params.pop("sign"), params["exp"]
        resigned = urllib.parse.parse_qs(signed("/ws/connect", params))
        assert [sign] == resigned["sign"]
        assert 0 < int(params.pop("exp")) - time.time() <= 60, expires
        uid = "zoë @home@room-1"
        assert params == {
            "pid": "shop", "type": "1", "uid": uid, "tags": "room-1", "device": "chat",
        }
    first, second = "ws://127.0.0.1:1/ws/connect", "wss://127.0.0.1:1/ws/connect"
    assert starts in ([first, second] * 2, [second, first] * 2)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": "alice"},
        {"name": "", "room": "lobby"},
        {"name": "  ", "room": "lobby"},
        {"name": "a,b", "room": "lobby"},
        {"name": "a\nb", "room": "lobby"},
        {"name": "a" * 25, "room": "lobby"},
        {"name": "alice", "room": ""},
        {"name": "alice", "room": "a@b"},
        {"name": "alice", "room": "Lobby"},
        {"name": "alice", "room": "lobby\n"},
        {"name": "alice", "room": "r" * 25},
    ],
)
def test_a_name_or_room_that_will_not_do_is_refused(token_page, params):
    status, answer = token(token_page, **params)
    assert status == 400 and list(answer) == ["error"] and answer["error"]


def test_only_the_files_of_the_page_are_served(token_page):
    for path in ("/server.py", "/README.md", "/../../README.md", "/nothing"):
        assert token_page.get(path)[0] == 404, path
    status, headers, page = token_page.get("/?room=attic")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert "connect-src 'self' ws://127.0.0.1:1 wss://127.0.0.1:1" in (
        headers["Content-Security-Policy"]
    )
    for path in re.findall(r'(?:src|href)="(\w[^":]*)"', page):
        assert token_page.get(f"/{path}")[0] == 200, path


@pytest.mark.parametrize(
    "args, message",
    [
        (["--ws", "http://127.0.0.1:8812"], "is not like ws://127.0.0.1:8812"),
        (["--ws", "ws://127.0.0.1:8812/ws/connect"], "is not like ws://127.0.0.1:8812"),
        (["--listen", "8080"], "is not like 127.0.0.1:8080"),
        (["--listen", "127.0.0.1:99999"], "is not like 127.0.0.1:8080"),
    ],
)
def test_a_wrong_flag_is_named(stack, args, message):
    server = ChatServer(*args)
    stack.callback(server.kill)
    code, output = server.ended()
    assert code == 2 and args[1] in output and message in output


def test_a_taken_port_is_named(stack):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        server = ChatServer("--listen", address)
        stack.callback(server.kill)
        expected = f"chat: cannot listen on {address}: Address already in use\n"
        assert server.ended() == (1, expected)


def test_a_wrong_secret_ends_it(stack, chat_server):
    node = Server("--workers", "1")
    stack.callback(node.stop)
    code, output = chat_server(node, secret="another").ended()
    assert code == 1
    assert "refuses the business server: HTTP 401" in output and "Traceback" not in output


def test_the_readme_starts_two_nodes_and_the_chat_on_both():
    with open(os.path.join(CHAT, "README.md"), encoding="utf-8") as file:
        *nodes, chat = re.search(r"```sh\n(.*?)```", file.read(), re.DOTALL)[1].splitlines()
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        # test_readme.py runs these lines.
        assert "\n".join(nodes) in file.read()
    python, script, *flags = shlex.split(chat)
    assert python == "python3" and os.path.exists(os.path.join(ROOT, script))
    ports = [re.search(r"--ws_port (\d+)", line) for line in nodes if line.startswith("cargo")]
    urls = [f"ws://127.0.0.1:{port[1] if port else 8812}" for port in ports]
    assert flags == [word for url in urls for word in ("--ws", url)]
