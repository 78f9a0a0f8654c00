"""The command line: `python -m miniplm_jax.main --config=configs/demo.py`."""

import sys

from absl import app, flags
from ml_collections import config_flags

from miniplm_jax import pipeline
from miniplm_jax.core.errors import Stopped, UserError, handle_signals

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/. Override with --config.field=value."
)
_STAGES = flags.DEFINE_list(
  "stages", [], "Stages to run; by default those that the config lists."
)
_FORCE = flags.DEFINE_bool("force", False, "Redo stages that are done.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan, run nothing.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def _parse(argv: list[str]) -> list[str]:
  """Flags and config file; whatever they raise is the user's to mend."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise UserError("no config", "--config", "give --config=configs/demo.py")
    if rest[1:]:
      raise UserError(f"unknown argument {rest[1]}", "command line", "drop it")
    return rest
  except SystemExit:
    sys.exit(0)  # --help; absl would exit with 1
  except UserError:
    raise
  except Exception as e:
    text = f"{type(e).__name__}: {e}"
    raise UserError(text, "flags or config file", "see --help") from e


def main(argv: list[str]) -> int:
  """Runs the pipeline; returns the exit status."""
  handle_signals()
  try:
    _parse(argv)
    pipeline.run(
      _CONFIG.value, flags.FLAGS["config"].config_filename, _STAGES.value,
      force=_FORCE.value, dry_run=_DRY_RUN.value,
    )  # fmt: skip
  except Stopped as e:
    return e.exit_code
  except UserError as e:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
      raise
    print(f"error: {e}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  app.define_help_flags()
  sys.exit(main(sys.argv))
