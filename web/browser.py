"""The page in headless Chromium, for its test and its measurement: a server on the loopback and a driver."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",  # a microphone that beeps
)


@dataclass
class Served:
    """A folder served on the loopback.

    Attributes:
        url: Address of the folder.
        requests: Method and path of every request so far.
    """

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(folder: Path, slow: dict[str, float] | None = None) -> Iterator[Served]:
    """Serve a folder on the loopback until the context ends.

    Args:
        folder: The files.
        slow: Seconds until the answer for a file begins, by its name.
    """
    served = Served("")
    delays = slow or {}

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delays.get(self.path.strip("/"), 0))
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            served.requests.append(f"{self.command} {self.path}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    served.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def missing(programs: tuple[str, ...] = ("npm", "chromium", "chromedriver")) -> str | None:
    """What is missing to build the page and drive it; None when nothing is."""
    for program in programs:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return None


@contextmanager
def chromium(profile: Path, width: int = 1000, height: int = 1000, flags: tuple[str, ...] = ()) -> Iterator[Chrome]:
    """A headless Chromium.

    Args:
        profile: Folder for its user data.
        width: Of its window, pixels.
        height: Of its window, pixels.
        flags: More options of its command line.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        yield driver
    finally:
        driver.quit()
