#!/usr/bin/env python3
"""The chat's business server, and the page that hands out signed handshakes.

It holds one type=2 connection to ws-cluster. A chat page sends each line as a request; the line is
pushed to the room, and the request is answered. Who is in which room is known from events.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import http.server
import itertools
import json
import os
import random
import re
import sys
import threading
import time
import urllib.parse

try:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus, WebSocketException
except ImportError:
    sys.exit("chat: a package is missing: pip install websockets")

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/connection.js": ("connection.js", "text/javascript; charset=utf-8"),
}
CONNECT_PATH = "/ws/connect"
TOKEN_SECONDS = 60
# Distinguishes chat pages from other clients of the project.
DEVICE = "chat"
EVENTS = "request,connect,disconnect,node"
# A uid, which may have 128 bytes, contains the name and the room.
MAX_NAME = 24
ROOM = re.compile(r"[a-z0-9-]{1,24}")
MAX_TEXT = 2000
MAX_DELAY = 5.0


def log(text):
    print(f"chat: {text}", file=sys.stderr, flush=True)


def signed_query(secret, **params):
    """Returns the signed query of a connect URL, valid for a minute."""
    quote = lambda text: urllib.parse.quote(str(text), safe="-._~")
    params["exp"] = int(time.time()) + TOKEN_SECONDS
    canonical = "&".join(f"{quote(name)}={quote(params[name])}" for name in sorted(params))
    text = f"{CONNECT_PATH}\n{canonical}"
    sign = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"{canonical}&sign={sign}"


def protocols_of(query):
    """Returns the subprotocols that carry a query: in the URL it would end up in the access logs of
    proxies, and whoever reads it there could connect with it."""
    encoded = base64.urlsafe_b64encode(query.encode()).decode().rstrip("=")
    return ["ws-cluster", f"q.{encoded}"]


# A uid contains the name and the room. It is signed, so both can be trusted; and every event and
# request carries it, so a business server that has just started knows both, too.


def uid_of(name, room):
    return f"{name}@{room}"


def name_and_room(uid):
    name, _, room = uid.rpartition("@")
    return name, room


def node_of(client_id):
    """Returns the node of a client id: 41 bits of time, 10 of node, 12 of sequence."""
    return int(client_id) >> 12 & 1023


def response(request_id, **data):
    return {"type": "response", "id": request_id, "data": data}


class Chat:
    """The state known from one connection to ws-cluster. Earlier events are unknown: each
    connection starts with nobody, and asks the pages who is there."""

    def __init__(self):
        # The names and rooms by client id.
        self.members = {}
        # Unacknowledged pushes: the id of the request that each came from.
        self.pushes = {}
        self.numbers = itertools.count(1)

    def hear(self, message):
        """Handles a message and returns the messages to send in reply."""
        # A reply has a code, an event has none.
        match message:
            case {"type": "connect", "code": 1} | {"type": "node", "state": "up"}:
                return [self.push({"kind": "roll call"}, devices=[DEVICE])]
            case {"type": "push", "code": _, "id": number}:
                return self.acknowledged(number, message)
            case {"code": _}:
                log(f"the node says {message}")
            case {"type": "connect", "device": device, "uid": uid, "client_id": client_id}:
                return self.enter(client_id, uid, is_new=True) if device == DEVICE else []
            case {"type": "disconnect", "client_id": client_id}:
                return self.leave(client_id)
            case {"type": "node", "state": "lost", "node": node}:
                lost = [client_id for client_id in self.members if node_of(client_id) == node]
                return [push for client_id in lost for push in self.leave(client_id)]
            case {"type": "request", "id": request_id, "from": sender, "data": data}:
                return self.asked(request_id, sender, data)
        return []

    def asked(self, request_id, sender, data):
        if sender.get("device") != DEVICE:
            return [response(request_id, ok=False, error="this is not a chat page")]
        client_id, uid = sender["client_id"], sender["uid"]
        name, room = name_and_room(uid)
        match data:
            case {"here": True}:
                return [response(request_id, ok=True), *self.enter(client_id, uid, is_new=False)]
            case {"text": str(text)} if text.strip() and len(text) <= MAX_TEXT:
                line = {"kind": "line", "name": name, "text": text}
                # The sending page already shows it; it gets its answer after the acknowledgement.
                return [self.push(line, request_id, tags=[room], except_cids=[client_id])]
        return [response(request_id, ok=False, error=f"a line is 1 to {MAX_TEXT} characters")]

    def push(self, data, request_id=None, **selectors):
        number = str(next(self.numbers))
        self.pushes[number] = request_id
        return {"type": "push", "id": number, "data": data, **selectors}

    def acknowledged(self, number, reply):
        request_id = self.pushes.pop(number, None)
        is_accepted = reply["code"] == 1
        if not is_accepted:
            log(f"a push was not accepted: {reply['msg']}")
        if request_id is None:
            return []
        if is_accepted:
            return [response(request_id, ok=True)]
        return [response(request_id, ok=False, error=reply["msg"])]

    # Members of the rooms. A name open in two windows counts once.

    def names(self, room):
        return {name for name, its_room in self.members.values() if its_room == room}

    def enter(self, client_id, uid, is_new):
        name, room = name_and_room(uid)
        was_there = name in self.names(room)
        self.members[client_id] = name, room
        # Always with all names: a newcomer needs them, and nobody has to keep count.
        change = {"joined": name} if is_new and not was_there else {}
        return [self.push_names(room, change)]

    def leave(self, client_id):
        if client_id not in self.members:
            return []
        name, room = self.members.pop(client_id)
        if name in self.names(room):
            return []
        return [self.push_names(room, {"left": name})]

    def push_names(self, room, change):
        names = sorted(self.names(room))
        return self.push({"kind": "room", "members": names, **change}, tags=[room])


async def stay_connected(nodes, pid, secret):
    """Connects to the first node, and to the next one whenever a connection ends."""
    delay = 0.0
    for node in itertools.cycle(nodes):
        query = signed_query(secret, pid=pid, type=2, events=EVENTS)
        # The nodes are close: no proxy, no compression needed.
        options = {"proxy": None, "compression": None, "subprotocols": protocols_of(query)}
        try:
            async with connect(node + CONNECT_PATH, **options) as websocket:
                log(f"connected to {node}")
                delay = 0.0
                chat = Chat()
                async for text in websocket:
                    for answer in chat.hear(json.loads(text)):
                        await websocket.send(json.dumps(answer))
            ended = f"closed with {websocket.close_code}"
        except InvalidStatus as refusal:
            status, body = refusal.response.status_code, refusal.response.body.decode()
            ended = f"HTTP {status} {body}"
            if status in (400, 401, 403):
                sys.exit(f"chat: {node} refuses the business server: {ended}")
        except (OSError, WebSocketException) as error:
            ended = error
        delay = min(max(0.1, 2 * delay), MAX_DELAY)
        log(f"no connection to {node}: {ended}")
        # Business servers must not all reconnect at the same moment.
        await asyncio.sleep(delay * random.uniform(0.5, 1))


# The page, and the tokens.


class PageServer(http.server.ThreadingHTTPServer):
    def __init__(self, address, nodes, pid, secret):
        super().__init__(address, PageRequest)
        self.nodes = nodes
        self.pid = pid
        self.secret = secret
        self.next_node = itertools.cycle(nodes)

    def token(self, name, room):
        """Returns the URL and the subprotocols for the next node, so a page whose node is gone gets
        another one."""
        params = {"uid": uid_of(name, room), "tags": room, "device": DEVICE}
        query = signed_query(self.secret, pid=self.pid, type=1, **params)
        return {"url": next(self.next_node) + CONNECT_PATH, "protocols": protocols_of(query)}


class PageRequest(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/token":
            self.answer_token(dict(urllib.parse.parse_qsl(query)))
        elif path in FILES:
            name, content_type = FILES[path]
            with open(os.path.join(HERE, name), "rb") as file:
                self.answer(200, content_type, file.read())
        else:
            self.answer(404, "text/plain; charset=utf-8", b"not found\n")

    def answer_token(self, params):
        """Gives everybody any name; a real chat checks here who is logged in."""
        name, room = params.get("name", "").strip(), params.get("room", "")
        if not (0 < len(name) <= MAX_NAME and name.isprintable() and "," not in name):
            error = f"a name is 1 to {MAX_NAME} characters, without a comma"
            self.answer_json(400, {"error": error})
        elif not ROOM.fullmatch(room):
            error = "a room is 1 to 24 of the characters a-z, 0-9 and -"
            self.answer_json(400, {"error": error})
        else:
            self.answer_json(200, self.server.token(name, room))

    def answer_json(self, status, value):
        self.answer(status, "application/json", json.dumps(value).encode())

    def answer(self, status, content_type, body):
        nodes = " ".join(self.server.nodes)
        policy = f"default-src 'self'; img-src data:; connect-src 'self' {nodes}"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_):
        """Logs nothing: the page shows refusals."""


# The command line.


def node_address(text):
    if not re.fullmatch(r"wss?://[^/?#@\s;,']+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not like ws://127.0.0.1:8812")
    return text


def listen_address(text):
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 127.0.0.1:8080")
    return host, int(port)


def arguments():
    parser = argparse.ArgumentParser(
        description="A chat on ws-cluster: its business server and its page.",
        epilog="The project's secret is taken from CHAT_SECRET (default: dev-secret).",
    )
    parser.add_argument(
        "--ws",
        action="append",
        type=node_address,
        metavar="URL",
        help="a node's WebSocket address, once for each (default: ws://127.0.0.1:8812)",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:8080",
        type=listen_address,
        metavar="HOST:PORT",
        help="where the page is served; port 0 takes any (default: %(default)s)",
    )
    parser.add_argument("--pid", default="1", help="the project (default: %(default)s)")
    args = parser.parse_args()
    args.ws = args.ws or ["ws://127.0.0.1:8812"]
    args.secret = os.environ.get("CHAT_SECRET", "dev-secret")
    return args


def main():
    args = arguments()
    host, port = args.listen
    try:
        page = PageServer(args.listen, args.ws, args.pid, args.secret)
    except OSError as error:
        sys.exit(f"chat: cannot listen on {host}:{port}: {error.strerror}")
    print(f"chat listening: http://{host}:{page.server_port}", flush=True)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    try:
        asyncio.run(stay_connected(args.ws, args.pid, args.secret))
    except KeyboardInterrupt:
        # Interrupted by the user: no traceback.
        sys.exit(130)


if __name__ == "__main__":
    main()
