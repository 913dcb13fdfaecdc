"""Swagger UI as a person sees it: Chromium, a secret that is typed in, and a client that gets what
is pushed from the page."""

import contextlib
import gzip
import json
import os
import re
from urllib.parse import urljoin

import pytest
from browser import SLACK, Browser
from harness import PROD_SECRET, ROOT, Server, eventually

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-some-length"
SECRET = "a secret that is not in any file"
PUSH = "#operations-push-push "
# Selects everything and deletes it.
EMPTY = "\ue009a\ue000\ue003"


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """One project that accepts any page, and one that accepts only another page."""
    file = tmp_path_factory.mktemp("projects") / "projects.toml"
    project = '[[project]]\npid = "{}"\nsecrets = ["{}"]\n{}\n'
    other = 'allowed_origins = ["https://app.example"]'
    file.write_text(project.format("1", SECRET, "") + project.format("two", SECRET, other))
    return str(file)


@pytest.fixture(scope="module")
def server(projects):
    server = Server("--workers", "1", "--projects", projects)
    yield server
    server.stop()


def get(server, path, **options):
    return server.request("GET", path, at=server.swagger, **options)


# The files.


def test_the_folder_leads_to_the_page(server):
    for path, query in (("/swagger", ""), ("/swagger/", ""), ("/swagger/", "?token=x&a=1")):
        answer = get(server, path + query)
        assert answer.status == 302
        assert answer.headers["Location"] == f"/swagger/index.html{query}"


def test_every_link_of_the_page_is_served_from_the_node(server):
    page = get(server, "/swagger/index.html")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    host, port = server.http
    assert f"connect-src 'self' http://{host}:{port};" in policy and "unsafe-eval" not in policy
    links = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert len(links) > 8
    for link in links:
        path = urljoin("/swagger/", link)
        answer = get(server, path)
        assert answer.status == 200 and len(answer.body) > 50, path
        assert answer.headers["Content-Type"].split("/")[0] in ("text", "application")
    assert get(server, "/swagger/nothing").status == 404
    assert get(server, "/swagger/../index.html").status == 404


def test_swagger_ui_is_the_version_that_make_brings(server):
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as file:
        version = re.search(r"^SWAGGER_UI := (\S+)$", file.read(), re.MULTILINE)[1]
    bundle = get(server, "/swagger/swagger-ui-bundle.js")
    assert bundle.headers["Content-Encoding"] == "gzip"
    assert f'PACKAGE_VERSION:"{version}"' in gzip.decompress(bundle.body).decode()
    assert "SmartBear" in get(server, "/swagger/NOTICE").text


# The page.


class Page(Browser):
    """A user at the page, with the push expanded."""

    def __init__(self, url, *switches):
        super().__init__("--window-size=1200,1400", *switches)
        try:
            self.visit(url)
        except BaseException:
            self.stop()
            raise

    def visit(self, url):
        self.open("about:blank")
        self.open(f"{url}#/push/push")
        unfolded = lambda: self.texts(PUSH + ".execute")
        eventually(unfolded, "the form of a push", SLACK)

    def choose(self, content_type):
        """Chooses a content type in the list, as a user would."""
        self.click(f'{PUSH}select.content-type option[value="{content_type}"]')
        self.body = f"{PUSH}.opblock-section-request-body"

    def fill(self, selector, text):
        """Types, and waits until Swagger UI has accepted the text, which takes a moment."""
        self.type(selector, EMPTY + text)
        self.run("document.activeElement.blur()")
        shown = "return document.querySelector(arguments[0]).value"
        eventually(lambda: self.run(shown, selector) == text, f"{text!r} in the field", SLACK)

    def press(self, selector):
        """Retries a click if something that expands above the button has moved it."""

        def pressed():
            try:
                self.click(selector)
            except AssertionError as error:
                assert "intercepted" in str(error)
                return False
            return True

        eventually(pressed, f"a press of {selector}", SLACK)

    def press_for(self, selector, effect):
        """A button that moves between press and release is silently not pressed."""
        for _ in range(5):
            self.press(selector)
            with contextlib.suppress(AssertionError):
                return eventually(effect, f"what {selector} does", SLACK / 5)
        raise AssertionError(f"{selector} does nothing")

    def execute_for(self, outcome):
        """Presses the button until the line of the outcome matches."""
        search = re.compile(outcome).search
        self.press_for(PUSH + ".execute", lambda: any(map(search, self.texts("#outcome"))))

    def execute(self):
        """Sends the request, and returns the status and the body that the page shows."""
        with_answer = PUSH + ".live-responses-table "
        clear = PUSH + ".btn-clear"
        if self.texts(clear):
            self.press(clear)
        eventually(lambda: not self.texts(with_answer), "no answer", SLACK)
        status = lambda: self.texts(with_answer + "tbody .response-col_status")
        [shown] = self.press_for(PUSH + ".execute", status)
        body = self.texts(with_answer + ".response-col_description .microlight")
        return shown.split()[0], json.loads(body[0]) if body else None


