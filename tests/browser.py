"""A headless Chromium, driven over a pipe by the DevTools protocol, without a library."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39}
# the least contrast of any text that shows, by WCAG 2.2, 1.4.3, with the text that has it
CONTRAST = """(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
  const part = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  let worst = [21, ""];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!own.length || !box.width || style.visibility === "hidden") continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(e.tagName)) continue;
    const colour = parse(e instanceof SVGElement ? style.fill : style.color);
    if (colour.length < 3) continue;
    const over = ground(e), a = colour[3] ?? 1;
    const mixed = colour.slice(0, 3).map((v, i) => a * v + (1 - a) * over[i]);
    const [x, y] = [light(mixed), light(over)].sort((p, q) => q - p);
    const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
    const large = size >= 24 || (size >= 18.66 && bold);
    const ratio = ((x + 0.05) / (y + 0.05)) * (large ? 1.5 : 1);
    if (ratio < worst[0]) worst = [ratio, own[0].data.trim().slice(0, 60)];
  }
  return worst;
})()"""
AS_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for own, end in enumerate(ends, 3):
    os.dup2(end, own)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """The one tab: what is typed into it, what it evaluates to, and what its console said."""

    def __init__(self, read, write):
        self.read, self.write = read, write
        self.rest, self.ids, self.said, self.events = b"", itertools.count(1), [], []
        targets = self.call("Target.getTargets", browser=True)["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call(
            "Target.attachToTarget", browser=True, targetId=target, flatten=True
        )  # fmt: skip
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, browser=False, **params):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        if not browser:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self.rest:
            part = os.read(self.read, 1 << 16)
            assert part, "Chromium has gone"
            self.rest += part
        text, self.rest = self.rest.split(b"\0", 1)
        found = json.loads(text)
        if found.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                                   "Log.entryAdded"):  # fmt: skip
            self.said.append(found["params"])
        self.events.append(found.get("method"))
        return found

    def wait(self, event):
        while event not in self.events:
            self._next()

    def open(self, url, ready="true"):
        """Until it is loaded, and `ready` is true of it."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired")
        self.until(ready)

    def until(self, condition):
        """Half a minute at most."""
        waited = self.value(f"""new Promise((done) => {{ let left = 600; const look = () => {{
          const yes = Boolean({condition});
          if (yes || !left--) done(yes); else setTimeout(look, 50); }}; look(); }})""")
        assert waited, f"never: {condition}; the console: {self.said}"

    def value(self, expression):
        told = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def size(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def dark(self):
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def contrast(self):
        """The least of a text that shows, large ones at 1.5 times theirs; and the text."""
        return tuple(self.value(CONTRAST))

    def overflow(self):
        """Pixels by which the page is wider than the screen."""
        return self.value("document.documentElement.scrollWidth - innerWidth")

    def drag(self, *points):
        """The mouse, pressed at the first point and released at the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1)]
        for kind, (x, y) in [*zip(kinds, points, strict=True), ("mouseReleased", points[-1])]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                      buttons=int(kind != "mouseReleased"), clickCount=1)  # fmt: skip

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=KEYS[key], **text)  # fmt: skip

    def type(self, text):
        self.call("Input.insertText", text=text)

    def submit(self):
        """Enter, and the page that comes of it."""
        self.events.clear()
        self.press("Enter")
        self.wait("Page.loadEventFired")

    def picture(self, path):
        import base64

        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def chromium(profile):
    theirs_in, write = os.pipe()
    read, theirs_out = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", AS_3_AND_4, str(theirs_in), str(theirs_out), CHROMIUM, *flags],
        pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(read, write)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
