# `make help` shows what can be made; each target does all that it needs on a fresh machine.
SHELL := bash
.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

# The first Python here that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
STAMP := $(VENV)/.robustcli-installed
RUN := $(VENV)/bin/robustcli
# Threads that spin against each other cost more than they give on a small machine: one a process, unless the caller says otherwise.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup shell lowest newest demo purify test mutants fuzz chaos coverage full-size gpu-check lint bench rivals zoo assets smoke sweep study docs dist clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(STAMP) ## make .venv with the tested versions of everything (quick where it stands already)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'no Python 3.11 or newer was found: install one, or name it with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,hf]'
	touch $@

shell: setup ## a shell in which `robustcli` and `python` are those of .venv (leave it with exit)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" "$${SHELL:-bash}" -i

lowest: ## make .venv with the oldest versions that pyproject.toml allows, in place of the tested ones (VENV=... for another place)
	$(PYTHON) -m venv --clear --upgrade-deps $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --resolution lowest-direct -e '.[dev,hf]'
	touch $(STAMP)

newest: ## make .venv with the newest versions of everything, in place of the tested ones (VENV=... for another place)
	$(PYTHON) -m venv --clear --upgrade-deps $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[dev,hf]'
	touch $(STAMP)

demo: setup ## a model before and after multimodal adversarial training, as a table and pictures (minutes)
	$(RUN) train-mat experiment=demo

purify: setup ## handwritten digits purified in front of a classifier, and what each kind of attacker can still do (minutes)
	$(RUN) purify

test: setup ## every test, side by side on all cores
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

coverage: setup ## every test, and which lines and branches none of them reached (also in coverage.xml)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --cov --cov-report=term-missing --cov-report=xml

mutants: setup ## faults put into the package one at a time: does a test notice each? (minutes; MUTANTS=... for those of a file or text)
	$(VENV)/bin/python tests/mutants.py $(MUTANTS)

fuzz: setup ## inputs as no user should write them: each ends in a result or in one sentence (minutes; INPUTS=2000 SEED=0)
	$(VENV)/bin/python -m tests.fuzz --inputs $(or $(INPUTS),2000) --seed $(or $(SEED),0)

chaos: setup ## kills at random moments: each resumed run ends in the bits of an undisturbed one (half an hour; KILLS=200 SEED=0)
	$(VENV)/bin/python -m tests.chaos --kills $(or $(KILLS),200) --seed $(or $(SEED),0)
	$(VENV)/bin/python -m tests.chaos --matrix

full-size: setup ## the tests with a model or a data set of full size (minutes, up to 16 GiB)
	$(VENV)/bin/python -m pytest -m full_size

gpu-check: setup ## what a CUDA device gives: parity, times, memory and waits in a table, then the tests that need one (minutes)
	@$(VENV)/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo 'no CUDA device was found (torch.cuda.is_available() is False): run this on a machine that has one, with its driver' >&2; exit 1; }
	$(VENV)/bin/python -m benchmarks gpu_check
	$(VENV)/bin/python -m pytest -m gpu

lint: setup ## ruff (rules and format) and the strict type checker
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup ## time the parts against their floors and against other libraries
	$(VENV)/bin/python -m benchmarks

rivals: setup ## install what `make bench` compares our attacks with
	$(VENV)/bin/python -m pip install --quiet 'setuptools<81' wheel
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation visdom
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[benchmark]'

zoo: setup ## the diagnostics of planted defences, none of which may pass as ok, and of honest networks (minutes)
	$(VENV)/bin/python -m tests.diagnostics.zoo

assets: setup ## make the shipped weights again, 40 minutes (robustcli/assets; the recipes are conf/experiment/*/{tiny,nvae,avae,ndvae,ddpm}_*.yaml)
	$(RUN) train-mat experiment=tiny_clean hydra.run.dir=outputs/assets/tiny_scenes
	$(RUN) train-classifier experiment=tiny_digits hydra.run.dir=outputs/assets/tiny_digits
	$(RUN) train-classifier experiment=tiny_scene_classes hydra.run.dir=outputs/assets/tiny_scene_classes
	$(RUN) train-generator experiment=nvae_digits hydra.run.dir=outputs/assets/nvae_digits
	$(RUN) train-generator experiment=nvae_scene_classes hydra.run.dir=outputs/assets/nvae_scene_classes
	for name in avae_digits ndvae_digits ddpm_digits; do # the last needs robustcli[diffusion]
	  $(RUN) train-generator experiment=$$name hydra.run.dir=outputs/assets/$$name
	done
	for name in tiny_scenes tiny_digits tiny_scene_classes nvae_digits nvae_scene_classes avae_digits ndvae_digits ddpm_digits; do
	  install -m 644 outputs/assets/$$name/checkpoints/last.safetensors robustcli/assets/$$name.safetensors
	done

