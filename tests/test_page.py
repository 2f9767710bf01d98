"""The page in a real Chromium, opened from disk with the network off."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonsingular import report
from nonsingular.results.surface import Surface
from test_report import HOSTILE, certified_only, one_model, results, with_certificates, with_examples, with_fronts

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if found is None and not Path(play.chromium.executable_path).exists():
            pytest.skip("there is no Chromium")
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """Pages of one test; every request but that for the file itself and every word on the console is held against it."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder, self.faults, self.contexts = browser, folder, list[str](), list[Any]()

    def __call__(self, made: dict[str, Any] | list[dict[str, Any]], **options: Any) -> Any:
        report.write_all(made if isinstance(made, list) else [made], self.folder)
        file = self.folder / "report.html"
        context = self.browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        self.contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or self.faults.append(f"request: {r.url}"))
        page.on("console", lambda m: self.faults.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: self.faults.append(f"error: {e}"))
        page.goto(file.as_uri())
        return page

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(browser, tmp_path)
    yield found
    found.close()
    assert found.faults == []


def cell(page: Any, i: int, j: int, columns: int = 5) -> Any:
    """The cell of the first map that is shown."""
    return page.locator(".map:visible").first.locator(".c").nth(i * columns + j)


def told(page: Any) -> dict[str, list[str]]:
    """The readout: first word of a row -> its numbers."""
    rows = page.locator(".readout tr[data-kind]")
    return {
        rows.nth(k).get_attribute("data-kind"): re.findall(r"[0-9.]+", " ".join(rows.nth(k).locator("td").all_inner_texts()))
        for k in range(rows.count())
    }


def expected(s: dict[str, Any], i: int, j: int) -> list[str]:
    return [f"{100 * v[i][j]:.1f}" for v in (s["accuracy"], s["interval"]["low"], s["interval"]["high"])]


def test_pointing_at_a_cell_tells_its_numbers(opened: Opened) -> None:
    made = with_certificates(one_model())
    page = opened(made)
    s = made["models"]["m0"]["surfaces"][0]
    for kind in ("attacked", "certified", "gap"):
        page.get_by_text({"attacked": "Attacked", "certified": "Certified", "gap": "Gap"}[kind] + ":").first.click()
        assert page.locator(".map:visible").get_attribute("data-kind") == kind
        for i, j in ((0, 0), (1, 2), (4, 4), (0, 3)):
            cell(page, i, j).hover()
            words = page.locator(".readout .radii").inner_text()
            assert re.findall(r"[0-9.]+", words) == [f"{s['eps_x'][j]:g}", f"{s['eps_w'][i]:g}"]
            found = told(page)
            assert found["attacked:"] == expected(s, i, j) and found["certified:"] == expected(s["certified"], i, j)
            assert found["gap:"] == [f"{100 * (s['accuracy'][i][j] - s['certified']['accuracy'][i][j]):.1f}"]
            widths = [w.evaluate("e => e.getBoundingClientRect().width") for w in page.locator(".sandwich span").all()]
            shares = np.array([s["certified"]["accuracy"][i][j], 0.0, 1 - s["accuracy"][i][j]])
            shares[1] = 1 - shares.sum()
            np.testing.assert_allclose(np.array(widths) / sum(widths), shares, atol=0.01)


def test_the_first_cell_told_is_that_of_the_verdict(opened: Opened) -> None:
    made = with_certificates(one_model())
    page = opened(made)
    at = re.findall(r"off by up to ([0-9.]+)", page.locator(".verdict").inner_text())
    assert re.findall(r"[0-9.]+", page.locator(".readout .radii").inner_text()) == at
    assert told(page)["attacked:"][0] + "\N{NO-BREAK SPACE}%" in page.locator(".verdict").inner_text()


