"""The page in a real browser, against the real application on a port of its own."""

import hashlib
import runpy
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from serve.api import ServiceConfig, make_api
from serve.catalog import Catalog

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: install the extra `dev`")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
KEY = "a-key-for-the-browser-test"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no browser: install chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Catalog:
    publish = runpy.run_path(str(ROOT / "tests" / "serve" / "untrained.py"))["publish_untrained"]
    root = tmp_path_factory.mktemp("page") / "registry"
    publish(root, "chest/1", ("normal", "effusion"), seed=1)
    publish(root, "chest/2", ("normal", "effusion"), seed=2)
    publish(root, "findings/1", ("Mass", "Büschel + Rest"), "multilabel", seed=3)
    return Catalog.load(root)


@pytest.fixture(scope="module")
def serve_page(catalog) -> Iterator[Callable[..., str]]:
    """Start the application, with keys or without; gives its URL."""
    servers = []

    def start(keys: frozenset[str] | None = None) -> str:
        config = ServiceConfig(registry=Path("unused"))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_api(catalog, config, keys), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        servers.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, thread, listener in servers:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def url(serve_page) -> str:
    return serve_page()


def tiles(browser) -> list:
    return browser.find_elements(By.CSS_SELECTOR, ".tile")


def wait_for(browser, condition) -> None:
    WebDriverWait(browser, 30).until(lambda _: condition())


def loaded(browser, count: int) -> bool:
    """Whether the grid has `count` images, all decoded."""
    script = "return [...document.querySelectorAll('.tile img')].map((i) => i.complete && i.naturalWidth)"
    widths = browser.execute_script(script)
    return len(widths) == count and all(width == 32 for width in widths)


def open_page(browser, url: str, fragment: str = "", count: int = 24) -> None:
    browser.get("about:blank")  # a change of the fragment alone would not load the page again
    browser.get(url + fragment)
    wait_for(browser, lambda: loaded(browser, count))


def complaints(browser) -> list[dict]:
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_page_shows_images_by_address_each_marked_synthetic_and_nothing_complains(browser, url):
    open_page(browser, url)
    assert complaints(browser) == []  # the content security policy among others
    assert all(tile.text.startswith("SYNTHETIC") for tile in tiles(browser))
    sources = [tile.find_element(By.TAG_NAME, "img").get_attribute("src") for tile in tiles(browser)]
    assert sources == [f"{url}v1/models/chest/2/images/normal/1/{i}.png" for i in range(24)]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith(url) for name in asked)


def test_another_class_seed_version_and_count_show_other_addresses(browser, url):
    open_page(browser, url)
    browser.find_element(By.CSS_SELECTOR, "input[value=effusion]").click()
    Select(browser.find_element(By.ID, "version")).select_by_value("1")
    for field, value in (("seed", "77"), ("count", "5")):
        box = browser.find_element(By.ID, field)
        box.clear()
        box.send_keys(value, Keys.TAB)
    wait_for(browser, lambda: loaded(browser, 5))
    browser.find_element(By.ID, "later").click()
    wait_for(browser, lambda: loaded(browser, 5))
    sources = [tile.find_element(By.TAG_NAME, "img").get_attribute("src") for tile in tiles(browser)]
    assert sources == [f"{url}v1/models/chest/1/images/effusion/77/{i}.png" for i in range(5, 10)]
    state = browser.current_url
    open_page(browser, state, count=5)  # the fragment brings the same view back
    assert tiles(browser)[0].find_element(By.TAG_NAME, "img").get_attribute("src") == sources[0]


def test_a_click_shows_the_address_and_keys_move_on(browser, url):
    open_page(browser, url)
    tiles(browser)[2].click()
    address = browser.find_element(By.ID, "detail-address")
    wait_for(browser, lambda: address.text == "chest/2/normal/1/2")
    assert f"{url}v1/models/chest/2/images/normal/1/2.png" in browser.find_element(By.ID, "detail-curl").text
    assert "SYNTHETIC" in browser.find_element(By.ID, "detail").text
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    wait_for(browser, lambda: address.text == "chest/2/normal/1/3")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for(browser, lambda: not browser.find_element(By.ID, "detail").is_displayed())


def test_findings_can_be_combined_and_odd_names_survive(browser, url):
    open_page(browser, url, "#model=findings&count=2", count=2)
    assert tiles(browser)[0].find_element(By.TAG_NAME, "img").get_attribute("src").endswith("/images/none/1/0.png")
    for box in browser.find_elements(By.CSS_SELECTOR, "#classes input"):
        box.click()
    wait_for(browser, lambda: loaded(browser, 2))
    tiles(browser)[0].click()
    address = browser.find_element(By.ID, "detail-address")
    wait_for(browser, lambda: address.text == "findings/1/Mass+Büschel + Rest/1/0")


def test_downloads_hold_what_the_page_shows(browser, url, tmp_path):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    open_page(browser, url, "#model=chest&class=effusion&seed=3&count=4&start=8", count=4)
    browser.find_element(By.CSS_SELECTOR, "[data-suffix=npz]").click()
    wait_for(browser, lambda: list(tmp_path.glob("*.npz")))
    with np.load(next(tmp_path.glob("*.npz"))) as arrays:
        assert list(arrays["address"]) == [f"chest/2/effusion/3/{i}" for i in range(8, 12)]


def test_a_mistake_in_the_form_is_told_and_asks_nothing(browser, url):
    open_page(browser, url)
    box = browser.find_element(By.ID, "count")
    box.clear()
    box.send_keys("1000000000", Keys.TAB)
    assert browser.execute_script("return document.getElementById('count').validity.rangeOverflow")
    assert len(tiles(browser)) == 24


def test_a_service_with_keys_asks_for_one_and_shows_images_with_it(browser, serve_page):
    keyed = serve_page(frozenset({hashlib.sha256(KEY.encode()).hexdigest()}))
    browser.get(keyed)
    box = browser.find_element(By.ID, "key")
    wait_for(browser, box.is_displayed)
    assert "X-API-Key is missing" in browser.find_element(By.ID, "status").text
    assert not browser.find_element(By.ID, "model").is_displayed()
    box.send_keys(KEY, Keys.ENTER)
    wait_for(browser, lambda: loaded(browser, 24))
    assert not browser.find_element(By.ID, "status").is_displayed()
    assert KEY not in browser.current_url
