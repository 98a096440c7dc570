"""``randprune explore --html``: the panels without Python, without a network."""

import pytest
import torch
from safetensors.torch import save_file

from randprune_lab import Explorer, ExploreState, open_source
from randprune_lab.page import write_page

HOSTILE = "</script><img src=x onerror=window.hacked=1>.weight"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    generator = torch.Generator().manual_seed(0)
    names = ("first.weight", "second.weight", HOSTILE)
    save_file({name: torch.randn(120, 80, generator=generator) for name in names}, folder / "model.safetensors")
    explorer = Explorer(open_source(folder))
    state = explorer.start(ExploreState(model=str(folder), tensor="first.weight", sparsity=0.8, candidates=4))
    return write_page(folder / "page.html", explorer, state), explorer, state


@pytest.fixture
def page(browser, page_file):
    opened, requests, errors = browser.new_page(viewport={"width": 1400, "height": 1200}), [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(page_file[0].as_uri())
    opened.wait_for_selector(".strip[data-slot='3']")
    yield opened
    assert errors == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert opened.evaluate("window.hacked") is None
    opened.close()


def sentence(page, panel: str) -> str:
    return page.inner_text(f"[data-panel={panel}] > .sentence, [data-panel={panel}] .rp-body + .sentence")


def test_it_shows_what_python_says_and_tensors_can_be_chosen(page, page_file):
    _, explorer, state = page_file
    for name in explorer.source.tensors:
        page.select_option("select[data-field=tensor]", name)
        quick = explorer.quick(state.but(tensor=name))
        page.wait_for_function(
            "(words) => document.querySelector('[data-panel=microscope] .sentence').textContent == words",
            arg=quick["microscope"]["sentence"],
        )
        bars = page.eval_on_selector_all(".bar.kept[data-count]", "bars => bars.map(bar => Number(bar.dataset.count))")
        assert bars == [count for count in quick["microscope"]["kept"] if count]
        *_, drawn = explorer.candidates(state.but(tensor=name))
        cells = [float(cell.inner_text()) for cell in page.query_selector_all("button.cell")]
        assert cells == pytest.approx([100 * share for row in drawn["agreement"] for share in row], abs=0.051)
        assert not page.query_selector(".rp-late")


def test_sliders_rest_and_masks_can_be_compared(page):
    assert page.eval_on_selector_all(".rp-root input", "inputs => inputs.every((input) => input.disabled)")
    page.click("button.cell[data-row='1'][data-column='2']")
    page.wait_for_selector(".rp-pair:not([hidden])")
    page.click(".strip[data-slot='2'] button")
    page.wait_for_selector(".strip[data-slot='2'] button[aria-pressed=true]")
    page.click("tr[data-tensor='second.weight'] button")
    page.wait_for_function("() => document.querySelector('select[data-field=tensor]').value == 'second.weight'")


def test_without_scripts_a_still_picture_is_there(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(page_file[0].as_uri())
    assert opened.locator("noscript svg").count() == 1 or "<noscript><svg" in opened.content()
    assert "At sparsity 0.8" in opened.locator("body").inner_text() or "At sparsity 0.8" in opened.content()
    context.close()
