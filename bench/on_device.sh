#!/usr/bin/env bash
# Everything that must be known of a GPU, in one command of at most nine minutes:
#
#   bench/on_device.sh [--parts probes,contract,sanitizer,limits,timings] [--out FOLDER] [--again]
#                      [--wheels FOLDER] [--commit ID] [--dry-run]
#
#   probes     the matrix unit lays out and adds up as the kernels and their proof suppose
#   contract   the tests of the backends, on the device
#   sanitizer  compute-sanitizer over every kernel
#   limits     what the machine can do: copies, products, minima, atomics
#   timings    this package beside its peers, checked
#
# Each part leaves PART.jsonl and its output in log.txt in the folder, $OUT or --out, which is
# bench/results/device-<utc> by default. A part that has passed there is not done again, unless
# --again is given; one that fails or takes too long does not keep the next from running. The table
# of all parts is printed last and kept as table.md. Exit status: 0 all passed, 1 not, 2 wrong usage.
#
# Nothing is fetched. Packages are those of $PYTHON (python3) and of --wheels, a folder of wheels.
# The package itself need not be installed: it is this checkout's. --dry-run does the same on the
# emulator, with tiny shapes, on a machine without a GPU.
set -euo pipefail

PARTS=(probes contract sanitizer limits timings)
# Seconds; together nine minutes, less the table. Timings begin nothing that would not end in time.
declare -A LIMIT=([probes]=50 [contract]=160 [sanitizer]=110 [limits]=40 [timings]=150)
TIMINGS_SECONDS=125

usage() {
  sed -n '2,/^set -/p' "$0" | sed -n 's/^# \{0,1\}//p'
}

fail_usage() {
  echo "on_device.sh: $1; see --help" >&2
  exit 2
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-}
parts=$(IFS=,; echo "${PARTS[*]}")
wheels='' commit='' again='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --parts | --out | --wheels | --commit)
      [ $# -ge 2 ] || fail_usage "$1 needs a value"
      case $1 in
        --parts) parts=$2 ;;
        --out) out=$2 ;;
        --wheels) wheels=$2 ;;
        --commit) commit=$2 ;;
      esac
      shift 2
      ;;
    --again) again=yes; shift ;;
    --dry-run) dry=true; shift ;;
    --help | -h) usage; exit 0 ;;
    *) fail_usage "unknown argument $1" ;;
  esac
done
IFS=, read -ra asked <<<"$parts"
for part in "${asked[@]}"; do
  [ -n "${LIMIT[$part]:-}" ] || fail_usage "unknown part '$part'; the parts are ${PARTS[*]}"
done
[ -z "$wheels" ] || [ -d "$wheels" ] || fail_usage "--wheels $wheels is no folder"

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail_usage "there is no $python; set PYTHON"
python=$(command -v "$python")
out=${out:-$checkout/bench/results/device-$(date -u +%Y%m%dT%H%M%SZ)}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# The checkout as Python finds it once it is installed: a folder of links, the same one each time, so
# that what is compiled is found again.
state=${TMPDIR:-/tmp}/saec-gpu-on-device-$UID-$(printf %s "$checkout" | cksum | cut -d ' ' -f 1)
package=$state/src/saec_gpu
mkdir -p "$package"
find "$package" -xtype l -delete
for entry in "$checkout"/src/saec_gpu/* "$checkout/bench"; do
  link=$package/${entry##*/}
  [ -e "$link" ] || ln -s "$entry" "$link" || [ -e "$link" ] # another run may have been faster
done
[ -e "$state/kernels" ] || ln -s "$checkout/kernels" "$state/kernels" || [ -e "$state/kernels" ]
export PYTHONPATH=$state/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$state/numba}
if [ -n "$wheels" ]; then
  # Without their dependencies: those that are not in the folder are those of $PYTHON.
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" \
    --no-deps --upgrade --target "$state/site" "$wheels"/*.whl
  PYTHONPATH=$PYTHONPATH:$state/site
fi

log=$out/log.txt
began=$SECONDS

# An editable install of another checkout would come before these links.
source=$("$python" -c 'import os, saec_gpu; print(os.path.realpath(saec_gpu.__file__))') ||
  fail_usage "$python cannot import the package; it needs numpy, numba, typer, rich, safetensors"
[ "$source" = "$(realpath "$checkout/src/saec_gpu/__init__.py")" ] ||
  fail_usage "$python has another saec_gpu, $source; take a Python without it"

has_passed() { # has_passed PART: its last record says so, of the same kind of run
  local end='"op": "part".*"status": "passed".*"dry": '
  [ -s "$out/$1.jsonl" ] && tail -n 1 "$out/$1.jsonl" | grep -q "$end${dry:-false}"
}

do_part() { # do_part PART: runs it within its limit; its file always ends with how it ended
  local part=$1 start=$SECONDS status=0 options=(--out "$out/$1.jsonl")
  [ -z "$dry" ] || options+=(--dry-run)
  [ -z "$commit" ] || options+=(--commit "$commit")
  [ "$part" != timings ] || options+=(--seconds "$TIMINGS_SECONDS")
  rm -f "$out/$part.jsonl"
  echo "== $part" | tee -a "$log"
  # `timeout` ends the whole group at the limit, children included.
  timeout --kill-after=5 "${LIMIT[$part]}" \
    "$python" -m "saec_gpu.bench.device.$part" "${options[@]}" >>"$log" 2>&1 || status=$?
  if ! tail -n 1 "$out/$part.jsonl" 2>/dev/null | grep -q '"op": "part"'; then
    local why="ended with status $status"
    case $status in 124 | 137) why="was ended after ${LIMIT[$part]} s" ;; esac
    [ ! -s "$out/$part.jsonl" ] || [ -z "$(tail -c 1 "$out/$part.jsonl")" ] ||
      sed -i '$d' "$out/$part.jsonl" # half a record
    printf '{"schema": "saec-bench/1", "op": "part", "part": "%s", "status": "failed", %s}\n' \
      "$part" "\"seconds\": $((SECONDS - start)), \"faults\": [\"$why, see log.txt\"]" \
      >>"$out/$part.jsonl"
    [ "$status" -ne 0 ] || status=1
  fi
  if [ "$status" -eq 0 ]; then
    echo "== $part passed, $((SECONDS - start)) s" | tee -a "$log"
  else
    echo "== $part FAILED, $((SECONDS - start)) s; the end of $log:" | tee -a "$log"
    tail -n 15 "$log" | cut -c 1-300
  fi
}

for part in "${asked[@]}"; do
  if [ -z "$again" ] && has_passed "$part"; then
    echo "== $part has passed here before; --again does it anew"
  else
    do_part "$part"
  fi
done

status=0
"$python" -m saec_gpu.bench.device.table "$out" --parts "$parts" >"$out/table.md" 2>>"$log" ||
  status=$?
echo
cat "$out/table.md"
echo
echo "$((SECONDS - began)) s; records, log.txt and table.md are in $out"
exit "$status"
