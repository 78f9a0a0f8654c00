"""Our decoder against transformers', both directions, in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from helpers import run, write_corpus

from miniplm_jax.core.errors import UserError
from miniplm_jax.models import decoder, huggingface
from miniplm_jax.models.architecture import Architecture

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip(
  "transformers", reason="needs the parity extra"
)
pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(0).integers(0, 211, (3, 37))


def our_logits(model, tokens):
  hidden = jax.jit(model)(jnp.asarray(tokens, jnp.int32))
  return np.asarray(jnp.einsum("btd,vd->btv", hidden, model.head_VxD))


def their_logits(model, tokens):
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.numpy()


FAMILIES = {
  "qwen2": {},
  "qwen2 sharing keys, untied": {"keys": 2, "tie_word_embeddings": False},
  "qwen3": {"family": "Qwen3", "keys": 2, "head_dim": 16},
  "llama": {"family": "Llama", "keys": 1, "tie_word_embeddings": False},
  "llama, own head size": {"family": "Llama", "keys": 3, "head_dim": 12},
  "llama, linear": {
    "family": "Llama",
    "rope_parameters": {
      "rope_type": "linear",
      "rope_theta": 1e4,
      "factor": 3.0,
    },
  },
  "llama 3.1": {
    "family": "Llama",
    "rope_parameters": {
      "rope_type": "llama3",
      "rope_theta": 5e3,
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16,
    },
  },
}


def theirs_of(family="Qwen2", keys=6, **more):
  """A random model of transformers with every parameter off its default."""
  torch.manual_seed(1)
  fields = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": keys,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 12_345.0},
  }
  config = getattr(transformers, f"{family}Config")(**fields | more)
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
  with torch.no_grad():  # biases and norms are 0 and 1 when new
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.1)
  return model


@pytest.mark.parametrize("name", FAMILIES)
def test_theirs_loaded_by_ours_and_back(tmp_path, mesh, name):
  theirs = theirs_of(**FAMILIES[name])
  theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
  assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
  ours = huggingface.load(epath.Path(tmp_path / "theirs"), mesh)
  wanted = their_logits(theirs, TOKENS)
  assert np.abs(our_logits(ours, TOKENS) - wanted).max() < 1e-4

  directory = epath.Path(tmp_path / "ours")
  huggingface.save(directory, ours, 7, {})
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, output_loading_info=True
  )
  assert not any(info.values()), info
  assert type(again) is type(theirs)
  np.testing.assert_array_equal(their_logits(again.eval(), TOKENS), wanted)
  for key, value in theirs.state_dict().items():
    assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_read_exactly(tmp_path, mesh, dtype):
  theirs = theirs_of(keys=2).to(getattr(torch, dtype))
  theirs.save_pretrained(tmp_path)
  ours = huggingface.load(epath.Path(tmp_path), mesh)
  found = huggingface.to_tensors(ours)
  for name, value in theirs.state_dict().items():
    if name != "lm_head.weight":  # tied
      np.testing.assert_array_equal(found[name], value.float().numpy())
  half = huggingface.load(epath.Path(tmp_path), mesh, jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_what_no_family_has_is_not_exported(tmp_path, mesh):
  arch = Architecture(64, 16, 16, 1, 2, 2, qkv_bias=True, qk_norm=True)
  with pytest.raises(UserError, match="qk_norm"):
    huggingface.save(
      epath.Path(tmp_path), decoder.Decoder(arch, nnx.Rngs(0)), 0, {}
    )


def test_gradients_equal_theirs(tmp_path, mesh):
  from miniplm_jax.models import head

  theirs = theirs_of(keys=2)
  theirs.save_pretrained(tmp_path)
  ours = huggingface.load(epath.Path(tmp_path), mesh)
  inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]

  def loss(model):
    weights = jnp.full(targets.shape, 1 / targets.size)
    hidden = model(jnp.asarray(inputs))
    return head.weighted_nll(
      hidden, model.head_VxD, jnp.asarray(targets), weights
    )

  value, grads = jax.jit(jax.value_and_grad(loss))(ours)
  logits = theirs(torch.as_tensor(inputs)).logits
  wanted = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), torch.as_tensor(targets).flatten()
  )
  wanted.backward()
  assert float(value) == pytest.approx(wanted.item(), abs=1e-5)
  found = huggingface.to_tensors(grads)
  for name, parameter in theirs.named_parameters():
    scale = parameter.grad.abs().max().item()
    difference = np.abs(found[name] - parameter.grad.numpy()).max()
    assert difference <= 1e-4 * scale, (name, difference, scale)


def test_everything_wrong_with_the_weights_is_listed(tmp_path, mesh):
  from safetensors.numpy import load_file, save_file

  theirs_of(keys=2).save_pretrained(tmp_path)
  path = tmp_path / "model.safetensors"
  tensors = load_file(path)
  del tensors["model.norm.weight"]
  tensors["extra"] = np.zeros(2, np.float32)
  tensors["model.embed_tokens.weight"] = np.zeros((5, 48), np.float32)
  save_file(tensors, path)
  with pytest.raises(UserError) as e:
    huggingface.load(epath.Path(tmp_path), mesh)
  for words in ("missing model.norm", "unexpected extra", "is (5, 48)"):
    assert words in str(e.value)
  path.unlink()
  with pytest.raises(UserError, match=r"no model\.safetensors"):
    huggingface.load(epath.Path(tmp_path), mesh)


def test_a_students_export_and_a_given_teacher(tmp_path, mesh):
  """The whole way: a Hugging Face teacher in, a Hugging Face student out."""
  write_corpus(tmp_path / "text.jsonl")
  run(tmp_path, "--stages=tokenize")
  config = transformers.Qwen2Config(
    vocab_size=520,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  teacher = tmp_path / "teacher"
  transformers.Qwen2ForCausalLM(config).save_pretrained(teacher)
  path = f"--config.teacher.path={teacher}"
  done = run(tmp_path, path)
  assert f"under the teacher {teacher}" in done.stdout
  assert not (tmp_path / "run" / "teacher").exists()

  directory = tmp_path / "run" / "students" / "miniplm" / "hf"
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, output_loading_info=True
  )
  assert not any(info.values()), info
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  text = "Comparisons can be chained arbitrarily."
  ids = tokenizer(text, return_tensors="np")["input_ids"]
  assert tokenizer.decode(ids[0]) == text
  assert tokenizer.eos_token_id == theirs.config.eos_token_id
  ours = huggingface.load(epath.Path(directory), mesh)
  difference = our_logits(ours, ids) - their_logits(theirs, ids)
  assert np.abs(difference).max() < 1e-4

  # The stored score of a row is what transformers says of it.
  import pyarrow.parquet as pq

  from miniplm_jax.core import manifest
  from miniplm_jax.corpus.store import Corpus

  corpus = Corpus(manifest.read(tmp_path / "run/corpus/manifest.json"))
  parts = sorted((tmp_path / "run/scores/teacher").glob("*.parquet"))
  table = pq.read_table(parts).slice(5, 3).to_pylist()
  model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
  for line, row in zip(table, corpus.read([r["row_id"] for r in table])):
    logits = torch.as_tensor(their_logits(model, row.ids[None, :-1]))[0]
    targets = row.ids[1:].tolist()
    nll = -logits.log_softmax(-1)[range(len(targets)), targets]
    mask = row.ids[:-1] != corpus.eos_id
    assert line["n_tokens"] == mask.sum()
    assert line["nll_sum"] == pytest.approx(nll.numpy()[mask].sum(), rel=1e-5)

  other = json.loads((directory / "tokenizer.json").read_text())
  other["model"]["vocab"]["zzz"] = 512
  (teacher / "tokenizer.json").write_text(json.dumps(other))
  from helpers import refused

  error = refused(tmp_path, path, "--stages=score", "--force")
  assert "another tokenizer" in error
