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
#   watch     waits for the end; starts again what a machine broke off
#   stop      ends the job on all workers; the TPU stays, and costs
#   fetch     copies the results from the bucket to RESULTS
#   delete    gives the TPU back; costs end
#   all       check, create, install, run, watch, fetch, delete; whatever ends
#             it, but a signal, it gives the TPU back
#   measure   create, install, then benchmarks.accelerator, into RESULTS
#   tokenize  runs the stage tokenize on Dataflow, without a TPU
#
# --dry_run prints every command and runs none; it needs no gcloud.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMANDS="check create install run logs watch stop fetch delete all measure
  tokenize"
DRY=
PRETEND=NONE # state of the queued resource in a dry run
RESTARTED=0  # how often the job was started again so far
IN_PLACE=0   # of these, since this TPU last ran for a while
SILENT=15    # looks without an answer, after which a TPU counts as dead
UNATTENDED=  # whether this gives the TPU back when it ends
ERRORS=$(mktemp)

finish() { # at any end but a signal's
  if [[ $UNATTENDED ]]; then
    UNATTENDED=
    delete
  fi
  rm -f "$ERRORS" "$ERRORS".*
}
trap finish EXIT
# Whoever ends this does not end the job.
trap 'UNATTENDED=; exit 130' INT TERM HUP

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

complaint() { # what gcloud wrote last when it failed, as one line
  grep -v '^ *$' "$ERRORS" | tail -n 3 | tr '\n' ' ' || true
}

refused() { # more PATTERNS: whether trying again cannot help
  grep -Eiq "PERMISSION_DENIED|unrecognized arguments${1:-}" "$ERRORS"
}

explain() { # ends, with what gcloud said
  local text where=$1
  text=$(complaint)
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
# shellcheck source=gcp/workers.sh
source "$ROOT/gcp/workers.sh"

# --- the queued resource ---

state() { # NONE or what Google says; waits while Google cannot be asked
  local said
  if [[ $DRY ]]; then
    echo "$PRETEND"
    return
  fi
  until said=$(tpus queued-resources describe "$NODE" \
    '--format=value(state.state)' 2>"$ERRORS.state") && [[ $said ]]; do
    if grep -q NOT_FOUND "$ERRORS.state"; then
      said=NONE
      break
    fi
    # Neither gone nor at its end: it may be filled, and cost.
    say "$NODE is UNKNOWN: $(tail -n 1 "$ERRORS.state")" >&2
    sleep "$POLL"
  done
  echo "$said"
}

request() {
  local flags=("--node-id=$NODE") more
  if ((SLICES > 1)); then
    flags=("--node-count=$SLICES" "--node-prefix=$NODE")
  fi
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
  esac
  if [[ $ADDRESS != external ]]; then flags+=(--internal-ips); fi
  if [[ $SERVICE_ACCOUNT ]]; then
    flags+=("--service-account=$SERVICE_ACCOUNT")
  fi
  eval "more=($REQUEST)" # the user's own quoting
  tpus queued-resources create "$NODE" "${flags[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "${more[@]}" 2>"$ERRORS"
}

create() {
  local now tries=0
  while true; do
    now=$(state)
    case $now in
      NONE)
        if request; then
          IN_PLACE=0
          if [[ $DRY ]]; then PRETEND=ACTIVE; else say "asked for $NODE"; fi
          continue
        fi
        # After any other failure it may be there all the same.
        if refused '|quota|INVALID_ARGUMENT' || ((++tries == 5)); then
          explain "queued resource $NODE in $ZONE"
        fi
        say "asking failed, try $tries of 5: $(complaint)" ;;
      ACTIVE)
        if [[ $DRY ]]; then
          tpus queued-resources describe "$NODE" \
            '--format=value(state.state)'
        else
          say "$NODE is ACTIVE"
        fi
        return ;;
      SUSPENDED)
        replace "it is $now"
        continue ;;
      FAILED)
        die "the request has FAILED" "$NODE in $ZONE" \
          "see gcloud compute tpus queued-resources describe $NODE \
--zone=$ZONE --project=$PROJECT, then gcp/tpu.sh delete" ;;
      *) say "$NODE is $now" ;;
    esac
    sleep "$POLL"
  done
}

delete() { # --force: with the TPU VMs that belong to it; until it is gone
  local now last="there is no $NODE"
  while now=$(state) && [[ $DRY || $now != NONE ]]; do
    case $now in
      SUSPENDING | DELETING) say "$NODE is $now" ;; # it takes no command now
      *)
        if tpus queued-resources delete "$NODE" --force 2>"$ERRORS"; then
          last="deleted $NODE"
          if [[ ! $DRY ]]; then continue; fi
          PRETEND=NONE
          return
        fi
        if refused; then explain "$NODE, which still costs"; fi
        say "not deleted yet: $(complaint)" ;;
    esac
    sleep "$POLL"
  done
  say "$last"
}

counted() { # WHY: so that nothing is tried for ever
  RESTARTED=$((RESTARTED + 1))
  say "$1, $RESTARTED of $RESTARTS"
  ((RESTARTED <= RESTARTS)) || die "failed $RESTARTED times" \
    "$NODE in $ZONE" "take another zone or CAPACITY; gcp/tpu.sh delete"
}

