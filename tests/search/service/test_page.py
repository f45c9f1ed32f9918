"""The page in a real browser: what a person does with it, at both widths and in both themes."""

import io
import json
import os
import re
import shutil
import tarfile

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright
from transformers import AutoModelForCausalLM

from tests.search.service.conftest import PATIENCE, serving

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Debian's package chromium, or the environment variable CHROMIUM", allow_module_level=True)

# Without them it asks hosts elsewhere for updates.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
REFUSED = "status of 422"  # of what a person asked wrongly, of which the page tells
SIZES = [(1280, 900), (390, 844)]
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(settings):
    with serving(settings) as service:
        yield service


def is_fault(said):
    return said.type == "error" and REFUSED not in said.text


@pytest.fixture
def opened(browser, service):
    """Open a page of the service; in the end, nothing may have failed or been asked of another host."""
    faults, contexts = [], []

    def fault(request):
        if not request.url.startswith((service.address, "data:", "blob:")):
            faults.append(f"asks {request.url}")

    def open_page(path, width=1280, height=900, theme="light"):
        context = browser.new_context(
            base_url=service.address, viewport={"width": width, "height": height}, color_scheme=theme
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", fault)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.extend([said.text] if is_fault(said) else []))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def ready(page):
    """Wait until a run's page answers."""
    expect(page.locator("#predicted dd").first).not_to_be_empty()
    expect(page.locator("#spoken")).not_to_be_empty()
    return page


def predicted(page):
    return float(page.locator("#predicted dd").first.evaluate("each => each.firstChild.textContent"))


def test_a_search_from_the_form_to_an_export_that_loads(opened, small_settings, runs, tmp_path):
    page = opened("/")
    page.get_by_role("combobox", name="Model").fill("stories260K")
    page.get_by_label("At most").fill("0.7")
    page.get_by_label("Text to calibrate and search on").select_option(small_settings["text"]["source"])
    page.get_by_label("Name").fill("ours")
    page.get_by_text("More settings").click()
    more = {key: small_settings[key] for key in ("dtype", "text")}
    more["search"] = {**small_settings["search"], "rounds": 1, "finalists": 2, "slopes": False}
    page.get_by_label("As JSON").fill(json.dumps(more))
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#stage")).to_contain_text("Measuring", timeout=1000 * PATIENCE)
    assert page.locator(".buttons > :visible").all_inner_texts() == ["Cancel"]
    expect(page.locator("#state")).to_have_text("succeeded", timeout=1000 * PATIENCE)
    assert page.locator(".buttons > :visible").all_inner_texts() == ["Open the run", "Forget this job"]
    page.get_by_role("link", name="Open the run").click()
    ready(page)
    assert (runs / "ours" / "best.json").exists()

    before, slider = predicted(page), page.get_by_label("Layer 2, MLP width")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "removed")
    expect(page.locator("#predicted dd").first).not_to_contain_text(f"{before:.4g}")
    assert predicted(page) > before
    expect(page.locator("#spoken")).to_contain_text("percent of the parameters")

    page.locator("[data-figure=pareto]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=pareto] .point")
    # Of all points the one that stands alone.
    place = page.evaluate(
        """() => {
            const plot = document.querySelector('[data-figure=pareto] .plot'), box = plot.getBoundingClientRect();
            const {xaxis, yaxis} = plot._fullLayout;
            const trace = plot.data.find((each) => each.name === 'whole blocks removed');
            return [box.left + xaxis._offset + xaxis.d2p(trace.x[0]), box.top + yaxis._offset + yaxis.d2p(trace.y[0])];
        }"""
    )
    page.mouse.click(*place)
    best = json.loads((runs / "ours" / "best.json").read_text())
    layers = best["baselines"]["block_influence"]["architecture"]["layers"]
    for layer, kept in enumerate(layers):
        words = f"{kept['mlp_width']} of 172" if kept["mlp_width"] else "removed"
        expect(page.get_by_label(f"Layer {layer}, MLP width")).to_have_attribute("aria-valuetext", words)

    page.get_by_label("Tokens").fill("12")
    page.get_by_role("button", name="Let both continue").click()
    texts = page.locator("#texts section")
    expect(texts).to_have_count(2, timeout=1000 * PATIENCE)
    told = texts.all_inner_texts()
    assert [text.startswith(f"{name}\n") for name, text in zip(("Dense", "Pruned"), told, strict=True)] == [True] * 2
    assert all("Once upon a time" in text for text in told)

    page.get_by_role("button", name="padded").click()
    link = page.get_by_role("link", name="Download export-padded")
    expect(link).to_be_visible(timeout=1000 * PATIENCE)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "export.tar")
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "export.tar").read_bytes())) as archive:
        archive.extractall(tmp_path, filter="data")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours-export-padded", use_safetensors=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pages_fit_and_can_be_used_without_eyes_or_mouse(opened, width, height, theme):
    for path in ("/", "/runs/done", "/docs"):
        page = opened(path, width, height, theme)
        if path == "/runs/done":
            ready(page)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the screen"
        found = Axe().run(page)
        assert found.response["violations"] == [], found.generate_report()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if theme == "light" else "rgb(21, 24, 28)"
        )


def test_the_keyboard_skips_to_the_content_and_changes_the_theme(opened):
    page = opened("/runs/done")
    ready(page)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.get_by_role("button", name="Theme").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_two_architectures_are_compared(opened):
    page = ready(opened("/runs/done"))
    page.get_by_label("Layer 0, MLP width").fill("0")
    page.get_by_role("button", name="Keep as B").click()
    page.get_by_label("Begin with").select_option("dense")
    table = page.locator("#ab")
    expect(table).to_contain_text("B, kept")
    row = table.get_by_role("row", name="decoder parameters")
    expect(row).to_contain_text("+")
    expect(page.locator("#map .plot")).to_have_attribute("aria-label", re.compile("A, the sliders keeps 100 %"))


def test_what_is_refused_is_said(opened):
    page = opened("/")
    page.get_by_role("combobox", name="Model").fill("../secret")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("A model must be one of")
