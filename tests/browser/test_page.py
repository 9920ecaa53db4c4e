"""The page in a real browser, against the real application on a port of its own."""

import base64
import hashlib
import io
import runpy
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from serve.access import keyfile
from serve.api import make_api
from serve.backend import Backend
from serve.config import ServiceConfig
from vaegan.checkpoint import write_privacy
from vaegan.registry import renew_sums

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: install the extra `dev`")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
CHEST = "#model=chest"
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


OVERRIDE = """[[override]]
model = "answered/1"
scope = "images"
reason = "All patients consented to publication"
by = "J. Doe"
date = 2026-11-20
"""
CARD = """# Odd card

| | |
|---|---|
| kind | **vaegan** |

<img src=x onerror="document.title='broken into'"> <script>document.title='broken into'</script>

- one `code`
  and its second line
- [a link](https://example.org/) and [none](javascript:alert(1))
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    """chest and findings: never audited; refused and answered: failed, the latter's images with an override."""
    publish = runpy.run_path(str(ROOT / "tests" / "serve" / "untrained.py"))["publish_untrained"]
    root = tmp_path_factory.mktemp("page") / "registry"
    publish(root, "chest/1", ("normal", "effusion"), seed=1)
    publish(root, "chest/2", ("normal", "effusion"), seed=2)
    publish(root, "findings/1", ("Mass", "Büschel + Rest"), "multilabel", seed=3)
    for name in ("refused", "answered"):
        publish(root, f"{name}/1", ("normal", "effusion"), seed=4)
        scopes = {"images": {"verdict": "fail"}, "model": {"verdict": "fail"}}
        write_privacy(root / name / "1", {"verdict": "fail", "scopes": scopes}, CARD)
        renew_sums(root / name / "1")
    return root


@pytest.fixture(scope="module")
def serve_page(registry) -> Iterator[Callable[..., str]]:
    """Start the application, with keys or without; gives its URL."""
    servers = []
    overrides = registry.parent / "overrides.toml"
    overrides.write_text(OVERRIDE)

    def start(keys: keyfile.Keys | None = None) -> str:
        backend = Backend(ServiceConfig(registry=registry, gate_overrides=overrides), keys)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_api(backend), log_level="warning"))
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
    browser.get_log("browser")  # what earlier pages complained about
    browser.get(url + fragment)
    wait_for(browser, lambda: loaded(browser, count))


def find(browser, id: str):
    return browser.find_element(By.ID, id)


def complaints(browser) -> list[dict]:
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_page_shows_images_by_address_each_marked_synthetic_and_nothing_complains(browser, url):
    open_page(browser, url, CHEST)
    assert complaints(browser) == []  # the content security policy among others
    assert all(tile.text.startswith("SYNTHETIC") for tile in tiles(browser))
    sources = [tile.find_element(By.TAG_NAME, "img").get_attribute("src") for tile in tiles(browser)]
    assert sources == [f"{url}v1/models/chest/2/images/normal/1/{i}.png" for i in range(24)]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith(url) for name in asked)


def test_another_class_seed_version_and_count_show_other_addresses(browser, url):
    open_page(browser, url, CHEST)
    browser.find_element(By.CSS_SELECTOR, "input[value=effusion]").click()
    Select(find(browser, "version")).select_by_value("1")
    for field, value in (("seed", "77"), ("count", "5")):
        box = find(browser, field)
        box.clear()
        box.send_keys(value, Keys.TAB)
    wait_for(browser, lambda: loaded(browser, 5))
    find(browser, "later").click()
    wait_for(browser, lambda: loaded(browser, 5))
    sources = [tile.find_element(By.TAG_NAME, "img").get_attribute("src") for tile in tiles(browser)]
    assert sources == [f"{url}v1/models/chest/1/images/effusion/77/{i}.png" for i in range(5, 10)]
    state = browser.current_url
    open_page(browser, state, count=5)  # the fragment brings the same view back
    assert tiles(browser)[0].find_element(By.TAG_NAME, "img").get_attribute("src") == sources[0]


def test_a_click_shows_the_address_and_keys_move_on(browser, url):
    open_page(browser, url, CHEST)
    tiles(browser)[2].click()
    address = find(browser, "detail-address")
    wait_for(browser, lambda: address.text == "chest/2/normal/1/2")
    assert f"{url}v1/models/chest/2/images/normal/1/2.png" in find(browser, "detail-curl").text
    assert "SYNTHETIC" in find(browser, "detail").text
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    wait_for(browser, lambda: address.text == "chest/2/normal/1/3")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for(browser, lambda: not find(browser, "detail").is_displayed())


