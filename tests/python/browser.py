"""Headless Chromium, driven over the WebDriver protocol like a person with a browser."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request

from harness import eventually

# A browser starts many processes, which takes time on two cores.
SLACK = 60.0
# Runs as root, and connects only to the page's own servers.
SWITCHES = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync
--disable-dev-shm-usage --no-proxy-server --window-size=900,640
""".split()
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def start_driver():
    """The process and its port. It chooses a free IPv4 port, and exits if IPv6 has it in use."""
    said = []
    for _ in range(10):
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # It reports its port in its first lines, and prints nothing else later.
        for line in driver.stdout:
            said.append(line)
            if port := re.search(r"started successfully on port (\d+)", line):
                return driver, port[1]
        driver.wait(SLACK)
        driver.stdout.close()
    raise AssertionError(f"chromedriver does not start: {''.join(said)}")


class Browser:
    """A separate browser with its own profile."""

    def __init__(self, *switches):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        self.session = None
        self.driver, port = start_driver()
        try:
            self.root = f"http://127.0.0.1:{port}"
            options = {
                "binary": shutil.which("chromium"),
                "args": [*SWITCHES, *switches, f"--user-data-dir={self.profile}"],
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{answer['sessionId']}"
        except BaseException:
            self.stop()
            raise

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.root + path, data, headers, method=method)
        # Ignores any proxy in the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=SLACK) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def post(self, path, **body):
        return self.call("POST", self.session + path, body)

    def stop(self):
        try:
            if self.session is not None:
                self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(SLACK)
            self.driver.stdout.close()
            shutil.rmtree(self.profile, ignore_errors=True)

    def open(self, url):
        self.post("/url", url=url)

    def run(self, script, *args):
        """Runs the script in the page and returns its result."""
        return self.post("/execute/sync", script=script, args=args)

    def find(self, selector):
        found = self.post("/element", using="css selector", value=selector)
        return f"/element/{found[ELEMENT]}"

    def click(self, selector):
        self.post(self.find(selector) + "/click")

    def type(self, selector, text):
        """Types key by key into an element, which must be visible."""
        self.post(self.find(selector) + "/value", text=text)

    def texts(self, selector):
        """The visible text of each of these elements; empty for a hidden one."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return self.run(script, selector)

    def prefer(self, scheme):
        """Sets the colour scheme, `light` or `dark`."""
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.post("/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=wanted)

    def is_shown(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].some((e) => e.checkVisibility())"
        return self.run(script, selector)

    def await_text(self, selector, pattern):
        """Waits until an element with that selector has matching text, and returns the match."""
        search = re.compile(pattern).search
        found = lambda: next(filter(None, map(search, self.texts(selector))), None)
        return eventually(found, f"{pattern!r} in {selector}", SLACK)

    def resize(self, width, height):
        """Sets the size of the page: a window cannot be as narrow as a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = "Emulation.setDeviceMetricsOverride"
        self.post("/goog/cdp/execute", cmd=command, params=size)

    def cut(self, box="body"):
        """Elements beyond the page's right edge that cannot be reached by scrolling within a
        box."""
        script = """
            const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
            const isBoxed = (e) => e !== document.body && (scrolls(e) || isBoxed(e.parentElement));
            // What is drawn is clipped by its drawing.
            const all = [...document.querySelectorAll(arguments[0] + " :not(svg *)")];
            return all.filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !isBoxed(e))
              .map((e) => e.outerHTML.slice(0, 100));
        """
        return self.run(script, box)

    def complaints(self):
        """Messages on the browser's console since the last call, without network errors."""
        entries = self.post("/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["source"] != "network"]

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("GET", self.session + "/screenshot")))
