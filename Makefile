# Both targets set up .venv by themselves and do nothing twice.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLUSTER := .pruneaudit/cluster
WORKERS ?= auto
TESTERS ?= $(if $(filter auto,$(WORKERS)),$(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 2),$(WORKERS))
# References are made in arithmetic that all x86-64 machines have in common.
ARITHMETIC ?= $(if $(filter x86_64 amd64,$(shell uname -m)),portable,native)

# What decides in minutes: each setup's comparisons at one ratio, as many seeds as they need and 40 at most. SX-B, whose
# longest arm trains one seed after the other, comes where another worker has something else to do meanwhile.
DECIDED = -k "convnet4-digits and r0.9" --audit-methods l1,random,tpp,scratch --audit-protocols s2,sx-b,s3.2,s4.1 \
	--audit-decide 20 --audit-backend tiled --audit-arithmetic $(ARITHMETIC) -n $(WORKERS)

.PHONY: suite survey references test units coverage lint browser wheel-smoke mutants soak cluster bench gpu clean

suite: $(READY)
	$(BIN)/pytest suite $(DECIDED)
	$(BIN)/pruneaudit compare reports/latest reports/reference/decided

# All eight setups, two ratios and three seeds: what the reference digits/ is.
survey: $(READY)
	$(BIN)/pytest suite -k resnet20-digits --audit-backend tiled --audit-arithmetic $(ARITHMETIC) -n $(WORKERS)
	$(BIN)/pruneaudit compare reports/latest reports/reference/digits

# The references that README quotes, with the versions of constraints.txt: PIP_CONSTRAINT=constraints.txt make references.
# Each is measured in both arithmetics at one ledger; the portable one, judged last, is kept, with the noise floor in it.
references: $(READY)
	for arithmetic in native portable; do \
	$(BIN)/pytest suite $(DECIDED) --audit-arithmetic $$arithmetic \
	--audit-ledger .pruneaudit/references --audit-report reports/reference/decided && \
	$(BIN)/pytest suite -k resnet20-digits --audit-backend tiled --audit-arithmetic $$arithmetic -n $(WORKERS) \
	--audit-ledger .pruneaudit/references --audit-report reports/reference/digits && \
	$(BIN)/pytest suite -k "resnet20-digits and s3.2" --audit-methods l1,random,tpp --audit-seeds 8 -n $(WORKERS) \
	--audit-backend tiled --audit-arithmetic $$arithmetic --audit-figures none \
	--audit-ledger .pruneaudit/references --audit-report reports/reference/digits-8-seeds || exit 1; \
	done

# Types take one process the better part of a minute, beside which tests may begin.
test: $(READY) browser
	$(MAKE) -j 2 lint units

units: $(READY)
	# What hundreds of processes import is compiled once, plugins that pytest rewrites among it, whatever is said of
	# bytecode here.
	$(BIN)/python -m compileall -q pruneaudit
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest tests/test_badge.py --collect-only -q -n 0 >/dev/null
	# Two workers with two threads each are several times slower than with one. Each begins with files of its own, and
	# helps the others at the end: what the tests of a file share is made once.
	# No test looks at what is logged, and to listen to all of torch's loggers in all phases of thousands takes its time.
	# Two more than there are cores: tests of programs wait for them a fifth of their time.
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n $(TESTERS) --dist worksteal -p no:logging -q $(COVER)

# The same, and it fails where tests run less than 90 % of the package: [tool.coverage] in pyproject.toml says of what.
coverage: $(READY)
	$(MAKE) test COVER="--cov --cov-report=term"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests of the page run in a real browser: installed where that is allowed, skipped with a reason elsewhere.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	{ apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 || \
	echo "no Chromium is here and none can be installed: tests of the page will be skipped"

# The wheel in an environment that has nothing else of the project.
wheel-smoke: $(READY)
	.ci/wheel-smoke

# Every rule of the audit, changed a little in each way in turn: a test of rules must notice.
mutants: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

# A random campaign under faults, for ten minutes: docs/reliability.md.
soak: $(READY)
	cd tests && ../$(BIN)/python soak.py --seconds 600

# Runs that a Slurm of one node and a Ray of several compute, and ledgers on a server of S3's protocol: installed where
# that is allowed, skipped elsewhere; with FAST=1 one test of each scheduler. Beside .venv, whose packages stay as they are.
cluster: $(READY)
	@command -v slurmctld >/dev/null || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes \
	--no-install-recommends slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins; } >/dev/null 2>&1 || \
	echo "no Slurm is here and none can be installed: its tests will be skipped"
	@test -x $(CLUSTER)/bin/python || $(BIN)/python -m venv --without-pip $(CLUSTER)
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	> "$$(echo $(CLUSTER)/lib/python3*/site-packages)/below.pth"
	@$(BIN)/python -m pip --python $(CLUSTER)/bin/python install --quiet --retries 2 --group cluster || \
	echo "no Ray, moto or s3fs can be installed: their tests will be skipped"
	PRUNEAUDIT_CLUSTER=1 OMP_NUM_THREADS=1 $(CLUSTER)/bin/python -m pytest tests/cluster tests/test_objects.py -q -rs -n 0 \
	$(if $(FAST),-k "s3 or runs_are_those_of_this_process")

bench: $(READY)
	$(BIN)/python benchmarks/collection.py
	$(BIN)/python benchmarks/arithmetic.py
	$(BIN)/python benchmarks/steps.py resnet20-digits
	$(BIN)/python benchmarks/steps.py sfp-resnet20-cifar10
	$(BIN)/python benchmarks/steps.py resnet56-cifar10
	$(BIN)/python benchmarks/lenet_sweep.py
	$(BIN)/python benchmarks/many.py
	$(BIN)/python benchmarks/engine.py --seeds 8
	$(BIN)/python benchmarks/jsv.py
	$(BIN)/python benchmarks/oracle.py
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/decide.py
	$(BIN)/python benchmarks/pictures.py
	$(BIN)/python benchmarks/cluster.py

# All that needs a GPU, in eight minutes at most; without one, or with DRY=1, seconds on the CPU that show that it works.
gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(if $(DRY),--dry) $(if $(OUT),--out $(OUT))

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pruneaudit reports/latest
