.PHONY: install test test-lowest conformance sanitize bench energy-tables energy-validation demo wheel check-wheel lint lock versions-table clean

install:
	@./bootstrap.sh

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	rm -rf build/imports
	mkdir -p build/imports
	cp -r knarr build/imports/knarr
	cp -r train export deploy hw_sim pipeline cli build/imports/knarr
	cd build/imports && ../../.venv/bin/lint-imports --config ../../pyproject.toml --no-cache

# Option -ra (pyproject.toml) names every skip. KNARR_STRICT_SKIPS=1 fails on a skip whose reason is not listed in tests/conftest.py.
test: install
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What depends most on other people's versions: files in and out, exporting, counting, fitting, and the engines against each other.
LOWEST = tests/export tests/hw_sim/test_fast.py tests/hw_sim/counting/test_never_zero.py tests/hw_sim/test_recording.py \
  tests/train/test_chip_exact.py tests/train/test_fit_options.py tests/train/datasets tests/pipeline/test_sweep.py

# Runs a part of the tests on Python 3.11 with the lowest versions that pyproject.toml allows, in .venv-lowest.
test-lowest:
	python="$$(./bootstrap.sh --find 3.11)" && KNARR_PYTHON="$$python" KNARR_LOCK=requirements-lowest.lock KNARR_VENV=.venv-lowest ./bootstrap.sh
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 --dist loadfile $(LOWEST)

versions-table:
	python3 benchmarks/versions.py

# Runs random networks on Lava, about 6 s each, and all cases of the export and fast-engine tests that `make test` only samples.
conformance: install
	KNARR_CONFORMANCE=220 OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal tests/deploy/test_conformance.py tests/export/test_export_random.py tests/export/test_export_grid.py tests/hw_sim/test_fast.py \
	  tests/hw_sim/counting/test_while_running.py tests/deploy/test_verify.py tests/deploy/test_lower_measured.py tests/deploy/test_lower_branches.py tests/deploy/test_conv_nets.py tests/train/test_chip_exact.py \
	  tests/pipeline/test_chip_fit.py tests/train/test_ddp.py tests/deploy/test_kill.py tests/deploy/test_slayer.py tests/hw_sim/counting/test_torch_count.py tests/hw_sim/counting/test_architectures.py tests/hw_sim/counting/test_onnx_attention.py

# Runs random networks on kernels that are built with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, at every level of
# instructions and on one to eight threads, and compares them with the reference.
sanitize: install
	for kind in address undefined thread; do .venv/bin/python tests/sanitized.py $$kind 500 || exit 1; done

# Measures the speed against Lava, Norse, snnTorch and slayer, which takes about 20 minutes on a machine that does nothing else. snnTorch
# gets its own environment in build/. Table and pictures are written to benchmarks/results.
bench: install
	.venv/bin/python benchmarks/hw_sim/main.py

# Makes three energy tables: a published one from counted networks (a minute), networks of snnTorch and SpikingJelly as they stand (a minute),
# and our operation counts beside NeuroBench's. NeuroBench gets its own environment in build/ (5 GB, 4 minutes the first time). Results are written to benchmarks/results.
energy-tables: install
	.venv/bin/python benchmarks/energy/spiking_emotions.py
	.venv/bin/python benchmarks/energy/torch_libraries.py
	.venv/bin/python benchmarks/energy/against_neurobench.py

# Predicts energies that others measured, from prices that were not made from them, and compares three networks with SANA-FE, which gets an
# environment of its own in build/; PilotNet comes with lava-dl's wheel. Results are written to benchmarks/results.
energy-validation: install
	.venv/bin/python benchmarks/energy/validation.py

demo: install
	.venv/bin/knarr pipeline eyes --out runs/eyes

# Makes a wheel for every supported Python and a source archive in dist/, and looks at what they hold.
wheel: install
	.venv/bin/python release/archives.py

# Installs the wheel of dist/, and the source archive, into an empty environment for each Python that is found, and simulates there.
check-wheel: wheel
	.venv/bin/python release/check.py

# The newest versions for every supported Python, those of them that the container has, and the lowest that pyproject.toml allows for the oldest.
UV_COMPILE = uv pip compile --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml

lock:
	$(UV_COMPILE) --all-extras --universal --python-version 3.11 --upgrade -o requirements.lock
	$(UV_COMPILE) --extra all --universal --python-version 3.11 --constraint requirements.lock --upgrade -o docker/requirements.lock
	$(UV_COMPILE) --all-extras --python-version 3.11 --python-platform x86_64-manylinux_2_28 --resolution lowest-direct --upgrade -o requirements-lowest.lock

clean:
	rm -rf build dist runs *.egg-info .mypy_cache .pytest_cache .ruff_cache