smoke: setup ## every command once, for seconds, in a directory of its own
	out=$$(mktemp -d)
	trap 'rm -rf "$$out"' EXIT
	$(RUN) list
	$(RUN) train-mat trainer=smoke evaluation=smoke attacks=quick hydra.run.dir=$$out/train
	$(RUN) augment images=16 hydra.run.dir=$$out/augment
	$(RUN) augment-quality dataset.augmentations=[$$out/augment] hydra.run.dir=$$out/quality
	$(RUN) train-classifier trainer=smoke evaluation=smoke dataset=digits model=digits hydra.run.dir=$$out/classifier
	$(RUN) train-generator trainer=smoke evaluation=smoke hydra.run.dir=$$out/generator
	$(RUN) learn-alphas evaluation=smoke adversarial.images=4 trials=7 hydra.run.dir=$$out/alphas
	$(RUN) purify protocol=smoke evaluation=smoke hydra.run.dir=$$out/purify
	$(RUN) attack evaluation=smoke hydra.run.dir=$$out/attack
	$(RUN) evaluate evaluation=smoke attacks=quick hydra.run.dir=$$out/evaluate
	cd $$out && $(CURDIR)/$(RUN) rerun evaluate

sweep: setup ## every defence from the same start over three seeds, at equal steps and at equal time (an hour on two cores; SWEEP=... adds overrides)
	$(RUN) train-mat --multirun experiment=sweep defense=clean,text,tecoa,image,mat seed=0,1,2 \
	  hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir=outputs/sweep/steps $(SWEEP)
	$(VENV)/bin/python -m benchmarks.paired outputs/sweep/steps
	$(RUN) train-mat --multirun experiment=sweep defense=image,mat seed=0,1,2 attacks=quick \
	  trainer.max_steps=null trainer.max_seconds=75 hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir=outputs/sweep/time $(SWEEP)
	$(VENV)/bin/python -m benchmarks.paired outputs/sweep/time
	$(RUN) train-mat experiment=tiny_clean dataset.synonym_frequency=0 hydra.run.dir=outputs/sweep/synonyms/clean $(SWEEP)
	$(RUN) train-mat --multirun experiment=sweep trainer=pairs attacks=quick evaluation.limit=200 dataset.synonym_frequency=0 \
	  defense=image,mat seed=0,1,2 model.checkpoint=outputs/sweep/synonyms/clean/checkpoints/last.safetensors \
	  hydra.sweep.dir=outputs/sweep/synonyms/robust $(SWEEP)

study: setup ## what one-to-many augmentation gives MAT, in two worlds whose truth is known (two hours on two cores; goes on where it was stopped)
	$(VENV)/bin/python -m benchmarks.study

.venv-docs/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo 'no Python 3.11 or newer was found: install one, or name it with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv --upgrade-deps .venv-docs
	.venv-docs/bin/python -m pip install --quiet --group docs --group dist
	touch $@

docs: .venv-docs/.installed ## the site of the documentation in build/site, strict: a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

dist: .venv-docs/.installed ## sdist and wheel in dist/, checked, under 15 MB, and the wheel run from an empty environment
	rm -rf dist
	.venv-docs/bin/python -m build --outdir dist
	.venv-docs/bin/python -m twine check --strict dist/*
	test "$$(stat -c %s dist/*.whl)" -lt 15000000 || { echo 'the wheel is larger than 15 MB' >&2; exit 1; }
	out=$$(mktemp -d)
	trap 'rm -rf "$$out"' EXIT
	$(PYTHON) -m venv --upgrade-deps $$out/empty
	$$out/empty/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd $$out && empty/bin/robustcli --version && empty/bin/robustcli list > list.txt && empty/bin/robustcli evaluate evaluation=smoke attacks=quick hydra.run.dir=$$out/run

clean: ## remove caches and builds (never outputs/ or .venv)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* coverage.xml
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