def test_findings_can_be_combined_and_odd_names_survive(browser, url):
    open_page(browser, url, "#model=findings&count=2", count=2)
    assert tiles(browser)[0].find_element(By.TAG_NAME, "img").get_attribute("src").endswith("/images/none/1/0.png")
    for box in browser.find_elements(By.CSS_SELECTOR, "#classes input"):
        box.click()
    wait_for(browser, lambda: loaded(browser, 2))
    tiles(browser)[0].click()
    address = find(browser, "detail-address")
    wait_for(browser, lambda: address.text == "findings/1/Mass+Büschel + Rest/1/0")


def test_downloads_hold_what_the_page_shows(browser, url, tmp_path):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    open_page(browser, url, "#model=chest&class=effusion&seed=3&count=4&start=8", count=4)
    browser.find_element(By.CSS_SELECTOR, "[data-suffix=npz]").click()
    wait_for(browser, lambda: list(tmp_path.glob("*.npz")))
    with np.load(next(tmp_path.glob("*.npz"))) as arrays:
        assert list(arrays["address"]) == [f"chest/2/effusion/3/{i}" for i in range(8, 12)]


def test_a_mistake_in_the_form_is_told_and_asks_nothing(browser, url):
    open_page(browser, url, CHEST)
    box = find(browser, "count")
    box.clear()
    box.send_keys("1000000000", Keys.TAB)
    assert browser.execute_script("return document.getElementById('count').validity.rangeOverflow")
    assert len(tiles(browser)) == 24


def test_a_service_with_keys_asks_for_one_and_shows_images_with_it(browser, serve_page):
    keyed = serve_page(keyfile.Keys((keyfile.Key(name="lab", sha256=hashlib.sha256(KEY.encode()).hexdigest()),)))
    browser.get(keyed)
    box = find(browser, "key")
    wait_for(browser, box.is_displayed)
    assert "X-API-Key is missing" in find(browser, "status").text
    assert not find(browser, "model").is_displayed()
    box.send_keys(KEY, Keys.ENTER)
    wait_for(browser, lambda: loaded(browser, 24))
    assert not find(browser, "status").is_displayed()
    assert KEY not in browser.current_url


# ---- between two images


def settled(browser, at: str) -> bool:
    """Whether the panel "Between two" shows the image at a position, and has its thumbnails."""
    script = """
        const all = [...document.querySelectorAll("#between img")];
        return document.getElementById("between-figure").ariaBusy === "false" &&
            document.getElementById("between-address").textContent.endsWith(`at=${arguments[0]}`) &&
            all.length === 6 && all.every((image) => image.complete && image.naturalWidth === 32);"""
    return browser.execute_script(script, at)


def pixels_of(browser, source: str) -> np.ndarray:
    """The pixels of an image that the page may show, as the browser decodes it: (H, W, 4)."""
    script = """
        const [source, done] = arguments, image = new Image();
        image.onload = () => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            done(canvas.toDataURL("image/png").split(",")[1]);
        };
        image.onerror = () => done(null);
        image.src = source;"""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(browser.execute_async_script(script, source)))))


def slide(browser, *keys: str) -> None:
    find(browser, "at").send_keys(*keys)


def test_the_slider_leads_from_one_address_to_the_other_and_its_ends_are_their_own_images(browser, url):
    open_page(browser, url, CHEST + "&view=between&from=5/2&to=6/3&class=effusion&latent=mixture&truncation=0.5", 0)
    wait_for(browser, lambda: settled(browser, "0.5"))
    shown = {}
    for key, at in ((Keys.HOME, "0.0"), (Keys.ARROW_RIGHT, "0.05"), (Keys.END, "1.0")):
        slide(browser, key)
        wait_for(browser, lambda at=at: settled(browser, at))
        address = find(browser, "between-address").text
        assert address == f"chest/2/effusion/5/2?latent=mixture&truncation=0.5&to=6/3&at={at}"
        path = find(browser, "between-curl").text.split("'")[1]
        assert unquote(httpx.get(path).headers["X-AugRay-Address"]) == address
        shown[at] = pixels_of(browser, find(browser, "between-image").get_attribute("src"))
    plain = f"{url}v1/models/chest/2/images/effusion/%s.png?latent=mixture&truncation=0.5"
    assert np.array_equal(shown["0.0"], pixels_of(browser, plain % "5/2"))
    assert np.array_equal(shown["1.0"], pixels_of(browser, plain % "6/3"))
    assert not np.array_equal(shown["0.05"], shown["0.0"])
    assert (
        find(browser, "at").get_attribute("aria-valuetext")
        == "100 % of the way from seed 5, index 2 to seed 6, index 3"
    )
    assert complaints(browser) == []
    open_page(browser, browser.current_url, count=0)  # the fragment brings the same view back
    wait_for(browser, lambda: settled(browser, "1.0"))
    assert find(browser, "between-address").text == address


