"""The page of a class, by a real server: who sees what, what is refused, and how it reads."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse

import browser
import classes
import fakes
import pytest

from isoflop.experiments.cli import classroom_server as served
from isoflop.experiments.cli import classroom_site
from isoflop.figures.report.page import environment
from isoflop.models.errors import UserError
from isoflop.sim.classroom import work
from isoflop.sim.classroom.rules import Design

HEADERS = {"Content-Type": "application/x-www-form-urlencoded"}
SHAPE = {"family": "dense", "width": "8", "depth": "1", "steps": "100", "lr": "0.001", "seed": "0"}
GOOD = Design(family="dense", width=16, depth=1, lr=1e-3)


@pytest.fixture
def site(tmp_path):
    """A class, its tokens, and a server of it in a thread."""
    room = classes.room(tmp_path / "class", students=(), largest=10**9)
    tokens = {name: room.enrol(name) for name in ("ada", "ben")}
    with served.listening(room, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield room, tokens, server.server_address[1]
        server.shutdown()
        thread.join()


class Browser:
    """One student's: a cookie, and forms with the page's own secret."""

    def __init__(self, port, token=None):
        self.port, self.cookie, self.page = port, "", ""
        if token is not None:
            self.status = self.post("/login", {"token": token})

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        own = {"Cookie": self.cookie} if self.cookie else {}
        connection.request(method, path, body, own | (headers or {}))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer, text

    def get(self, path="/"):
        _, self.page = self.ask("GET", path)
        return self.page

    def post(self, path, fields, **headers):
        answer, text = self.ask("POST", path, urllib.parse.urlencode(fields), HEADERS | headers)
        if cookie := answer.getheader("Set-Cookie"):
            self.cookie = cookie.split(";")[0]
            self.flags = cookie
        if answer.status == 303:
            assert answer.getheader("Location") == "/"
            self.get()
        else:
            self.page = text
        return answer.status

    def send(self, path, **fields):
        csrf = re.search(r'name="csrf" value="([^"]+)"', self.get())[1]
        return self.post(path, {"csrf": csrf, **fields})

    @property
    def said(self):
        return " ".join(re.search(r'role="(?:alert|status)">([^<]*)<', self.page)[1].split())


def test_a_student_buys_sees_the_result_predicts_and_is_ranked(site):
    room, tokens, port = site
    ada = Browser(port, tokens["ada"])
    assert "ada" in ada.page
    ada.send("/submit", **SHAPE, price="yes")
    assert "takes" in ada.said
    assert room.account("ada").purchases == []
    ada.send("/submit", **SHAPE)
    assert "it waits to be trained" in ada.said
    assert 'value="100"' in ada.page  # the form as it was
    work.train(room, fakes.train)
    loss = room.store.load(room.account("ada").purchases[0].key).loss
    assert f"{loss:.4f}" in ada.get()
    ada.send("/submit", **SHAPE)
    assert "you have this run already" in ada.said
    assert 'action="/predict"' not in ada.page
    room.announce(classes.TARGET)
    assert 'action="/submit"' not in ada.get()
    assert "9.877e+11" in ada.page
    handed = {"family": "dense", "width": "16", "depth": "1", "lr": "0.001"}
    ada.send("/predict", **handed, low="2.1", high="1.9")
    assert "an interval must hold its own prediction" in ada.said
    ada.send("/predict", **handed, low="1.2", high="1.8")
    assert "loss 1.5000 in [1.2000, 1.8000]" in ada.said
    room.predict("ben", GOOD, 2.0, 1.9, 2.1)
    room.close()
    work.score(room, fakes.train)
    assert '<tr class="own"><th scope="row">ada' in ada.get()
    assert "ben" in ada.page
    assert 'action="/predict"' not in ada.page


def test_a_student_sees_nobody_else_s_runs(site):
    room, tokens, port = site
    room.submit("ben", classes.cell(room, width=24))
    work.train(room, fakes.train)
    ada = Browser(port, tokens["ada"])
    assert "width 24" not in ada.page
    assert "ben" not in ada.page
    ada.send("/submit", **SHAPE | {"width": "24", "student": "ben"})  # who one is is the session's
    assert room.account("ada").spent == room.account("ben").spent > 0


def test_without_a_token_there_is_a_form_to_log_in_and_nothing_else(site):
    room, tokens, port = site
    stranger = Browser(port, "guess")
    assert stranger.status == 403
    assert "nobody has this token" in stranger.page
    assert "budget of" not in stranger.get()
    assert 'action="/submit"' not in stranger.page
    assert stranger.post("/submit", SHAPE) == 403
    stranger.cookie = "session=guess"
    assert 'action="/login"' in stranger.get()
    stranger.cookie = 'session="; garbage'
    assert 'action="/login"' in stranger.get()
    assert not any(room.account(name).log for name in tokens)


def test_logged_out_is_logged_out(site):
    _, tokens, port = site
    ada = Browser(port, tokens["ada"])
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {*ada.flags.split("; ")}
    before = ada.cookie
    ada.send("/logout")
    ada.cookie = before
    assert 'action="/login"' in ada.get()


def test_another_site_s_form_does_nothing(site):
    room, tokens, port = site
    ada = Browser(port, tokens["ada"])
    csrf = re.search(r'name="csrf" value="([^"]+)"', ada.get())[1]
    assert ada.post("/submit", SHAPE) == 403
    assert ada.post("/submit", SHAPE | {"csrf": "guess"}) == 403
    own = SHAPE | {"csrf": csrf}
    assert ada.post("/submit", own, Origin="http://evil.example") == 403
    assert ada.post("/login", {"token": tokens["ben"]}, Origin="http://evil.example") == 403
    ben = Browser(port, tokens["ben"])
    assert ben.post("/submit", own) == 403  # another session's secret
    assert room.account("ada").log == room.account("ben").log == ()
    assert ada.post("/submit", own, Origin=f"http://127.0.0.1:{port}") == 303


@pytest.mark.parametrize(
    "path",
    ["/../class.json", "/class.json", "/students/ada/token", "/%2e%2e/x", "/?x=1", "/runs/"],
)
def test_no_path_leads_into_the_folder(site, path):
    _, tokens, port = site
    ada = Browser(port, tokens["ada"])
    answer, text = ada.ask("GET", path)
    assert answer.status == 404
    assert "commitment" not in text


def test_only_small_forms_are_read(site):
    _, tokens, port = site
    ada = Browser(port, tokens["ada"])
    status = lambda *ask, **kw: ada.ask("POST", "/submit", *ask, **kw)[0].status  # noqa: E731
    assert status("x" * 10_000, HEADERS) == 413
    assert status("{}", {"Content-Type": "application/json"}) == 415
    assert status("&".join(f"a{i}=1" for i in range(50)), HEADERS) == 400
    assert status(iter([b"a=1"]), HEADERS) == 411  # in chunks, of no length
    assert ada.ask("PUT", "/submit", "a=1", HEADERS)[0].status == 501
    assert ada.ask("POST", "/else", "a=1", HEADERS)[0].status == 403


def test_what_is_sent_is_shown_as_text(site):
    _, tokens, port = site
    ada = Browser(port, tokens["ada"])
    for name in ("family", "width", "lr"):
        ada.send("/submit", **SHAPE | {name: '"><script>alert(1)</script>'})
        assert "<script" not in ada.page
        assert "&lt;script&gt;" in ada.page
    answer, text = ada.ask("GET", "/")
    policy = answer.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script" not in policy
    nonce = re.search(r"nonce-([^']+)'", policy)[1]
    assert f'<style nonce="{nonce}">' in text
    assert "style=" not in text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("width", "wide", "width must be a whole number"),
        ("width", "", "width is needed; fill it in"),
        ("lr", "-1", "greater than 0"),
        ("lr", "nan", "finite"),
        ("steps", "5", "must be at least"),
        ("width", "7", "rotary positions need an even"),
        ("width", str(2**15), "a run may take"),
        ("family", "mamba", "must be one of this class"),
        ("seed", "-1", "greater than or equal to 0"),
    ],
)
def test_a_mistake_is_told_on_the_page_and_buys_nothing(site, field, value, said):
    room, tokens, port = site
    ada = Browser(port, tokens["ada"])
    assert ada.send("/submit", **SHAPE | {field: value}) == 303
    assert said in ada.said
    assert "alert" in ada.page
    assert room.account("ada").log == ()


def test_thirty_students_at_once_are_each_answered_and_none_overspends(site):
    room, _, port = site
    tokens = {f"s{i}": room.enrol(f"s{i}") for i in range(30)}
    said = {}

    def buys(name):
        student, said[name] = Browser(port, tokens[name]), []
        for steps in ("400", "500", "600"):  # of which the budget holds two
            student.send("/submit", **SHAPE | {"width": "16", "steps": steps})
            said[name].append(student.said)

    threads = [threading.Thread(target=buys, args=(name,)) for name in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in tokens:
        account = room.account(name)
        assert 0 <= account.left < account.budget
        bought = sum("it waits to be trained" in one for one in said[name])
        assert bought == len(account.purchases) == 2
        assert "are left; make it smaller" in said[name][-1].replace("&#39;", "'")


def test_a_port_that_is_taken_is_told(site):
    room, _, port = site
    with (
        pytest.raises(UserError, match="cannot be listened at: Address already in use"),
        served.listening(room, "127.0.0.1", port),
    ):
        pass


def test_sessions_end(site, monkeypatch):
    room, tokens, _ = site
    own = classroom_site.Site(room)
    monkeypatch.setattr(classroom_site, "SESSIONS", 2)
    names = [own.login(tokens["ada"]) for _ in range(3)]
    assert [own.session(name) is not None for name in names] == [False, True, True]
    monkeypatch.setattr(classroom_site, "SESSION_SECONDS", -1)
    assert own.session(names[2]) is None


def test_a_damaged_log_is_told_to_its_student_and_the_teacher(site, capsys):
    room, tokens, port = site
    ada, ben = Browser(port, tokens["ada"]), Browser(port, tokens["ben"])
    (room.root / "students" / "ada" / "1.json").write_text("{")
    answer, text = ada.ask("GET", "/")
    assert answer.status == 500
    assert "tell your teacher" in text
    assert "is no whole line of a student" in capsys.readouterr().err
    assert ben.ask("GET", "/")[0].status == 200


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_and_edges_have_the_contrast_of_wcag_aa(scheme):
    source = environment().loader.get_source(environment(), "classroom.html.j2")[0]
    found = re.findall(r":root \{(.*?)\}", source, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", found))

    def contrast(front, back):
        light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for back in ("page", "card", "stripe"):
        for front in ("ink", "soft", "warn", "accent"):
            assert contrast(front, back) >= 4.5, (front, back)
        assert contrast("edge", back) >= 3, back
    assert contrast("on-accent", "accent") >= 4.5


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here")
def test_by_keyboard_on_a_phone_in_a_browser_from_the_command_s_own_server(tmp_path, monkeypatch):
    """isoflop class serve, its worker, and Chromium: log in, buy, see the result, and on."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    room = classes.room(tmp_path / "class", students=())
    token = room.enrol("ada")
    command = [sys.executable, "-m", "isoflop.experiments", "class", "serve"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    server = subprocess.Popen(
        [*command, str(room.root), "--port", "0"], stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        url = server.stdout.readline().strip()
        with browser.chromium(tmp_path / "profile") as page:
            page.size(375)
            page.open(url)
            assert page.value("document.activeElement.name") == "token"
            page.type(token)
            page.submit()

            def focus(name):
                for _ in range(40):
                    if page.value("document.activeElement.name") == name:
                        return
                    page.press("Tab")
                pytest.fail(f"Tab does not lead to {name}")

            def narrow():
                wide = "document.documentElement.scrollWidth"
                assert page.value(wide) <= 375

            narrow()
            for name, value in (("width", "8"), ("depth", "1"), ("steps", "100")):
                focus(name)
                page.type(value)
            focus("lr")
            page.type("0.001")
            page.submit()
            assert "it waits to be trained" in page.value("document.body.innerText")
            narrow()
            page.picture(tmp_path / "phone.png")
            wait_for_result(room, page, url)
            room.announce(classes.TARGET)
            page.open(url)
            for name, value in (("width", "16"), ("depth", "1"), ("lr", "0.001"),
                                ("low", "1.2"), ("high", "1.8")):  # fmt: skip
                focus(name)
                page.type(value)
            page.submit()
            assert "handed in" in page.value("document.body.innerText")
            narrow()
            room.close()
            work.score(room, fakes.train)
            page.open(url)
            assert "Leaderboard" in page.value("document.body.innerText")
            narrow()
            ring = "getComputedStyle(document.activeElement).outlineStyle"
            page.press("Tab")
            page.press("Tab")
            assert page.value(ring) == "solid"
            page.size(1280)
            page.picture(tmp_path / "wide.png")
            assert page.said == []
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 130
        server.stdout.close()


def wait_for_result(room, page, url):
    import time

    until = time.monotonic() + 120
    while any(room.settle("ada").waiting):
        assert time.monotonic() < until
        time.sleep(0.5)
    page.open(url)
    text = page.value("document.body.innerText")
    assert "ok" in text
    (purchase,) = room.account("ada").purchases
    assert f"{room.store.load(purchase.key).loss:.4f}" in text
    with pytest.raises(UserError, match="there is no student"):
        room.account("eve")
