"""Our decoders against transformers', in both directions."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from families import (
  FAMILIES,
  KINDS,
  LENGTHS,
  TOKENS,
  is_mamba,
  make,
  nll,
  our_logits,
  their_logits,
  torch,
  transformers,
)
from helpers import CONFIG, LONG, refused, run, write_corpus

from miniplm_jax.models import head, huggingface

pytestmark = pytest.mark.parity


def loaded(model, folder, mesh, dtype=jnp.float32):
  model.save_pretrained(folder)
  return huggingface.load(epath.Path(folder), mesh, dtype)


def our_nll(model, tokens, dtype=jnp.float32):
  """Through the kernel that scores."""
  inputs, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])

  @jax.jit
  def of(model):
    hidden = model(inputs, dtype=dtype)
    return head.token_nll(
      hidden, model.head_VxD, targets, model.arch.vocab_size
    )

  return np.asarray(of(model))


def real_positions(lengths):
  return np.arange(TOKENS.shape[1])[None] < lengths[:, None]


@pytest.mark.parametrize("name", FAMILIES)
def test_theirs_loaded_by_ours_and_back(tmp_path, mesh, name):
  theirs = make(**FAMILIES[name])
  theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
  assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
  ours = huggingface.load(epath.Path(tmp_path / "theirs"), mesh)
  wanted = their_logits(theirs, TOKENS, LENGTHS)
  real = real_positions(LENGTHS)
  difference = np.abs(our_logits(ours, TOKENS) - wanted)[real].max()
  assert difference <= (1e-3 if is_mamba(name) else 1e-4)
  inside = real_positions(LENGTHS - 1)[:, :-1]
  difference = our_nll(ours, TOKENS) - nll(wanted[:, :-1], TOKENS[:, 1:])
  limit = 1e-4 if is_mamba(name) else 1e-5
  assert np.abs(difference[inside]).max() <= limit

  directory = epath.Path(tmp_path / "ours")
  huggingface.save(directory, ours, 7, {})
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, output_loading_info=True
  )
  assert not any(info.values()), info
  assert type(again) is type(theirs)
  for key, value in theirs.state_dict().items():
    assert torch.equal(again.state_dict()[key], value), key
  wanted = their_logits(theirs, TOKENS)
  np.testing.assert_array_equal(their_logits(again.eval(), TOKENS), wanted)


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_within_two_hundredths_of_their_float32(
  tmp_path, mesh, name
):
  """With the weights in bfloat16 too, as scoring has them."""
  theirs = make(**FAMILIES[name])
  for parameter in theirs.parameters():  # their buffers stay float32
    parameter.data = parameter.data.bfloat16().float()
  ours = loaded(theirs, tmp_path, mesh, jnp.bfloat16)
  wanted = nll(their_logits(theirs, TOKENS)[:, :-1], TOKENS[:, 1:])
  difference = our_nll(ours, TOKENS, jnp.bfloat16) - wanted
  assert abs(difference.mean()) <= 2e-2
  in_bfloat16 = our_nll(ours, TOKENS) - wanted
  assert np.abs(in_bfloat16).max() < 1e-4 < np.abs(difference).max()


def test_what_mamba_scans_is_float32_whatever_the_dtype(tmp_path, mesh):
  """A bfloat16 state would forget within some hundred positions."""
  ours = loaded(make("Mamba"), tmp_path, mesh, jnp.bfloat16)
  layers = ours.layers
  for wide in (layers.a_log, layers.skip, layers.dt_bias):
    assert wide.dtype == jnp.float32
  assert layers.in_proj.dtype == jnp.bfloat16
  function = functools.partial(type(ours).__call__, dtype=jnp.bfloat16)
  text = str(jax.make_jaxpr(function)(ours, TOKENS))
  states = set(re.findall(r"(\w+)\[3,16,96\]", text))
  streams = set(re.findall(r"(\w+)\[3,37,48\]", text))
  assert states == {"f32"}
  assert streams == {"f32", "bf16"}  # the residual stream, and what is normed


@pytest.mark.parametrize("name", KINDS)
def test_gradients_equal_theirs(tmp_path, mesh, name):
  theirs = make(**FAMILIES[name])
  ours = loaded(theirs, tmp_path, mesh)
  inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]

  def loss(model):
    weights = jnp.full(targets.shape, 1 / targets.size)
    return head.weighted_nll(
      model(jnp.asarray(inputs)),
      model.head_VxD,
      jnp.asarray(targets),
      weights,
      model.arch.vocab_size,
    )

  value, grads = jax.jit(jax.value_and_grad(loss))(ours)
  logits = theirs(torch.as_tensor(inputs)).logits
  wanted = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), torch.as_tensor(targets).flatten()
  )
  wanted.backward()
  assert float(value) == pytest.approx(wanted.item(), abs=1e-5)
  found = huggingface.to_tensors(grads)
  for key, parameter in theirs.named_parameters():
    scale = parameter.grad.abs().max().item()
    difference = np.abs(found[key] - parameter.grad.numpy()).max()
    assert difference <= 1e-4 * scale, (key, difference, scale)


@pytest.mark.long
def test_a_mamba_student_from_the_same_scores(copy, mesh):
  """Any architecture can be the student; the config file says which."""
  name = "--config.student.name=mamba"
  mamba = {"config": f"{CONFIG}:mamba"}
  stages = "--stages=train,evaluate,export,generate"
  done = run(copy, stages, name, "--prompt=Strings", **mamba)
  assert "new tokens" in done.stdout
  directory = copy / "run" / "students" / "mamba" / "hf"
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, output_loading_info=True
  )
  assert not any(info.values()), info
  assert theirs.config.model_type == "mamba"
  ours = huggingface.load(epath.Path(directory), mesh)
  difference = our_logits(ours, TOKENS) - their_logits(theirs, TOKENS)
  assert np.abs(difference).max() <= 1e-3
  error = refused(
    copy, "--stages=train", name, "--config.student.model.family=rnn"
  )
  assert "config.student.model.family is 'rnn'" in error


def test_an_export_is_made_again_as_it_is_wanted(copy):
  """In bfloat16, over several files, and once there is an evaluation."""
  directory = copy / "run" / "students" / "miniplm" / "hf"
  (directory.parent / "evaluation.json").unlink()
  dtype = "--config.export.dtype=bfloat16"
  size = "--config.export.max_shard_size=10KB"
  run(copy, "--stages=export", LONG, dtype, size)
  assert len(list(directory.glob("model-*-of-*.safetensors"))) > 1
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype="auto", output_loading_info=True
  )
  assert not any(info.values()), info
  assert theirs.dtype == torch.bfloat16
  card = (directory / "README.md").read_text()
  for words in ("FLOPs", "selection manifest", "mean_diff", "log p_ref"):
    assert words in card
  assert "Evaluation" not in card
  run(copy, "--stages=evaluate,export", LONG)
  assert "| all |" in (directory / "README.md").read_text()
  assert not list(directory.glob("model-*"))
  wrong = "--config.export.max_shard_size=big"
  assert "give a size" in refused(copy, "--stages=export", wrong)


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
  assert f"under teacher {teacher}" in done.stdout
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
  assert tokenizer.model_max_length == 32  # of the rows that it was trained on
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
    logits = their_logits(model, row.ids[None, :-1])
    of_row = nll(logits, row.ids[None, 1:])[0]
    mask = row.ids[:-1] != corpus.eos_id
    assert line["n_tokens"] == mask.sum()
    assert line["nll_sum"] == pytest.approx(of_row[mask].sum(), rel=1e-5)

  other = json.loads((directory / "tokenizer.json").read_text())
  del other["model"]["merges"][-1]
  (teacher / "tokenizer.json").write_text(json.dumps(other))
  error = refused(tmp_path, path, "--stages=score", "--force")
  assert "another tokenizer" in error
