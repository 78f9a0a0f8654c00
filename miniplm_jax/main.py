"""miniplm run --config=demo, or: python -m miniplm_jax.main --config=demo."""

import sys

from miniplm_jax.core import distributed, errors, signals

if __name__ == "__main__":  # the imports below take a second
  signals.handle(distributed.leave)

from absl import app, flags
from ml_collections import config_flags

from miniplm_jax import pipeline
from miniplm_jax.config import flag_parsers, lookup
from miniplm_jax.core import log
from miniplm_jax.core.errors import UserError


def run(argv: list[str], given: flags.FlagValues):
  """Runs the pipeline as a command line says, whose flags become `given`."""
  log.show()
  flag_parsers.register()
  argv, to = lookup.arguments(argv), {"flag_values": given}
  about = "A file or name: demo. Override with --config.field=value."
  config_flags.DEFINE_config_file("config", None, about, sys_argv=argv, **to)
  flags.DEFINE_multi_string("stages", [], "A,B; else config.stages.", **to)
  flags.DEFINE_bool("force", False, "Redo stages that are done.", **to)
  flags.DEFINE_bool("dry_run", False, "Print the plan, run nothing.", **to)
  flags.DEFINE_multi_string("prompt", [], "Text for --stages=generate.", **to)
  flags.DEFINE_bool("debug", False, "Show the traceback of an error.", **to)
  try:
    rest = given(argv)[1:]
    _ = given.config and given.config.items  # a broken file raises here
  except (Exception, SystemExit) as e:
    shown = errors.of_command_line(e, argv, lookup.advice())
    raise shown or SystemExit(0) from e  # --help; absl would exit with 1
  if given.config is None or rest:
    what = f"unknown argument {rest[0]}" if rest else "no config"
    raise UserError(what, "command line", "give --config=demo")
  options = {n: given[n].value for n in ("force", "dry_run", "prompt")}
  stages = [s.strip() for text in given.stages for s in text.split(",")]
  with lookup.blaming(argv, given["config"].config_filename) as where:
    pipeline.run(given.config, where, stages, **options)


def main(argv: list[str]) -> int:
  """Runs it as a process; returns the exit status."""
  sys.stdout.reconfigure(errors="backslashreplace")  # it may be ASCII only
  try:
    run(argv, flags.FLAGS)
    if signum := signals.release():
      raise signals.Stopped(signum)
  except (Exception, signals.Stopped) as e:
    distributed.fail(e, any(a.startswith("--debug") for a in argv))
  return 0


if __name__ == "__main__":
  app.define_help_flags()
  distributed.finish(main(sys.argv))
