# Everything that one does with a checkout. A fresh Debian machine needs nothing but make: what is missing is
# installed (through sudo where the caller is not root).

PYTHON ?= python3
VENV ?= .venv
PF ?=
PEER ?=
IPAM ?= host-local
ATTACH ?= move
REPORTS := .reports

RUN := $(VENV)/bin/python
CYTHON_SOURCES := $(wildcard src/sriov_fast/*.pyx src/sriov_fast/*.pxd src/sriov_fast/*.pxi)
CLIENT_SOURCES := $(wildcard src/sriov_fast/client/*.[ch]) tools/build_client.py
ENVIRONMENT := $(VENV)/.ready
EXTENSIONS := $(VENV)/.extensions
TEST_PROGRAMS := $(VENV)/.test-programs
RELEASE := $(VENV)/.release
# QEMU, mounts and network namespaces want root; the environment (pip's settings, SRIOV_FAST_*) goes along.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
# A missing compiled module must not go unnoticed here, as it may on a user's machine.
export SRIOV_FAST_REQUIRE_EXT := 1
export SEED

.PHONY: help host build demo test fuzz faults faults-sample bench bench-ci bench-plot docs lint dist wheels test-wheels image clean
.DELETE_ON_ERROR:

help:
	@echo "make demo             boot the lab's machine and attach pods to VFs of its SR-IOV card"
	@echo "make demo PF=NAME     the same with this machine's card NAME"
	@echo "make demo IPAM=txipam with an address service in place of host-local"
	@echo "make demo ATTACH=macvlan with the VFs left in the host, a macvlan for each pod"
	@echo "make test             all tests: plain, network namespaces, lab"
	@echo "make fuzz             the property tests on new examples; SEED=N repeats a run"
	@echo "make faults           an error and SIGKILL at every system call of every verb; about an hour"
	@echo "make faults-sample    three minutes of it, other ones each time"
	@echo "make build            compile; leaves bin/sriov, bin/txipam and bin/sriov-fast"
	@echo "make wheels           the release: sdist, and wheels for x86-64 and aarch64, glibc and musl, in dist/"
	@echo "make test-wheels      install what make wheels built into clean environments, and use it"
	@echo "make image            the container image of the DaemonSet, dist/sriov-fast.tar, with its SBOM"
	@echo "make bench-ci         ratios and counts against benches/limits.toml; four minutes"
	@echo "make docs             the documentation as a site, and man pages, in build/"
	@echo "make lint bench dist clean"

host:
	@tools/host.sh "$(PYTHON)" tests

$(TEST_PROGRAMS): $(ENVIRONMENT) tools/host.sh
	@tools/host.sh "$(PYTHON)" tests
	@touch $@

$(ENVIRONMENT): pyproject.toml setup.py tools/venv.sh
	@tools/host.sh "$(PYTHON)"
	@tools/venv.sh "$(PYTHON)" $(VENV)
	@touch $@

$(EXTENSIONS): $(ENVIRONMENT) $(CYTHON_SOURCES) $(CLIENT_SOURCES) setup.py
	$(RUN) setup.py build_ext --inplace
	@touch $@

# The user's cache directory is made here, or root would make it, for the lab.
build: $(EXTENSIONS)
	@mkdir -p "$${XDG_CACHE_HOME:-$$HOME/.cache}"
	@$(VENV)/bin/sriov-fast install --bin-dir bin --no-server --name sriov --name txipam --name sriov-fast
	@bin/sriov-fast --version

demo: build
ifeq ($(PF),)
	$(ROOT) $(RUN) -m lab run --pfs 1 --cpus 6 --timeout 1200 -- \
		/opt/sriov-fast/bin/python -m lab.demo --ipam $(IPAM) --attach $(ATTACH)
else
	$(ROOT) $(RUN) -m lab.demo --pf $(PF) --ipam $(IPAM) --attach $(ATTACH)
endif

test: build $(TEST_PROGRAMS)
	$(RUN) tools/run_tiers.py --reports $(REPORTS)

# SEED=N repeats a sample.
faults faults-sample: build $(TEST_PROGRAMS)
	@mkdir -p $(REPORTS)
	$(ROOT) $(RUN) tools/faults.py --out $(REPORTS)/$@.jsonl $(if $(SEED),--seed $(SEED)) \
		$(if $(filter faults-sample,$@),--sample 180)

# The property tests on examples that were never drawn before; SEED repeats a run.
fuzz: build $(TEST_PROGRAMS)
	@seed=$${SEED:-$$(shuf -i 0-4294967295 -n 1)}; echo "make fuzz SEED=$$seed"; \
	SRIOV_FAST_EXAMPLES=50 $(ROOT) $(RUN) -m pytest -q -m hypothesis --hypothesis-profile=long --hypothesis-seed=$$seed \
		tests/plain tests/netns

bench: build $(TEST_PROGRAMS)
	@mkdir -p $(REPORTS)
	$(ROOT) $(RUN) -m pytest benches --ignore=benches/bench_ci.py -q --benchmark-quiet --benchmark-json=$(REPORTS)/benchmarks.json \
		--picture=docs/waterfall-add.svg --peer="$(PEER)"
	@$(RUN) tools/bench_table.py $(REPORTS)/benchmarks.json
	$(ROOT) $(RUN) -m tools.bench_lab $(REPORTS)/bench-lab

# Ratios and counts against benches/limits.toml, and against the last entry of benches/history.jsonl.
bench-ci: build $(TEST_PROGRAMS)
	@mkdir -p $(REPORTS)
	$(ROOT) $(RUN) -m pytest benches/bench_ci.py -q --benchmark-quiet --benchmark-json=$(REPORTS)/bench-ci.json
	@$(RUN) tools/bench_table.py $(REPORTS)/bench-ci.json
	@$(RUN) tools/bench_history.py compare $(REPORTS)/bench-ci.json

# Keep the figures of the last bench-ci, and draw all that were kept.
bench-plot: $(ENVIRONMENT)
	$(RUN) tools/bench_history.py add $(REPORTS)/bench-ci.json
	$(RUN) tools/bench_history.py plot docs/bench-history.svg

lint: $(ENVIRONMENT)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy tools/*.py
	MYPYPATH=src:.:benches:tests:tests/plain $(RUN) -m mypy --follow-imports=silent \
		--allow-untyped-decorators --allow-untyped-calls benches/*.py
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint src

# A wheel for this machine only, made from the sdist as an installer would.
dist: $(ENVIRONMENT)
	$(RUN) -m build --no-isolation --outdir dist

# The site of docs/, links checked, and man pages from the same source as --help.
docs: $(ENVIRONMENT)
	$(RUN) -m pip install -qq --disable-pip-version-check -r tools/docs.txt </dev/null
	$(RUN) -m tools.docs build

$(RELEASE): $(ENVIRONMENT) tools/release.txt
	@echo "installing what builds and checks wheels (about 100 MB)"
	$(RUN) -m pip install -qq --disable-pip-version-check -r tools/release.txt </dev/null
	@touch $@

wheels: $(RELEASE)
	$(RUN) -m tools.wheels dist

test-wheels: $(RELEASE)
	@ls dist/SHA256SUMS
	$(ROOT) env PATH="$$PATH:/usr/sbin:/sbin" $(RUN) -m pytest -q tests/wheels

# Of Debian packages and this checkout, without a registry; IMAGE names it.
image: build
	$(ROOT) $(RUN) -m lab.node_image --out dist/sriov-fast.tar $(if $(IMAGE),--name $(IMAGE))

clean:
	rm -rf $(VENV) bin build dist $(REPORTS) .benchmarks src/*.egg-info
	rm -f src/sriov_fast/*.so src/sriov_fast/*.c src/sriov_fast/client/sriov-client
