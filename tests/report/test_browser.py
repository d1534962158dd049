"""The page in a real browser, on a desk and on a phone: no error, no request, no overflow."""

import shutil
import tempfile

import pytest

from ccafl_jax.report import page
from tests.report.finished import collected, finished_run

pytestmark = pytest.mark.ci

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    path = root / "report.html"
    page.write(path, collected(finished_run(root)))
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tempfile.mkdtemp(prefix="chromium")
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    for flag in (*flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(params=SIZES)
def opened(request, browser, address):
    """The page as it is opened anew, in the size of a device."""
    width, height = SIZES[request.param]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", metrics | {"mobile": request.param == "phone"}
    )
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address)
    browser.width = width
    return browser


def shown(browser):
    """Average precisions of the lists that are seen."""
    script = "return [...document.querySelectorAll('article.list')]"
    script += (
        ".filter(a => a.offsetParent).map(a => [a.dataset.kind, a.dataset.camera, a.dataset.ap])"
    )
    return [(kind, camera, float(ap)) for kind, camera, ap in browser.execute_script(script)]


def choose(browser, name, value):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}));"
        "e.dispatchEvent(new Event('change', {bubbles: true}));",
        name,
        str(value),
    )


def test_it_opens_without_errors_requests_or_overflow(opened, address):
    assert opened.get_log("browser") == []
    requests = [line["message"] for line in opened.get_log("performance")]
    asked = [text for text in requests if '"Network.requestWillBeSent"' in text]
    outside = [text for text in asked if address not in text and '"url":"data:' not in text]
    assert asked and outside == []
    sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
    found, width = opened.execute_script(sizes)
    assert found <= width == opened.width
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert opened.execute_script(broken) == 0


def test_rank_lists_are_filtered(opened):
    everything = shown(opened)
    assert {kind for kind, _, _ in everything} == {"best", "median", "worst"}
    camera = everything[0][1]
    choose(opened, "list-camera", camera)
    own = shown(opened)
    assert own == [one for one in everything if one[1] == camera] and own != everything
    choose(opened, "list-kind", "best")
    assert shown(opened) == [one for one in own if one[0] == "best"]
    opened.execute_script("document.querySelector('#filter button').click()")
    choose(opened, "list-low", 50)
    wanted = [one for one in everything if one[2] >= 50]
    assert len(wanted) < len(everything)
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    choose(opened, "list-low", 50)
    assert shown(opened) == wanted
    count = opened.execute_script("return document.getElementById('list-count').textContent")
    assert count == f"{len(wanted)} of {len(everything)} queries"
    choose(opened, "list-high", 0)
    hidden = "return document.getElementById('no-lists').hidden"
    assert shown(opened) == [] and not opened.execute_script(hidden)


def test_tables_are_sorted_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    column = "return [...document.querySelectorAll('#summary tbody tr')]"
    column += ".map(r => r.cells[2].textContent.trim())"
    before = opened.execute_script(column)
    button = opened.find_elements("css selector", "#summary th button")[2]
    opened.execute_script("arguments[0].focus()", button)
    assert opened.execute_script("return document.activeElement === arguments[0]", button)
    button.send_keys(Keys.ENTER)
    assert opened.execute_script(column) == sorted(before, key=float)
    button.send_keys(Keys.ENTER)
    assert opened.execute_script(column) == sorted(before, key=float, reverse=True)
    button.send_keys(Keys.ENTER)
    assert opened.execute_script(column) == before


def test_the_embedding_is_zoomed_moved_and_searched(opened):
    from selenium.webdriver.common.keys import Keys

    box = "return [...document.querySelectorAll('svg.plane')].map(p => p.getAttribute('viewBox'))"
    start = opened.execute_script(box)
    assert len(set(start)) == 1 and len(start) == 2
    opened.execute_script("document.getElementById('zoom-in').click()")
    near = opened.execute_script(box)
    assert len(set(near)) == 1 and near != start
    plane = opened.find_element("css selector", "svg.plane")
    opened.execute_script("arguments[0].focus()", plane)
    plane.send_keys(Keys.ARROW_RIGHT)
    assert opened.execute_script(box) != near
    plane.send_keys("0")
    assert opened.execute_script(box) == start
    choose(opened, "plane-pid", 3)
    bright = "return [...document.querySelectorAll('svg.plane use:not(.dim)')]"
    bright += ".map(u => u.dataset.pid)"
    assert set(opened.execute_script(bright)) == {"3"}


def test_dark_mode_is_dark_and_every_control_can_be_reached(opened):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        style = "return getComputedStyle(document.body)"
        ground, text = (
            sum(map(int, opened.execute_script(f"{style}.{name}")[4:-1].split(",")))
            for name in ("backgroundColor", "color")
        )
        assert ground < 150 < 500 < text
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    unreachable = "return [...document.querySelectorAll('a,button,select,input,summary')]"
    unreachable += ".filter(e => e.tabIndex < 0).length"
    assert opened.execute_script(unreachable) == 0
