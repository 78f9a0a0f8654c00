"""Model directories as lm-evaluation-harness names and loads them.

Importing this registers the model.
"""

from typing import Any

from lm_eval.api.registry import register_model

from miniplm_jax.core.errors import UserError
from miniplm_jax.evaluation.jax_lm import JaxLM
from miniplm_jax.evaluation.texts import TextModel
from miniplm_jax.models import hub, sharding

MODEL = "miniplm_jax"  # its name in lm_eval
_DTYPES = ("float32", "bfloat16", "float16")
# What may be given in --model_args beside `pretrained`, and its type.
_SETTINGS = {
  "revision": str,
  "dtype": str,
  "data": int,
  "fsdp": int,
  "tensor": int,
  "batch_tokens": int,
  "max_length": int,
  "log_every_seconds": float,
}
# lm_eval's command gives these to every model. They are not read: batches are
# made by `batch_tokens`, devices are JAX's, and no remote code is ever run.
_NOT_READ = ("batch_size", "max_batch_size", "device", "trust_remote_code")


@register_model(MODEL)
class DirectoryLM(JaxLM):
  """A Hugging Face directory or hub id, as `lm_eval --model miniplm_jax`."""

  def __init__(self, pretrained: str = "", **settings: Any):
    """Loads it.

    Args:
      **settings: `revision` of a hub id; `dtype` of weights and computation,
        float32 by default; the sizes `data`, `fsdp` and `tensor` of the mesh;
        batch_tokens, max_length and log_every_seconds of `JaxLM`.

    Raises:
      UserError: there is no such setting, or the model cannot be loaded.
    """
    settings = _checked(pretrained, settings)
    directory = hub.resolve(pretrained, settings.pop("revision", "main"))
    mesh = sharding.make_mesh(
      settings.pop("data", 1),
      settings.pop("fsdp", -1),
      settings.pop("tensor", 1),
    )
    dtype = settings.pop("dtype", "float32")
    super().__init__(TextModel.load(directory, mesh, dtype), **settings)


def _checked(pretrained: str, settings: dict[str, Any]) -> dict[str, Any]:
  """The settings that are read, with their types."""
  if not pretrained:
    raise UserError(
      "no model is named", "--model_args", "give pretrained=DIRECTORY"
    )
  checked = {}
  for name, value in settings.items():
    if name in _NOT_READ:
      continue
    if name not in _SETTINGS:
      raise UserError(
        f"{MODEL} has no argument {name}",
        f"--model_args {name}={value}",
        f"leave it out; there are pretrained, {', '.join(_SETTINGS)}",
      )
    try:
      checked[name] = _SETTINGS[name](value)
    except (TypeError, ValueError):
      checked[name] = None
    if checked[name] is None or (name == "dtype" and value not in _DTYPES):
      kind = ", ".join(_DTYPES) if name == "dtype" else _SETTINGS[name].__name__
      raise UserError(
        f"{name} is {value!r}", f"--model_args {name}={value}", f"give {kind}"
      )
  return checked
