"""A headless Chromium or Chrome that a test drives, through the DevTools protocol on two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--hide-scrollbars"),
)
# The browser reads at descriptor 3 and writes to 4; those of the parent may have any numbers from 10 on.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
LOADED = """new Promise(done => document.readyState === "complete" ? done() : addEventListener("load", done)).then(
  () => Promise.all([...document.images].map(image => image.decode().catch(() => null))).then(() => true))"""
PATIENCE = 30.0  # seconds


def find_browser() -> str | None:
    """The first of `NAMES` that is installed and is a browser: some systems install a stub."""
    return next((path for path in map(shutil.which, NAMES) if path is not None and _answers(path)), None)


def _answers(path: str) -> bool:
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return told.returncode == 0 and "Chrom" in told.stdout


@contextmanager
def browsing(path: str) -> Iterator[Browser]:
    """A browser with a profile of its own, ended whatever happens."""
    with ExitStack() as stack:
        profile = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        (theirs_in, ours_out), (ours_in, theirs_out) = _pipe(stack), _pipe(stack)
        command = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), path]
        process = subprocess.Popen(
            [*command, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        yield Browser(ours_in, ours_out)


def _pipe(stack: ExitStack) -> tuple[int, int]:
    """Reading and writing end, closed in the end."""
    ends = []
    for low in os.pipe():
        ends.append(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(low)
        stack.callback(os.close, ends[-1])
    return ends[0], ends[1]


class Browser:
    """Commands out, answers and events in: JSON, each ended by a zero byte."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._pending, self._count = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        """What a command answers; events that come before it are kept."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": given}
        message = json.dumps(command if session is None else {**command, "sessionId": session}).encode() + b"\0"
        while message:
            message = message[os.write(self._writing, message) :]
        while (found := self._next()).get("id") != self._count:
            self.events.append(found)
        assert "error" not in found, f"{method}: {found['error']}"
        return found["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, end - time.monotonic()))
            new = os.read(self._reading, 1 << 20) if ready else b""
            assert new, "the browser says nothing more"
            self._pending += new
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int = 1200, height: int = 900, mobile: bool = False) -> Page:
        """A file in a window of this size, loaded; `mobile` heeds its viewport as a phone does."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        assert "errorText" not in page.call("Page.navigate", url=path.resolve().as_uri()), f"{path} cannot be opened"
        page.evaluate(LOADED)
        return page


@dataclass(frozen=True)
class Page:
    """A page that is open."""

    browser: Browser
    session: str

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        return self.browser.call(method, self.session, **given)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def _events(self) -> list[dict[str, Any]]:
        return [event for event in self.browser.events if event.get("sessionId") == self.session]

    @property
    def errors(self) -> list[str]:
        """What the console shows as an error: logged, thrown, refused or not found."""
        told = []
        for event in self._events:
            given = event.get("params", {})
            if event["method"] == "Log.entryAdded" and given["entry"]["level"] == "error":
                told.append(given["entry"]["text"])
            if event["method"] == "Runtime.consoleAPICalled" and given["type"] == "error":
                told.append(str(given["args"]))
            if event["method"] == "Runtime.exceptionThrown":
                told.append(given["exceptionDetails"]["text"])
        return told

    @property
    def requests(self) -> list[str]:
        """What it asked for besides itself and what it holds."""
        sent = [event["params"] for event in self._events if event["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]

    def pdf(self) -> bytes:
        """As printed, on the paper that its style asks for, or else on US letter."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])
