"""Model directories as lm-evaluation-harness names and loads them.

Importing this registers the model.
"""

from typing import Any

import jax.numpy as jnp
from lm_eval.api.registry import register_model

from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import tokenizer as tokenizer_lib
from miniplm_jax.evaluate.jax_lm import JaxLM
from miniplm_jax.models import hub, huggingface, sharding

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
      pretrained: the directory or hub id.
      **settings: `revision` of a hub id; `dtype` of weights and computation,
        float32 by default; the sizes `data`, `fsdp` and `tensor` of the mesh;
        batch_tokens, max_length and log_every_seconds of `JaxLM`.

    Raises:
      UserError: there is no such setting, or the model cannot be loaded.
    """
    found = _checked(pretrained, settings)
    directory = hub.resolve(pretrained, found.pop("revision", "main"))
    mesh = sharding.make_mesh(
      found.pop("data", 1), found.pop("fsdp", -1), found.pop("tensor", 1)
    )
    dtype = found.setdefault("dtype", "float32")
    engine = tokenizer_lib.load_engine(directory)
    model = huggingface.load(directory, mesh, jnp.dtype(dtype))
    eos_ids = hub.eos_ids(directory)
    eot_id = _special(directory, engine, "eos_token")
    if eot_id is None and not eos_ids:
      raise UserError(
        "no end-of-text token",
        str(directory),
        "give eos_token in tokenizer_config.json",
      )
    super().__init__(
      model,
      engine,
      mesh,
      eot_id=eos_ids[0] if eot_id is None else eot_id,
      prefix_id=_special(directory, engine, "bos_token"),
      eos_ids=eos_ids,
      **found,
    )


def _checked(pretrained: str, settings: dict[str, Any]) -> dict[str, Any]:
  """The settings that are read, with their types."""
  if not pretrained:
    raise UserError(
      "no model is named", "--model_args", "give pretrained=DIRECTORY"
    )
  found = {}
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
      found[name] = _SETTINGS[name](value)
    except (TypeError, ValueError):
      found[name] = None
    if found[name] is None or (name == "dtype" and value not in _DTYPES):
      kind = ", ".join(_DTYPES) if name == "dtype" else _SETTINGS[name].__name__
      raise UserError(
        f"{name} is {value!r}", f"--model_args {name}={value}", f"give {kind}"
      )
  return found


def _special(directory, engine, name: str) -> int | None:
  """The id of a token that tokenizer_config.json names."""
  path = directory / "tokenizer_config.json"
  token = hub.read_json(path).get(name) if path.exists() else None
  if isinstance(token, dict):
    token = token["content"]
  return token and engine.token_to_id(token)
