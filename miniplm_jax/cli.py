"""The console script `miniplm`: a word before what main.py takes."""

import logging
import runpy
import sys
from collections.abc import Sequence

from etils import epy

import miniplm_jax
from miniplm_jax.core import distributed, log, signals
from miniplm_jax.core.errors import UserError, did_you_mean

with epy.lazy_imports():  # seconds: --help needs none of them
  from miniplm_jax import api
  from miniplm_jax import config as config_lib

HELP = """\
Distil a language model through its pre-training data.

  miniplm run --config=CONFIG    the stages that the config lists
  miniplm STAGE --config=CONFIG  this one alone, of tokenize, teacher,
      reference, conditional, score, proxy, select, materialize, seqkd, convert,
      logits, train, evaluate, export, compare, analyze, report,
      score_documents, publish, plan, verify, generate
  miniplm nll MODEL FILE...      -log p of texts in nats; - is standard input

CONFIG is a file or a name: laptop, 500m. After it --config.FIELD=VALUE sets a
field, --dry_run prints what would run, --force redoes it; `miniplm run --help`
has all flags. A run that was stopped goes on when the same is typed again.
"""


def arguments(argv: Sequence[str]) -> list[str]:
  """Returns what main.py takes for the words after `miniplm`."""
  command, *rest = ["--help" if word == "-h" else word for word in argv]
  if command == "run":
    return rest
  stages = config_lib.STAGES + config_lib.ON_REQUEST + config_lib.LOOKS
  if command in stages:
    return [*rest, f"--stages={command}"]
  hint = did_you_mean(command, ("run", "nll", *stages), "see miniplm --help")
  raise UserError(f"no command {command}", "command line", hint)


def nll(argv: Sequence[str]):
  """Prints Σ −log p of texts in nats, of a model and files with a text each."""
  model, *names = [a for a in argv if a != "--debug"] or [""]
  if not names:
    raise UserError("no text", "miniplm nll", "give MODEL FILE...")
  log.show(logging.StreamHandler())  # to standard error
  scores = api.nll(model, list(map(_text, names)))
  print("nll_sum", "n_tokens", "n_bytes", "bits_per_byte", "text", sep="\t")
  for name, s in zip(names, scores):
    if s.reason is not None:
      raise UserError(s.reason, name, "give another text")
    bits = f"{s.bits_per_byte:.4f}"
    print(f"{s.nll_sum:.4f}", s.n_tokens, s.n_bytes, bits, name, sep="\t")


def _text(name: str) -> str:
  with sys.stdin.buffer if name == "-" else open(name, "rb") as file:
    try:
      return file.read().decode()
    except UnicodeDecodeError as e:
      raise UserError(f"no UTF-8 ({e})", name, "convert it") from e


def main():
  """Runs the words that the process was started with."""
  argv = sys.argv[1:] or ["--help"]
  words = argv[1:2] if argv[0] == "nll" else argv[:1]
  if words in (["-h"], ["--help"], ["help"]):
    print(HELP, end="")
    return
  if argv[0] == "--version":
    print("miniplm_jax", miniplm_jax.__version__)
    return
  try:
    if argv[0] == "nll":
      signals.handle(distributed.leave)
      nll(argv[1:])
      distributed.finish(0)
    sys.argv[1:] = arguments(argv)
  except (Exception, signals.Stopped) as e:
    distributed.fail(e, "--debug" in argv)
  # As `python -m` does: there it takes signals, and ends the process itself.
  runpy.run_module("miniplm_jax.main", run_name="__main__", alter_sys=True)
