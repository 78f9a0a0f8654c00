r"""The `lm_eval` command with our models and the paper's group of tasks.

  python -m miniplm_jax.evaluate.harness --model miniplm_jax \
    --model_args pretrained=DIRECTORY,dtype=bfloat16 --tasks miniplm

All else is lm_eval's own, which has no way to find models of other packages:
its command must be started here. From Python, importing
`miniplm_jax.evaluate.lm` registers the model.
"""

import pathlib
import sys

from miniplm_jax.core import errors
from miniplm_jax.core.errors import UserError


def main(argv: list[str]) -> int:
  """Runs lm_eval; returns the exit status."""
  try:
    from lm_eval.__main__ import cli_evaluate

    from miniplm_jax.evaluate import lm  # noqa: F401  (registers the model)

    if "--tasks" in argv and "--include_path" not in argv:
      argv = [*argv, "--include_path", str(pathlib.Path(__file__).parent)]
    sys.argv = ["lm_eval", *argv]
    cli_evaluate()
  except (UserError, ModuleNotFoundError) as e:
    e = e if isinstance(e, UserError) else missing(e)
    print(f"error: {errors.one_line(e)}", file=sys.stderr)
    return 1
  return 0


def missing(e: ModuleNotFoundError) -> UserError:
  """What to say if lm_eval is not installed."""
  return UserError(
    f"{e.name} is not installed",
    "the eval extra",
    "pip install 'miniplm-jax[eval]'",
  )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
