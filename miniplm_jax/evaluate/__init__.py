"""The former name of `evaluation`, for scripts that import it."""

import sys

from miniplm_jax.core.former_names import CallableModule

sys.modules[__name__].__class__ = CallableModule
