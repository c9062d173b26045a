"""The report in a real browser: no error in the console, no network request, every picture drawn."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from cropray.report.map_page import PAGE, publish_pages
from cropray.report.pages import REPORT, report
from tests.finished import finished_run
from tests.mapped_run import mapped_run, with_fields

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--window-size=1200,900",
]
# The title carries the result: a headless browser prints the document after loading.
TELL = """<script>addEventListener("load", () => {
  const drawn = [...document.images].filter(image => image.naturalWidth > 0).length;
  document.title = `drawn ${drawn} of ${document.images.length}, ` +
    `too wide: ${document.documentElement.scrollWidth > innerWidth}`;
});</script>"""


@dataclass(frozen=True)
class Visit:
    console: list[str]
    requests: set[str]
    document: str


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip("no chromium on this machine")


def visit(browser: str, page: Path, scratch: Path, *options: str) -> Visit:
    """Load a page without name resolution, so that nothing reaches a network."""
    log = scratch / "net.json"
    done = subprocess.run(
        [
            browser,
            *OPTIONS,
            *options,
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={scratch / 'profile'}",
            f"--log-net-log={log}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser's own requests have no initiator.
    requests = {e["url"] for e in events if e.get("initiator", "not an origin") != "not an origin"}
    return Visit(re.findall(r"CONSOLE.*", done.stderr), requests, done.stdout)


def test_an_error_and_a_request_would_be_seen(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing();</script><img src='http://127.0.0.1:9/x.png'>" + TELL)
    seen = visit(browser, page, tmp_path)
    assert any("nothing is not defined" in line for line in seen.console)
    assert seen.requests == {"http://127.0.0.1:9/x.png"}
    assert "<title>drawn 0 of 1, too wide: false</title>" in seen.document


def test_the_report_loads_without_an_error_and_without_a_network(browser: str, tmp_path: Path) -> None:
    run = finished_run(str(tmp_path / "run"))
    report(run)
    page = tmp_path / "report.html"
    page.write_text(run.folder.read_text(REPORT).replace("</body>", TELL + "</body>"))
    seen = visit(browser, page, tmp_path)
    assert seen.console == []
    assert seen.requests == set()
    assert "<title>drawn 9 of 9, too wide: false</title>" in seen.document


# Waits for all layers, then uses the page as a reader does, and tells in the title what came of it.
USE = """<script>
const waiting = setInterval(() => {
  if (document.body.dataset.ready !== "all") return;
  clearInterval(waiting);
  const key = (name) => canvas.dispatchEvent(new KeyboardEvent("keydown", {key: name}));
  read(20, 20);
  const told = [document.querySelector("#read .big").textContent];
  document.querySelector(".legend button").click();
  told.push(view.only);
  document.querySelector("[value=confidence]").click();
  key("+");
  key("ArrowRight");
  told.push(view.zoom > 1 && view.x > 0);
  document.querySelector("#field-flag").value = "declared otherwise";
  document.querySelector("#field-flag").dispatchEvent(new Event("change"));
  told.push(document.querySelectorAll("#field-rows tr").length);
  document.querySelector("#field-rows tr").click();
  document.querySelector("[value=months]").click();
  told.push(view.field !== null, document.documentElement.scrollWidth > innerWidth);
  document.title = told.join(" | ");
}, 20);
</script>"""


@pytest.mark.parametrize(("code", "maize"), [("en", "maize"), ("fa", "ذرت")])
def test_the_page_of_a_map_works_without_an_error_and_without_a_network(
    browser: str, tmp_path: Path, code: str, maize: str
) -> None:
    run = mapped_run(str(tmp_path / "run"), language=code)
    with_fields(run)
    publish_pages(run)
    page = tmp_path / "map.html"
    page.write_text(run.folder.read_text(f"maps/map/{PAGE}").replace("</body>", USE + "</body>"))
    seen = visit(browser, page, tmp_path, "--virtual-time-budget=8000")
    assert seen.console == []
    assert seen.requests == set()
    assert f"<title>{maize} | 0 | true | 1 | true | false</title>" in seen.document