def test_a_slider_on_the_move_asks_once_where_it_rests(browser, url):
    open_page(browser, url, CHEST + "&view=between", 0)
    wait_for(browser, lambda: settled(browser, "0.5"))
    move = """
        performance.clearResourceTimings();
        const slider = document.getElementById("at");
        for (const at of [0.1, 0.2, 0.3, 0.35]) { slider.value = at; slider.dispatchEvent(new Event("input")); }"""
    browser.execute_script(move)
    wait_for(browser, lambda: settled(browser, "0.35"))
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in asked if name.startswith("http")] == [
        f"{url}v1/models/chest/2/images/normal/1/0.png?to=2/0&at=0.35"
    ]


def test_an_answer_that_comes_late_does_not_replace_a_later_question(browser, url):
    open_page(browser, url, CHEST + "&view=between", 0)
    wait_for(browser, lambda: settled(browser, "0.5"))
    hold = """
        const ask = window.fetch;
        window.fetch = async (path, options) => {
            const answer = await ask(path, options);
            if (path.endsWith("at=0.1")) await new Promise((release) => { window.release = release; });
            return answer;
        };
        const slider = document.getElementById("at");
        slider.value = 0.1; slider.dispatchEvent(new Event("change"));"""
    browser.execute_script(hold)
    wait_for(browser, lambda: browser.execute_script("return Boolean(window.release)"))
    slide(browser, Keys.END)
    wait_for(browser, lambda: settled(browser, "1.0"))
    last = find(browser, "between-image").get_attribute("src")
    browser.execute_async_script("window.release(); setTimeout(arguments[0], 200)")
    assert find(browser, "between-image").get_attribute("src") == last
    assert find(browser, "between-address").text.endswith("at=1.0")


def test_a_step_of_the_strip_and_an_image_of_the_grid_set_the_way(browser, url):
    open_page(browser, url, CHEST)
    tiles(browser)[3].click()
    find(browser, "lead-to").click()
    wait_for(browser, lambda: settled(browser, "0.5"))
    browser.find_element(By.CSS_SELECTOR, "[data-at='0.25']").click()
    wait_for(browser, lambda: settled(browser, "0.25"))
    assert find(browser, "between-address").text == "chest/2/normal/1/0?to=1/3&at=0.25"
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    find(browser, "between-copy-address").click()
    wait_for(browser, lambda: find(browser, "between-copy-address").text == "Copied")
    copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == "chest/2/normal/1/0?to=1/3&at=0.25"


# ---- an image of one's own


@pytest.fixture
def film(tmp_path) -> Path:
    path = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)).save(path)
    return path


def posts(browser) -> list[str]:
    """The paths under v1 that were asked with an image since the page was loaded."""
    script = "return performance.getEntriesByType('resource').map((e) => new URL(e.name).pathname)"
    return sorted(path for path in browser.execute_script(script) if path in ("/v1/reconstruct", "/v1/anomaly"))


def test_an_image_is_sent_on_request_only_and_stands_beside_its_reconstruction(browser, url, film):
    open_page(browser, url, CHEST + "&class=effusion&view=own", 0)
    assert "does not store it" in find(browser, "own-notice").text
    assert not find(browser, "send").is_enabled()
    assert find(browser, "file").accessible_name.startswith("Choose a PNG, JPEG, BMP or TIFF file")
    find(browser, "file").send_keys(str(film))
    wait_for(browser, lambda: find(browser, "send").is_enabled())
    assert find(browser, "own-image").is_displayed()
    assert posts(browser) == []
    find(browser, "send").click()
    wait_for(browser, lambda: find(browser, "numbers").is_displayed())
    assert posts(browser) == ["/v1/anomaly", "/v1/reconstruct"]
    asked = {
        "params": {"model": "chest", "version": "2", "class": "effusion"},
        "headers": {"Content-Type": "image/png"},
    }
    reconstruction = httpx.post(f"{url}v1/reconstruct", content=film.read_bytes(), **asked)
    scores = httpx.post(f"{url}v1/anomaly", content=film.read_bytes(), **asked).json()
    shown = pixels_of(browser, find(browser, "own-recon").get_attribute("src"))
    assert np.array_equal(shown[:, :, 0], np.asarray(Image.open(io.BytesIO(reconstruction.content))))
    for name in ("score", "features", "kl", "pixels"):
        assert f"{scores[name]:.1f} nats" in find(browser, "scores").text
    assert "SYNTHETIC" in find(browser, "own-recon-figure").text
    assert complaints(browser) == []
    browser.find_element(By.CSS_SELECTOR, "input[value=normal]").click()  # another class: the numbers no longer hold
    wait_for(browser, lambda: not find(browser, "numbers").is_displayed())


