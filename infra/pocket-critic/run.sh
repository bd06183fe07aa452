#!/usr/bin/env bash
# Makes the pocket critic from the start: environment, answers, pool, one adapter a seed, evaluation. Goes on where it was cut.
#
#     infra/pocket-critic/run.sh DATA OUT [SEED...]
#
# DATA is the folder of the sets that DATA.md names, OUT a folder for all that is made. Needs `make` to have made .venv.
set -euo pipefail
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
shift 2
seeds=("${@:-1}")
cd "$(dirname "$0")/../.."
here=infra/pocket-critic
service=.venv/bin/python
learner=$out/.venv/bin/python

if [ ! -x "$learner" ]; then
  "${PYTHON:-python3}" -m venv "$out/.venv"
  "$learner" -m pip install --quiet --disable-pip-version-check \
    --no-deps --require-hashes --only-binary :all: -r "$here/requirements.txt"
fi
base=$("$service" -c 'from infra.local.model import embedded_model; print(embedded_model())')
if [ ! -f "$out/pool.npz" ]; then
  PYTHONPATH=. "$service" "$here/write.py" "$data" "$out/written.jsonl"
  PYTHONPATH=. "$service" "$here/pool.py" "$data" "$out/written.jsonl" "$out/pool.npz"
fi
adapters=()
for seed in "${seeds[@]}"; do
  adapters+=("$out/seed-$seed.gguf")
  [ -f "$out/seed-$seed.gguf" ] || "$learner" "$here/train.py" "$base" "$out/pool.npz" "$out/seed-$seed.gguf" --seed "$seed"
done
PYTHONPATH=. "$service" "$here/evaluate.py" "$data" "$out" untrained "${adapters[@]}"
