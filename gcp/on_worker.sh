#!/usr/bin/env bash
# Runs on every VM of the slice; gcp/tpu.sh copies it there and calls it.
#   install STAMP   Python, the locked packages, libtpu, this project
#   start ARGS...   main.py with ARGS, detached; nothing if it runs already
#   pod ARGS...     the same in a container, in the foreground; the status 75
#                   says that another start helps
#   status          none, running, stopped, lost or the exit status; 75 too
#   why             the run's error line, or the end of its log
#   follow LINE     the log from that line on, until the run ends
#   stop            ends a run
#   measure         benchmarks.accelerator; goes on where it was broken off
set -euo pipefail

HOME_DIR=$HOME/miniplm
SHIP=$HOME_DIR/ship
VENV=$HOME_DIR/venv
LOG=$HOME_DIR/log
PID=$HOME_DIR/pid
EXIT=$HOME_DIR/exit
STOPPED=$HOME_DIR/stopped
STAMP=$HOME_DIR/stamp
UV_VERSION=0.13.9
# What a run says, with the status 1 of a user's error, of other machines or
# of a device that an earlier process still holds.
NOT_THE_USER='lost another process|did not come together'
NOT_THE_USER+='|TPU.*Device or resource busy'
export PATH=$HOME/.local/bin:$PATH
# Without a TPU JAX would take the CPU, for weeks.
export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}

install() {
  if [[ -f $STAMP && $(<"$STAMP") == "$1" ]]; then
    echo "installed already"
    return
  fi
  rm -f "$STAMP"
  command -v uv >/dev/null ||
    curl -LsSf "https://astral.sh/uv/$UV_VERSION/install.sh" | sh
  [[ -x $VENV/bin/python ]] || uv venv --python 3.11 "$VENV"
  local pip=(uv pip install --python "$VENV/bin/python") jax
  # --no-deps: the lock is complete, and names tensorflow-cpu for tensorflow.
  "${pip[@]}" --no-deps -r "$SHIP/requirements-lock.txt"
  jax=$("$VENV/bin/python" -c \
    'import importlib.metadata as m; print(m.version("jax"))')
  "${pip[@]}" "jax[tpu]==$jax"
  "${pip[@]}" --no-deps --reinstall "$SHIP"/*.whl
  echo "$1" >"$STAMP"
  echo "installed"
}

running() { # the number may be another process's since a reboot
  [[ -f $PID && ! -f $EXIT ]] &&
    tr '\0' ' ' 2>/dev/null <"/proc/$(<"$PID")/cmdline" |
    grep -q on_worker.sh
}

status() { # `running` first: it may end between the questions
  if running; then
    echo status=running
  elif [[ -f $STOPPED && $(cat "$EXIT" 2>&1) != 0 ]]; then
    echo status=stopped
  elif [[ -f $EXIT ]]; then
    echo "status=$(<"$EXIT")"
  elif [[ -f $PID ]]; then
    echo status=lost # killed with its keeper, or the VM was restarted
  else
    echo status=none
  fi
}

start() {
  if running; then
    echo "runs already"
    return
  fi
  rm -f "$EXIT" "$STOPPED"
  # Its own session: an ssh that drops does not end it.
  setsid nohup bash "$SHIP/on_worker.sh" keep "$@" \
    >"$LOG" 2>&1 </dev/null &
  echo $! >"$PID"
  echo "started"
}

keep() { # runs main.py and writes how it ended
  cd "$SHIP"
  main "$VENV/bin/python" "$@"
  judge
  echo "$CODE" >"$EXIT.new"
  mv "$EXIT.new" "$EXIT"
}

pod() {
  LOG=$(mktemp)
  exec > >(tee "$LOG") 2>&1
  local log=$!
  main python "$@"
  exec >/dev/null 2>&1 # so that tee ends
  wait "$log" || true
  judge
  exit "$CODE"
}

main() { # PYTHON ARGS...: main.py; CODE is how it ended
  local code=0 child
  "$1" -m miniplm_jax.main "${@:2}" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM INT
  wait "$child" || code=$?
  # A signal ends `wait`, not the run: it saves its state first.
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  CODE=$code
}

judge() { # whose fault it was, once the log is whole
  if [[ $CODE == 1 && $(why) =~ $NOT_THE_USER ]]; then CODE=75; fi
}

why() {
  if [[ $(cat "$EXIT" 2>&1) == 75 ]]; then return; fi # another one knows
  grep '^error: ' "$LOG" | tail -n 1 || tail -n 5 "$LOG"
}

follow() {
  running || { tail -n "+$1" "$LOG" && return; }
  tail -n "+$1" -F --pid="$(<"$PID")" "$LOG"
}

stop() {
  if running; then
    touch "$STOPPED"
    kill -TERM "$(<"$PID")"
    for _ in {1..60}; do
      running || break
      sleep 1
    done
    # One that waits for a host that is gone does not hear.
    if running; then kill -KILL -- "-$(<"$PID")"; fi
  fi
  echo "stopped"
}

measure() { # beside a run it would measure both
  if running; then
    echo "error: a run is going on, $LOG, wait for it" >&2
    exit 1
  fi
  cd "$SHIP"
  "$VENV/bin/python" -m benchmarks.accelerator --minutes=20 \
    "--out=$HOME_DIR/accelerator"
}

case ${1:-} in
  install | status | start | keep | pod | why | follow | stop | measure) "$@" ;;
  *) echo "error: no such command, ${1:-nothing}, see on_worker.sh" >&2
     exit 1 ;;
esac
