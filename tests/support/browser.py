"""A real browser without a window, driven over a pipe by Chrome's DevTools protocol; it reaches no network."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 60.0


class Browser:
    """One page in a browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._number = write, read, b"", 0
        self._session: str | None = None
        self.errors: list[str] = []
        """What scripts threw, and what the page's policy refused."""
        self.requests: list[str] = []
        """Every address that the page asked for."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == asked["id"]:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(self, address: str) -> None:
        """Open an address and wait until it is there."""
        self("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Evaluate a script in the page and give its value."""
        result = self._evaluate(script)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until a script is true; where it fails the page may be on its way, and it is not true yet."""
        end = time.monotonic() + _PATIENCE
        while "exceptionDetails" in (result := self._evaluate(script)) or not result["result"].get("value"):
            assert time.monotonic() < end, f"never true: {script}: {result}"
            time.sleep(0.02)

    def _evaluate(self, script: str) -> dict[str, Any]:
        return self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)

    def click(self, selector: str) -> None:
        """Click with the mouse where an element is."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {}  # without which it presses no button
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    def screenshot(self, file: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Write what is seen to a .png file."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], _PATIENCE)
            assert ready, "the browser says nothing"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """Run a browser until the block ends."""
    assert CHROMIUM is not None
    its_read, our_write = os.pipe()
    our_read, its_write = os.pipe()
    # The protocol's pipe is file descriptors 3 and 4.
    command = f'exec "$0" "$@" 3<&{its_read} 4>&{its_write}'
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={folder}", "--remote-debugging-pipe", "--proxy-server=127.0.0.1:9"]
    process = subprocess.Popen(
        ["/bin/bash", "-c", command, CHROMIUM, *options],
        pass_fds=(its_read, its_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_read)
    os.close(its_write)
    try:
        yield Browser(our_write, our_read)
    finally:
        process.terminate()
        process.wait(30)
        os.close(our_write)
        os.close(our_read)
