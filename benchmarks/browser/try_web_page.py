"""Use the page of `audiogen-fast demo` as a person would, in a Chromium without a window.

It types a description, presses the button, waits for the sound and tells what the browser saw: when
sound came, what the players hold, what the console says, and which requests left the machine. It
needs selenium, chromium and its driver, and nothing of this project:

    audiogen-fast demo --model debug
    python benchmarks/browser/try_web_page.py --url http://127.0.0.1:7860 --screenshot page.png

Exit status 1 where the page does not do what it should.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.common.by import By

WIDE, NARROW = (1280, 900), (400, 900)
# What a request may start with besides the page's own address.
_LOCAL = ("data:", "blob:", "about:", "chrome:", "chrome-extension:", "devtools:")
# wavesurfer keeps its player out of the document: all players that were ever made are looked at.
_KEEP_PLAYERS = """
window.players = [];
const create = document.createElement.bind(document);
document.createElement = (name, ...rest) => {
  const made = create(name, ...rest);
  if (String(name).toLowerCase() === "audio") window.players.push(made);
  return made;
};
const observe = () => new MutationObserver(() => {
  for (const player of document.querySelectorAll("audio"))
    if (!window.players.includes(player)) window.players.push(player);
}).observe(document, {childList: true, subtree: true});
observe();
"""
_PLAYERS = """
return window.players.filter(player => player.currentSrc || player.src).map(player => ({
  place: (player.closest("#live, #whole") || {id: ""}).id,
  source: player.currentSrc || player.src,
  duration: Number.isFinite(player.duration) ? player.duration : -1,
  buffered: player.buffered.length ? player.buffered.end(player.buffered.length - 1) : 0,
  played: player.currentTime,
  paused: player.paused,
  error: player.error ? player.error.message : null,
}));
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--screenshot", metavar="FILE", help="also FILE's name with -narrow")
    parser.add_argument("--description", default="a dog barking")
    parser.add_argument("--duration", type=float, help="seconds (default: as the page has it)")
    parser.add_argument("--dark", action="store_true", help="the page in its dark colours")
    parser.add_argument("--timeout", type=float, default=120, help="seconds (default 120)")
    args = parser.parse_args()
    browser = _open()
    try:
        report = _use(browser, args)
    finally:
        browser.quit()
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 1 if report["wrong"] else 0


def _open() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--mute-audio"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Named, because selenium would look for it on the network.
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, driver)
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _KEEP_PLAYERS})
    return browser


def _use(browser: webdriver.Chrome, args: argparse.Namespace) -> dict[str, Any]:
    _resize(browser, WIDE)
    start = time.perf_counter()
    browser.get(args.url + ("?__theme=dark" if args.dark else "?__theme=light"))
    _wait(args.timeout, "the button", lambda: _button(browser, "Generate"))
    loaded = time.perf_counter() - start
    text = browser.find_element(By.CSS_SELECTOR, "textarea")
    text.send_keys(args.description)
    if args.duration is not None:
        field = browser.find_element(By.CSS_SELECTOR, "input[type=number][aria-label*=Duration]")
        browser.execute_script("arguments[0].select()", field)
        field.send_keys(str(args.duration), "\t")
    start = time.perf_counter()
    _button(browser, "Generate").click()
    streamed = whole = None

    def finished() -> bool:
        nonlocal streamed, whole
        for player in browser.execute_script(_PLAYERS):
            if player["place"] == "live" and player["played"] > 0 and streamed is None:
                streamed = time.perf_counter() - start
            if player["place"] != "live" and player["duration"] > 0 and whole is None:
                whole = time.perf_counter() - start
        return whole is not None

    _wait(args.timeout, "the sound", finished)
    time.sleep(2)  # what is streamed plays on
    finished()
    report = {
        "seconds_until_the_page": round(loaded, 2),
        "seconds_until_streamed_sound_plays": streamed and round(streamed, 2),
        "seconds_until_the_whole_sound": round(whole, 2),
        "state": browser.find_element(By.CSS_SELECTOR, ".sound-state").text,
        "players": browser.execute_script(_PLAYERS),
        "picture": browser.execute_script(
            "const i = document.querySelector('#picture img'); return i && i.naturalWidth"
        ),
    }
    if args.screenshot:
        path = Path(args.screenshot)
        browser.save_screenshot(str(path))
        _resize(browser, NARROW)
        time.sleep(1)
        _screenshot_of_all(browser, path.with_name(f"{path.stem}-narrow{path.suffix}"))
    report["wider_than_a_narrow_window"] = browser.execute_script(
        "return document.documentElement.scrollWidth > window.innerWidth"
    )
    urls = _requests(browser)
    host = urlsplit(args.url).netloc
    report["requests"] = len(urls)
    report["requests_elsewhere"] = sorted(
        {url for url in urls if not url.startswith(_LOCAL) and urlsplit(url).netloc != host}
    )
    report["console"] = [
        f"{entry['level']}: {entry['message']}" for entry in browser.get_log("browser")
    ]
    return report | {"wrong": _wrong(report)}


def _wrong(report: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    faults = [f"a player failed: {p['error']}" for p in report["players"] if p["error"]]
    faults += [line for line in report["console"] if line.startswith("SEVERE")]
    faults += [f"request to {url}" for url in report["requests_elsewhere"]]
    if any(p["place"] == "live" for p in report["players"]):
        if report["seconds_until_streamed_sound_plays"] is None:
            faults.append("the streamed sound did not play")
    if not report["picture"]:
        faults.append("there is no picture")
    if report["wider_than_a_narrow_window"]:
        faults.append("a narrow window has to be scrolled sideways")
    return faults


def _button(browser: webdriver.Chrome, name: str) -> Any:
    found = browser.find_elements(By.XPATH, f"//button[normalize-space()='{name}']")
    return found[0] if found else None


def _wait(seconds: float, what: str, done: Callable[[], Any]) -> None:
    end = time.perf_counter() + seconds
    while not done():
        if time.perf_counter() > end:
            sys.exit(f"{what} did not come within {seconds:g} s")
        time.sleep(0.05)


def _resize(browser: webdriver.Chrome, size: tuple[int, int]) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _screenshot_of_all(browser: webdriver.Chrome, path: Path) -> None:
    """The page down to its end."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    _resize(browser, (NARROW[0], height))
    time.sleep(0.5)
    browser.save_screenshot(str(path))


def _requests(browser: webdriver.Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


if __name__ == "__main__":
    raise SystemExit(main())
