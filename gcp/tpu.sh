#!/usr/bin/env bash
# From nothing to a finished job on a Cloud TPU. Settings: gcp/job.env.
#
#   gcp/tpu.sh COMMAND [--dry_run] [NAME=VALUE ...]
#
#   check     looks at settings and account; free
#   create    asks for the TPU and waits until it is there; costs from then on
#   install   brings Python, the locked packages and this tree to all workers
#   run       starts the job on all workers, detached
#   logs      follows the log of worker 0
#   watch     waits for the end; replaces a TPU that was taken away
#   fetch     copies the results from the bucket to RESULTS
#   delete    gives the TPU back; costs end
#   all       check, create, install, run, watch, fetch, delete
#   measure   create, install, then benchmarks.accelerator, into RESULTS
#   tokenize  runs the stage tokenize on Dataflow, without a TPU
#
# --dry_run prints every command and runs none; it needs no gcloud.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMANDS="check create install run logs watch fetch delete all measure tokenize"
DRY=
PRETEND=NONE # state of the queued resource in a dry run
LOST=0       # TPUs that were taken away so far
ERRORS=$(mktemp)
trap 'rm -f "$ERRORS" "$ERRORS.state"' EXIT

die() { # what, where, what to do
  echo "error: $1, $2, $3" >&2
  exit 1
}

say() { echo "[$(date -u +%H:%M:%S)] $*"; }

show() { # a command as one can paste it
  local words
  printf -v words '%q ' "$@"
  echo "${words% }"
}

act() { # runs a command, or shows it
  if [[ $DRY ]]; then show "$@"; else "$@"; fi
}

tpus() { # WORD WORD ARGS...: gcloud compute tpus WORD WORD in our place
  local group=$1 verb=$2
  shift 2
  act gcloud compute tpus "$group" "$verb" "$@" \
    --zone="$ZONE" --project="$PROJECT" --quiet
}

explain() { # one line of what gcloud wrote, after its own last command
  local text where=$1
  text=$(grep -v '^ *$' "$ERRORS" | tail -n 3 | tr '\n' ' ')
  case $text in
    *[Qq]uota*)
      die "no quota: $text" "$where" \
        "ask for more at IAM & Admin > Quotas, see gcp/README.md" ;;
    *PERMISSION_DENIED* | *ermission*)
      die "not allowed: $text" "$where" "see the roles in gcp/README.md" ;;
    *) die "gcloud failed: $text" "$where" "mend it and run this again" ;;
  esac
}

# shellcheck source=gcp/settings.sh
source "$ROOT/gcp/settings.sh"

# --- the queued resource ---

state() { # NONE or what Google says
  if [[ $DRY ]]; then
    echo "$PRETEND"
  elif ! tpus queued-resources describe "$NODE" \
    '--format=value(state.state)' 2>"$ERRORS.state"; then
    if ! grep -qi 'not.found' "$ERRORS.state"; then
      cp "$ERRORS.state" "$ERRORS"
      explain "queued resource $NODE"
    fi
    echo NONE
  fi
}

request() {
  local flags=()
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
  esac
  if [[ $SERVICE_ACCOUNT ]]; then
    flags+=("--service-account=$SERVICE_ACCOUNT")
  fi
  tpus queued-resources create "$NODE" --node-id="$NODE" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "${flags[@]}" 2>"$ERRORS" || explain "queued resource $NODE in $ZONE"
}

lost() { # counts, so that nothing is replaced for ever
  LOST=$((LOST + 1))
  say "the TPU is gone ($1), $LOST of $RESTARTS"
  ((LOST <= RESTARTS)) || die "lost $LOST TPUs" "$NODE in $ZONE" \
    "gcp/tpu.sh delete, then take another zone or CAPACITY"
}

create() {
  local now
  while true; do
    now=$(state)
    case $now in
      NONE)
        request
        if [[ $DRY ]]; then PRETEND=ACTIVE; else say "asked for $NODE"; fi
        continue ;;
      ACTIVE)
        if [[ $DRY ]]; then
          tpus queued-resources describe "$NODE" \
            '--format=value(state.state)'
        else
          say "$NODE is ACTIVE"
        fi
        return ;;
      SUSPENDED)
        lost "$now"
        delete
        continue ;;
      FAILED)
        die "the request has FAILED" "$NODE in $ZONE" \
          "see gcloud compute tpus queued-resources describe $NODE \
--zone=$ZONE --project=$PROJECT, then gcp/tpu.sh delete" ;;
    esac
    say "$NODE is $now"
    sleep "$POLL"
  done
}

