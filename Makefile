PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
PYTEST := $(BIN)/python -m pytest --dist loadfile
RUN ?= runs/demo
DATA ?= ../shared/data/isrc

.PHONY: demo test test-slow cases lint format bench clean

demo: $(VENV)/installed
	$(BIN)/cropray demo --config configs/demo.yaml --run $(RUN)

# Minutes, without Ray.
test: $(VENV)/installed
	$(PYTEST) -n auto --maxprocesses 4 tests --ignore tests/integration

# The stages on Ray, servers, killed nodes, full disks, a browser.
test-slow: $(VENV)/installed
	$(PYTEST) -n auto --maxprocesses 4 tests/integration

# The inputs that people have, a line for each case.
cases: $(VENV)/installed
	$(BIN)/python -m pytest -v --no-header tests/test_cases.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Accuracy is not among them: three seeds of the demonstration take the better part of an hour.
bench: $(VENV)/installed $(PEERS)/installed
	$(BIN)/python benchmarks/feed.py
	$(PEERS)/bin/python benchmarks/feed_peers.py
	$(BIN)/python benchmarks/shards.py
	$(BIN)/python benchmarks/simulation.py
	@if [ -d "$(DATA)" ]; then set -x; $(BIN)/python benchmarks/rois.py --data "$(DATA)"; \
		else echo "no parcels at $(DATA): make bench DATA=FOLDER times the regions too"; fi

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cropray needs Python 3.11 or newer; name one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	@touch $@

# What cropray is measured beside: its own packages first, then those of $(VENV).
$(PEERS)/installed: $(VENV)/installed benchmarks/peers.txt
	$(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cropray.pth"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) build .mypy_cache .pytest_cache .ruff_cache .hypothesis
