"""Stage generate: continues prompts and prints what came out."""

from miniplm_jax.core import hosts, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.workdir import MANIFEST, Workdir

STAGE = "generate"


def run(config, workdir: Workdir, dry_run: bool = False):
  """Prints the continuations of `config.generate.prompts`.

  Raises:
    UserError: there is no prompt or no model, or a prompt does not fit.
  """
  c = config.generate
  if dry_run:
    source = c.model or "the exported student"
    what = f"{c.samples} × {c.max_new_tokens} tokens by {source}"
    plain(f"  {STAGE:9} would continue {len(c.prompts)} prompts, {what}")
    return
  if not c.prompts:
    raise UserError(
      "there is nothing to continue",
      "config.generate.prompts",
      'give --prompt="Once upon a time"; it can be given several times',
    )
  _continue(config, _directory(config, workdir))


def _continue(config, directory):
  import time

  import jax
  import jax.numpy as jnp
  import numpy as np

  from miniplm_jax.corpus import tokenizer
  from miniplm_jax.models import (
    generation,
    hub,
    huggingface,
    placement,
    sharding,
  )

  c, run = config.generate, config.run
  engine = tokenizer.load_engine(directory)
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  model = huggingface.load(directory, mesh, jnp.dtype(c.dtype))
  arch = model.arch
  prompts = [_encode(engine, arch, c, text) for text in c.prompts]
  rows = [ids for ids in prompts for _ in range(c.samples)]
  shards = sharding.batch_shards(mesh)
  batch = generation.pad_left(rows, -(-len(rows) // shards) * shards)
  eos_ids = hub.eos_ids(directory)
  with jax.set_mesh(mesh):
    program = generation.compiled(
      mesh,
      sampling=generation.Sampling(
        c.max_new_tokens, c.temperature, c.top_k, c.top_p
      ),
      seed=c.seed,
      eos_ids=eos_ids,
      # The tokenizer may know fewer ids than the head has rows.
      vocabulary=min(tokenizer.vocab_size(engine), arch.vocab_size),
      dtype=jnp.dtype(c.dtype),
    )
    arguments = model, placement.put_whole(batch, mesh)
    program = program.lower(*arguments).compile()
    start = time.monotonic()
    made = placement.fetch(program(*arguments), np.arange(len(rows)))
    seconds = time.monotonic() - start
  order = np.argsort(made.row_B)
  found = jax.tree.map(lambda x: x[order], made.values)
  if not found.finite.all():
    raise UserError(
      "the model's logits are not finite",
      str(directory),
      "its weights hold NaN or overflow; try --config.generate.dtype=float32",
    )
  for i in range(len(rows) if hosts.is_first() else 0):
    ids = found.tokens[i, : found.length[i]].tolist()
    ended = "ended" if ids[-1] in eos_ids else "cut"
    plain(f"--- prompt {i // c.samples + 1}, {len(ids)} new tokens, {ended}")
    before = engine.decode(rows[i])
    plain(before + engine.decode([*rows[i], *ids])[len(before) :])
  total = int(found.length.sum())
  log(
    STAGE,
    f"{total:,} tokens in {seconds:.1f} s, {total / seconds:.1f} tokens/s, "
    f"batch {len(rows)}, {c.dtype}, without compilation: {directory}",
  )


def _directory(config, workdir: Workdir):
  from miniplm_jax.models import hub

  c = config.generate
  if c.model:
    return hub.resolve(c.model, c.revision)
  student = workdir.student(config.names_of(config.method).student)
  directory = student / "hf"
  exported = manifest.read(directory / MANIFEST)
  if not exported:
    raise UserError(
      "the student is not exported yet",
      str(directory),
      "run --stages=train,export, or give --config.generate.model",
    )
  if trained := manifest.read(student / MANIFEST):
    exported.check_inputs({"model": trained})
  exported.check_content()
  return directory


def _encode(engine, arch, c, text: str) -> list[int]:
  """A prompt's ids, with what the tokenizer puts in front (Llama's BOS)."""
  ids = engine.encode(text).ids
  # As in evaluation: a prompt that begins with it does not get it twice.
  given = engine.encode(text, add_special_tokens=False).ids
  ids = given if given[:1] == ids[:1] else ids
  limit = getattr(arch, "max_position_embeddings", None)
  if not ids or (limit and len(ids) + c.max_new_tokens > limit):
    raise UserError(
      f"a prompt of {len(ids):,} tokens and {c.max_new_tokens:,} new ones do "
      f"not fit {limit:,} positions"
      if ids
      else "a prompt is empty",
      f"--prompt={text[:40]!r}",
      "shorten it, or give fewer max_new_tokens" if ids else "give some text",
    )
  if max(ids) >= arch.vocab_size:
    raise UserError(
      f"the tokenizer's id {max(ids)} is beyond the model's vocabulary of "
      f"{arch.vocab_size:,}",
      c.model or "the student",
      "the directory's tokenizer.json is of another model",
    )
  return ids