def test_keys_move_through_the_cells(opened: Opened) -> None:
    made = one_model()
    page = opened(made)
    s = made["models"]["m0"]["surfaces"][0]
    for _ in range(30):  # from the top of the page, as a reader without a mouse would
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('c')"):
            break
    assert page.evaluate("document.activeElement.classList.contains('c')")
    page.keyboard.press("Home")
    page.keyboard.press("PageDown")
    assert told(page)["attacked:"] == expected(s, 0, 0)
    for key, (i, j) in {"ArrowUp": (1, 0), "ArrowRight": (1, 1), "End": (1, 4), "ArrowLeft": (1, 3), "ArrowDown": (0, 3)}.items():
        page.keyboard.press(key)
        assert told(page)["attacked:"] == expected(s, i, j), key
    page.keyboard.press("ArrowDown")  # there is nothing beyond the edge
    assert told(page)["attacked:"] == expected(s, 0, 3)
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("eps x 0.15, eps w 0; attacked " + expected(s, 0, 3)[0])
    box, mark = (page.locator(q).first.bounding_box() for q in (":focus", ".mark:not(.under)"))
    assert abs(box["x"] - mark["x"]) < 3 and abs(box["y"] - mark["y"]) < 3  # the cell in focus is the one that is marked


def test_models_can_be_switched_and_stand_side_by_side_first(opened: Opened) -> None:
    made = results((HOSTILE, "b", "c"))
    page = opened(made)
    assert page.locator(".map:visible").count() == 3
    cell(page, 1, 1).hover()
    rows = page.locator(".readout tbody tr").all_inner_texts()
    for row, m in zip(rows, made["models"].values(), strict=True):
        mean = np.mean([s["accuracy"][1][1] for s in m["surfaces"]])
        assert m["title"] in row and f"{100 * mean:.1f}" in row
    page.get_by_label("Model").select_option("2")
    assert page.locator(".map:visible figcaption b").all_inner_texts() == ["c"]
    assert page.locator("[data-curves]:visible h3").all_inner_texts() == ["c"]
    cell(page, 2, 1).hover()
    assert page.locator(".readout h3").inner_text() == "c"
    runs = [Surface.from_dict(s) for s in made["models"]["m2"]["surfaces"]]
    ends = min(s.interval[0][2, 1] for s in runs), max(s.interval[1][2, 1] for s in runs)
    assert told(page)["attacked:"] == [f"{100 * v:.1f}" for v in (np.mean([s.accuracy[2, 1] for s in runs]), *ends)]
    by_seed = page.locator(".readout p", has_text="by seed").inner_text()
    assert re.findall(r"[0-9.]+", by_seed) == [f"{100 * s.accuracy[2, 1]:.1f}" for s in runs]
    page.get_by_label("Model").select_option("all")
    assert page.locator(".map:visible").count() == 3


def test_remarks_on_a_cell_are_told_with_it(opened: Opened) -> None:
    made = one_model()
    made["models"]["m0"]["surfaces"][0]["flags"] = [{"row": 1, "column": 2, "flags": ["moving", HOSTILE]}]
    page = opened(made)
    cell(page, 1, 2).hover()
    notes = page.locator(".readout .notes li").all_inner_texts()
    assert notes[0].startswith("moving: the last round") and notes[1] == HOSTILE
    assert page.locator(".map:visible .n text").nth(1 * 5 + 2).text_content().endswith("*")
    cell(page, 1, 1).hover()
    assert page.locator(".readout .notes").count() == 0


MANY = {
    "one": lambda: with_certificates(with_examples(one_model())),
    "several": lambda: with_certificates(results((HOSTILE * 3, "b", "c")), only=("m1",)),
    "fronts": with_fronts,
    "certified": lambda: certified_only(one_model()),
    "column": lambda: results(eps_x=(0.1,)),
    "cell": lambda: results(eps_x=(0.1,), eps_w=(0.001,)),
    "apart": lambda: [one_model(), one_model() | {"scope": "sample", "run": HOSTILE * 3}],
}


