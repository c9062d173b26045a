"""Size and load time of the page of a map of 40 x 40 km in headless Chromium, without a network.

The time is that from the start of the navigation until the map is drawn, and until all layers are there.
"""

import argparse
import shutil
import subprocess
import tempfile
import threading
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from queue import Queue
from urllib.parse import parse_qs, urlsplit

import numpy as np

from cropray.config import Config, PredictConfig
from cropray.grid import Grid
from cropray.maps.catalogue import MapIdentity
from cropray.maps.observed import Observed, colour_step
from cropray.maps.products import publish_map
from cropray.maps.request import MapPlan
from cropray.maps.tiles import PredictionSettings, TileResult
from cropray.report.map_page import PAGE, publish_pages
from cropray.run import Run
from cropray.storage import Folder
from cropray.types import BACKGROUND, CompositeRecipe, Period

CLASSES = ("winter_wheat", "winter_barley", "rapeseed", "maize", "potato", "sugar_beet", "pea", "onion")
FIELD = 16  # pixels a side
MONTHS = 6
AS_OF = date(2022, 6, 10)
TELL = """<script>
const told = setInterval(() => {
  const state = document.body.dataset.ready;
  if (state && !window.drawn) window.drawn = performance.now();
  if (state !== "all") return;
  clearInterval(told);
  const query = `drawn=${Math.round(window.drawn)}&all=${Math.round(performance.now())}`;
  fetch(`http://127.0.0.1:PORT/?${query}`, {mode: "no-cors"});
}, 5);
</script>"""


def tile_of(window, grid: Grid) -> TileResult:
    """Fields of random crops with noisy scores: harder to compress than a real map."""
    rng = np.random.default_rng([window.row, window.col])
    rows, cols = -(-window.height // FIELD), -(-window.width // FIELD)
    fields = rng.choice([*range(len(CLASSES)), BACKGROUND, BACKGROUND, BACKGROUND], (rows, cols))
    class_hw = np.kron(fields, np.ones((FIELD, FIELD)))[: window.height, : window.width].astype(np.uint8)
    percent_khw = rng.integers(0, 15, (len(CLASSES), *class_hw.shape)).astype(np.uint8)
    for k in range(len(CLASSES)):
        percent_khw[k][class_hw == k] += 55
    step = colour_step(grid)
    seen = class_hw[::step, ::step].astype(int) % 11 * 20
    colour = np.clip(seen + rng.normal(30, 6, (MONTHS, 3, *seen.shape)), 1, 255).astype(np.uint8)
    months = np.full((2, *class_hw.shape), MONTHS, np.uint8)
    return TileResult(class_hw, percent_khw, (), Observed(months, colour, (), class_hw.size))


def make(folder: str, side_km: float) -> Path:
    grid = Grid("EPSG:32631", 500_000, 5_600_000, 10, round(side_km * 100), round(side_km * 100))
    starts = [AS_OF - timedelta(days=30 * n) for n in range(MONTHS, -1, -1)]
    periods = tuple(Period(a, b) for a, b in pairwise(starts))
    settings = PredictionSettings(periods, AS_OF, CompositeRecipe())
    identity = MapIdentity("benchmark", "model", CLASSES, (0.4,) * len(CLASSES), settings, "key")
    config = Config(classes=CLASSES, predict=PredictConfig(name="map", as_of=AS_OF))
    run = Run(Folder(folder), config)
    output = run.folder.child("maps/map")
    plan = MapPlan("", grid)
    publish_map(output, plan, grid.blocks(512), lambda window: tile_of(window, grid), identity, scores=True)
    run.finish("predict", {"maps": [{"name": ""}], "warning": None})
    publish_pages(run)
    return run.folder.local(f"maps/map/{PAGE}")


def load(browser: str, page: Path, scratch: Path) -> dict[str, int]:
    """What the page told on the loopback interface, the only one that is reachable."""
    told: Queue[dict[str, int]] = Queue()

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if query:
                told.put({key: int(values[0]) for key, values in query.items()})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown = scratch / "page.html"
        script = TELL.replace("PORT", str(server.server_port))
        shown.write_text(page.read_text().replace("</body>", script + "</body>"))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        profile = f"--user-data-dir={scratch / 'profile'}"
        process = subprocess.Popen(
            [browser, *options, rules, profile, shown.as_uri()], stderr=subprocess.DEVNULL
        )
        try:
            return told.get(timeout=60)
        finally:
            process.terminate()
            process.wait(20)
            server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--km", type=float, default=40, help="Side of the map.")
    parser.add_argument("--loads", type=int, default=3, help="Loads, of which the median is printed.")
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no chromium on this machine")
    with tempfile.TemporaryDirectory(prefix="cropray-") as scratch:
        page = make(f"{scratch}/run", args.km)
        times = [load(browser, page, Path(scratch)) for _ in range(args.loads)]
        drawn, every = (sorted(time[key] for time in times)[len(times) // 2] for key in ("drawn", "all"))
        size = f"{args.km:g} x {args.km:g} km: {page.stat().st_size / 1e6:.2f} MB"
        print(f"{size}, map drawn after {drawn} ms, all layers after {every} ms (median of {args.loads})")


if __name__ == "__main__":
    main()