def test_an_image_can_be_dropped(browser, url):
    open_page(browser, url, CHEST + "&view=own", 0)
    drop = """
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(3)], "dropped.tif", {type: "image/tiff"}));
        const dropped = new DragEvent("drop", {dataTransfer: files, cancelable: true});
        document.getElementById("drop").dispatchEvent(dropped);"""
    browser.execute_script(drop)
    wait_for(
        browser, lambda: find(browser, "own-unseen").is_displayed()
    )  # no browser shows TIFF, least of all this one
    assert find(browser, "file").get_attribute("value").endswith("dropped.tif")
    assert find(browser, "send").is_enabled()


def test_what_the_service_refuses_is_told_with_the_requests_name(browser, url, tmp_path):
    (tmp_path / "film.png").write_bytes(b"no image")
    open_page(browser, url, CHEST + "&view=own", 0)
    find(browser, "file").send_keys(str(tmp_path / "film.png"))
    wait_for(browser, lambda: find(browser, "send").is_enabled())
    find(browser, "send").click()
    wait_for(browser, lambda: "(Request " in find(browser, "status").text)
    assert find(browser, "status").text.startswith("The image can't be used")
    assert not find(browser, "own-recon-figure").is_displayed()
    assert find(browser, "send").is_enabled()


# ---- the privacy gate, and what is known of a model


def test_a_model_that_failed_its_audit_says_so_and_is_not_asked_for_images(browser, url):
    open_page(browser, url, "#model=refused", 0)
    wait_for(browser, lambda: find(browser, "images").is_displayed())
    assert [badge.text for badge in browser.find_elements(By.CSS_SELECTOR, "#verdicts .badge")] == ["fail", "fail"]
    assert "privacy audit's verdict on its images is “fail”" in find(browser, "images").text
    assert not find(browser, "grid").is_displayed()
    for tab, words in (("tab-between", "on its images is “fail”"), ("tab-own", "on its networks is “fail”")):
        find(browser, tab).click()
        panel = find(browser, find(browser, tab).get_attribute("aria-controls"))
        assert words in panel.text
        assert panel.find_elements(By.CSS_SELECTOR, "input, button") != []
        assert not any(e.is_displayed() for e in panel.find_elements(By.CSS_SELECTOR, "input, button"))
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert not any("/images/" in name for name in asked)
    assert complaints(browser) == []


def test_an_override_is_told_with_its_reason(browser, url):
    open_page(browser, url, "#model=answered&count=2", 2)
    assert "All patients consented to publication (J. Doe, 2026-11-20)" in find(browser, "privacy").text
    find(browser, "tab-own").click()
    assert "on its networks is “fail”" in find(browser, "own").text  # the override speaks of the images alone


def test_a_model_that_nobody_audited_says_so(browser, url):
    open_page(browser, url, CHEST)
    assert [b.text for b in browser.find_elements(By.CSS_SELECTOR, "#verdicts .badge")] == ["not audited"] * 2
    assert "nobody tested here" in find(browser, "privacy").text


def test_a_card_is_readable_and_can_bring_nothing_but_text(browser, url):
    open_page(browser, url, "#model=answered&view=about", 0)
    card = find(browser, "card-text")
    wait_for(browser, lambda: card.find_elements(By.TAG_NAME, "h3"))
    assert card.find_element(By.TAG_NAME, "h3").text == "Odd card"
    assert (card.find_element(By.TAG_NAME, "th").text, card.find_element(By.TAG_NAME, "strong").text) == (
        "kind",
        "vaegan",
    )
    assert card.find_element(By.TAG_NAME, "li").text == "one code and its second line"
    assert [a.get_attribute("href") for a in card.find_elements(By.TAG_NAME, "a")] == ["https://example.org/"]
    assert '<img src=x onerror="document.title' in card.text
    assert not card.find_elements(By.CSS_SELECTOR, "img, script")
    assert browser.title == "AugRay – synthetic images"
    assert complaints(browser) == []


# ---- for everybody