@pytest.fixture(scope="module")
def page(server):
    page = Page(f"http://localhost:{server.swagger[1]}/swagger/index.html")
    page.url = f"http://localhost:{server.swagger[1]}/swagger/index.html"
    yield page
    page.stop()


def test_a_push_from_the_page_arrives(server, page):
    page.visit(page.url)
    status, answer = page.execute()
    assert status == "401" and answer["msg"].startswith("sign is missing: add the header X-Sign")
    assert page.texts("#signing-state") == ["No secret: the request was sent without a sign."]
    page.type("#secret", SECRET)
    with server.client("alice", secret=SECRET) as client:
        status, answer = page.execute()
        assert (status, answer["code"], list(answer)) == ("200", 1, ["code", "msg", "id"])
        push = client.json()
        assert push == {"type": "push", "id": answer["id"], "data": {"hello": "world"}}

        # A form is prefilled with its example.
        page.choose("application/x-www-form-urlencoded")
        page.fill(f'{PUSH}tr[data-property-name="data"] input', "Grüße, 艾莉丝 + 'alle'~")
        assert page.execute()[0] == "200"
        assert json.loads(client.pushed()) == "Grüße, 艾莉丝 + 'alle'~"
    [request] = page.texts(PUSH + ".curl")
    assert SECRET not in request and "devices" not in request
    kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert page.run(kept) == '[{},{},""]'
    assert page.complaints() == []


def test_a_query_from_the_page_arrives(server, page):
    page.visit(page.url)
    page.type("#secret", SECRET)
    page.fill(f"{PUSH}.body-param textarea", "")
    for name, value in (("pid", "1"), ("uids", "alice"), ("data", "a b+c&d")):
        page.fill(f'{PUSH}tr[data-param-name="{name}"] input', value)
    with server.client("alice", secret=SECRET) as client, server.client("bob", secret=SECRET) as other:
        assert page.execute()[0] == "200"
        assert json.loads(client.pushed()) == "a b+c&d"
        server.push("for all", secret=SECRET)
        assert other.pushed() == '"for all"'


def test_the_node_refuses_and_the_page_shows_why(page):
    page.visit(page.url)
    page.type("#secret", "another")
    status, answer = page.execute()
    assert (status, answer["code"]) == ("401", 0) and answer["msg"].startswith("bad sign; ")
    page.await_text("#outcome", "POST /ws/push: 401, bad sign; the text to sign is: /ws/push")


def test_what_was_not_sent_or_not_answered_says_why_in_sight(page):
    page.visit(page.url)
    page.resize(390, 800)
    page.fill(f'{PUSH}tr[data-param-name="ttl_ms"] input', "abc")
    page.execute_for(r"POST /ws/push was not sent: .*ttl_ms.*integer")
    page.fill(f'{PUSH}tr[data-param-name="ttl_ms"] input', "")
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.execute_for(r"POST /ws/push: no answer \(Failed to fetch\.\)")
    top, bottom, height = page.run("""
        const { top, bottom } = document.querySelector("#outcome").getBoundingClientRect();
        return [top, bottom, innerHeight];
    """)
    assert 0 <= top < bottom <= height
    page.resize(1200, 1400)


CONTRAST = """
    const channels = (color) => {
      const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
      return [r, g, b, a];
    };
    const over = ([r, g, b, a], ground) =>
      [r, g, b].map((one, at) => one * a + ground[at] * (1 - a));
    const linear = (one) => (one <= 10.31 ? one / 3294.6 : ((one / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) =>
      0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const contrast = (one, other) => {
      const [most, least] = [light(one), light(other)].sort((a, b) => b - a);
      return (most + 0.05) / (least + 0.05);
    };
    const chain = (e) => (e ? [...chain(e.parentElement), e] : []);
    const low = [];
    let seen = 0;
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode.data.trim();
      const e = texts.currentNode.parentElement;
      const isShown = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
      if (text === "" || !isShown || e.closest("option, script, style, noscript")) continue;
      seen++;
      let [ground, opacity] = [[255, 255, 255], 1];
      for (const one of chain(e)) {
        const style = getComputedStyle(one);
        ground = over(channels(style.backgroundColor), ground);
        opacity *= Number(style.opacity);
      }
      const style = getComputedStyle(e);
      const [r, g, b, a] = channels(style.color);
      const size = parseFloat(style.fontSize);
      const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const ratio = contrast(over([r, g, b, a * opacity], ground), ground);
      if (ratio < (isLarge ? 3 : 4.5)) low.push(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
    }
    return [seen, [...new Set(low)]];
"""
UNFOLD = """
    const folded =
      ".opblock:not(.is-open) .opblock-summary-control, .models:not(.is-open) .models-control";
    const all = document.querySelectorAll(folded);
    all.forEach((one) => one.click());
    return all.length;
"""


