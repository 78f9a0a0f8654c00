# shellcheck shell=bash
# What gcp/tpu.sh does on the VMs of the TPU, by ssh.

vm() { # VERB WORKER ARGS...: ssh or scp; WORKER is 0 or all
  local verb=$1 worker=$2 group=tpu-vm flags=()
  shift 2
  if ((SLICES > 1)) || [[ $ADDRESS == iap ]]; then
    group=queued-resources # tpu-vm knows neither, outside of alpha
    flags+=("--node=$worker")
  fi
  case $ADDRESS in
    internal) flags+=(--internal-ip) ;;
    iap) flags+=(--tunnel-through-iap) ;;
  esac
  tpus "$group" "$verb" "$@" --worker="$worker" "${flags[@]}"
}

remote() { # WORKER COMMAND: an ssh that drops is tried again
  local try
  for try in 1 2 3 4 5; do
    vm ssh "$1" "$NODE" --command="$2" 2>"$ERRORS" && return
    [[ $(state) == ACTIVE ]] || return 1
    say "ssh to worker $1 failed, try $try of 5" >&2
    sleep "$POLL"
  done
  return 1
}

answers() { # keeps what was said before
  local ERRORS=$ERRORS.answers
  remote all true
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
  vm scp all --recurse "$folder" "$NODE:miniplm/" 2>"$ERRORS" || return 1
  worker all install "$id"
}

run() {
  local flags=("--config=$CONFIG" "--config.workdir=$WORKDIR") more
  if (($(hosts) * SLICES > 1)); then flags+=(--config.run.coordinator=auto); fi
  if [[ $STAGES ]]; then flags+=("--stages=$STAGES"); fi
  eval "more=($ARGS)" # the user's own quoting
  worker all start "${flags[@]}" "${more[@]}"
}

status() { # one word for all workers; silent if that is not known
  local said word
  said=$(vm ssh all "$NODE" \
    --command="bash miniplm/ship/on_worker.sh status" 2>"$ERRORS") || true
  said=$(sed -n 's/^status=//p' <<<"$said") # gcloud says other things too
  # One that does not answer may have the reason why others failed.
  if grep -qx running <<<"$said" ||
    (($(grep -c . <<<"$said") == $(hosts) * SLICES)); then
    # A failure counts before workers that wait for the failed one, and an
    # error of the user before what follows from it elsewhere.
    for word in 1 137 stopped lost 75 143 '[1-9][0-9]*' running none 0; do
      if grep -qx "$word" <<<"$said"; then
        grep -x "$word" <<<"$said" | head -n 1
        return
      fi
    done
  fi
  echo silent
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
    done < <(vm ssh 0 "$NODE" --command="bash \
miniplm/ship/on_worker.sh follow $((seen + 1))" 2>"$ERRORS")
    if [[ $(status) != running ]]; then return; fi
    sleep "$POLL"
  done
}
