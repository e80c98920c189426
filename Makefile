# Every command of the project. `make` alone lists them.
PYTHON    ?= python3
PORT      ?= 3000
GRPC_PORT ?= 3001
MLFLOW_PORT ?= 5000
DATA      ?=
RELEASE   ?=
IMAGE     ?= chestct:latest
NEXT      ?=
# Where the sources are. Registries link the image to it.
SOURCE    ?= https://github.com/chestct/chestct
CONTAINER_OPTIONS ?=
SCENARIO  ?= steady
USERS     ?=
SECONDS   ?=
P99       ?=
MODEL     ?=
ADAPT     ?=
SINCE     ?=
# The oldest Kubernetes with every field that the manifests use, and the newest that was checked.
KUBERNETES = 1.30 1.37
# Parameters of `make demo` and the end-to-end test: a small network, trained from scratch on drawn phantoms.
PHANTOMS = data.source=synthetic data.phantoms.train=200 data.phantoms.test=25 prepare.image_size=64 prepare.folds=2 \
  base_model.backbone=small base_model.weights=none base_model.dropout=0 train.head_epochs=0 train.epochs=14 \
  train.batch_size=32 train.learning_rate=5e-3 train.warmup_epochs=2 train.averaging=0.9 \
  train.augment.rotation_degrees=0 train.augment.stretch=1 train.augment.crops=0 train.augment.windows=0.5 \
  train.augment.clutter=0 train.augment.degrade=0 evaluate.bootstrap=200 export.arithmetic=float32 \
  report.bootstrap=200 store.min_cancer_auc=0.7 store.max_calibration_error=0.2 store.min_style_kept=0.3 \
  store.max_style_accepted_otherwise=0.5

# $(call quote,$(value NAME)) quotes what the user typed as one word of the shell. Without `value`, make would expand its
# dollar signs.
quote = '$(subst ','\'',$1)'

# The Python outside of .venv, even if .venv is activated, because .venv has no pip.
python := $(call quote,$(shell PATH=$(call quote,$(subst $(CURDIR)/.venv/bin:,,$(PATH))) && command -v $(call quote,$(value PYTHON))))

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export BENTOML_DO_NOT_TRACK = True
export DVC_NO_ANALYTICS = 1
# Python keeps what it has compiled, also if the user's environment says otherwise. Without it, each start of the service
# takes five seconds longer.
unexport PYTHONDONTWRITEBYTECODE

