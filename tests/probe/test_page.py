"""The page of a study: what it says, that nothing in it runs or leaves, and how it behaves in Chromium."""

import base64
import copy
import dataclasses
import fcntl
import io
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.thumbnails import sprite_sheet, thumbnail
from patchbank.probe.report.board import Board
from patchbank.probe.report.maps import caption, json_script
from patchbank.probe.report.markup import prose
from patchbank.probe.report.page import (
    EmbeddingMap,
    LabelledImage,
    PublishedRow,
    StudyPage,
    SystemRow,
    page_html,
    write_page,
)
from patchbank.probe.report.view import View
from patchbank.probe.results.display import SHOWN, SHOWN_OF_CLASSES, SHOWN_OF_TARGETS
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.schema import PAIRED, Estimate
from patchbank.probe.run import run_probe
from patchbank.settings import SHIPPED
from PIL import Image

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"'&"
COLOURS = [(200, 30, 30), (30, 160, 30), (40, 40, 200), (220, 200, 30)]
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)  # bottom left, bottom right, top left, ...
WHY = (
    "The weights of uni are behind a licence page. Accept it at https://huggingface.co/MahmoodLab/UNI:\n"
    "$ hf auth login\nWithout a network, copy them to DIR/uni and run "
    "`patchbank run x.toml --weights-dir DIR`."
)

