"""A headless Chromium, driven over its own debugging protocol."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

from websockets.sync.client import connect

FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --mute-audio --autoplay-policy=no-user-gesture-required
--use-fake-ui-for-media-stream --use-fake-device-for-media-stream --remote-debugging-port=0
""".split()

# The middle of an element, once it has been scrolled to
PLACE = """(() => { const e = document.querySelector(%s); e.scrollIntoView({block: 'nearest'});
const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"""


def find() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Page:
    """One page. A context manager. All that the console and the page's errors say is in `said`."""

    def __init__(self, folder: Path, *flags: str, width: int = 1280, height: int = 1000):
        self.said: list[str] = []
        self._number = 0
        self._process = subprocess.Popen(
            [find(), *FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}", *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = self._port(folder / "DevToolsActivePort")
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                target = next(target for target in json.load(answer) if target["type"] == "page")
            self._connection = connect(target["webSocketDebuggerUrl"], max_size=2**26)
            self._socket = self._connection.__enter__()
        except BaseException:
            self._process.kill()
            raise
        for domain in ("Runtime", "Page", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._connection.__exit__(None, None, None)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **given) -> dict:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": given}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str):
        """The value of an expression, awaited if it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, (script, self.said, self.run("document.body.innerText"))
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        self.press(selector)
        self.release(selector)

    def press(self, selector: str) -> None:
        self._mouse(selector, "mousePressed")

    def release(self, selector: str) -> None:
        self._mouse(selector, "mouseReleased")

    def key(self, key: str, code: str, kind: str) -> None:
        """kind: keyDown or keyUp."""
        self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code)

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def _mouse(self, selector: str, kind: str) -> None:
        place = self.run(PLACE % json.dumps(selector))
        self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def _note(self, message: dict) -> None:
        kind, told = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.said.append(details.get("exception", {}).get("description", details["text"]))
        elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.said.append(" ".join(str(argument.get("value")) for argument in told["args"]))
        elif kind == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.said.append(told["entry"]["text"] + " " + told["entry"].get("url", ""))

    def _port(self, file: Path) -> int:
        end = time.monotonic() + 60
        while not (file.exists() and (lines := file.read_text().split())):
            assert time.monotonic() < end and self._process.poll() is None, "Chromium does not start"
            time.sleep(0.1)
        return int(lines[0])
