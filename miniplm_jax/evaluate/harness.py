"""The former name of `evaluation.harness`."""

import sys

from miniplm_jax.evaluation.harness import main, missing, with_group  # noqa: F401

if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