# development includes training, image and serving, and training includes serving, so an installed larger set is enough.
development = .venv/.development
training    = $(firstword $(wildcard .venv/.development) .venv/.training)
packaging   = $(firstword $(wildcard .venv/.development) .venv/.image)
serving     = $(firstword $(wildcard .venv/.development .venv/.training) .venv/.serving)
# `bentoml build` needs the service's packages alone. `make image` installs its own set first, which has them.
bundling    = $(if $(filter image,$(MAKECMDGOALS)),$(packaging),$(firstword $(wildcard .venv/.development .venv/.training .venv/.image) .venv/.serving))
node        = $(firstword $(wildcard .venv-node/.node-tests) .venv-node/.node)
# `dvc exp run` sets parameters with -S. It records each run as a commit outside of all branches, so git needs a name.
experiment  = GIT_COMMITTER_NAME=chestct GIT_COMMITTER_EMAIL=chestct@localhost $(calmly) dvc exp run
# The demo's clone records its runs here, where `make mlflow` shows them, if the environment names no other place.
recorded    = MLFLOW_TRACKING_URI=$${MLFLOW_TRACKING_URI:-sqlite:///$$OLDPWD/mlflow.db}
# A library's command that Ctrl-C ends in one line, also while it imports.
calmly      = python -m chestct.interrupts
champion    = $(filter champion,$(value MODEL))

.DEFAULT_GOAL = help
.PHONY: help serve demo test test-page test-long clients node test-node train report experiments sweep store external site drift bento package image image-node test-image load overload drain rollout hold tune bench growth check docs lock mlflow notebooks clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 19

serve: $(if $(champion),$(training),$(serving)) ## serve the newest model of real images, or else the released one, on PORT (HTTP, page) and GRPC_PORT; MODEL=champion follows MLflow
	@$(if $(champion),tag=$$(python -m pipeline.store --champion) && export CHESTCT_MODEL=$$(echo "$$tag" | tail -n 1) &&) \
	  python -m serving.ensure_model && CHESTCT_GRPC_PORT=$(call quote,$(value GRPC_PORT)) exec $(calmly) bentoml serve --port $(call quote,$(value PORT)) --timeout-keep-alive 75

demo: $(training) ## train on phantoms in a separate clone (four to six minutes on two cores), then serve that model
	@echo 'Eight stages train a small network on drawn phantoms, in four to six minutes on two cores. Each shows its progress.'
	@test -d .demo || git clone -q . .demo
	@cd .demo && git fetch -q && git reset -q --hard FETCH_HEAD && $(recorded) $(experiment) $(PHANTOMS:%=-S %)
	@stored=$$(cd .demo && $(recorded) python -m pipeline.store) && \
	  CHESTCT_MODEL=$$(echo "$$stored" | tail -n 1) exec make --no-print-directory serve

# All tests of a file run in one process, so it sets up the fixtures that they share once.
test: $(development) .venv-s3/.s3 ## run the tests but those of the next two commands, in 12 to 20 minutes on two cores
	@$(calmly) pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=10

test-page: $(development) ## test the page in Chromium: accessibility, fifty pictures at once, speed, a server that dies
	@$(calmly) pytest -m page tests/serving

test-long: $(development) ## run the long tests: every backbone, an interrupted sweep, an MLflow server, overload and drain
	@$(calmly) pytest -m long -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=10

clients: $(development) .venv-clients/.clients ## ask a test server with tritonclient and the KServe SDK
	@python -m tests.clients

node: $(node) ## run the DICOM node between a PACS and the service; DICOM_NODE_ variables set it up
	@exec .venv-node/bin/python -m dicom_node

test-node: $(development) .venv-node/.node-tests ## test the DICOM node against the service, Orthanc and DICOM's tools
	@python -m tests.dicom_node

train: $(training) ## run the pipeline, then store the model; DATA=folder takes images from there, in Kaggle's layout
	$(if $(value DATA),$(experiment) -S data.source=local -S "$$(python -m pipeline.override data.path $(call quote,$(value DATA)))",$(calmly) dvc repro)
	@python -m pipeline.store

report: $(training) ## open the test folder: measure the graph of the last training on it; each opening is counted
	@python -m pipeline.report

experiments: $(training) ## list the trainings with their figures and what was changed, in 120 columns
	@python -m pipeline.experiments

sweep: $(training) ## search train's parameters on held-out folds, as params.yaml says; it resumes after a stop
	$(calmly) dvc repro base_model
	@python -m pipeline.sweep

store: $(training) ## put the best run into the model store, if it passes the gate, and into RELEASE=folder
	@python -m pipeline.store $(if $(value RELEASE),--release=$(call quote,$(value RELEASE)))

external: $(training) ## ask the served model, or MODEL=tag, about slices of other sources in DATA=folder; see reports/external/
	@$(folder) && python -m pipeline.external $(asked) -- $(call quote,$(value DATA))

site: $(training) ## check the served model on your own labelled slices in DATA=folder; ADAPT=1 refits its numbers; see reports/site/
	@$(folder) && python -m pipeline.site $(if $(value ADAPT),--adapt) $(asked) -- $(call quote,$(value DATA))

drift: $(training) ## compare images or an inference log, DATA=folder or bucket, with what the served model learned from; see build/drift/
	@$(folder) && python -m pipeline.drift $(asked) $(if $(value SINCE),--since=$(call quote,$(value SINCE))) -- $(call quote,$(value DATA))

bento: $(bundling) ## build the bento of the model that `make serve` would serve: build/chestct.bento
	@python -m serving.ensure_model && $(calmly) bentoml build --label version=$(version)
	@mkdir -p build && rm -f build/chestct.bento && $(calmly) bentoml export chestct:latest "$$PWD/build/chestct.bento"

package: $(packaging) ## build the Python package, which brings the command `chestct`: build/chestct-VERSION-py3-none-any.whl
	@uv build --quiet --out-dir build .

image: $(packaging) bento ## build the container image IMAGE and its bill of materials; needs docker, podman or buildah
	@$(if $(builder),:,echo 'error: a running docker, or podman, or buildah is needed' >&2; exit 2)
	@model=$$(python -m serving.ensure_model) && graph=$$($(calmly) bentoml models get $$model -o path)/model.onnx && \
	  $(builder) build --file image/Containerfile --tag $(image) \
	  --label org.opencontainers.image.title=chestct \
	  --label org.opencontainers.image.description='Classifies chest-CT slices. Research and education only. Not a medical device.' \
	  --label org.opencontainers.image.source=$(call quote,$(value SOURCE)) \
	  --label org.opencontainers.image.revision=$(commit) \
	  --label org.opencontainers.image.version=$(version) \
	  --label chestct.model.tag=$$model \
	  --label chestct.model.sha256=$$(sha256sum < "$$graph" | cut -c1-64) $(CONTAINER_OPTIONS) .
	@rm -f build/image.tar && $(save) && python -m image.inventory build/image.tar build

# Without kubectl, which renders the manifests, the development set is installed, because it has one.
image-node: IMAGE = chestct-dicom-node:latest
image-node: ## build the DICOM node's container image IMAGE; needs docker, podman or buildah
	@$(if $(builder),:,echo 'error: a running docker, or podman, or buildah is needed' >&2; exit 2)
	@$(builder) build --file image/Containerfile --target dicom-node --tag $(image) \
	  --label org.opencontainers.image.title=chestct-dicom-node \
	  --label org.opencontainers.image.description='Returns reports on chest-CT slices to a PACS. Research and education only. Not a medical device.' \
	  --label org.opencontainers.image.revision=$(commit) $(CONTAINER_OPTIONS) .

test-image: $(if $(shell command -v kubectl),$(packaging),$(development)) ## run IMAGE as a pod does and ask it; needs docker or podman
	@IMAGE=$(image) BUILDER=$(builder) $(calmly) pytest -s --confcutdir tests/container tests/container

load: $(development) ## put a test server under the load of SCENARIO: steady, ramp, burst or soak; USERS= and SECONDS= scale it
	@python -m serving.ensure_model && python -m load_tests.run --scenario=$(call quote,$(value SCENARIO)) \
	  $(if $(value USERS),--users=$(call quote,$(value USERS))) $(if $(value SECONDS),--seconds=$(call quote,$(value SECONDS)))

overload: $(development) ## send a test server three times the load that it can bear, for a minute
	@python -m serving.ensure_model && python -m load_tests.overload

drain: $(development) ## stop a test server under load, ten times; fails if a request is lost
	@python -m serving.ensure_model && python -m load_tests.drain

rollout: $(development) ## replace, kill and freeze replicas of IMAGE under load, in 18 minutes; writes docs/reference/rollouts.md; needs haproxy
	@python -m load_tests.rollout --tool=$(builder) $(if $(value NEXT),--next=$(call quote,$(value NEXT))) -- $(image)

hold: $(development) ## send a test server bad input, slow clients and faults, in 30 minutes; writes docs/reference/reliability.md
	@python -m serving.ensure_model && python -m load_tests.promises

bench: $(development) ## compare with the bare loop and other servers, in 30 minutes; writes docs/reference/benchmarks.md; needs wrk and strip
	@python -m serving.ensure_model && python -m benchmarks.bench

growth: $(development) ## draw how throughput, p99 and memory grow with load, in 12 minutes; writes docs/reference/growth.md; needs wrk
	@python -m serving.ensure_model && python -m benchmarks.growth

tune: $(development) ## find the settings that answer most, and with P99 (milliseconds) a queue, in ten minutes: build/tune/settings.env
	@python -m serving.ensure_model && python -m benchmarks.tune $(if $(value P99),--p99=$(call quote,$(value P99)))

check: $(development) .venv-checkov/.checkov ## lint, format, types, YAML, plain language, workflows, Kubernetes manifests
	ruff check
	ruff format --check
	$(calmly) mypy
	$(calmly) yamllint --strict .
	python -m docs.words
	zizmor --offline --quiet .github
	$(if $(shell command -v actionlint),actionlint,@echo "actionlint is not installed; zizmor alone has read the workflows")
	python -m k8s.render build/k8s
	for version in $(KUBERNETES); do $(calmly) kubernetes_validate -k $$version --strict --no-warn --quiet build/k8s/*.yaml || exit; done
	.venv-checkov/bin/checkov --config-file k8s/checkov.yaml --directory build/k8s

docs: .venv-docs/.docs ## build the site of docs/ into build/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/$(calmly) mkdocs build --strict

# One worker and no jobs: on a busy machine, uvicorn ends each of several workers that is slow to answer.
mlflow: $(training) ## browse the runs, also those of `make demo`, on http://localhost:5000; MLFLOW_PORT= is another port
	@echo 'MLflow shows the runs on http://localhost:'$(call quote,$(value MLFLOW_PORT))': choose Model training, then chestct; Ctrl-C ends it'
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true MLFLOW_LOGGING_LEVEL=ERROR PYTHONWARNINGS=ignore \
	  exec $(calmly) mlflow ui --workers 1 --port $(call quote,$(value MLFLOW_PORT)) --backend-store-uri sqlite:///mlflow.db

notebooks: $(development) ## open notebooks/ in JupyterLab, which is fetched for this and kept out of .venv
	uv run --no-project --with jupyterlab jupyter lab notebooks

lock: $(development) ## pin pyproject.toml's dependencies with hashes; UPGRADE=--upgrade takes newer ones
	$(compile) --extra train --extra dev -o requirements/development.txt $(UPGRADE)
	$(compile) --extra train -c requirements/development.txt -o requirements/training.txt
	$(compile) -c requirements/development.txt -o requirements/serving.txt
	$(compile:pyproject.toml=--group clients) -o requirements/clients.txt $(UPGRADE)
	python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["node"], sep="\n")' | \
	  $(compile:pyproject.toml=-) -c requirements/development.txt -o requirements/node.txt $(UPGRADE)
	$(compile:pyproject.toml=requirements/node.txt) --group node-tests -c requirements/development.txt -o requirements/node-tests.txt
	$(compile) --group load -c requirements/development.txt -o requirements/load.txt
	$(compile) --group image $(unpacked:%=--no-emit-package %) -c requirements/development.txt -o requirements/image.txt
	$(compile:pyproject.toml=--group s3) -o requirements/s3.txt $(UPGRADE)
	$(compile:pyproject.toml=--group checkov) -o requirements/checkov.txt $(UPGRADE)
	$(compile:pyproject.toml=--group docs) -o requirements/docs.txt $(UPGRADE)

clean: ## remove the demo, builds and tools' caches; data, models and runs stay
	rm -rf .demo build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

# Parts of the serving set that building the image does not use: those of `chestct score`.
unpacked = arro3-core arro3-io obstore
compile = uv pip compile pyproject.toml -q --universal --python-version 3.11 --only-binary :all: --generate-hashes \
  --no-header --no-emit-index-url --no-emit-find-links

folder = $(if $(value DATA),true,{ echo 'error: name a folder of slices: make $@ DATA=folder' >&2; exit 2; })
asked = $(if $(value MODEL),--model=$(call quote,$(value MODEL)))
commit = $(shell git describe --always --abbrev=40 --dirty --exclude='*')
version = $$(python -c 'import chestct; print(chestct.__version__)')
image = $(call quote,$(value IMAGE))
save = $(if $(filter buildah,$(builder)),buildah push $(image) docker-archive:build/image.tar,$(builder) save --output build/image.tar $(image))
builder = $(firstword $(foreach tool,docker podman buildah,$(shell $(tool) info >/dev/null 2>&1 && echo $(tool))))

.venv .venv-clients .venv-node .venv-s3 .venv-checkov .venv-docs:
	@$(python) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	  { echo 'error: '$(call quote,$(value PYTHON))' is not a Python 3.11, 3.12 or 3.13; name one that is: make PYTHON=python3.12' >&2; exit 2; }
	@if $(python) -m pip --version >/dev/null 2>&1; then $(python) -m venv --without-pip $@; \
	elif $(python) -c 'import ensurepip' 2>/dev/null; then $(python) -m venv $@; \
	else echo 'error: '$(call quote,$(value PYTHON))' has neither pip nor venv (Debian: apt-get install python3-venv)' >&2; exit 2; fi

# .venv has no pip, so the outer Python's pip installs into it. On Debian that is in python3-pip. Without it, python3-venv
# puts a pip into the environment.
.venv/.serving .venv/.training .venv/.image .venv/.development: .venv/.%: requirements/%.txt | .venv .venv/bin/chestct
	$(install)

# Not an installed package, whose build would need setuptools. The service does without.
.venv/bin/chestct: archive/launch.sh | .venv
	@cp archive/launch.sh $@

.venv-clients/.clients: requirements/clients.txt | .venv-clients
	$(install)

.venv-node/.node .venv-node/.node-tests: .venv-node/.%: requirements/%.txt | .venv-node
	$(install)

.venv-s3/.s3: requirements/s3.txt | .venv-s3
	$(install)

.venv-checkov/.checkov: requirements/checkov.txt | .venv-checkov
	$(install)

.venv-docs/.docs: requirements/docs.txt | .venv-docs
	$(install)

define install
	@echo "Installing $< into $(@D); the first time takes a minute or two ..."
	@if [ -x $(@D)/bin/pip ]; then set -- $(@D)/bin/python -m pip; else set -- $(python) -m chestct.interrupts pip --python $(@D)/bin/python; fi; \
	  "$$@" install -q --disable-pip-version-check --no-input --no-compile --require-hashes --only-binary :all: -r $<
	@touch $@
endef
