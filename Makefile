# Needs Python 3.11 or newer with pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# A banner of the documentation's theme about its successor.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-slow mutants results bench families reads power pages outputs pictures docs dist clean

demo: .venv/installed
	$(BIN)/frenet demo --out runs/demo

test: .venv/installed
	$(BIN)/ruff format --check src tests benchmarks examples docs/*.py
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest

# Real models: stories260K beside the repository, SmolLM2 where FRENET_TEST_GGUF names its file.
test-slow: .venv/installed
	$(BIN)/pytest -m slow

# How many of 100 changes of a line of mathematics, drawn with a fixed seed, the tests notice.
MUTATED = $(addprefix geometry/,linalg basis subspace theory energy blocks) \
	$(addprefix measure/,drift gradients spectra lifetime recovery bases) \
	$(addprefix methods/,plan local_model subspace task_vectors merge lora_from_delta) \
	experiments/intervals \
	$(patsubst src/frenet/%.py,%,$(wildcard src/frenet/experiments/*/*findings.py))
mutants: .venv/installed
	$(BIN)/python tests/mutants.py $(MUTATED) --draw 100 --seed 20261305 --out build/mutants.jsonl

# Hours. The language models are those that are at hand: make results MODELS="./stories260K SmolLM2.gguf"
results: .venv/installed
	$(BIN)/frenet reproduce --preset cpu --networks synthetic frenet:gpt2 $(MODELS) --out runs/results
	$(BIN)/frenet report runs/results --results docs/results
	$(BIN)/python tests/experiments/test_golden.py --write

# Arguments as in: make bench BENCH="--model SmolLM2.gguf --resume"
bench: .venv/installed build/peers/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python benchmarks/run.py $(BENCH)

# Minutes: every family of the installed transformers that has a causal language model, tiny.
families: .venv/installed
	$(BIN)/python benchmarks/families.py

# The page of what frenet reads, from the marks of the tests.
reads: .venv/installed
	$(BIN)/python docs/reads.py

# Minutes: how often every rule says which word of a planted truth.
power: .venv/installed
	$(BIN)/python docs/power.py

# Apart from .venv, so that the tests do not see them; a peer that is missing has a row that says so.
build/peers/installed: benchmarks/peers.txt | .venv/installed
	rm -rf build/peers
	-$(BIN)/pip install -q --no-deps --target build/peers -r benchmarks/peers.txt && touch $@

# Pages with numbers, again from stored runs; runs nothing.
pages: .venv/installed
	$(BIN)/frenet report docs/results --results docs/results --out build/report.html
	$(BIN)/python docs/pilot.py
	$(BIN)/python docs/spreads.py
	$(BIN)/python docs/made.py

# Minutes: what the commands of the pages print, again.
outputs: .venv/installed
	$(BIN)/python tests/reader.py

# The first screen of a report with numbered parts, again from stored runs; needs Chromium.
pictures: .venv/installed
	$(BIN)/python docs/annotated.py

# The pages are in site/, and open from there without a server.
docs: .venv/installed
	$(BIN)/mkdocs build --strict --quiet

# Source archive and wheel, the wheel built from the archive.
dist: .venv/installed
	$(BIN)/python -m build --no-isolation --outdir dist

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist site
