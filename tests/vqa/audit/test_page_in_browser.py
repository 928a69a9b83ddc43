"""The audit page in a real browser: by keyboard, on a desktop and a phone, with 200 questions; verdicts survive closing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.records import Example
from tests.vqa.evaluation.rows import examples, write_images
from vqa.audit.page import Opinion, sample_digest, write_page
from vqa.audit.verdicts import Verdict, read_verdicts

pytestmark = pytest.mark.xdist_group("browser")
QUESTIONS = 200


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return examples(QUESTIONS // 5)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, rows: list[Example]) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write_images(folder / "images", rows)
    others = {e.id: [Opinion("the listing", f"listed {e.id}")] for e in rows}
    path = folder / "audit.html"
    assert write_page(path, sample_digest(rows, 0), rows, others, folder / "images", "Shoes") == 0
    return path


@pytest.fixture(params=[(1440, 900, False), (390, 844, True)], ids=["1440", "390"])
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, fresh, at a desktop's or a phone's width."""
    width, height, mobile = request.param
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    go(browser, page)
    browser.execute_script("localStorage.clear()")
    go(browser, page)
    browser.get_log("browser")
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def go(browser: Any, page: Path) -> None:
    browser.get("about:blank")
    browser.get(page.resolve().as_uri())


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    actions = ActionChains(browser, duration=0)
    for key in keys:
        actions.send_keys(key)
    actions.perform()


def text(browser: Any, name: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0]).textContent", name))


def visible(browser: Any, name: str) -> bool:
    return bool(browser.execute_script("return document.getElementById(arguments[0]).offsetParent !== null", name))


def saved(browser: Any, how: str) -> str:
    """What the save button or key would download."""
    browser.execute_script(
        "window.got = ''; URL.createObjectURL = (blob) => { blob.text().then(t => window.got = t); return '#'; };"
        "HTMLAnchorElement.prototype.click = () => {};"
    )
    press(browser, how)
    return str(
        browser.execute_async_script(
            "const done = arguments[0], look = () => window.got ? done(window.got) : setTimeout(look, 20); look();"
        )
    )


def test_two_hundred_questions_are_judged_by_keyboard_alone(opened: Any, tmp_path: Path, rows: list[Example]) -> None:
    keys, expected = "rwcb", {"r": "right", "w": "wrong", "c": "unseen", "b": "bad"}
    from selenium.webdriver import Keys

    for i in range(QUESTIONS):
        key = keys[i % 4]
        press(opened, *([key, "t", "a", "n", Keys.ENTER] if key == "w" and i == 1 else [key]))
        if key == "w" and i != 1:
            press(opened, Keys.ENTER)
    assert visible(opened, "done") and not visible(opened, "ask")
    assert text(opened, "count") == "200 of 200 judged, 150 not right"
    file = tmp_path / "ada.json"
    file.write_text(saved(opened, "f"))
    people = read_verdicts([file])
    assert people.sample == sample_digest(rows, 0)
    (said,) = people.verdicts.values()
    assert said[rows[1].id] == Verdict("wrong", "tan")
    assert [said[e.id].verdict for e in rows] == [expected[keys[i % 4]] for i in range(QUESTIONS)]
    assert [entry for entry in opened.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}] == []


def test_verdicts_survive_closing_and_opening_and_undo_goes_back(opened: Any, page: Path, rows: list[Example]) -> None:
    press(opened, "r", "c", "s", "r")
    assert text(opened, "count") == "3 of 200 judged, 1 not right"
    go(opened, page)
    assert text(opened, "count") == "3 of 200 judged, 1 not right"
    assert text(opened, "question") == rows[2].question  # the one that was skipped comes first
    press(opened, "u", "u")
    assert text(opened, "question") == rows[1].question
    assert text(opened, "count") == "1 of 200 judged, 0 not right"
    go(opened, page)
    assert text(opened, "count") == "1 of 200 judged, 0 not right"


def test_the_opinions_of_others_are_shown_only_after_the_verdict(opened: Any, rows: list[Example]) -> None:
    assert not visible(opened, "reveal")
    assert "listed" not in opened.execute_script("return document.body.innerText")
    press(opened, "r")
    assert visible(opened, "reveal")
    assert text(opened, "others") == f"the listinglisted {rows[0].id}"
    assert f"listed {rows[1].id}" not in opened.execute_script("return document.body.innerText")
    press(opened, "u")
    assert not visible(opened, "reveal")


def test_a_saved_file_is_loaded_again_and_one_of_another_sample_is_not(
    opened: Any, page: Path, tmp_path: Path, rows: list[Example]
) -> None:
    file = tmp_path / "mine.json"
    verdicts = {rows[0].id: {"verdict": "bad"}, rows[1].id: {"verdict": "right"}, "unknown": {"verdict": "right"}}
    file.write_text(json.dumps({"sample": sample_digest(rows, 0), "person": "Ada", "verdicts": verdicts}))
    opened.find_element("id", "load").send_keys(str(file))
    wait_for(opened, "count", "2 of 200 judged, 1 not right")
    assert opened.find_element("id", "person").get_attribute("value") == "Ada"
    go(opened, page)
    assert text(opened, "count") == "2 of 200 judged, 1 not right"
    file.write_text(json.dumps({"sample": "other", "verdicts": {rows[2].id: {"verdict": "right"}}}))
    opened.find_element("id", "load").send_keys(str(file))
    wait_for(opened, "problem", "This file is about another sample (other), so nothing was loaded.")
    assert text(opened, "count") == "2 of 200 judged, 1 not right"


def wait_for(browser: Any, name: str, wanted: str) -> None:
    for _ in range(100):
        if text(browser, name) == wanted:
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} is {text(browser, name)!r}, not {wanted!r}")


def test_the_image_is_enlarged_and_nothing_scrolls_sideways(opened: Any) -> None:
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert opened.execute_script("return document.getElementById('image').naturalWidth") > 0
    small = opened.execute_script("return document.getElementById('image').clientHeight")
    press(opened, "z")
    assert opened.execute_script("return document.getElementById('large').open")
    if opened.execute_script("return innerWidth") > 1000:
        assert opened.execute_script("return document.getElementById('large-image').clientHeight") < 10 * small
    press(opened, "z")
    assert not opened.execute_script("return document.getElementById('large').open")


def test_a_tap_on_a_button_is_a_verdict(opened: Any) -> None:
    for verdict in ("right", "unseen"):
        opened.find_element("css selector", f"button[data-verdict={verdict}]").click()
    opened.find_element("id", "undo").click()
    assert text(opened, "count") == "1 of 200 judged, 0 not right"
    box = opened.execute_script(
        "return [...document.querySelectorAll('.verdicts button')].map(b => b.getBoundingClientRect().height)"
    )
    assert min(box) >= 40  # a finger hits it


def test_text_from_data_does_not_run_on_the_audit_page(browser: Any, tmp_path: Path) -> None:
    evil = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    row = Example("x", "i", "i", "i.jpg", evil, evil, "", evil, "")
    write_page(tmp_path / "audit.html", "d", [row], {"x": [Opinion(evil, evil)]}, tmp_path, evil)
    go(browser, tmp_path / "audit.html")
    press(browser, "r")
    assert browser.execute_script("return window.pwned") is None
    assert text(browser, "about").startswith(evil)