def test_all_can_be_read_in_both_schemes_and_on_a_narrow_screen(page):
    page.visit(page.url)
    # The schemas come last, collapsed.
    sections = "return [...document.querySelectorAll('.opblock-tag, .models')].map((e) => e.tagName)"
    assert page.run(sections)[-1] == "SECTION"
    assert page.texts(".models .json-schema-2020-12__title") == []
    eventually(lambda: page.run(UNFOLD) == 0, "all unfolded", SLACK)
    page.run("document.querySelectorAll('.execute').forEach((one) => one.click())")
    answered = lambda: len(page.texts(".live-responses-table")) > 3
    eventually(answered, "answers to all that can be sent", SLACK)
    for scheme, ground in (("light", "250, 250, 250"), ("dark", "28, 32, 34")):
        page.prefer(scheme)
        color = "return getComputedStyle(document.body).backgroundColor"
        eventually(lambda: ground in page.run(color), scheme, SLACK)
        eventually(lambda: page.run(CONTRAST)[1] == [], f"contrast, {scheme}", SLACK)
        assert page.run(CONTRAST)[0] > 500
    page.prefer("light")
    page.resize(390, 800)
    eventually(lambda: page.cut() == [], "nothing that is cut", SLACK)
    assert page.run("return document.documentElement.scrollWidth") <= 390
    page.resize(1200, 1400)


def test_a_project_that_names_its_origins_must_name_the_page(server, page):
    page.visit(page.url)
    page.type("#secret", SECRET)
    page.fill(f"{PUSH}.body-param textarea", '{"pid":"two","uids":["alice"],"data":1}')
    status, _ = page.execute()
    assert status == "Undocumented"
    assert "Failed to fetch" in page.texts(PUSH + ".live-responses-table")[0]
    page.await_text("#outcome", "no answer .*allowed_origins do not include http://localhost:")


def test_light_and_dark(page):
    page.visit(page.url)
    color = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    seen = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        look = lambda: [
            page.run(color, selector, what)
            for selector, what in (("body", "backgroundColor"), (".title", "color"))
        ]
        eventually(lambda: look() not in seen.values(), scheme, SLACK)
        seen[scheme] = look()
    brightness = lambda rgb: sum(map(int, re.findall(r"\d+", rgb)[:3]))
    for scheme, [ground, title] in seen.items():
        assert (brightness(ground) > brightness(title)) == (scheme == "light"), seen


def test_behind_a_token_far_from_localhost_in_prod(prod_projects):
    """Without crypto.subtle, with the token for all links, and with an exp in every request."""
    server = Server(
        "--workers", "1", "--env", "prod", "--projects", prod_projects, "--ops_bind", "127.0.0.2",
        "--ops_hosts", "node.example",
        env={"WS_CLUSTER_OPS_TOKEN": TOKEN},
    )
    url = f"http://node.example:{server.swagger[1]}/swagger/index.html?token={TOKEN}"
    # The ops ports have their own address; the name resolves to both.
    rules = f"MAP node.example:{server.swagger[1]} 127.0.0.2, MAP node.example 127.0.0.1"
    try:
        files = {"index.html": 401, "../openapi.json": 401, "page.js": 200, "../token.js": 200}
        for file, status in files.items():
            path = urljoin("/swagger/", file)
            assert get(server, path).status == status, path
        page = Page(url, f"--host-resolver-rules={rules}")
        try:
            assert page.run("return [isSecureContext, typeof crypto.subtle]") == [False, "undefined"]
            assert page.run("return location.search") == ""
            assert "can be read in transit" in page.texts("#signing-state")[0]
            page.type("#secret", PROD_SECRET)
            status, answer = page.execute()
            assert status == "401" and "exp" in answer["msg"]
            page.click("#exp")
            with server.client("alice", secret=PROD_SECRET, exp="9999999999") as client:
                assert page.execute()[0] == "200"
                assert json.loads(client.pushed()) == {"hello": "world"}
            assert page.complaints() == []
        finally:
            page.stop()
    finally:
        server.stop()
