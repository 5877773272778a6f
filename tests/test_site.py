"""The built site, driven in headless Chromium with the network cut.

`make browser` runs this after `make book` or `make html`, and fails where the site or the browser
is missing (REQUIRE_SITE=1); a plain `pytest` skips it there. SITE names another built site.
Screenshots of each page, wide, dark and on a phone, go to _build/screenshots. Look at them.
"""

import functools
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(os.environ.get("SITE", ROOT / "_build" / "html")).resolve()
SHOTS = SITE.parent / "screenshots"
REPOSITORY = "optimizers-that-learn/optimizers-that-learn"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PAGES = sorted(
    str(path.relative_to(SITE))
    for folder in ("book", "notebooks")
    for path in (SITE / folder).glob("*.html")
)
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]


def each(pages):
    """Parameters, so marked that the tests of a page run beside its one visit, in one process."""
    return [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in pages]


VIEWS = {"phone": ("light", 390), "wide": ("light", 1280), "dark": ("dark", 1280)}
# axe-core runs over the whole page, the theme's frame included. Colours follow the scheme and all
# else the width, so contrast is measured in both schemes, and the other rules at both widths.
RULES = {
    "phone": {"rules": {"color-contrast": {"enabled": False}}},
    "wide": {},
    "dark": {"runOnly": ["color-contrast"]},
}
GRAVE = {"serious", "critical"}


def chromium():
    names = [os.environ.get("CHROMIUM") or "", *BROWSERS]
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def missing():
    """What stands in the way of these tests, in words; empty where nothing does."""
    lacks = []
    if not PAGES:
        lacks.append(f"no built site at {SITE} (run `make book` or `make html`)")
    if not chromium():
        lacks.append("no Chromium (run tests/install_browser.sh, or set CHROMIUM)")
    return "; ".join(lacks)


if missing() and not os.environ.get("REQUIRE_SITE"):
    pytest.skip(missing(), allow_module_level=True)


def test_the_site_and_a_browser_are_there():
    assert not missing(), missing()


# --- what the browser sees ------------------------------------------------------------------------

FIND_RAW_TEX = r"""() => {
    const article = document.querySelector("article");
    const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        if (parent.closest("pre, code, script, style, mjx-container")) continue;
        const match = walker.currentNode.textContent.match(
            /\$\$|\\\(|\\\[|\\(frac|theta|phi|nabla|mathrm|text|eta|sum|log)\b/);
        if (match) found.push(walker.currentNode.textContent.trim().slice(0, 80));
    }
    return found;
}"""