delete() { # --force: with the TPU VM that belongs to it
  if [[ ! $DRY && $(state) == NONE ]]; then
    say "there is no $NODE"
    return
  fi
  tpus queued-resources delete "$NODE" --force 2>"$ERRORS" ||
    explain "queued resource $NODE"
  PRETEND=NONE
  if [[ ! $DRY ]]; then say "deleted $NODE"; fi
}

# --- the workers ---

remote() { # WORKER COMMAND: an ssh that drops is tried again
  local try
  for try in 1 2 3 4 5; do
    tpus tpu-vm ssh "$NODE" --worker="$1" --command="$2" 2>"$ERRORS" &&
      return
    [[ $(state) == ACTIVE ]] || return 1
    say "ssh to worker $1 failed, try $try of 5" >&2
    sleep "$POLL"
  done
  return 1
}

worker() { # WORKER WORDS...: a command of on_worker.sh
  local target=$1
  shift
  remote "$target" "$(show bash miniplm/ship/on_worker.sh "$@")"
}

ship() { # into $1: all that the workers need
  # shellcheck disable=SC2015
  act rm -rf "$1" &&
    act mkdir -p "$1/src" &&
    # A copy: a build/ that lies about would end up in the wheel.
    act cp -R pyproject.toml README.md LICENSE miniplm_jax "$1/src" &&
    # setuptools is in the lock: nothing is downloaded to build.
    act "$PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation \
      --wheel-dir "$1" "$1/src" &&
    act rm -rf "$1/src" &&
    act cp -R requirements-lock.txt configs benchmarks gcp/on_worker.sh \
      "$1" ||
    die "the wheel was not built" "$PYTHON" "make demo makes .venv"
}

stamp() { # of what would be installed
  (cd "$ROOT" && find miniplm_jax configs benchmarks gcp/on_worker.sh \
    pyproject.toml requirements-lock.txt -type f ! -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}

install() {
  local id folder found
  id=$(stamp)
  folder=${TMPDIR:-/tmp}/miniplm-$NODE/ship
  if [[ ! $DRY ]]; then
    # shellcheck disable=SC2016
    found=$(remote all 'echo stamp=$(cat miniplm/stamp 2>&1)') ||
      return 1
    if [[ $(grep '^stamp=' <<<"$found" | sort -u) == "stamp=$id" ]]; then
      say "installed already, $id"
      return
    fi
  fi
  ship "$folder"
  remote all 'mkdir -p miniplm && rm -rf miniplm/ship' || return 1
  tpus tpu-vm scp --recurse "$folder" "$NODE:miniplm/" --worker=all \
    2>"$ERRORS" || return 1
  worker all install "$id"
}

run() {
  local flags=("--config=$CONFIG" "--config.workdir=$WORKDIR") more n
  n=$(hosts)
  if ((n > 1)); then flags+=(--config.run.coordinator=auto); fi
  if [[ $STAGES ]]; then flags+=("--stages=$STAGES"); fi
  eval "more=($ARGS)" # the user's own quoting
  worker all start "${flags[@]}" "${more[@]}"
}

status() { # one word for all workers
  local found word
  found=$(worker all status) || true # `state` says whether it is gone
  found=$(sed -n 's/^status=//p' <<<"$found") # gcloud says other things too
  # A failure counts before workers that wait for the failed one.
  for word in 1 '[1-9][0-9]*' lost running none 0; do
    if grep -qx "$word" <<<"$found"; then
      grep -x "$word" <<<"$found" | sort -u | head -n 1
      return
    fi
  done
  echo unknown
}

logs() {
  local seen=0 line
  if [[ $DRY ]]; then
    worker 0 follow 1
    return
  fi
  while true; do
    while IFS= read -r line; do
      echo "$line"
      seen=$((seen + 1))
    done < <(tpus tpu-vm ssh "$NODE" --worker=0 --command="bash \
miniplm/ship/on_worker.sh follow $((seen + 1))" 2>"$ERRORS")
    if [[ $(status) != running ]]; then return; fi
    sleep "$POLL"
  done
}

start() { # a TPU with the job on it, however many are taken away on the way
  create
  until install && run; do
    # It is there: another one would fail like it.
    if [[ $(state) == ACTIVE ]]; then explain "workers of $NODE"; fi
    replace "while it was set up"
  done
}

replace() { # a new TPU; the run goes on from WORKDIR
  lost "$1"
  delete
  create
}

watch() {
  local now
  if [[ $DRY ]]; then
    worker all status
    echo "# 0: done. 143 or gone: delete, create, install, run, watch."
    return
  fi
  while true; do
    now=$(state) || now=unknown # the network here; look again
    if [[ $now == ACTIVE ]]; then now=$(status); fi
    case $now in
      0) say "the run is done" && return ;;
      running) say "runs" && sleep "$POLL" ;;
      none) die "nothing was started" "$NODE" "gcp/tpu.sh run" ;;
      143 | lost | NONE | SUSPENDING | SUSPENDED | FAILED)
        replace "$now"
        start ;;
      [0-9]*) failed "$now" ;;
      *) say "$NODE is $now" && sleep "$POLL" ;;
    esac
  done
}