PANELS = ("images", "between", "own", "about")
NAMED = {
    "button", "checkbox", "combobox", "dialog", "form", "image", "link", "navigation", "radio", "region", "slider",
    "spinbutton", "tab", "tabpanel", "textbox",
}  # fmt: skip


def settle(browser, panel: str) -> None:
    ready = {
        "images": lambda: loaded(browser, 24),
        "between": lambda: settled(browser, "0.5"),
        "own": lambda: find(browser, "own").is_displayed(),
        "about": lambda: bool(find(browser, "card-text").text),
    }
    wait_for(browser, ready[panel])


def visit(browser, url: str, panel: str) -> None:
    open_page(browser, url, f"{CHEST}&view={panel}", 24 if panel == "images" else 0)
    settle(browser, panel)


@pytest.mark.parametrize("panel", [*PANELS, "one image"])
def test_every_control_has_a_name_that_can_be_read_out(browser, url, panel):
    visit(browser, url, panel if panel in PANELS else "images")
    if panel == "one image":
        tiles(browser)[0].click()
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in NAMED]
    nameless = [(node["role"]["value"], node["nodeId"]) for node in shown if not node.get("name", {}).get("value")]
    assert len(shown) > 5
    assert nameless == []


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("width", [360, 640])  # a phone; a laptop of 1280 pixels at 200 % zoom
def test_a_narrow_page_needs_no_sideways_scrolling(browser, url, panel, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        visit(browser, url, panel)
        beyond = """
            const inside = (e) => e.getBoundingClientRect().right <= innerWidth + 0.5;
            return [...document.body.querySelectorAll("*")]
                .filter((e) => e.checkVisibility() && !e.closest(".scroll") && !inside(e)).map((e) => e.outerHTML);"""
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(beyond) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRASTS = """
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (e) => {
        for (; e; e = e.parentElement) {
            const color = rgb(getComputedStyle(e).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const low = [];
    for (const e of document.body.querySelectorAll("*")) {
        const text = [...e.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
        if (!text.length || !e.checkVisibility() || e.closest(":disabled")) continue;
        const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(ground(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push([e.outerHTML.slice(0, 80), (a + 0.05) / (b + 0.05)]);
    }
    return low;"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, url, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        for panel in PANELS:
            visit(browser, url, panel)
            assert browser.execute_script(CONTRASTS) == []
        open_page(browser, url, "#model=refused", 0)
        wait_for(browser, lambda: find(browser, "images").is_displayed())
        assert browser.execute_script(CONTRASTS) == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


FOCUSED = """
    const e = document.activeElement, shown = e.matches(".chips input") ? e.parentElement : e;
    const style = getComputedStyle(shown);
    const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    return [e.id || e.value || e.textContent.trim(), seen];"""


def press(browser, key: str) -> tuple[str, bool]:
    """Press a key where the focus is; gives what has the focus then, and whether that can be seen."""
    browser.switch_to.active_element.send_keys(key)
    return tuple(browser.execute_script(FOCUSED))


def test_the_keyboard_alone_reaches_everything_in_the_order_of_the_page(browser, url):
    visit(browser, url, "images")
    stops = [press(browser, Keys.TAB) for _ in range(19)]
    assert [name for name, _ in stops] == [
        "skip", "OpenAPI", "model", "version", "normal", "latent", "truncation", "tab-images", "seed",
        "new-seed", "count", "later", "ZIP", "NPZ", "Parquet", "Synthetic0", "Synthetic1", "Synthetic2", "Synthetic3",
    ]  # fmt: skip
    assert all(seen for _, seen in stops)
    state = browser.current_url
    browser.execute_script("document.getElementById('skip').focus()")
    assert press(browser, Keys.ENTER)[0] == "content"
    assert press(browser, Keys.TAB) == ("tab-images", True)
    assert browser.current_url == state
    assert press(browser, Keys.ARROW_RIGHT) == ("tab-between", True)
    settle(browser, "between")
    stops = [press(browser, Keys.TAB) for _ in range(5)]
    assert stops == [(name, True) for name in ("from-seed", "from-index", "to-seed", "to-index", "at")]
    press(browser, Keys.ARROW_LEFT)
    wait_for(browser, lambda: settled(browser, "0.45"))
    browser.execute_script("document.getElementById('tab-between').focus()")
    assert press(browser, Keys.ARROW_RIGHT) == ("tab-own", True)
    assert press(browser, Keys.END) == ("tab-about", True)
    assert press(browser, Keys.ARROW_RIGHT) == ("tab-images", True)  # round


def test_every_panel_is_quiet_in_the_console(browser, url):
    for panel in PANELS:
        visit(browser, url, panel)
        assert complaints(browser) == []