replace() { # WHY: a TPU that is lost; the run goes on from WORKDIR
  if [[ $(state) == NONE ]]; then
    die "somebody deleted the TPU" "$NODE in $ZONE" "gcp/tpu.sh all"
  fi
  counted "the TPU is gone ($1)"
  delete
}

# --- the job ---

start() { # a TPU with the job on it, however often that fails on the way
  while true; do
    create
    if install && run; then return; fi
    # It is there: another one would fail like it.
    if answers; then explain "workers of $NODE"; fi
    replace "it does not answer"
  done
}

again() { # WHY: on the same TPU, unless that did not help
  if ((++IN_PLACE > 3)); then
    replace "$1"
  else
    counted "the run is started again ($1)"
    # Others may wait for the one that failed.
    worker all stop >/dev/null || true
  fi
  start
}

watch() {
  local now silent=0 calm=0
  if [[ $DRY ]]; then
    worker all status
    echo "# 0: done. A machine's fault: run again. Gone: all from create on."
    return
  fi
  while true; do
    now=$(state)
    if [[ $now == ACTIVE ]]; then now=$(status); fi
    if [[ $now != silent ]]; then silent=0; fi
    case $now in
      0) say "the run is done" && return ;;
      none) die "nothing was started" "$NODE" "gcp/tpu.sh run" ;;
      stopped) die "somebody stopped the run" "$NODE" "gcp/tpu.sh run" ;;
      lost | [1-9]*)
        calm=0
        ended ;;
      NONE) # asked twice
        sleep "$POLL"
        if [[ $(state) == NONE ]]; then replace "$now"; fi ;;
      SUSPENDED | FAILED)
        replace "$now"
        start ;;
      running)
        if ((++calm % 10 == 0)); then IN_PLACE=0; fi
        say "runs" ;;
      silent)
        say "$NODE does not answer: $(complaint)"
        # A fault of ours says nothing of the TPU.
        if refused '|SSH agent'; then silent=0; fi
        if ((++silent > SILENT)); then
          replace "it does not answer"
          start
        fi ;;
      *) say "$NODE is $now" ;;
    esac
    sleep "$POLL"
  done
}

ended() { # otherwise than well; by whose fault?
  local now
  # It may end before Google says that it, or its neighbor, is taken away.
  sleep "$POLL"
  if [[ $(state) != ACTIVE ]]; then return; fi
  now=$(status)
  case $now in
    lost | 75 | 143) again "$now" ;;
    [1-9]*) failed "$now" ;;
  esac
}

failed() { # what the run itself says
  local text todo="mend it, gcp/tpu.sh install and run"
  text=$(worker all why) || text="its log cannot be read"
  # Other workers may wait for the one that failed.
  worker all stop >/dev/null || true
  grep -m 1 '^error: ' <<<"$text" >&2 || echo "$text" >&2
  if [[ $UNATTENDED ]]; then
    mkdir -p "$RESULTS"
    remote all 'tail -n 1000 miniplm/log' >"$RESULTS/log" &&
      todo="see $RESULTS/log, mend it"
  else
    todo+="; the TPU costs until delete"
  fi
  die "the run ended with $1" "$NODE" "$todo"
}

# --- results ---

fetch() {
  act mkdir -p "$RESULTS"
  # Checkpoints, rows and scores stay in the bucket.
  act gcloud storage rsync --recursive --project="$PROJECT" \
    --exclude='.*/checkpoints/.*|^corpus/.*array_record$|.*parquet$|^beam/.*' \
    "$WORKDIR" "$RESULTS" ||
    die "the results were not copied" "$WORKDIR" "gcp/tpu.sh fetch"
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
  if [[ ! $DRY ]]; then UNATTENDED=1; fi
  start
  watch
  fetch
  if [[ ! $DRY ]]; then echo "$id" >"$RESULTS/.finished"; fi
  UNATTENDED=
  delete
}

measure() { # a first job: is it right here, how fast, with how much memory
  (($(hosts) * SLICES == 1)) || die "several hosts are not measured" \
    "ACCELERATOR=$ACCELERATOR" "take one host, such as v6e-8"
  create
  install || explain "workers of $NODE"
  worker 0 measure || explain "workers of $NODE" # again goes on
  act mkdir -p "$RESULTS"
  vm scp 0 --recurse "$NODE:miniplm/accelerator" "$RESULTS" 2>"$ERRORS" ||
    explain "workers of $NODE"
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
  [[ " ${COMMANDS//$'\n'/ } " == *" $command "* ]] ||
    die "no such command $command" "command line" "see gcp/tpu.sh --help"
  shift
  settings "$@"
  cd "$ROOT"
  if [[ $DRY ]]; then show cd "$ROOT"; fi
  case $command in
    create | run | install | measure) check ;;
    watch | delete) logged_in ;;
  esac
  case $command in # those that say no more than that they failed
    install | run) "$command" || explain "workers of $NODE" ;;
    stop) worker all stop || explain "workers of $NODE" ;;
    *) "$command" ;;
  esac
}

main "$@"
