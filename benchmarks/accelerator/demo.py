"""Part demo: configs/demo.py from its text to its report, by command line."""

import pathlib
import shutil
import subprocess
import time
from typing import Any

from benchmarks.accelerator import program
from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings

_KEY = "demo"


def run(settings: Settings, store: Store):
  """Runs it for as long as there is time; what is done counts."""
  if store.is_done(_KEY):
    return
  # Kept from run to run: it goes on where it was.
  workdir = pathlib.Path(settings.out, "demo").resolve()
  log, source = pathlib.Path(settings.out, "demo.log"), settings.plan.corpus
  if source == "topics":
    source = program.texts(pathlib.Path(settings.scratch, "text.jsonl"))
  if _KEY not in store.results:  # what is there was made by other code
    shutil.rmtree(workdir, ignore_errors=True)
  start = time.monotonic()
  process = program.start(
    workdir, source or "embedded", log, *settings.plan.demo
  )
  code, said = None, None
  while code is None and settings.left > 2:
    try:
      code = process.wait(1)
    except subprocess.TimeoutExpired:
      done = program.stages(workdir)
      if done != said:
        said = done
        store.put(_KEY, _found(done, start, None), partial=True)
        settings.say(f"{len(done)} jobs done")
  if code is None:
    process.kill()
  elif code:
    store.fail(_KEY, f"exit status {code}: {log.read_text()[-600:]}")
  else:
    store.put(_KEY, _found(program.stages(workdir), start, code))


def _found(done: dict[str, float], start: float, code) -> dict[str, Any]:
  seconds = time.monotonic() - start
  return {"jobs": done, "seconds": seconds, "finished": code == 0}
