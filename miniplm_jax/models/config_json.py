"""A model's config.json: read into an `Architecture`, and written."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.errors import UserError
from miniplm_jax.models.architecture import Architecture, Mamba, Transformer

# model_type of a config.json with attention: (qkv_bias, qk_norm).
_KINDS = {
  "qwen2": (True, False),
  "qwen3": (False, True),
  "llama": (False, False),
}
_CLASSES = {
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "llama": "LlamaForCausalLM",
  "mamba": "MambaForCausalLM",
}
MODEL_TYPES = tuple(_CLASSES)

# Keys whose other values are not implemented. Absent or null is fine.
_ONLY = {"hidden_act": ("silu",), "quantization_config": (None,)}
_ONLY_TRANSFORMER = _ONLY | {
  "use_sliding_window": (False,),
  "attention_dropout": (0,),
  "mlp_bias": (False,),
  "attention_bias": (False,),
  "pretraining_tp": (1,),
  "partial_rotary_factor": (1,),
}
_ONLY_MAMBA = _ONLY | {
  "use_bias": (False,),
  "use_conv_bias": (True,),
  "residual_in_fp32": (True,),
}

# Ours: theirs, in rope_parameters or rope_scaling.
_ROPE = {
  "rope_type": "rope_type",
  "rope_factor": "factor",
  "rope_low_freq_factor": "low_freq_factor",
  "rope_high_freq_factor": "high_freq_factor",
  "rope_original_length": "original_max_position_embeddings",
}


def read(config: Mapping[str, Any], where: str) -> Architecture:
  """The shape that a config.json describes; ignores unknown keys.

  Args:
    config: the parsed file.
    where: its path, for messages.

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
  is_mamba = model_type == "mamba"
  for key, allowed in (_ONLY_MAMBA if is_mamba else _ONLY_TRANSFORMER).items():
    _refuse_unless(config.get(key) in (None, *allowed), key, config, where)
  if not is_mamba:
    layers = set(config.get("layer_types") or ())
    good = layers <= {"full_attention"}
    _refuse_unless(good, "layer_types", config, where)
  try:
    if is_mamba:
      return Mamba(**_mamba_fields(config))
    return Transformer(**_transformer_fields(config))
  except (TypeError, KeyError) as e:
    raise UserError(
      f"a key is missing ({e})", where, "complete the config.json"
    ) from e
  except UserError as e:
    raise UserError(e.what, where, e.todo) from e


def _refuse_unless(good: bool, key: str, config, where: str):
  if not good:
    value = str(config[key])
    raise UserError(
      f"{key} = {value[:80]!r} is not implemented",
      where,
      "use a model without it",
    )


def _known(config, kind) -> dict[str, Any]:
  names = {f.name for f in dataclasses.fields(kind)} - _ROPE.keys()
  return {k: v for k, v in config.items() if k in names and v is not None}


def _transformer_fields(config) -> dict[str, Any]:
  values = _known(config, Transformer)
  # transformers 5 writes rope_parameters; before, rope_theta stood alone.
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  if "type" in rope:
    rope = rope | {"rope_type": rope["type"]}
  values |= {k: rope[theirs] for k, theirs in _ROPE.items() if theirs in rope}
  values.setdefault("rope_theta", rope.get("rope_theta", 1e4))
  values.setdefault("tie_word_embeddings", False)
  values.setdefault("num_key_value_heads", config["num_attention_heads"])
  values["qkv_bias"], values["qk_norm"] = _KINDS[config["model_type"]]
  # The default, spelled out, is the default.
  heads = values.get("head_dim", 0) * config["num_attention_heads"]
  if heads == config["hidden_size"]:
    values["head_dim"] = 0
  return values


def _mamba_fields(config) -> dict[str, Any]:
  values = _known(config, Mamba)
  values["rms_norm_eps"] = config.get("layer_norm_epsilon", 1e-5)
  expanded = config.get("expand", 2) * config["hidden_size"]
  values.setdefault("intermediate_size", int(expanded))
  if values.get("time_step_rank") in ("auto", -(-config["hidden_size"] // 16)):
    values["time_step_rank"] = 0
  return values


def write(arch: Architecture, eos_id: int, dtype: str) -> dict[str, Any]:
  """The config.json of a model with this shape.

  Args:
    arch: the shape.
    eos_id: the end-of-document id, also bos and pad.
    dtype: of the stored weights.

  Raises:
    UserError: no family has this combination of biases and norms.
  """
  if isinstance(arch, Mamba):
    model_type, fields = "mamba", _mamba_json(arch)
  else:
    model_type, fields = _transformer_json(arch)
  return fields | {
    "architectures": [_CLASSES[model_type]],
    "model_type": model_type,
    "hidden_act": "silu",
    "bos_token_id": eos_id,
    "eos_token_id": eos_id,
    "pad_token_id": eos_id,
    "use_cache": True,
    "dtype": dtype,
    "torch_dtype": dtype,  # read by releases before 5
  }


def _transformer_json(arch) -> tuple[str, dict[str, Any]]:
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
  wanted = {"default": 1, "linear": 2, "llama3": 5}[arch.rope_type]
  rope = dict(list(rope.items())[:wanted])
  del fields["qkv_bias"], fields["qk_norm"]
  return model_type, fields | {
    "head_dim": arch.head_size,
    "attention_dropout": 0.0,
    "rope_parameters": rope | {"rope_theta": arch.rope_theta},
    # Read by releases before 5, which do not know the above.
    "rope_scaling": None if arch.rope_type == "default" else rope,
  }


def _mamba_json(arch) -> dict[str, Any]:
  fields = dataclasses.asdict(arch)
  fields["layer_norm_epsilon"] = fields.pop("rms_norm_eps")
  return fields | {
    "time_step_rank": arch.rank,
    "expand": arch.intermediate_size // arch.hidden_size,
    "use_bias": False,
    "use_conv_bias": True,
    "residual_in_fp32": True,
  }
