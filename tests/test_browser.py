"""In a browser: the report's page without a network, and optuna-dashboard on a finished study.

Runs only with ``python -m pytest -m browser``. It needs Chromium and its driver (Debian: ``chromium
chromium-driver``).
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Ended, environment
from test_report import SECTIONS

pytestmark = pytest.mark.browser
WIDTHS = (400, 1400)  # pixels


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "chromium is not installed"
    assert driver, "chromedriver is not installed"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                     "--hide-scrollbars"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def go_online(browser, online: bool) -> None:
    browser.execute_cdp_cmd("Network.enable", {})
    speed = -1 if online else 0
    conditions = {"latency": 0, "downloadThroughput": speed, "uploadThroughput": speed}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": not online, **conditions})


def set_size(browser, width: int, height: int = 900) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_readable_without_a_network(
    browser, finished: tuple[Path, Ended], width: int, scheme: str
) -> None:
    go_online(browser, False)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    set_size(browser, width)
    browser.get((finished[0] / "reports" / "nas_mnist" / "report.html").as_uri())
    evaluate = browser.execute_script
    assert evaluate("return [...document.querySelectorAll('h2')].map(x => x.textContent)") == SECTIONS
    assert evaluate("return document.documentElement.scrollWidth") <= width
    ink, paper = (
        sum(map(int, re.findall(r"\d+", evaluate(f"return getComputedStyle(document.body).{what}"))[:3])) / 3
        for what in ("color", "backgroundColor")
    )
    assert (ink < 80 and paper > 200) if scheme == "light" else (ink > 200 and paper < 80)
    heights = evaluate(
        "return [...document.querySelectorAll('svg text')].filter(x => x.textContent.trim())"
        ".map(x => x.getBoundingClientRect().height)"
    )
    assert len(heights) > 50
    assert min(heights) >= 6.5  # pixels; digits of a confusion matrix are the smallest
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def dashboard(finished: tuple[Path, Ended]) -> Iterator[str]:
    """The address of optuna-dashboard, started by the line that the search printed."""
    program, *arguments = finished[1].out.splitlines()[-1].split()
    assert program == "optuna-dashboard"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name(program)), *arguments, "--port", str(port), "--quiet"],
        cwd=finished[0],
        env=environment(finished[0].parent / "cache"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        try:
            opener.open(f"{address}/api/studies", timeout=5)
            break
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "optuna-dashboard ended"
            time.sleep(0.1)
    yield address
    server.terminate()
    server.wait(10)


def test_the_dashboard_shows_a_trials_note_and_picture(
    browser, dashboard: str, finished: tuple[Path, Ended]
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def shows_a_picture(browser) -> bool:
        return any(
            "/artifacts/" in (picture.get_attribute("src") or "")
            and browser.execute_script("return arguments[0].naturalWidth", picture) > 100
            for picture in browser.find_elements(By.TAG_NAME, "img")
        )

    summary = json.loads((finished[0] / "reports" / "nas_mnist" / "summary.json").read_text())
    trial = f"//*[starts-with(normalize-space(text()), 'Trial {summary['winner']['trial']}')]"
    link = "//a[contains(@href, '/dashboard/studies/')]"
    go_online(browser, True)
    set_size(browser, 1400)
    browser.get_log("browser")  # what came before
    browser.get(f"{dashboard}/dashboard")
    wait = WebDriverWait(browser, 30)
    wait.until(lambda found: found.find_elements(By.XPATH, link))
    browser.find_element(By.XPATH, link).click()
    wait.until(lambda found: "/studies/" in found.current_url)
    study = re.search(r"/studies/(\d+)", browser.current_url)
    assert study
    browser.get(f"{dashboard}/dashboard/studies/{study[1]}/trials")
    wait.until(lambda found: found.find_elements(By.XPATH, trial))
    browser.find_element(By.XPATH, trial).click()
    wait.until(lambda found: "parameters" in found.find_element(By.TAG_NAME, "body").text)
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "Total params:" in text
    assert "n_params" in text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1400
    wait.until(shows_a_picture)
    browser.get(f"{dashboard}/dashboard/studies/{study[1]}/note")
    wait.until(lambda found: "At most 15,000 parameters" in found.find_element(By.TAG_NAME, "body").text)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