@pytest.mark.parametrize("make", MANY.values(), ids=MANY)
def test_nothing_leaves_the_screen_of_a_phone(make: Any, opened: Opened) -> None:
    for options in ({"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}, {}):
        page = opened(make(), **options)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        wide = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
            " && !e.closest('.scroll, .card, svg')).map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == []


def test_a_tap_tells_the_numbers(opened: Opened) -> None:
    made = one_model()
    page = opened(made, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    cell(page, 3, 1).tap()
    assert told(page)["attacked:"] == expected(made["models"]["m0"]["surfaces"][0], 3, 1)


CONTRAST = """() => {
  const channels = (c) => c.match(/[0-9.]+/g).map(Number);
  const over = (top, under) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((k) => a * top[k] + (1 - a) * under[k]);
  };
  const light = (c) => {
    const l = c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
  };
  const worst = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.data.trim() || e.closest("script, style, .card, .n, .kl") || !e.getClientRects().length) continue;
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(channels(getComputedStyle(p).backgroundColor));
    const back = layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
    const style = getComputedStyle(e);
    const front = over(channels(e.closest("svg") ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((u, v) => v - u);
    worst.push([(a + 0.05) / (b + 0.05), n.data.trim().slice(0, 40), e.className.baseVal ?? e.className, style.color]);
  }
  return worst.sort((u, v) => u[0] - v[0]).slice(0, 5).concat([[worst.length]]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(scheme: str, opened: Opened) -> None:
    made = with_certificates(with_examples(one_model()))
    made["models"]["m0"]["masking"] = {
        "attack": "paper", "scope": "sample", "examples": 64, "flags": {"saturation": "why"}, "numbers": {},
    }  # fmt: skip
    page = opened(made, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    back = [int(v) for v in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]
    assert (max(back) < 60) == (scheme == "dark")
    *worst, (count,) = page.evaluate(CONTRAST)
    assert count > 200 and worst[0][0] >= 4.5, worst


def test_paper_and_a_page_without_script_hold_every_table(opened: Opened) -> None:
    made = with_certificates(results(), only=("m1",))

    def shown(page: Any) -> dict[str, int]:
        names = (".map", ".heat", ".curve", ".heat.gap", "[data-curves]", ".controls", ".readout")
        return {name: page.locator(f"{name}:visible").count() for name in names}

    everything = {".map": 4, ".heat": 4, ".curve": 6, ".heat.gap": 1, "[data-curves]": 3, ".controls": 0, ".readout": 0}
    page = opened(made)
    assert shown(page)[".heat"] == 0 and shown(page)[".map"] == 2 and shown(page)[".controls"] == 1
    page.emulate_media(media="print")
    assert shown(page) == everything
    heat = page.locator(".heat").first.inner_text()
    mean = np.mean([s["accuracy"] for s in made["models"]["m0"]["surfaces"]], axis=0)
    assert re.findall(r"\d+\.\d(?!\d)", heat.split("\n", 1)[1].replace("0.005\t", "").replace("0.01\t", ""))
    assert all(f"{100 * a:.1f}" in heat for a in mean.ravel())
    page.emulate_media(media="screen")
    assert shown(page)[".heat"] == 0  # folded again
    assert shown(opened(made, java_script_enabled=False)) == everything


def test_pdf_holds_the_page_to_its_end(opened: Opened, tmp_path: Path) -> None:
    page = opened(with_certificates(results()))
    page.pdf(path=tmp_path / "folded.pdf", format="A4")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.pdf(path=tmp_path / "open.pdf", format="A4")
    pages = [len(re.findall(rb"/Type\s*/Page\b", (tmp_path / f"{n}.pdf").read_bytes())) for n in ("folded", "open")]
    assert pages[0] == pages[1] > 2


def test_two_groups_answer_apart(opened: Opened) -> None:
    first, second = one_model(), one_model() | {"scope": "sample", "run": "two"}
    page = opened([first, second])
    boxes = page.locator(".explorer")
    before = boxes.nth(1).locator(".readout").inner_text()
    boxes.nth(0).locator(".c").nth(3).hover()
    assert boxes.nth(0).locator(".readout .radii").inner_text() != boxes.nth(1).locator(".readout .radii").inner_text()
    assert boxes.nth(1).locator(".readout").inner_text() == before


def test_what_the_script_knows_is_what_was_measured(opened: Opened) -> None:
    made = with_certificates(results((HOSTILE, "</script><script>alert(1)</script>")))
    page = opened(made)
    known = json.loads(page.locator(".explorer script").text_content())
    assert [m["title"] for m in known["models"]] == [m["title"] for m in made["models"].values()]
    assert known["models"][1]["attacked"]["by"][2][3][4] == f"{100 * made['models']['m1']['surfaces'][2]['accuracy'][3][4]:.1f}"
