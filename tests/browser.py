"""Chromium for the tests of pages, and how a page is shown in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 1440)


def chromium() -> Iterator[Any]:
    """Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the extra `browser` is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def sized(browser: Any, width: int, *, dark: bool = False) -> None:
    """Set the width of the window in pixels, and whether it is dark."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)


def shown(browser: Any, page: str, folder: Path, width: int, *, dark: bool = False) -> None:
    """Show a page from a file."""
    (folder / "report.html").write_text(page)
    sized(browser, width, dark=dark)
    browser.get(f"file://{folder / 'report.html'}")


def errors(browser: Any) -> list[Any]:
    """What the console told of errors since it was last asked."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
