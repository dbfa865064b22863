#!/usr/bin/env bash
# Everything that must be seen on a GPU, made for 8 minutes, most important first: whether every method adds up, every
# method's memory on both shapes, predictions beside them, lean runs, one history for pytorch.org/memory_viz, a budget
# held on the device, and the other tests that need one.
#
#   bench/gpu_check.sh [FOLDER]        (default: results/gpu; PYTHON names the interpreter)
#
# Needs what `pip install ".[test]"` installs; run it from the checkout. FOLDER/check.txt is what it printed,
# FOLDER/results.tar.gz the result files and the report, packed after each step. Work lies in results/gpu-work, which is
# made anew.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/gpu}
work=results/gpu-work
python=${PYTHON:-python3}
rm -rf "$work"
mkdir -p "$out" "$work"
exec > >(tee "$out/check.txt") 2>&1
failed=0

pack() {
    local found
    found=$(cd "$work" && ls -d table1-memory lean budget derpp.pickle 2>/dev/null)
    [ -z "$found" ] || tar -czf "$out/results.tar.gz" -C "$work" $found
}
trap 'pack; echo "== $(date +%T) done, failed=$failed"' EXIT
trap 'exit 124' TERM INT

step() { # SECONDS COMMAND...
    local limit=$1
    shift
    echo "== $(date +%T) $*"
    timeout --kill-after=5 "$limit" "$@" || { echo "== FAILED with $?: $*"; failed=1; }
    pack # whoever kills this leaves what is measured
}

tests() { # SECONDS EXPRESSION
    step "$1" "$python" -m pytest -q -rP -m gpu -p no:cacheprovider -k "$2" tests
}

step 20 nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv
step 60 "$python" -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())"
tests 120 "adds_up or asked_for or cublas"
step 200 "$python" -m clmem.bench.cli run table1-memory --target cuda --jobs 6 --out "$work/table1-memory"
step 60 "$python" -m clmem.bench.cli predict --against "$work/table1-memory" --keep
step 30 "$python" -m clmem.bench.cli report "$work/table1-memory"
for lean in "lightcl-sparse --set trunk=frozen --execution lean" "derpp --execution lean" \
    "er --execution offload,replay_place=host"; do
    step 40 "$python" -m clmem.bench.cli measure $lean --target cuda --out "$work/lean"
done
step 40 "$python" -m clmem.bench.cli measure derpp --target cuda --width 4 --snapshot "$work/derpp.pickle"
timeout 60 "$python" -m clmem.bench.cli measure derpp --target cuda --budget 300MiB --out "$work/budget"
echo "== a budget that is too small ended with $? (1: out of memory, as it should; 124: not within a minute)"
# cuDNN's workspaces are data of the card they were taken from, so on another what is said to fit may not: not judged
timeout 60 "$python" -m clmem.bench.cli fit derpp --target cuda --budget 2GiB --confirm || echo "== not confirmed ($?)"
left=$((470 - SECONDS))
tests $((left > 60 ? left : 60)) "not (adds_up or asked_for or cublas)"
exit "$failed"
