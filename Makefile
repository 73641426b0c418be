# Two commands do everything on a machine with Rust, a C++ compiler and Python with pip:
#
#   make demo   sets up, builds, runs the demo, shows its table
#   make test   sets up and passes the tests (formatting and lints included)
#
# Set-up fetches libtorch once for all clones, into $(CACHE). LIBTORCH or LIBTORCH_USE_PYTORCH=1 in the environment wins.

SHELL := /bin/bash
.DELETE_ON_ERROR:

DEVICE ?= cpu
CACHE ?= $(if $(SITELINE_CACHE),$(SITELINE_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/siteline)
# Outside the clone, so that clones share what is built and a fresh one is quick.
export CARGO_TARGET_DIR ?= $(CACHE)/target
BIN := $(CARGO_TARGET_DIR)/release
SITELINE := $(BIN)/siteline
CARGO = LIBTORCH="$$(scripts/setup-libtorch $(DEVICE))" cargo

.PHONY: help setup build demo demo-sites test lint fmt phantom-clip doc clean

help:
	@sed -n 's/^# \{0,1\}//p; /^SHELL/q' Makefile | sed '/^SHELL/d'

setup:
	@scripts/setup-libtorch $(DEVICE) >/dev/null && echo "libtorch is in place"

build: setup
	@$(CARGO) build --release --workspace
	@$(SITELINE) schema --kinds >/dev/null

demo-sites: build
	@$(SITELINE) phantoms manifests/demo-sites.yaml --out demo/sites

demo: demo-sites
	@$(SITELINE) run -m manifests/demo.yaml
	@echo
	@echo "What to try next (add -m manifests/demo.yaml; the program is $(SITELINE)):"
	@echo "  siteline trace method=mcdrl,held_out=C     where one number comes from"
	@echo "  siteline audit                             proof that no model saw its test site"
	@echo "  siteline plan --set stages.train.with.epochs=20"
	@echo "  siteline init ~/my-study                   a project of your own"

test: build
	@LIBTORCH="$$(scripts/setup-libtorch $(DEVICE))" scripts/test

lint: setup
	cargo fmt --all --check
	rustfmt --edition 2024 --check stages/src/method/*.rs
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

# A macro lists the methods' files, so that cargo does not find them.
fmt:
	cargo fmt --all
	rustfmt --edition 2024 stages/src/method/*.rs

# Trains the demo's CLIP anew (about ten minutes on two cores) and compares it with the committed one.
phantom-clip: build
	@$(SITELINE) run -m manifests/phantom-clip.yaml
	@cat results/phantom-clip/scores.md
	@cmp results/phantom-clip/clip.safetensors weights/phantom-clip.safetensors && echo "the same bytes as weights/phantom-clip.safetensors"

doc: setup
	$(CARGO) doc --release --workspace --no-deps

clean:
	rm -rf .siteline results demo