FIND_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    return [...document.querySelectorAll("article *")]
        .filter(e => e.getBoundingClientRect().right > width + 1)
        .slice(0, 5).map(e => `${e.tagName}.${e.className} ${(e.textContent || "").slice(0, 40)}`);
}"""

# The nearest element around the slider that holds a picture, as text that changes with the picture.
PICTURE = """(slider) => {
    let box = slider.parentElement;
    while (box && !box.querySelector("svg path, svg polyline, svg circle, svg rect, img, canvas"))
        box = box.parentElement;
    if (!box) return null;
    const look = {IMG: e => e.src, CANVAS: e => e.toDataURL(), svg: e => e.outerHTML};
    return [...box.querySelectorAll("svg, img, canvas")].map(e => look[e.tagName](e)).join("");
}"""


# Contrast is nine tenths of what axe does, and a chapter has thousands of coloured words. Of those
# of one section that are painted alike, over the same backgrounds, the first is measured.
MEASURE_CONTRAST_ONCE = """() => {
    const paint = (s, names) => names.map(name => s[name]).join();
    const grounds = new Map([[null, ""]]);
    const ground = e => {
        if (!grounds.has(e)) {
            const own = paint(getComputedStyle(e), ["backgroundColor", "backgroundImage", "opacity",
                "filter", "mixBlendMode", "position", "overflow", "clip", "clipPath"]);
            grounds.set(e, ground(e.parentElement) + "/" + own);
        }
        return grounds.get(e);
    };
    const blocks = new Map(), seen = new Set();
    for (const e of document.querySelectorAll("body *")) {
        e.removeAttribute("data-alike");
        const seen_at_all = {opacityProperty: true, visibilityProperty: true};
        if (e.childElementCount || !e.checkVisibility(seen_at_all)) continue;
        const block = e.closest("section, nav, aside, header, footer, body");
        if (!blocks.has(block)) blocks.set(block, blocks.size);
        const text = paint(getComputedStyle(e), ["color", "fontSize", "fontWeight", "textShadow"]);
        const key = [blocks.get(block), e.tagName, text, ground(e)].join();
        e.toggleAttribute("data-alike", seen.has(key));
        seen.add(key);
    }
    axe.configure({rules: [{id: "color-contrast", selector: ":not([data-alike])"}]});
}"""


class Visit(NamedTuple):
    errors: list  # console errors and uncaught exceptions
    requests: list  # addresses outside the site that the page asked for
    lost: list  # files of the site that could not be loaded
    n_formulas: int  # typeset by MathJax
    math_errors: list  # what MathJax could not read
    raw_tex: list
    wide: list  # what sticks out of a phone's screen
    unpainted: list  # images with no pixels
    axe: list  # grave findings, one line each
    sliders: list  # what each slider lacks; empty for one that the arrow keys move


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser):
    """visit(page) -> Visit; each page is opened once."""

    @functools.cache
    def visit(name):
        with browser.new_context(offline=True, viewport={"width": 1280, "height": 900}) as context:
            return look_at(context.new_page(), name)

    return visit


def look_at(page, name):
    errors, requests, lost = [], [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: None if is_local(r.url) else requests.append(r.url))
    page.on("requestfailed", lambda r: lost.append(r.url) if is_local(r.url) else None)
    open_page(page, name)
    seen = Visit(
        errors=errors,
        requests=requests,
        lost=lost,
        n_formulas=page.locator("mjx-container").count(),
        math_errors=page.locator("mjx-merror").all_text_contents(),
        raw_tex=page.evaluate(FIND_RAW_TEX),
        unpainted=page.evaluate(
            "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        ),
        wide=[],
        axe=[],
        sliders=[],
    )
    for view in VIEWS:
        show(page, view)
        seen.axe.extend(f"{view}: {found}" for found in grave_findings(page, RULES[view]))
        if view == "phone":
            seen.wide.extend(page.evaluate(FIND_WIDE))
        photograph(page, name, view)
    seen.sliders.extend(map(move, page.locator("article input[type=range]").all()))
    return seen


def open_page(page, name):
    from axe_playwright_python.base import AXE_SCRIPT

    page.goto((SITE / name).as_uri())
    page.wait_for_load_state("load")
    page.evaluate(AXE_SCRIPT)
    if page.locator("span.math, div.math").count():
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("MathJax.startup.promise.then(() => null)")


def show(page, view):
    scheme, width = VIEWS[view]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(500)  # the theme makes what scrolls focusable 0.3 s after a resize


def grave_findings(page, rules):
    options = rules | {"resultTypes": ["violations"], "preload": False}  # preload fetches a file://
    page.evaluate(MEASURE_CONTRAST_ONCE)
    findings = []
    for found in page.evaluate("options => axe.run(options)", options)["violations"]:
        if found["impact"] in GRAVE:
            first, n = found["nodes"][0], len(found["nodes"])
            findings.append(
                f"{found['id']} ({found['impact']}), {n} x, "
                f"first at {first['target']}: {first['html'][:200]}"
            )
    return findings


def photograph(page, name, view):
    SHOTS.mkdir(parents=True, exist_ok=True)
    stem = name.removesuffix(".html").replace("/", "_")
    path = SHOTS / f"{stem}-{view}.jpeg"  # a third faster than PNG
    page.screenshot(path=path, full_page=True, type="jpeg", quality=80)


def move(slider):
    """Press an arrow key on it; says what did not happen, or nothing where all is well."""
    slider.focus()
    before, value = slider.evaluate(PICTURE), slider.input_value()
    at_its_end = slider.evaluate("s => Number(s.value) >= Number(s.max || 100)")
    slider.page.keyboard.press("ArrowLeft" if at_its_end else "ArrowRight")
    slider.page.wait_for_timeout(100)
    if before is None:
        return "no picture beside the slider"
    if slider.input_value() == value:
        return f"the slider stayed at {value}"
    return "" if slider.evaluate(PICTURE) != before else f"the picture of {value} stayed"


def is_local(url):
    return urlsplit(url).scheme in {"file", "data", "blob", "about"}


@pytest.mark.parametrize("page", each(PAGES))
class TestPage:
    def test_it_loads_with_no_error_on_the_console(self, page, visit):
        assert visit(page).errors == []

    def test_it_asks_no_other_host_for_anything(self, page, visit):
        assert visit(page).requests == []

    def test_every_file_and_image_it_needs_is_in_the_site(self, page, visit):
        assert visit(page).lost == []
        assert visit(page).unpainted == []

    def test_its_formulas_are_typeset(self, page, visit):
        n_sources = len(re.findall(r'class="[^"]*\bmath notranslate', (SITE / page).read_text()))
        assert visit(page).n_formulas >= n_sources
        assert visit(page).math_errors == []
        assert visit(page).raw_tex == []

    def test_axe_finds_nothing_serious_or_critical(self, page, visit):
        assert visit(page).axe == []

    def test_nothing_sticks_out_of_a_phone(self, page, visit):
        assert visit(page).wide == []


@pytest.mark.parametrize("chapter", each(CHAPTERS))
def test_the_arrow_keys_move_every_slider_and_its_picture(chapter, visit):
    assert visit(chapter).sliders, f"{chapter} has no interactive figure"
    assert [fault for fault in visit(chapter).sliders if fault] == []


# --- what the files say ---------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects the anchors of a page and the addresses that it links to or shows."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = {""}, []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(attributes.get(key) for key in ("id", "name") if attributes.get(key))
        address = attributes.get("href") if tag in {"a", "link"} else attributes.get("src")
        if address:
            self.links.append(address)


@functools.cache
def read(path):
    return Reader(path)


@pytest.mark.parametrize("page", PAGES)
def test_no_link_within_the_site_is_broken(page):
    broken = []
    for link in read(SITE / page).links:
        parts = urlsplit(link)
        if parts.scheme or link.startswith("//"):
            continue
        target = (SITE / page).parent / unquote(parts.path) if parts.path else SITE / page
        anchor = unquote(parts.fragment)
        if not target.is_file():
            broken.append(link)
        elif target.suffix == ".html" and anchor not in read(target.resolve()).anchors:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_opens_in_colab_and_binder_under_its_own_path(chapter):
    notebook = chapter.removesuffix(".html") + ".ipynb"
    assert (ROOT / notebook).is_file() or "SITE" in os.environ
    links = read(SITE / chapter).links
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{notebook}"
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/main?urlpath=lab/tree/{notebook}"
    assert colab in links
    assert binder in links


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_figure_says_in_words_what_it_shows(chapter):
    figures = re.findall(r'<img alt="([^"]*)"', (SITE / chapter).read_text())
    assert [alt for alt in figures if not alt or alt.endswith((".png", ".svg", ".jpeg"))] == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_shows_its_outputs_and_no_progress_bars(chapter):
    page = (SITE / chapter).read_text()
    assert "cell_output" in page
    assert "output stderr" not in page
    assert not re.search(r"\d+%\|", page)


def test_every_chapter_of_the_repository_is_in_the_site():
    stems = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {Path(chapter).stem for chapter in CHAPTERS} >= stems


def test_no_file_of_the_site_names_a_script_host():
    hosts = r'(?:src|href)="(?:https?:)?//[^"]*(?:jsdelivr|unpkg|cdnjs|googleapis|gstatic)[^"]*"'
    named = {
        str(path.relative_to(SITE)): re.findall(hosts, path.read_text())
        for path in SITE.rglob("*.html")
    }
    assert {name: found for name, found in named.items() if found} == {}
