# make demo   a face talks: builds .venv, installs, writes out/demo.mp4
# make test   the same environment, all tests
# PYTHON=...  the interpreter that .venv is made from (3.10 or newer; 3.11 is the tested one and taken when it is there)

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: demo test clean

demo: $(VENV)/.installed
	@mkdir -p out
	$(BIN)/python -m imtalker animate -o out/demo.mp4

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# A stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "IMTalker needs Python 3.10 or newer; choose one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv $(VENV) || \
		{ echo "This Python has no venv module: install it (Debian: apt-get install python3-venv)," \
			"or choose another Python with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
