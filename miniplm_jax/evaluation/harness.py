r"""The `lm_eval` command with our models and the paper's group of tasks.

  python -m miniplm_jax.evaluation.harness --model miniplm_jax \
    --model_args pretrained=DIRECTORY,dtype=bfloat16 --tasks miniplm

All else is lm_eval's own, which has no way to find models of other packages:
its command must be started here. From Python, importing
`miniplm_jax.evaluation.lm` registers the model.
"""

import pathlib
import sys

from miniplm_jax.config.sections import GROUP
from miniplm_jax.core import errors, log
from miniplm_jax.core.errors import UserError

_FILE = pathlib.Path(__file__).with_name("miniplm.yaml")


def main(argv: list[str]) -> int:
  """Runs lm_eval; returns the exit status."""
  log.show()
  try:
    from lm_eval.__main__ import cli_evaluate

    from miniplm_jax.evaluation import lm  # noqa: F401  (registers the model)

    sys.argv = ["lm_eval", *with_group(argv)]
    cli_evaluate()
  except (UserError, ModuleNotFoundError, ValueError, OSError) as e:
    if isinstance(e, ModuleNotFoundError):
      e = missing(e)
    elif not isinstance(e, UserError):  # no such task, no network
      e = UserError(
        errors.shortened(f"{type(e).__name__}: {e}"),
        "lm_eval",
        "see its arguments with --help",
      )
    print(f"error: {errors.one_line(e)}", file=sys.stderr)
    return 1
  return 0


def with_group(argv: list[str]) -> list[str]:
  """Arguments of lm_eval in which the paper's group is named by its file.

  So it is also where tasks of another folder are (`--include_path`).
  """
  arguments, of_tasks = [], False
  for argument in argv:
    flag, equals, value = argument.partition("=")
    if argument.startswith("-"):
      of_tasks = flag in ("--tasks", "-t")
      names = value if of_tasks and equals else ""
    else:
      flag = equals = ""
      names = argument if of_tasks else ""
    resolved = [str(_FILE) if n == GROUP else n for n in names.split(",")]
    arguments.append(
      f"{flag}{equals}{','.join(resolved)}" if names else argument
    )
  return arguments


def missing(e: ModuleNotFoundError) -> UserError:
  """Makes the error that says that lm_eval is not installed."""
  return UserError(
    f"{e.name} is not installed",
    "the eval extra",
    "pip install lm_eval==0.4.13",
  )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
