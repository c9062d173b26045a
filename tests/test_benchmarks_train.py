"""The training's benchmark: that its peer computes the same, and that its core runs on a bare machine."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Modules that are None in sys.modules cannot be imported.
BARE = """
import sys
sys.modules.update(dict.fromkeys(["ray", "rasterio", "mlflow", "pydantic", "ee"]))
sys.path.insert(0, {folder!r})
import torch
import train
torch.set_num_threads(1)
size, cpu = train.Size(batch=2, steps=2, stem=4), torch.device("cpu")
for figures in (train.beside(4, size, 1, cpu), train.feed(4, size, 1, cpu)):
    assert figures["ratio"] > 0, figures
print(train.gflop_trained(64, train.Size(1, 1)))
"""


def test_the_core_runs_on_a_bare_machine_and_its_peer_computes_the_same() -> None:
    code = BARE.format(folder=str(BENCHMARKS))
    # `beside` itself compares logits, and losses of steps that both sides took.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    # The published network's 12.95 GFLOP forward, three times; with a channel of validity a sensor.
    assert 38.8 < float(done.stdout) < 39.2
