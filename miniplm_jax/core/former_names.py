"""Former names of folders that are functions of the library by now."""

import importlib
import types


class CallableModule(types.ModuleType):
  """A folder that takes the place of the library's function of its name.

  Whoever imports `miniplm_jax.evaluate.lm` sets `miniplm_jax.evaluate` to the
  folder; `mp.evaluate(…)` goes on being the function.
  """

  def __call__(self, *args, **options):
    """Calls the function of the library."""
    api = importlib.import_module("miniplm_jax.api")
    return getattr(api, self.__name__.rpartition(".")[2])(*args, **options)
