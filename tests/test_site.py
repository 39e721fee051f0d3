"""docs/ as a site: built strictly, whole, and loading nothing from elsewhere."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Tags with the attribute whose address a browser fetches by itself."""
BUILD = (sys.executable, "-m", "mkdocs", "build")  # strict by mkdocs.yml; --quiet undoes that
pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("merm", reason="merm, which draws the diagrams, is not installed")


class Page(HTMLParser):
    """What one page of the site loads, links to, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found["id"]} if "id" in found else set()
        if found.get(LOADED.get(tag, "")) and found.get("rel") != "canonical":
            self.loads.append(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


def build(docs: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Builds `docs` in the folder `root`, by the project's settings."""
    shutil.copytree(docs, root / "docs")
    shutil.copy(ROOT / "mkdocs.yml", root)
    # It advertises another program on stderr.
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        BUILD, cwd=root, capture_output=True, text=True, check=False, env=env, timeout=120
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    result = build(DOCS, out)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "WARNING" not in said
    return out / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_page_is_built_and_in_the_navigation(pages):
    names = {path.stem for path in DOCS.glob("*.md")}
    assert {"quickstart", "log", "errors", "what_if"} <= names
    assert names | {"404"} == {name.removesuffix(".html") for name in pages}
    navigation = pages["index.html"].links
    assert {f"{name}.html" for name in names} <= set(navigation)


def test_no_page_loads_anything_from_elsewhere(pages):
    for name, page in pages.items():
        for address in page.loads:
            assert not urlsplit(address).netloc, f"{name} loads {address}"
        assert 'class="mermaid"' not in page.text, "drawn in the browser, by a program from afar"
        assert "data-md-component=source" not in page.text, "a repository's numbers are fetched"
    assert sum(bool(page.loads) for page in pages.values()) == len(pages)


def test_style_sheets_load_nothing_from_elsewhere(site):
    sheets = list(site.rglob("*.css"))
    assert len(sheets) >= 2
    for sheet in sheets:
        for address in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text()):
            assert not address.startswith(("http", "//")), f"{sheet.name} loads {address}"


def test_links_lead_to_pages_places_and_files_of_the_site(site, pages):
    checked = 0
    for name, page in pages.items():
        for link in page.links + page.loads:
            # The page for lost readers is served anywhere, so its links begin at the root.
            parts = urlsplit(urljoin(f"/{name}", link))
            if parts.netloc or parts.scheme:
                continue
            path = unquote(parts.path).lstrip("/") or "index.html"
            assert (site / path).is_file(), f"{name} links to {link}"
            if parts.fragment and path in pages:
                assert unquote(parts.fragment) in pages[path].ids, f"{name} links to {link}"
            checked += 1
    assert checked > 500


def test_pictures_diagrams_and_the_notebook_are_in_the_site(site, pages):
    for name in ("spread.svg", "distance.svg", "quickstart.ipynb", "site.css"):
        assert (site / name).read_bytes() == (DOCS / name).read_bytes()
    assert not list(site.rglob("*.py"))
    source = (DOCS / "architecture.md").read_text(encoding="utf-8")
    diagrams = re.findall(
        r'<div class="diagram"><svg.*?</svg></div>', pages["architecture.html"].text
    )
    assert len(diagrams) == source.count("```mermaid") == 2
    for words in ("conditioner, once a", "tadiff-export", "orientation, scale"):
        assert any(words in diagram for diagram in diagrams)


CHART = """xychart-beta%s
    title "how long"
    x-axis ["a, b", "c (d)", "e"]
    y-axis "seconds" 0 --> 30
    bar [1.5, 25.4, 12]
    line [2, 20, 13]
"""


def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("way", ["", " horizontal"])
def test_charts_are_drawn_with_names_and_figures(way):
    drawn = hooks().diagram(CHART % way)
    assert "\n" not in drawn
    for words in ("how long", "a, b", "c (d)", ">1.5<", ">25.4<", ">12<"):
        assert words in drawn
    assert hooks().diagram(CHART % way) == drawn, "not the same twice"
    bars = re.findall(r'<path d="([^"]*)"[^>]*style="fill: #0072b2', drawn)
    assert len(bars) == 3


def test_a_chart_that_is_not_understood_stops_the_build():
    with pytest.raises(ValueError, match="pies"):
        hooks().xychart(CHART % "" + "    pies [1]")


def test_the_charts_of_the_performance_page_are_drawn(pages):
    source = (DOCS / "performance.md").read_text(encoding="utf-8")
    drawn = re.findall(r'<div class="diagram"><svg', pages["performance.html"].text)
    assert len(drawn) == source.count("```mermaid")
    assert "xychart-beta" not in pages["performance.html"].text


def test_the_site_can_be_searched(site):
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "errors.html#td32xx-geometry-and-masks" in index
    assert "TD3209" in index


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.md", "\n[gone](nowhere.md)\n"),
        ("index.md", "\n[gone](errors.md#nowhere)\n"),
        ("new.md", "# A page that the navigation does not hold\n"),
    ],
)
def test_a_broken_link_or_a_forgotten_page_stops_the_build(name, text, tmp_path):
    docs = tmp_path / "changed"
    shutil.copytree(DOCS, docs)
    with (docs / name).open("a", encoding="utf-8") as file:
        file.write(text)
    root = tmp_path / "root"
    root.mkdir()
    result = build(docs, root)
    assert result.returncode == 1
    assert "Aborted with 1 warning" in result.stderr + result.stdout


@pytest.fixture
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing: the tests listen to stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_browser_asks_nobody_else_and_finds_words(address, pages):
    """Whatever scripts load later is seen, too."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed")
    asked: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "architecture.html", "errors.html", "solvers.html"):
            page.goto(f"{address}/{name}", wait_until="networkidle")
        page.locator("input.md-search__input").click()
        page.keyboard.type("TD3209")
        page.locator(".md-search-result__link").first.wait_for(timeout=10_000)
        browser.close()
    assert len(asked) > 10
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
