"""A model's config.json: read into an `Architecture`, and written."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from miniplm_jax.core.errors import UserError
from miniplm_jax.models.architecture import Architecture, Mamba, Transformer

# model_type of a config.json with attention: (qkv_bias, qk_norm).
_KINDS = {
  "qwen2": (True, False),
  "qwen3": (False, True),
  "llama": (False, False),
}

# Ours: theirs, in rope_parameters or rope_scaling.
_ROPE = {
  "rope_type": "rope_type",
  "rope_factor": "factor",
  "rope_low_freq_factor": "low_freq_factor",
  "rope_high_freq_factor": "high_freq_factor",
  "rope_original_length": "original_max_position_embeddings",
}

# How many of these a rope_type reads.
_ROPE_KEYS = {"default": 1, "linear": 2, "llama3": 5}


def read(config: Mapping[str, Any], where: str) -> Architecture:
  """The shape that a config.json describes; ignores unknown keys.

  Raises:
    UserError: another family, a missing key, or a known key with a value
      that is not implemented.
  """
  model_type = config.get("model_type")
  if model_type not in MODEL_TYPES:
    raise UserError(
      f"model_type is {model_type!r}",
      where,
      "give a Qwen1.5, Qwen2, Qwen2.5, Qwen3, Llama or Mamba model "
      f"(model_type {', '.join(MODEL_TYPES)})",
    )
  family = FAMILIES[_FAMILY_OF[model_type]]
  try:
    for key, allowed in (_ONLY | family.only).items():
      _refuse_unless(config.get(key) in (None, *allowed), key, config)
    return family.read(config)
  except UserError as e:
    raise UserError(e.what, where, e.hint) from e
  except Exception as e:  # a value of another kind than any that is known
    what = f"config.json cannot be read ({type(e).__name__}: {e})"
    raise UserError(what, where, "fetch it again") from e


def _refuse_without(values: Mapping[str, Any], *names: str):
  """Sizes have defaults in the config, but none in a file."""
  for name in ("vocab_size", "hidden_size", "num_hidden_layers", *names):
    if name not in values:
      raise UserError(
        f"the key {name} is missing", "", "complete the config.json"
      )


def _refuse_unless(good: bool, key: str, config):
  if not good:
    what = f"{key} = {str(config[key])[:80]!r} is not implemented"
    raise UserError(what, "", "use a model without it")


def _known(config, kind) -> dict[str, Any]:
  names = {f.name for f in dataclasses.fields(kind)} - _ROPE.keys()
  return {k: v for k, v in config.items() if k in names and v is not None}


def _read_transformer(config) -> Transformer:
  model_type = config["model_type"]
  if model_type != "llama":  # whose biases on the output have to be 0
    good = not config.get("attention_bias")
    _refuse_unless(good, "attention_bias", config)
  layers = config.get("layer_types") or ()
  good = all(layer == "full_attention" for layer in layers)
  _refuse_unless(good, "layer_types", config)
  values = _known(config, Transformer) | _rope_fields(config)
  values.setdefault("tie_word_embeddings", False)
  _refuse_without(values, "intermediate_size", "num_attention_heads")
  values.setdefault("num_key_value_heads", values["num_attention_heads"])
  values["qkv_bias"], values["qk_norm"] = _KINDS[model_type]
  values["qkv_bias"] |= bool(config.get("attention_bias"))
  arch = Transformer(**values)
  # A default that is spelled out becomes the default.
  if arch.query_size == arch.hidden_size:
    return dataclasses.replace(arch, head_dim=0)
  return arch


def _rope_fields(config) -> dict[str, Any]:
  """In the order of transformers: rope_scaling before rope_parameters.

  Version 5 writes the latter; before, rope_theta stood alone.
  """
  rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
  if not isinstance(rope, Mapping) or any(
    isinstance(value, Mapping) for value in rope.values()
  ):
    raise UserError(
      f"RoPE {rope!r} is not implemented", "", "use a model with one for all"
    )
  theta = rope.get("rope_theta", config.get("rope_theta", 1e4))
  # Without "type", which old files write for "rope_type".
  rope = {"rope_type": rope.get("type", "default")} | rope
  if rope.get("partial_rotary_factor", 1) != 1:
    what = "partial_rotary_factor in RoPE is not implemented"
    raise UserError(what, "", "use a model without it")
  if rope["rope_type"] == "llama3":
    length = config.get("max_position_embeddings")
    rope = {"original_max_position_embeddings": length} | rope
  needed = list(_ROPE.values())[: _ROPE_KEYS.get(rope["rope_type"], 1)]
  missing = [key for key in needed if rope.get(key) is None]
  if missing:
    what = f"RoPE {rope['rope_type']} without {', '.join(missing)}"
    raise UserError(what, "", "complete the config.json")
  fields = {ours: rope[key] for ours, key in _ROPE.items() if key in needed}
  return {"rope_theta": theta} | fields


def _read_mamba(config) -> Mamba:
  values = _known(config, Mamba)
  values["rms_norm_eps"] = config.get("layer_norm_epsilon", 1e-5)
  hidden, expand = config.get("hidden_size"), config.get("expand", 2)
  if type(hidden) is int and type(expand) is int:
    values.setdefault("intermediate_size", expand * hidden)
  if values.get("time_step_rank") == "auto":
    values["time_step_rank"] = 0
  _refuse_without(values, "intermediate_size")
  arch = Mamba(**values)
  if arch.rank == -(-arch.hidden_size // 16):
    return dataclasses.replace(arch, time_step_rank=0)
  return arch


def write(
  arch: Architecture,
  eos_id: int,
  dtype: str,
  bos_id: int | None = None,
  as_llama: bool = False,
) -> dict[str, Any]:
  """The config.json of a model with this shape.

  Args:
    eos_id: also what pads.
    bos_id: what every row starts with; None is eos.
    as_llama: whether a Qwen2 becomes a Llama, whose other biases are 0.

  Raises:
    UserError: no family has this combination of biases and norms.
  """
  family = FAMILIES[arch.family]
  model_type, fields = family.write(arch, as_llama)
  return fields | {
    "architectures": [family.classes[model_type]],
    "model_type": model_type,
    "hidden_act": "silu",
    "bos_token_id": eos_id if bos_id is None else bos_id,
    "eos_token_id": eos_id,
    "pad_token_id": eos_id,
    "use_cache": True,
    "dtype": dtype,
    "torch_dtype": dtype,  # read by releases before 5
  }


def _write_transformer(arch, as_llama: bool) -> tuple[str, dict[str, Any]]:
  kind = arch.qkv_bias, arch.qk_norm
  model_type = {kind: name for name, kind in _KINDS.items()}.get(kind)
  if model_type is None:
    raise UserError(
      "qkv_bias and qk_norm together are no model of Hugging Face",
      "in the model's configuration",
      "turn one of them off",
    )
  fields = dataclasses.asdict(arch)
  rope = {theirs: fields.pop(ours) for ours, theirs in _ROPE.items()}
  rope = dict(list(rope.items())[: _ROPE_KEYS[arch.rope_type]])
  del fields["qkv_bias"], fields["qk_norm"]
  if model_type == "qwen2" and as_llama:
    arch.check_llama()
    model_type, fields["attention_bias"] = "llama", True
  return model_type, fields | {
    "head_dim": arch.head_size,
    "attention_dropout": 0.0,
    "rope_parameters": rope | {"rope_theta": arch.rope_theta},
    # Read by releases before 5, which do not know the above.
    "rope_scaling": None if arch.rope_type == "default" else rope,
  }


def _write_mamba(arch, unused_as_llama) -> tuple[str, dict[str, Any]]:
  fields = dataclasses.asdict(arch)
  fields["layer_norm_epsilon"] = fields.pop("rms_norm_eps")
  return "mamba", fields | {
    "time_step_rank": arch.rank,
    "expand": arch.intermediate_size // arch.hidden_size,
    "use_bias": False,
    "use_conv_bias": True,
    "residual_in_fp32": True,
  }


class _Family(NamedTuple):
  """The files of a family."""

  classes: Mapping[str, str]  # model_type: the class in transformers
  # Keys whose other values are not implemented. Absent or null is fine.
  only: Mapping[str, tuple[Any, ...]]
  read: Callable[[Mapping[str, Any]], Architecture]
  # (shape, as_llama) → model_type and the other keys
  write: Callable[[Any, bool], tuple[str, dict[str, Any]]]


_ONLY = {"hidden_act": ("silu",), "quantization_config": (None,)}
FAMILIES = {
  Transformer.family: _Family(
    {
      "qwen2": "Qwen2ForCausalLM",
      "qwen3": "Qwen3ForCausalLM",
      "llama": "LlamaForCausalLM",
    },
    {
      "use_sliding_window": (False,),
      "attention_dropout": (0,),
      "mlp_bias": (False,),
      "pretraining_tp": (1,),
      "partial_rotary_factor": (1,),
      "attention_bias": (False, True),
    },
    _read_transformer,
    _write_transformer,
  ),
  Mamba.family: _Family(
    {"mamba": "MambaForCausalLM"},
    {
      "use_bias": (False,),
      "use_conv_bias": (True,),
      "residual_in_fp32": (True,),
    },
    _read_mamba,
    _write_mamba,
  ),
}
_FAMILY_OF = {
  model_type: name
  for name, family in FAMILIES.items()
  for model_type in family.classes
}
MODEL_TYPES = tuple(_FAMILY_OF)
