"""The report in a real browser: no console errors, the filters work, 50,000 answers stay usable, nothing from data runs."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.records import Opinions
from tests.vqa.evaluation.rows import examples, predictions, write_images
from vqa.report.build import build
from vqa.report.inputs import ReportInputs, StageSummary

pytestmark = pytest.mark.xdist_group("browser")


def open_page(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get(page.resolve().as_uri())


def choose(browser: Any, name: str, value: str) -> str:
    """Set one filter as a person does, wait for the list, return its count."""
    return browser.execute_async_script(
        """const [name, value, done] = arguments, field = document.getElementById("filters").elements[name];
        field.value = value;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        setTimeout(() => done(document.getElementById("count").textContent), 400);""",
        name,
        value,
    )


def shown(browser: Any) -> int:
    return int(browser.execute_script("return document.querySelectorAll('#rows .card').length"))


def total(count: str) -> int:
    return int(count.split(" ")[0].replace(",", ""))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = examples(60)
    write_images(folder / "images", rows)
    found = {"base": predictions(rows, 0.2), "lora": predictions(rows, 0.8, seed=2)}
    stats = {"question_types": {"color": {"questions": 500}, "taste": {"questions": 3}}}
    dropped = {"no_keywords": 20, "no_main_image": 20, "same_item_second_marketplace": 20}
    counts = {"listings": 147_702, "products": 64_210, "rejected": 83_492}
    stages = [
        StageSummary("prepare", counts, 41.5, dropped, cpu_hours=0.0121, max_rss_bytes=400_000_000),
        StageSummary("generate", counts, 9000.0, dropped, 109_710_000, 18_285_000, 61.2, 0.5, 1.25, 300_000_000),
    ]
    images = folder / "images"
    opinions = {row.id: Opinions(seen="contested" if n % 3 else "agreed") for n, row in enumerate(rows)}
    inputs = ReportInputs(
        stages=stages, test=rows, stats=stats, predictions={"blip": found}, image_root=images, opinions=opinions
    )
    build(inputs, folder)
    return folder / "index.html"


def test_the_page_opens_without_console_errors_and_images_load(browser: Any, page: Path) -> None:
    open_page(browser, page)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}] == []
    assert browser.execute_async_script(
        "const done = arguments[0]; document.querySelector('#rows img').scrollIntoView();"
        "setTimeout(() => done(document.querySelector('#rows img').naturalWidth), 300)"
    )


def test_filters_show_what_they_name(browser: Any, page: Path) -> None:
    open_page(browser, page)
    right, wrong = (total(choose(browser, "result", value)) for value in ("right", "wrong"))
    assert right + wrong == 300
    assert right > wrong > 0
    fixed = total(choose(browser, "result", "fixed"))
    assert 0 < fixed < right
    cards = browser.execute_script(
        "return [...document.querySelectorAll('#rows .card')].map(c => [...c.querySelectorAll('.a')].map(a => a.className))"
    )
    assert all(card == ["a ", "a no", "a yes"] for card in cards)
    assert total(choose(browser, "qtype", "color")) < fixed
    choose(browser, "qtype", "")
    choose(browser, "result", "")
    assert total(choose(browser, "text", "of item 59?")) == 5
    choose(browser, "text", "")
    assert (total(choose(browser, "seen", "agreed")), total(choose(browser, "seen", "contested"))) == (100, 200)
    hidden = (
        "return ['blind', 'witness'].map(n => document.getElementById('filters').elements[n].offsetParent === null)"
    )
    assert browser.execute_script(hidden) == [True, True], "nobody was asked"
    choose(browser, "seen", "")


def test_a_click_on_a_bar_or_a_confusion_shows_its_questions(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script("document.querySelector('#types .type .over').click()")
    time.sleep(0.3)
    values = "return [...document.getElementById('filters').elements].map(f => f.value)"
    assert {"color", "base", "wrong"} <= set(browser.execute_script(values))
    assert total(browser.execute_script("return document.getElementById('count').textContent")) == 120
    wanted = browser.execute_script("return parseInt(document.querySelector('.confusion .count').textContent)")
    browser.execute_script("document.querySelector('.confusion .over').click()")
    time.sleep(0.3)
    assert total(browser.execute_script("return document.getElementById('count').textContent")) == wanted
    assert "qtype" not in browser.current_url


def test_a_click_on_a_calibration_bar_shows_the_answers_that_it_counts(browser: Any, page: Path) -> None:
    open_page(browser, page)
    figures = json.loads((page.parent / "report.json").read_text())["models"]["blip"]["variants"]["base"]["calibration"]
    assert len(figures["bins"]) > 1
    for number, found in enumerate(figures["bins"]):
        follow = (
            "location.hash = document.querySelectorAll('#calibration .plotbox a')[arguments[0]].getAttribute('href')"
        )
        browser.execute_script(follow, number)
        time.sleep(0.3)
        assert (
            total(browser.execute_script("return document.getElementById('count').textContent")) == found["questions"]
        )


def test_a_click_on_a_bar_of_the_dataset_shows_its_test_questions(browser: Any, page: Path) -> None:
    open_page(browser, page)
    links = browser.execute_script(
        "return [...document.querySelectorAll('#dataset a.over')].map(a => a.getAttribute('href'))"
    )
    assert links == ["#browser?model=blip&qtype=color"], "there are no test questions of the other type"
    browser.execute_script("document.querySelector('#dataset a.over').click()")
    time.sleep(0.3)
    assert total(browser.execute_script("return document.getElementById('count').textContent")) == 120


def test_the_address_holds_the_state_and_restores_it(browser: Any, page: Path) -> None:
    open_page(browser, page)
    choose(browser, "sort", "wrong")
    choose(browser, "result", "wrong")
    count = choose(browser, "text", "of item")
    browser.execute_script("document.getElementById('next').click()")
    address = browser.current_url
    cards = browser.execute_script("return document.getElementById('rows').textContent")
    assert address.endswith("#browser?result=wrong&sort=wrong&text=of+item&page=2")
    browser.get("about:blank")
    browser.get(address)
    assert browser.execute_script("return document.getElementById('rows').textContent") == cards
    assert total(count) == total(browser.execute_script("return document.getElementById('count').textContent"))


def test_the_most_confident_wrong_answers_come_first_and_the_export_has_all_of_them(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script(
        "URL.createObjectURL = (blob) => { blob.text().then(t => window.csv = t); return '#browser'; };"
        "HTMLAnchorElement.prototype.click = () => {};"
    )
    choose(browser, "sort", "wrong")
    shown = total(choose(browser, "qtype", "count"))
    browser.execute_script("document.getElementById('export').click()")
    time.sleep(0.3)
    rows = list(csv.DictReader(io.StringIO(browser.execute_script("return window.csv"))))
    assert len(rows) == shown == 60 and {row["question_type"] for row in rows} == {"count"}
    order = [(row["lora_right"], -float(row["lora_confidence"])) for row in rows]
    assert order == sorted(order)


def test_an_image_is_enlarged_and_a_product_has_all_its_questions(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script("document.querySelector('#rows .enlarge').click()")
    assert browser.execute_script("return document.getElementById('large').open")
    browser.execute_script("document.getElementById('large').click()")
    assert not browser.execute_script("return document.getElementById('large').open")
    assert total(choose(browser, "product", "p59")) == 5


def test_pages_turn_and_end(browser: Any, page: Path) -> None:
    open_page(browser, page)
    click = "document.getElementById(arguments[0]).click(); return document.getElementById('count').textContent"
    for _ in range(20):
        last = browser.execute_script(click, "next")
    assert last.endswith("page 15 of 15")
    assert shown(browser) == 300 - 14 * 20
    assert browser.execute_script(click, "back").endswith("page 14 of 15")


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_neither_the_page_nor_a_table_scrolls_sideways(width: int, browser: Any, page: Path) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == 390}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        tables = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert browser.execute_script(tables) == 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_fifty_thousand_answers_keep_the_document_small_and_every_filter_complete(browser: Any, tmp_path: Path) -> None:
    rows = examples(10_000)
    found = {"base": predictions(rows, 0.2), "lora": predictions(rows, 0.8, seed=2)}
    build(ReportInputs(test=rows, predictions={"blip": found}), tmp_path)
    open_page(browser, tmp_path / "index.html")
    right, wrong = (total(choose(browser, "result", value)) for value in ("right", "wrong"))
    assert right + wrong == 50_000
    choose(browser, "result", "")
    assert total(choose(browser, "text", "property 3 of item 9999?")) == 1
    choose(browser, "text", "")
    assert shown(browser) == 20
    assert browser.execute_script("return document.querySelectorAll('*').length") < 5_000


def test_text_from_data_does_not_run(browser: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    evil = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    rows = [replace(e, question=evil, answer=evil, question_type=evil, product_type=evil) for e in examples(2)]
    found = {"base": predictions(rows, 0.0), "lora": predictions(rows, 1.0)}
    build(ReportInputs(test=rows, predictions={evil: found}, warnings=[evil]), tmp_path)
    open_page(browser, tmp_path / "index.html")
    assert shown(browser) == 10
    assert browser.execute_script("return window.pwned") is None
    assert browser.find_element("css selector", "#rows .q").text == evil
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
