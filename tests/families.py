"""Random models of every family, made by transformers on the spot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip(
  "transformers", reason="needs the parity extra"
)

VOCAB = 211
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, 37))
LENGTHS = np.array([37, 5, 20])  # what follows is padding

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 5e3,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
FAMILIES = {
  "qwen2": {},
  "qwen2 sharing keys, untied": {"keys": 2, "tie_word_embeddings": False},
  "qwen3": {"family": "Qwen3", "keys": 2, "head_dim": 16},
  "llama": {"family": "Llama", "keys": 1, "tie_word_embeddings": False},
  "llama, own head size": {"family": "Llama", "keys": 3, "head_dim": 12},
  "llama, linear": {"family": "Llama", "rope_parameters": LINEAR},
  "llama 3.1": {"family": "Llama", "rope_parameters": LLAMA3, "keys": 2},
  "mamba": {"family": "Mamba"},
  "mamba, untied": {
    "family": "Mamba",
    "tie_word_embeddings": False,
    "state_size": 5,
    "conv_kernel": 3,
    "time_step_rank": 7,
    "expand": 3,
  },
}
# One of each kind, where all are too many.
KINDS = ("qwen2 sharing keys, untied", "qwen3", "llama 3.1", "mamba")


def make(family="Qwen2", keys=6, **more):
  """A random model with every parameter off its default.

  The vocabulary is no multiple of 128, so ours has padding to leave out.
  """
  torch.manual_seed(1)
  fields = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "tie_word_embeddings": True,
  }
  if family == "Mamba":
    fields |= {"layer_norm_epsilon": 1e-5}
  else:
    fields |= {
      "intermediate_size": 80,
      "num_attention_heads": 6,
      "num_key_value_heads": keys,
      "rms_norm_eps": 1e-5,
      "rope_parameters": {"rope_type": "default", "rope_theta": 12_345.0},
    }
  config = getattr(transformers, f"{family}Config")(**fields | more)
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
  with torch.no_grad():  # biases and norms are 0 and 1 when new
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.1)
  return model


def is_mamba(name):
  return name.startswith("mamba")


def our_logits(model, tokens, dtype=jnp.float32):
  hidden = jax.jit(model, static_argnames="dtype")(
    jnp.asarray(tokens, jnp.int32), dtype=dtype
  )
  logits = jnp.einsum("btd,vd->btv", hidden, model.head_VxD.astype(dtype))
  return np.asarray(logits, np.float32)[..., : model.arch.vocab_size]


def their_logits(model, tokens, lengths=None):
  mask = None
  if lengths is not None:
    mask = torch.arange(tokens.shape[1])[None] < torch.tensor(lengths)[:, None]
    mask = mask.long()
  with torch.no_grad():
    logits = model(torch.tensor(tokens), attention_mask=mask).logits
  return logits.float().numpy()


def nll(logits, targets):
  """−log p of each target, in float64."""
  logits = logits.astype(np.float64)
  top = logits.max(-1, keepdims=True)
  total = top[..., 0] + np.log(np.exp(logits - top).sum(-1))
  return total - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