KEYS = {"Enter": 13, "Escape": 27, "Space": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38}
KEYS |= {"ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


class Tiles:
    """A source of four patches, each of one colour."""

    def read(self, i: int) -> np.ndarray:
        return np.full((64, 64, 3), COLOURS[i], np.uint8)


def test_the_style_shows_every_metric_that_may_lead() -> None:
    css = (SHIPPED.parent / "probe/report/page.css").read_text()
    leading = dict.fromkeys((*SHOWN, *SHOWN_OF_CLASSES, "kappa", "accuracy", *SHOWN_OF_TARGETS))
    assert [m for m in leading if f"[data-metric={m}] .m.{m}" not in css] == ["mae"], "which no board ranks"
    assert [m for m in leading if f"[data-metric={m}] .stack tr.m.{m}" not in css] == ["mae"]


def make_map(**changes: Any) -> EmbeddingMap:
    about: dict[str, Any] = {
        "title": "good/full/cls",
        "method": "PCA",
        "explained": (0.4, 0.25),
        "points": CORNERS,
        "patch_id": ["inner/a", "inner/b", "inner/c", "outer/d"],
        "dataset": ["inner", "inner", "inner", "outer"],
        "domain": ["scanner A", "scanner B", "scanner B", ""],
        "label": [0, 1, 0, 1],
        "total": 4000,
        "sprite": sprite_sheet(Tiles(), range(4), tile=48, columns=3),
        "tile": 48,
        "columns": 3,
    }
    return EmbeddingMap(**(about | changes))


@pytest.fixture(scope="module")
def result(study: Any, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    return run_probe(
        train=study.train,
        tests=[study.external],
        bank=study.bank,
        encoders=["good", "poor"],
        views=["full"],
        C=[1e-2, 1e-1],
        folds=3,
        inner_folds=3,
        jobs=1,
        progress=False,
    )


@pytest.fixture(scope="module")
def page(result: ProbeResult) -> StudyPage:
    systems = [
        SystemRow(
            name=m["features"],
            encoder=m["features"].split("/")[0],
            family="probe",
            state="done",
            licence="MIT",
            dim=12,
            forwards=560,
            forwards_saved=1120,
            extract_seconds=3.5,
            device="cpu",
            fits=24,
            probe_seconds=0.5,
        )
        for m in result.document["models"]
    ]
    for name, family in (("uni 10", "probe"), ("uni 2", "lora"), ("swin", "full")):
        systems.append(SystemRow(name=name, encoder="uni", family=family, state="blocked", why=WHY))
    published = [
        PublishedRow(
            system="good/full/cls",
            dataset="outer",
            metric=metric,
            ours=Estimate(0.8, 0.75, 0.85),
            refit=Estimate(0.81, 0.76, 0.86),
            against="Theirs, probe",
            published=0.7,
            published_folds=(0.68, 0.7, 0.72),
            difference=0.1,
            low=0.02,
            high=0.18,
            p_holm=0.01,
            verdict="higher",
        )
        for metric in ("balanced_accuracy", "auroc")
    ]
    jpeg = thumbnail(Tiles().read(0), 32)
    twins = [("outer/1", "Atypical", jpeg), ("outer/2", "Normal", b"")]
    return StudyPage(
        title="A study of what is known",
        about="Which **encoder** separates them?",
        result=result,
        systems=tuple(systems),
        published=tuple(published),
        published_source="From https://example.org/paper.",
        maps=(make_map(), make_map(title="poor/full/cls", method="UMAP", explained=(), points=CORNERS[::-1])),
        contradictions=(
            tuple(LabelledImage(patch_id=p, dataset="outer", label=y, path="x", jpeg=b) for p, y, b in twins),
        ),
        log=(("extract", "good", "done", 12.5), ("finetune", "uni 2", "blocked", None)),
    )


# --- what it says


def test_one_file_with_every_section(page: StudyPage, tmp_path: Path) -> None:
    path = write_page(tmp_path / "deep" / "page.html", page)
    text = path.read_text("utf-8")
    assert not re.search(r"""(src|href)=(?!["']?(data:|#|https://(huggingface\.co|example\.org)))""", text)
    assert not re.search(r"""src=["']?http""", text)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text
    for title in (
        "Leaderboard",
        "Across data sets",
        "Domains",
        "Curves",
        "Threshold",
        "Paired differences",
        "Agreement of the experts",
        "Beside the published figures",
        "Costs",
        "Embedding map",
        "Contradictory labels",
        "Data and leaks",
        "Provenance",
        "Log of the run",
    ):
        assert f"<h2>{title}</h2>" in text
    assert "feature set" not in text
    assert "<code>hf auth login</code>" in text
    assert "<code>patchbank run x.toml --weights-dir DIR</code>" in text
    assert text.count('id="sprite') == 1  # two maps of the same patches share their thumbnails
    assert "4 of 4,000 patches" in text
    assert "40.0% and 25.0% of the variance" in text
    assert "1 Atypical, 1 Normal" in text
    assert "that takes 3.0 times as many" in text


def test_ids_are_unique_and_links_lead_somewhere(page: StudyPage) -> None:
    text = page_html(page)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert anchors
    assert set(anchors) <= set(ids)


def test_every_number_of_the_leaderboard_is_there(page: StudyPage) -> None:
    text = page_html(page)
    assert page.result
    for record in page.result.results.leaderboard():
        for metric in ("balanced_accuracy", "auroc", "average_precision"):
            if record.features in {s.name for s in page.systems}:
                assert f'<data value="{record.estimate(metric).value:.6f}"' in text


def test_a_study_without_a_finished_system(page: StudyPage) -> None:
    blocked = tuple(s for s in page.systems if s.state == "blocked")
    text = page_html(StudyPage(title="Waiting", about="", result=None, systems=blocked))
    assert text.count('data-state="blocked"') == 3
    assert "0 of 3 systems finished" in text
    assert "<h2>Leaderboard</h2>" in text
    assert "<h2>Curves</h2>" not in text
    assert "<h2>Costs</h2>" not in text


def board_with(page: StudyPage, p_holm: float | None) -> Board:
    """The result, every paired comparison with this p-value (None: no comparison)."""
    result = page.result
    assert result
    comparisons = [
        {**c, "p_holm": p_holm}
        for c in result.document["comparisons"]
        if c["test"] == PAIRED and p_holm is not None
    ]
    changed = ProbeResult({**result.document, "comparisons": comparisons}, result.predictions)
    return Board(View(changed), page.systems)


def test_a_winner_is_significantly_above_the_others(page: StudyPage) -> None:
    def best(board: Board) -> list[str]:
        return re.findall(r"is the best", board.answers())

    clear, close, none = (board_with(page, p) for p in (0.001, 0.4, None))
    assert len(best(clear)) == 4  # two held-out sets, two metrics with tests
    assert "significantly above the other" in clear.answers()
    assert not best(close)
    assert close.answers().count("no system stands out") == 4
    assert not best(none)
    assert none.answers().count("no paired test was made") == 6
    assert close.answers().count("Chosen on the training set") == 3  # one a metric
    hollow = [board.leaderboard().count('class="w o"') for board in (clear, close, none)]
    assert hollow == [6, 0, 0]  # one of two systems, three sets, two metrics


def test_no_winner_is_named_where_no_slides_are_known(page: StudyPage) -> None:
    assert page.result
    board = board_with(page, 0.001)
    assert board.view
    document = copy.deepcopy(page.result.document)
    for entry in document["data"]:
        entry["groups_known"] = entry["dataset"] != "outer"
    board = Board(View(ProbeResult(document, page.result.predictions)), page.systems)
    assert "is the best" in board.answers()  # on the set whose slides are known
    on_outer = [part for part in board.answers().split("<p>") if "On <b>outer</b>" in part]
    assert len(on_outer) == 1
    assert on_outer[0].count("no difference is called significant") == 3
    assert "is the best" not in on_outer[0]
    assert "Of outer the slides are not known" in board.answers()
    assert board.leaderboard().count('class="w o"') == 4  # two other sets, two metrics


def test_who_differs_significantly_is_counted(result: ProbeResult) -> None:
    """Three systems: the highest differs significantly from one, not from the other."""
    document = dict(result.document)
    third = "third/full/cls"
    document["models"] = [*document["models"], {**document["models"][0], "features": third}]
    document["scores"] = [
        *document["scores"],
        *({**s, "features": third} for s in document["scores"] if s["features"] == "poor/full/cls"),
    ]
    about = {"dataset": "outer", "role": "refit", "metric": "auroc", "test": PAIRED}
    about |= {"difference": 0.1, "low": None, "high": None, "p": None}
    document["comparisons"] = [
        {**about, "a": "good/full/cls", "b": "poor/full/cls", "p_holm": 0.01},
        {**about, "a": third, "b": "good/full/cls", "p_holm": 0.2},
    ]
    board = Board(View(ProbeResult(document, result.predictions)), [])
    standing = board.standings["outer", "auroc"]
    assert standing
    assert (standing.worse, standing.similar, standing.others) == (("poor/full/cls",), (third,), 2)
    assert "significantly above 1 of the 2 others; not above third/full/cls" in board.answers()
    document["comparisons"] = document["comparisons"][:1]
    board = Board(View(ProbeResult(document, result.predictions)), [])
    assert "significantly above 1 of the 1 of 2 others that it was compared with" in board.answers()
    assert "is the best" not in board.answers()


def test_prose_marks_commands_and_addresses_and_escapes() -> None:
    assert prose("see https://x.org/a?b=1&c=2, then:\n$ hf auth login") == (
        'see <a href="https://x.org/a?b=1&amp;c=2" rel="noreferrer">https://x.org/a?b=1&amp;c=2</a>, then:'
        "<br><code>hf auth login</code>"
    )
    assert prose("run `a <b>`") == "run <code>a &lt;b&gt;</code>"
    assert prose("  pip install 'x'") == "<code>pip install &#39;x&#39;</code>"
    assert "<img" not in prose('https://x.org/"><img src=x>')
    assert "javascript:" not in re.findall(r'href="([^"]*)"', prose("javascript:alert(1)"))


def test_json_cannot_end_its_element() -> None:
    text = json_script("x", {"a": "</script><!--<script>", "b": "\u2028&"})
    inner = text.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert "<" not in inner
    assert json.loads(inner) == {"a": "</script><!--<script>", "b": "\u2028&"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_script("x", float("nan"))


def test_captions_say_how_much_is_drawn() -> None:
    assert caption(make_map(total=4)).startswith("All 4 patches. PCA of good/full/cls; its axes hold 40.0%")
    assert "carry no meaning" in caption(make_map(method="UMAP", explained=()))


def hostile(page: StudyPage) -> StudyPage:
    """The page with markup in every name that comes from data."""
    assert page.result
    swap = {"scanner A": HOSTILE, "good/full/cls": f"good{HOSTILE}", "outer": f"outer{HOSTILE}"}

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {changed(k): changed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [changed(v) for v in value]
        if isinstance(value, str):
            for old, new in swap.items():
                value = value.replace(old, new)
        return value

    table = page.result.predictions.copy()
    for column in ("patch_id", "domain", "features", "dataset"):
        table[column] = table[column].astype(object).map(changed)
    table["patch_id"] = [HOSTILE + p for p in table["patch_id"]]
    assert isinstance(table, pd.DataFrame)
    rows = [
        dataclasses.replace(s, name=changed(s.name), why=s.why + HOSTILE, licence=HOSTILE, chosen=HOSTILE)
        for s in page.systems
    ]
    return StudyPage(
        title=HOSTILE,
        about=HOSTILE,
        result=ProbeResult(changed(page.result.document), table),
        systems=tuple(rows),
        published=tuple(dataclasses.replace(p, system=HOSTILE, against=HOSTILE) for p in page.published),
        published_source=HOSTILE,
        maps=(make_map(patch_id=[HOSTILE] * 4, dataset=[HOSTILE] * 4, domain=[HOSTILE] * 4, title=HOSTILE),),
        contradictions=(
            (LabelledImage(patch_id=HOSTILE, dataset=HOSTILE, label=HOSTILE, path=HOSTILE, jpeg=b""),) * 2,
        ),
        log=((HOSTILE, HOSTILE, HOSTILE, None),),
    )


def test_names_are_escaped(page: StudyPage) -> None:
    text = page_html(hostile(page))
    assert "<script>window.pwned" not in text
    assert "<img src=x" not in text
    assert text.count("<script") == 2  # the maps' JSON and page.js


# --- in a browser


class Browser:
    """Chromium without a window; the DevTools protocol over two pipes gives it real mouse, touch, keys."""

    def __init__(self, binary: str, profile: Path) -> None:
        down, up = os.pipe(), os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]

        def place() -> None:  # the protocol wants file descriptors 3 and 4
            spare = [os.dup(down[0]), os.dup(up[1])]
            spare = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in spare]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self.process = subprocess.Popen(
            [binary, *flags],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        self.out, self.inward = down[1], up[0]
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]
            self.events.append(found)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.inward], [], [], 240)[0], "chromium is silent"
            data = os.read(self.inward, 1 << 20)
            assert data, "chromium ended"
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def open(self, page: Path, *, width: int = 1180, height: int = 900, dark: bool = False) -> None:
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.scheme(dark)
        self.call("Page.navigate", url=page.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def scheme(self, dark: bool, media: str = "screen") -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """left, top, width, height in the window, after scrolling there."""
        return tuple(
            self.js(
                f"(() => {{const e = document.querySelector({json.dumps(selector)});"
                "e.scrollIntoView({block: 'center', behavior: 'instant'});"
                "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]})()"
            )
        )

    def click(self, selector: str) -> None:
        left, top, width, height = self.box(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(left + width / 2, top + height / 2, kind, button="left", clickCount=1)

    def mouse(self, x: float, y: float, kind: str = "mouseMoved", **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def touch(self, x: float, y: float) -> None:
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str) -> None:
        text = {"Enter": "\r", "Space": " "}.get(name, "")
        about: dict[str, Any] = {"key": text if name == "Space" else name, "code": name}
        about["windowsVirtualKeyCode"] = KEYS.get(name, 0)
        down = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def shot(self, path: Path, *, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Exceptions, console messages and log entries since the page was opened, and what it fetched."""
        found = []
        for event in self.events:
            name, about = event.get("method", ""), event.get("params", {})
            if name in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(json.dumps(about)[:400])
            if name == "Network.requestWillBeSent":
                url = about["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(f"fetched {url}")
        return found

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(240)
        os.close(self.out)
        os.close(self.inward)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("needs chromium")
    found = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def file(page: StudyPage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "page.html", page)


NAMES = (
    "[...document.querySelectorAll('#board tbody tr')].filter(r => !r.hidden)"
    ".map(r => r.cells[0].firstChild.textContent.replace('★', '').trim())"
)
SORTS = "[...document.querySelectorAll('#board th[data-sort]')].map(th => th.getAttribute('aria-sort'))"


def order(result: ProbeResult, dataset: str, metric: str) -> list[str]:
    mine = [r for r in result.results.leaderboard() if r.dataset == dataset and "/" in r.features]
    return [r.features for r in sorted(mine, key=lambda r: -(r.estimate(metric).value or 0))]


@pytest.mark.parametrize(("width", "dark"), [(1180, False), (1180, True), (390, False), (390, True)])
def test_it_loads_without_a_complaint(browser: Browser, file: Path, width: int, dark: bool) -> None:
    browser.open(file, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.js("document.documentElement.scrollWidth") == width  # no sideways scrolling
    assert browser.js("document.querySelectorAll('h2').length") >= 14
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    wide = browser.js(
        "[...document.querySelectorAll('p, h1, h2, h3, code, .controls, #map, figure')].filter(e => "
        "e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll')).length"
    )
    assert wide == 0


def test_the_leaderboard_sorts(browser: Browser, file: Path, page: StudyPage) -> None:
    assert page.result
    browser.open(file)
    blocked = ["uni 10", "uni 2", "swin"]
    first = order(page.result, "inner:test", "balanced_accuracy")
    assert browser.js(NAMES) == first + blocked
    assert browser.js(SORTS) == [None, None, "descending", None, None]
    browser.click("#board th:nth-child(3) button")  # once more: the other way round, blocked rows stay last
    assert browser.js(NAMES) == first[::-1] + blocked
    assert browser.js(SORTS) == [None, None, "ascending", None, None]
    browser.click("#board th:nth-child(1) button")
    assert browser.js(NAMES) == ["good/full/cls", "poor/full/cls", "swin", "uni 2", "uni 10"]
    browser.js("document.querySelector('#board th:nth-child(4) button').focus()")
    browser.key("Enter")
    assert browser.js(NAMES) == order(page.result, "outer", "balanced_accuracy") + blocked
    assert browser.js(SORTS) == [None, None, None, "descending", None]
    browser.key("Space")
    assert browser.js(SORTS) == [None, None, None, "ascending", None]
    assert browser.complaints() == []


def test_the_leaderboard_filters(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.js("document.querySelector('#find').focus()")
    browser.call("Input.insertText", text="UNI licence")
    assert browser.js(NAMES) == ["uni 10", "uni 2", "swin"]
    browser.js(
        "{const f = document.querySelector('#find'); f.value = ''; f.dispatchEvent(new Event('input'))}"
    )
    assert len(browser.js(NAMES)) == 5
    for select_id, value, left in (("family", "lora", ["uni 2"]), ("family", "", 5), ("state", "blocked", 3)):
        browser.js(
            f"{{const s = document.querySelector('#{select_id}'); s.value = '{value}';"
            "s.dispatchEvent(new Event('change'))}"
        )
        names = browser.js(NAMES)
        assert names == left if isinstance(left, list) else len(names) == left
    assert browser.js("document.querySelector('#count').textContent") == "3 of 5 systems"
    assert browser.complaints() == []


def test_the_metric_is_switched_everywhere(browser: Browser, file: Path, page: StudyPage) -> None:
    assert page.result
    browser.open(file)
    seen = "[...document.querySelectorAll('.m')].filter(e => e.checkVisibility()).map(e => e.classList[1])"
    assert set(browser.js(seen)) == {"balanced_accuracy"}
    for number, metric in ((2, "auroc"), (3, "average_precision"), (1, "balanced_accuracy")):
        browser.click(f"#filters .metrics button:nth-child({number})")
        assert set(browser.js(seen)) == {metric}
        names = browser.js(NAMES)
        assert names[:2] == order(page.result, "inner:test", metric)
        value = browser.js(f"document.querySelector('#board tbody tr .{metric} data').value")
        record = next(
            r
            for r in page.result.results.leaderboard()
            if (r.dataset, r.features) == ("inner:test", names[0])
        )
        assert float(value) == pytest.approx(record.estimate(metric).value, abs=1e-6)
        pressed = browser.js(
            "[...document.querySelectorAll('.metrics [aria-pressed=true]')].map(b => b.dataset.metric)"
        )
        assert set(pressed) == {metric}


def test_domains_by_system_and_by_domain(browser: Browser, file: Path) -> None:
    browser.open(file)
    shown = (
        "[...document.querySelectorAll('#domain-board tbody tr')].filter(r => !r.hidden)"
        ".map(r => [r.dataset.system, r.dataset.domain])"
    )
    before = browser.js(shown)
    assert len({system for system, _ in before}) == 1
    assert {domain for _, domain in before} == {"scanner A", "scanner B", "scanner C"}
    browser.js(
        "{const s = document.querySelector('#by-domain'); s.value = 'scanner B';"
        "s.dispatchEvent(new Event('change'))}"
    )
    after = browser.js(shown)
    assert {system for system, _ in after} == {"good/full/cls", "poor/full/cls"}
    assert {domain for _, domain in after} == {"scanner B"}


PATCH = "document.querySelector('#map').dataset.patch ?? null"
PIXEL = (  # of a copy: reading the page's own canvas again and again makes Chromium complain
    "(c => {const p = document.createElement('canvas').getContext('2d');"
    "p.drawImage(c, 0, 0); return [...p.getImageData(48, 48, 1, 1).data].slice(0, 3)})"
    "(document.querySelector('#tip canvas'))"
)


def near(browser: Browser, corner: int) -> tuple[float, float]:
    """A place a few pixels inside a corner of the four points, which fill the height of the map."""
    left, top, width, height = browser.box("#map")
    side = height - 2 - 28  # the frame's border and the margin
    x, y = CORNERS[corner].tolist()
    return left + width / 2 + (x - 0.5) * (side - 12), top + height / 2 - (y - 0.5) * (side - 12)


def test_hover_shows_the_patch(browser: Browser, file: Path) -> None:
    browser.open(file)
    for k, name in enumerate(["inner/a", "inner/b", "inner/c", "outer/d"]):
        browser.mouse(*near(browser, k))
        assert browser.js(PATCH) == name
        assert browser.js("document.querySelector('#tip').checkVisibility()")
        assert np.abs(np.subtract(browser.js(PIXEL), COLOURS[k])).max() < 12
    text = browser.js("document.querySelector('#tip').innerText")
    assert text.split("\n") == ["outer/d", "Atypical", "outer", "not known"]
    left, top, width, height = browser.box("#map")
    browser.mouse(left + width / 2, top + height / 2)  # nothing there
    assert browser.js(PATCH) is None
    assert not browser.js("document.querySelector('#tip').checkVisibility()")
    browser.js(
        "{const s = document.querySelector('#which'); s.value = '1'; s.dispatchEvent(new Event('change'))}"
    )
    browser.mouse(*near(browser, 0))
    assert browser.js(PATCH) == "outer/d"  # the second map has them the other way round
    assert "UMAP" in browser.js("document.querySelector('.caption:not([hidden])').textContent")
    assert browser.complaints() == []


def test_the_map_by_keyboard_and_by_touch(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.js("document.querySelector('#map').focus()")
    live = "document.querySelector('#map-live').textContent"
    walk = [("ArrowRight", "inner/a"), ("ArrowRight", "inner/c"), ("ArrowRight", "inner/b")]
    walk += [("End", "outer/d"), ("ArrowRight", "outer/d"), ("Home", "inner/a"), ("ArrowUp", "inner/b")]
    for key, name in walk:
        browser.key(key)
        assert browser.js(PATCH) == name
        assert browser.js(live).startswith(f"{name}, ")
    assert browser.js(live) == "inner/b, Atypical, inner, scanner B; point 2 of 4"
    browser.key("Escape")
    assert browser.js(PATCH) is None
    browser.click("#legend button:nth-child(2)")  # the positive ones alone
    browser.js("document.querySelector('#map').focus()")
    browser.key("Home")
    browser.key("ArrowRight")
    assert browser.js(PATCH) == "outer/d"
    browser.open(file, width=390, height=844)
    browser.touch(*near(browser, 2))
    assert browser.js(PATCH) == "inner/c"
    tip = browser.js("(b => [b.left, b.right])(document.querySelector('#tip').getBoundingClientRect())")
    assert tip[0] >= 0
    assert tip[1] <= 390
    assert browser.complaints() == []


def test_colours_of_the_map(browser: Browser, file: Path) -> None:
    browser.open(file)
    entries = "[...document.querySelectorAll('#legend button')].map(b => b.textContent)"
    assert browser.js(entries) == ["Normal (2)", "Atypical (2)"]
    browser.click("[data-colour=dataset]")
    assert browser.js(entries) == ["inner (3)", "outer (1)"]
    browser.click("[data-colour=domain]")
    assert browser.js(entries) == ["scanner A (1)", "scanner B (2)", "not known (1)"]


def test_what_is_hostile_stays_text(browser: Browser, page: StudyPage, tmp_path: Path) -> None:
    file = write_page(tmp_path / "hostile.html", hostile(page))
    browser.open(file)
    browser.mouse(*near(browser, 1))
    assert browser.js(PATCH) == HOSTILE
    assert browser.js("typeof window.pwned") == "undefined"
    assert browser.js("document.title") == HOSTILE
    assert browser.complaints() == []


def test_no_script_but_its_own_runs(browser: Browser, file: Path, tmp_path: Path) -> None:
    """Were something not escaped, the policy would still stop it."""
    text = file.read_text("utf-8").replace("<header>", "<header><script>window.pwned = 1</script>", 1)
    (tmp_path / "changed.html").write_text(text, "utf-8")
    browser.open(tmp_path / "changed.html")
    assert browser.js("typeof window.pwned") == "undefined"
    assert browser.js("document.documentElement.className") == "on"
    assert any("Content Security Policy" in c for c in browser.complaints())


def test_without_javascript_and_on_paper(browser: Browser, file: Path, tmp_path: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(file)
    browser.shot(tmp_path / "plain.png", whole=True)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert (tmp_path / "plain.png").stat().st_size > 50_000
    assert browser.js("document.querySelector('.controls').checkVisibility()") is False
    assert browser.js("document.querySelector('#board tbody .balanced_accuracy').checkVisibility()")
    browser.open(file)
    browser.scheme(False, media="print")
    assert (
        browser.js("[...document.querySelectorAll('.controls, nav')].some(e => e.checkVisibility())") is False
    )
    for metric in ("balanced_accuracy", "auroc", "average_precision"):
        assert browser.js(f"document.querySelector('#board tbody .{metric}').checkVisibility()"), metric
        assert browser.js(f"document.querySelector('.answer .{metric}').checkVisibility()"), metric
    said = browser.js("getComputedStyle(document.querySelector('#board .auroc'), '::before').content")
    assert re.sub(r'[" ]', "", said) == "AUROC"
    assert browser.js("document.querySelector('#map').checkVisibility()")
    assert browser.js("document.querySelectorAll('#legend button').length") == 2
    browser.shot(tmp_path / "paper.png", whole=True)


def test_an_image_is_enlarged_by_a_click_and_by_the_keyboard(browser: Browser, file: Path) -> None:
    browser.open(file)
    side = "document.querySelector('.card img').getBoundingClientRect().width"
    assert browser.js(side) == 112
    browser.click(".card img")
    assert browser.js(side) == 448
    browser.click(".card img")
    assert browser.js(side) == 112
    browser.js("document.querySelector('.card .zoom').focus()")
    browser.key("Space")
    assert browser.js(side) == 448
    assert browser.js("document.querySelector('.card img').alt")


def test_the_first_link_leads_past_the_head(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.key("Tab")
    assert browser.js("document.activeElement.textContent") == "Skip to the content"
    assert browser.js("document.activeElement.getBoundingClientRect().left") >= 0
    browser.key("Enter")
    assert browser.js("document.activeElement.id") == "main"


def test_tables_have_heads_with_a_scope_and_captions(page: StudyPage) -> None:
    text = page_html(page)
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert len(tables) > 10
    for table in tables:
        heads = re.findall(r"<th\b(?![^>]*scope=)(?![^>]*aria-hidden)[^>]*>", table)
        assert not heads, table[:300]
        assert "<caption" in table, table[:200]
    assert not re.search(r"<img(?![^>]*alt=)", text)


def test_the_sheet_shows_every_colour_of_its_tiles() -> None:
    """What the map draws from: a mistake here would show the wrong patches."""
    sheet = np.asarray(Image.open(io.BytesIO(make_map().sprite)))
    assert sheet.shape == (96, 144, 3)
    for k, colour in enumerate(COLOURS):
        tile = sheet[k // 3 * 48 :, k % 3 * 48 :][:48, :48].astype(int)
        assert np.abs(tile - colour).max() < 12
