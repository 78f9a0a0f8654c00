"""Hugging Face directories: what is read, written and refused."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import nnx
from helpers import refused, refused_as_process, run_as_process

from miniplm_jax.core.errors import UserError
from miniplm_jax.models import decoder, hub, huggingface, sharding
from miniplm_jax.models.architecture import Mamba, Transformer

TRANSFORMER = Transformer(
  vocab_size=300,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  tie_word_embeddings=False,
  initializer_range=0.1,
)
MAMBA = Mamba(
  vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3
)
SHAPES = {"transformer": TRANSFORMER, "mamba": MAMBA}


@functools.cache
def new(arch, dtype=jnp.float32):
  """A model with every parameter off its default."""
  model = decoder.Decoder(arch, nnx.Rngs(0), dtype)
  rng = np.random.default_rng(0)

  def noisy(path, w):
    if sharding.name_of(path) in ("embed", "head"):
      return w  # its padding is 0
    return w + jnp.asarray(rng.normal(size=w.shape) * 0.1, w.dtype)

  return jax.tree_util.tree_map_with_path(noisy, model)


def saved(folder, arch=TRANSFORMER, extra=(), **options):
  directory = epath.Path(folder)
  huggingface.save(directory, new(arch), 7, dict(extra), **options)
  return directory


def equal(a, b):
  same = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)
  return all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_round_trip_is_exact_in_the_stored_dtype(tmp_path, mesh, name, dtype):
  directory = epath.Path(tmp_path / "a")
  huggingface.save(directory, new(SHAPES[name]), 7, {}, dtype)
  assert json.loads((directory / "config.json").read_text())["dtype"] == dtype
  again = huggingface.load(directory, mesh, jnp.dtype(dtype))
  assert again.arch == SHAPES[name]
  huggingface.save(epath.Path(tmp_path / "b"), again, 7, {}, dtype)
  file = "model.safetensors"
  assert (directory / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
  # Read into float32, nothing is lost either.
  wide = huggingface.load(directory, mesh, jnp.float32)
  assert equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), again))
  if dtype == "float32":
    assert equal(wide, new(SHAPES[name]))


@pytest.mark.parity
def test_a_qwen2_can_be_written_as_the_llama_that_it_is(tmp_path, mesh):
  """Where transformers would take the tokenizer for Qwen's."""
  transformers = pytest.importorskip(
    "transformers", reason="needs the parity extra"
  )
  torch = pytest.importorskip("torch", reason="needs the parity extra")
  directory = saved(tmp_path / "a", as_llama=True)
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, output_loading_info=True
  )
  assert not any(info.values()), info
  assert type(theirs) is transformers.LlamaForCausalLM
  again = huggingface.load(directory, mesh)
  assert again.arch == TRANSFORMER and equal(again, new(TRANSFORMER))
  tokens = np.arange(20)[None] * 7
  hidden = jax.jit(new(TRANSFORMER))(tokens)
  logits = hidden @ new(TRANSFORMER).head_VxD[...].T
  with torch.no_grad():
    wanted = theirs(torch.as_tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(logits[..., :300], wanted, atol=1e-4)
  biased = {"model.layers.1.self_attn.o_proj.bias": np.ones(32, np.float32)}
  tensors = huggingface.to_tensors(again) | biased
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")
  with pytest.raises(UserError, match=r"o_proj.bias is not 0"):
    huggingface.load(directory, mesh)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_of_the_base_model_are_those_of_the_whole(tmp_path, mesh, name):
  """Saved without the head, as transformers loads them."""
  arch = dataclasses.replace(SHAPES[name], tie_word_embeddings=True)
  directory = saved(tmp_path, arch)
  prefix = "backbone." if name == "mamba" else "model."
  tensors = {
    key.removeprefix(prefix): value
    for key, value in huggingface.to_tensors(new(arch)).items()
  }
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")
  assert equal(huggingface.load(directory, mesh), new(arch))


def test_a_llama_that_transformers_refuses_is_refused():
  shape = {"hidden_size": 36, "num_attention_heads": 8, "head_dim": 4}
  dataclasses.replace(TRANSFORMER, **shape)
  with pytest.raises(UserError, match="no multiple of its 8 heads"):
    dataclasses.replace(TRANSFORMER, **shape, qkv_bias=False)


@pytest.mark.parametrize("name", SHAPES)
def test_large_weights_are_spread_over_files(tmp_path, mesh, name):
  directory = saved(tmp_path, SHAPES[name], max_shard_size="40KB")
  files = sorted(directory.glob("*.safetensors"))
  assert len(files) > 2
  assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
  index = json.loads((directory / huggingface.INDEX).read_text())
  assert set(index["weight_map"].values()) == {f.name for f in files}
  assert equal(huggingface.load(directory, mesh), new(SHAPES[name]))


def test_the_vocabulary_is_padded_in_memory_and_not_on_disk(tmp_path, mesh):
  directory = saved(tmp_path)
  model = huggingface.load(directory, mesh)
  for table in (model.embed, model.head):
    assert table.shape == (384, 32)
    assert not np.asarray(table[...])[300:].any()
    assert np.asarray(table[...])[:300].any(1).all()
  tensors = huggingface.to_tensors(model)
  assert tensors["lm_head.weight"].shape == (300, 32)


def test_what_no_family_has_is_not_exported(tmp_path):
  arch = dataclasses.replace(TRANSFORMER, qkv_bias=True, qk_norm=True)
  with pytest.raises(UserError, match="qk_norm"):
    saved(tmp_path, arch)
  assert not list(tmp_path.iterdir())


def edit(directory, name="model.safetensors", **changes):
  """Replaces tensors of a file; None removes one."""
  from safetensors.numpy import load_file, save_file

  tensors = load_file(directory / name) | changes
  tensors = {k: v for k, v in tensors.items() if v is not None}
  save_file(tensors, directory / name)


def test_everything_wrong_with_the_weights_is_listed(tmp_path, mesh):
  directory = saved(tmp_path)
  edit(
    directory,
    **{
      "model.norm.weight": None,
      "extra": np.zeros(2, np.float32),
      "lm_head.weight": np.zeros((5, 32), np.float32),
      # Carried by Llama 2's files, computed here.
      "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    },
  )
  with pytest.raises(UserError) as e:
    huggingface.load(directory, mesh)
  for words in ("missing model.norm", "unexpected extra", "is (5, 32) and not"):
    assert words in str(e.value)
  assert "inv_freq" not in str(e.value)


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path, mesh):
  arch = dataclasses.replace(TRANSFORMER, tie_word_embeddings=True)
  directory = saved(tmp_path, arch)
  from safetensors.numpy import load_file

  name, head = "model.embed_tokens.weight", "lm_head.weight"
  embed = load_file(directory / "model.safetensors")[name]
  for changes in ({head: embed}, {head: embed, name: None}):
    edit(directory, **changes)
    assert equal(huggingface.load(directory, mesh), new(arch))
  other = embed.copy()
  other[-1, -1] += 1
  edit(directory, **{name: embed, head: other})
  with pytest.raises(UserError, match="differs from"):
    huggingface.load(directory, mesh)


def test_quantized_weights_are_refused(tmp_path, mesh):
  directory = saved(tmp_path)
  edit(directory, **{"lm_head.weight": np.zeros((300, 32), np.int8)})
  with pytest.raises(UserError, match=r"lm_head\.weight is I8"):
    huggingface.load(directory, mesh)


def test_what_ends_a_text_is_what_the_files_say(tmp_path):
  directory = epath.Path(tmp_path)
  assert hub.eos_ids(directory) == ()
  (directory / "config.json").write_text('{"eos_token_id": 5}')
  assert hub.eos_ids(directory) == (5,)
  path = directory / "generation_config.json"
  path.write_text('{"eos_token_id": [7, 8]}')
  assert hub.eos_ids(directory) == (7, 8)
  path.write_text("{}")
  assert hub.eos_ids(directory) == (5,)


def truncate(directory):
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def corrupt(directory):
  path = directory / "model.safetensors"
  path.write_bytes(b"\x10\0\0\0\0\0\0\0not a header at " + path.read_bytes())


def reshape(directory):
  edit(directory, **{"lm_head.weight": np.zeros((5, 32), np.float32)})


def lose_shard(directory):
  saved(directory, max_shard_size="40KB")
  (directory / "model.safetensors").unlink()
  sorted(directory.glob("model-*.safetensors"))[1].unlink()


def lose_config(directory):
  (directory / "config.json").unlink()


def break_config(directory):
  (directory / "config.json").write_text("{")


def list_config(directory):
  (directory / "config.json").write_text("[1]")


def pickle_only(directory):
  (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def poison(directory):
  edit(directory, **{"lm_head.weight": np.full((300, 32), np.nan, np.float32)})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
  from miniplm_jax.corpus import tokenizer

  engine = tokenizer.train(["some text of the world"] * 9, 280, "<|end|>")
  folder = tmp_path_factory.mktemp("model")
  return saved(folder, extra=engine.to_files())


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (truncate, "the weights cannot be read"),
    (corrupt, "the weights cannot be read"),
    (reshape, "lm_head.weight is (5, 32) and not (300, 32)"),
    (lose_shard, "no model-00002-of-"),
    (lose_config, "no config.json"),
    (break_config, "this is not a JSON object"),
    (list_config, "this is not a JSON object"),
    (pickle_only, "pytorch_model.bin is a pickle, which is never opened"),
    (poison, "not finite"),
  ],
)
def test_a_damaged_model_gets_one_line(tmp_path, model_folder, damage, words):
  folder = epath.Path(shutil.copytree(model_folder, tmp_path / "model"))
  damage(folder)
  error = refused(
    tmp_path,
    "--stages=generate",
    f"--config.generate.model={folder}",
    "--prompt=some",
  )
  assert words in error
  assert str(folder) in error
  assert not (tmp_path / "run").exists()


def test_a_hub_id_is_read_offline_at_its_revision(
  tmp_path, model_folder, monkeypatch
):
  """From a cache that was filled before, as on a machine without network."""
  cache = tmp_path / "hub" / "models--some--model"
  commit = "0" * 40
  (cache / "refs").mkdir(parents=True)
  (cache / "refs" / "v2").write_text(commit)
  shutil.copytree(model_folder, cache / "snapshots" / commit)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  arguments = "--stages=generate", "--config.generate.model=some/model"
  more = "--prompt=some", "--config.generate.max_new_tokens=3"
  more_v2 = *more, "--config.generate.revision=v2"
  done = run_as_process(tmp_path, *arguments, *more_v2)
  assert "3 new tokens" in done.stdout or "ended" in done.stdout
  error = refused_as_process(tmp_path, *arguments, *more)
  assert "some/model, revision main" in error
