# shellcheck shell=bash
# Settings of gcp/tpu.sh, and what is looked at before anything costs.

SETTINGS="PROJECT WORKDIR NODE ZONE ACCELERATOR SLICES RUNTIME CAPACITY ADDRESS
  REQUEST SERVICE_ACCOUNT CONFIG STAGES ARGS PYTHON RESULTS POLL RESTARTS
  BEAM_IMAGE BEAM_WORKERS"

settings() {
  local job=$ROOT/gcp/job.env word name
  for word in "$@"; do
    if [[ $word == JOB=* ]]; then job=${word#JOB=}; fi
  done
  [[ -f $job ]] || die "no settings" "$job" \
    "cp gcp/job.env.example gcp/job.env and change it"
  # shellcheck source=gcp/job.env.example
  source "$job"
  for word in "$@"; do
    name=${word%%=*}
    case $word in
      --dry_run) DRY=1 ;;
      JOB=*) ;;
      *=*) [[ " ${SETTINGS//$'\n'/ } " == *" $name "* ]] ||
        die "no such setting $name" "command line" "see gcp/job.env.example"
        printf -v "$name" %s "${word#*=}" ;;
      *) die "unknown argument $word" "command line" "see gcp/tpu.sh" ;;
    esac
  done
  for name in $SETTINGS; do
    [[ -v $name ]] || die "$name is missing" "$job" \
      "copy its line from gcp/job.env.example"
  done
}

hosts() { # of a slice: 8 chips on one VM, or 4 on each of several
  local size=${ACCELERATOR##*-}
  case $ACCELERATOR in
    v5litepod-* | v6e-*) echo $((size <= 8 ? 1 : size / 4)) ;;
    v4-* | v5p-*) echo $((size <= 8 ? 1 : size / 8)) ;; # counts cores
    *) die "unknown accelerator $ACCELERATOR" "ACCELERATOR" \
      "take v5litepod-N, v6e-N, v5p-N or v4-N" ;;
  esac
}

check_settings() {
  [[ $ACCELERATOR =~ ^[a-z0-9]+-[0-9]+$ ]] || die \
    "no accelerator type" "ACCELERATOR=$ACCELERATOR" "take one such as v6e-8"
  [[ $POLL =~ ^[0-9.]+$ && $RESTARTS =~ ^[0-9]+$ ]] || die \
    "no number" "POLL=$POLL RESTARTS=$RESTARTS" "give seconds and a count"
  [[ $CAPACITY =~ ^(spot|reserved|on_demand)$ ]] || die \
    "no such capacity" "CAPACITY=$CAPACITY" "take spot, reserved or on_demand"
  [[ $WORKDIR == gs://?* ]] || die "the VM's disk goes with the VM" \
    "WORKDIR=$WORKDIR" "give a folder of a bucket, gs://BUCKET/FOLDER"
  [[ -f $ROOT/$CONFIG && $CONFIG == configs/* ]] || die "no such file" \
    "CONFIG=$CONFIG" "give a file of configs/"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "no number" "SLICES=$SLICES" \
    "give how many slices run as one program"
  [[ $ADDRESS =~ ^(external|internal|iap)$ ]] || die "no such address" \
    "ADDRESS=$ADDRESS" "take external, internal or iap"
  (eval "more=($REQUEST) more=($ARGS)") 2>/dev/null || die \
    "bash cannot read it" "REQUEST or ARGS" "close each quote"
  command -v "$PYTHON" >/dev/null || die "no Python to build the wheel" \
    "PYTHON=$PYTHON" "make demo makes .venv"
  hosts >/dev/null # an unknown accelerator ends here
}

logged_in() {
  if [[ $DRY ]]; then return; fi
  command -v gcloud >/dev/null || die "gcloud is not installed" "PATH" \
    "see https://cloud.google.com/sdk/docs/install"
  [[ $(gcloud auth list --filter=status:ACTIVE '--format=value(account)' \
    2>"$ERRORS") ]] || die "nobody is logged in" "gcloud" "gcloud auth login"
}

check_agent() { # gcloud goes to several hosts with a key of the agent's only
  local key=$HOME/.ssh/google_compute_engine held mark
  if (($(hosts) == 1)); then return; fi
  held=$(ssh-add -l 2>/dev/null) || return 0 # none, or empty: from the file
  mark=$(ssh-keygen -lf "$key.pub" 2>/dev/null | cut -d ' ' -f 2) || true
  [[ $mark && $held == *"$mark"* ]] || die "ssh-agent holds only other keys" \
    "$key" "ssh-add $key; ssh-keygen -t rsa -f $key makes one"
}

check() {
  local bucket=${WORKDIR#gs://} offered
  check_settings
  bucket=gs://${bucket%%/*}
  if [[ $DRY ]]; then
    show gcloud auth list --filter=status:ACTIVE '--format=value(account)'
    show gcloud storage ls --project="$PROJECT" --buckets "$bucket"
    tpus accelerator-types list '--format=value(type)'
    return
  fi
  logged_in
  check_agent
  gcloud storage ls --project="$PROJECT" --buckets "$bucket" \
    >/dev/null 2>"$ERRORS" || die "the bucket cannot be reached" "$bucket" \
    "gcloud storage buckets create $bucket, or get a role on it"
  offered=$(tpus accelerator-types list '--format=value(type)' \
    2>"$ERRORS") || explain "project $PROJECT, zone $ZONE"
  grep -qx "$ACCELERATOR" <<<"$offered" || die "$ACCELERATOR is not offered" \
    "zone $ZONE" "see https://cloud.google.com/tpu/docs/regions-zones"
  say "checks passed"
}
