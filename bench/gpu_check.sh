#!/usr/bin/env bash
# Everything that must be seen on a GPU, in under 10 minutes: the tests that need one, every method's memory on both
# shapes, predictions beside them, one history for pytorch.org/memory_viz, and a budget held on the device.
#
#   bench/gpu_check.sh [FOLDER]        (default: results/gpu; PYTHON names the interpreter)
#
# FOLDER/check.txt is what it printed, FOLDER/results.tar.gz the result files and the report.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
exec > >(tee "$out/check.txt") 2>&1
failed=0

step() {
    echo "== $(date +%T) $*"
    "$@" || { echo "== FAILED with $?: $*"; failed=1; }
}

step nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv
step "$python" -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())"
step "$python" -m pytest -q -m gpu -p no:cacheprovider tests
step "$python" -m bench.cli run table1-memory --target cuda --jobs 6 --out "$out/table1-memory"
step "$python" -m bench.cli predict --against "$out/table1-memory" --keep
step "$python" -m bench.cli report "$out/table1-memory"
step "$python" -m bench.cli measure lightcl-sparse --set trunk=frozen --execution lean --target cuda --out "$out/lean"
step "$python" -m bench.cli measure derpp --execution lean --target cuda --out "$out/lean"
step "$python" -m bench.cli measure derpp --target cuda --width 16 --snapshot "$out/derpp.pickle"
# predictions leave cuDNN's workspace out, so what they say fits may not: shown, not judged
"$python" -m bench.cli fit derpp --target cuda --budget 2GiB --confirm || echo "== the largest batch predicted did not fit"
tar -czf "$out/results.tar.gz" -C "$out" $(cd "$out" && ls -d table1-memory lean 2>/dev/null)
echo "== $(date +%T) done, failed=$failed"
exit "$failed"