failed() { # what the run itself says; the TPU stays, and costs
  local text
  # It may say so before Google says that its neighbour is taken away.
  sleep "$POLL"
  if [[ $(state) == SUSPEND* ]]; then return; fi
  text=$(worker all why) || text="its log cannot be read"
  # Other workers may wait for the one that failed.
  worker all stop >/dev/null || true
  grep -m 1 '^error: ' <<<"$text" >&2 || echo "$text" >&2
  die "the run ended with $1" "$NODE" \
    "mend it, gcp/tpu.sh install and run; the TPU costs until delete"
}

# --- results ---

fetch() {
  act mkdir -p "$RESULTS"
  # Checkpoints, rows and scores stay in the bucket.
  act gcloud storage rsync --recursive --project="$PROJECT" \
    --exclude='.*/checkpoints/.*|^corpus/.*array_record$|.*parquet$|^beam/.*' \
    "$WORKDIR" "$RESULTS"
  if [[ ! $DRY ]]; then say "results are in $RESULTS"; fi
}

all() {
  local id
  id=$(stamp)$(printf '%s\n' "$WORKDIR" "$CONFIG" "$STAGES" "$ARGS" |
    sha256sum | cut -c1-16)
  if [[ ! $DRY && -f $RESULTS/.finished && $(<"$RESULTS/.finished") == "$id" ]]
  then
    say "finished already, see $RESULTS; to run again, rm $RESULTS/.finished"
    delete # what an earlier end could not give back
    return
  fi
  check
  start
  watch
  fetch
  if [[ ! $DRY ]]; then echo "$id" >"$RESULTS/.finished"; fi
  delete
}

measure() { # a first job: is it right here, how fast, with how much memory
  (($(hosts) == 1)) || die "several hosts are not measured" \
    "ACCELERATOR=$ACCELERATOR" "take one host, such as v6e-8"
  create
  install || explain "workers of $NODE"
  worker 0 measure || explain "workers of $NODE" # again goes on
  act mkdir -p "$RESULTS"
  tpus tpu-vm scp --recurse "$NODE:miniplm/accelerator" "$RESULTS" --worker=0 \
    2>"$ERRORS" || explain "workers of $NODE"
  if [[ ! $DRY ]]; then
    say "see $RESULTS/accelerator/page.md; the TPU costs until delete"
  fi
}

tokenize() { # Dataflow starts and ends its own machines
  local more
  check_settings
  eval "more=($ARGS)"
  act "$PYTHON" -m miniplm_jax.main "--config=$CONFIG" \
    "--config.workdir=$WORKDIR" --stages=tokenize "${more[@]}" \
    "--config.run.beam=--runner=DataflowRunner --project=$PROJECT \
--region=${ZONE%-*} --temp_location=$WORKDIR/beam \
--sdk_container_image=$BEAM_IMAGE --sdk_location=container \
--max_num_workers=$BEAM_WORKERS"
}

main() {
  local command=${1:-}
  if [[ ! $command || $command == --help ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    return
  fi
  [[ " $COMMANDS " == *" $command "* ]] ||
    die "no such command $command" "command line" "take one of: $COMMANDS"
  shift
  settings "$@"
  cd "$ROOT"
  if [[ $DRY ]]; then show cd "$ROOT"; fi
  case $command in
    create | run | install | measure) check ;;
  esac
  case $command in # those that say no more than that they failed
    install | run) "$command" || explain "workers of $NODE" ;;
    *) "$command" ;;
  esac
}

main "$@"
