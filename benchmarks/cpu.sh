#!/usr/bin/env bash
# Every CPU measurement, one after the other on an otherwise idle machine, about 85 minutes; then
# RESULTS.md from what they wrote. With SOLO_LEARN=<checkout of the main branch> the step is
# measured against that generation of the host as well.
# Usage: bash benchmarks/cpu.sh [name ...]      names as below; default: all
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=benchmarks/results
mkdir -p "$out"

measure() {  # name, host checkout or "", command ...
  local name="$1" host="$2"
  shift 2
  case " ${wanted:-$name} " in *" $name "*) ;; *) return ;; esac
  echo "== $name: $*"
  {
    echo "$(date -u +%Y-%m-%d) \$ ${host:+SOLO_LEARN=DIR }$*"
    SOLO_LEARN="$host" "$@" --json "$out/$name.json"
  } 2>"$out/$name.err" | tee "$out/$name.txt" || { tail -5 "$out/$name.err"; exit 1; }
  rm -f "$out/$name.err"
}

wanted="$*"
checkout="${SOLO_LEARN:-}"
unset SOLO_LEARN
measure step "" python benchmarks/step.py --pairs 9
measure loss "" python benchmarks/loss.py --pairs 9
measure views "" python benchmarks/views.py --pairs 7
measure end_to_end "" python benchmarks/end_to_end.py --pairs 3
[ -z "$checkout" ] || measure step_main "$checkout" python benchmarks/step.py --pairs 9
measure growth "" python benchmarks/growth.py --pairs 3
measure launches "" python benchmarks/launches.py
measure busy "" python benchmarks/busy.py
measure saving "" python benchmarks/saving.py --pairs 9
measure gather "" python benchmarks/gather.py
measure warmup "" python benchmarks/warmup.py
measure quality "" python benchmarks/quality.py --epochs 24 --every 2 --threads 1
measure quality_cost "" python benchmarks/quality.py --cost --epochs 8
measure soak "" python benchmarks/soak.py --steps 20000
measure kill "" python benchmarks/kill.py --points 24 --whole 2
python benchmarks/report.py
