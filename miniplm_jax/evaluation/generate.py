"""Look generate: what a model writes after the beginning of a text."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath, epy

from miniplm_jax.config import GenerateConfig, RunConfig
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.workdir import MANIFEST

with epy.lazy_imports():
  from miniplm_jax.corpus import tokenizer
  from miniplm_jax.evaluation import texts
  from miniplm_jax.models import generation, hub, placement, sharding

STAGE = "generate"


class Continuation(NamedTuple):
  """A prompt, and what a model wrote after it."""

  prompt: str
  text: str  # what was written
  n_tokens: int  # of it
  is_ended: bool  # by the model, with an end of text


def continue_prompts(
  model: "texts.TextModel", prompts: Sequence[str], generate: GenerateConfig
) -> tuple[list[list[Continuation]], float]:
  """Draws `generate.samples` continuations of each prompt, in one batch.

  Dtype and model are those of `model`, not of `generate`.

  Returns:
    They, and how many seconds it took without compilation.

  Raises:
    UserError: a prompt does not fit, or the logits are not finite.
  """
  import jax
  import jax.numpy as jnp

  arch, engine, mesh = model.decoder.arch, model.engine, model.mesh
  encoded = [encode(engine, arch, generate, text) for text in prompts]
  rows = [ids for ids in encoded for _ in range(generate.samples)]
  shards = sharding.batch_shards(mesh)
  batch = generation.pad_left(rows, -(-len(rows) // shards) * shards)
  with jax.set_mesh(mesh):
    program = generation.compiled(
      mesh,
      sampling=generation.Sampling(
        generate.max_new_tokens,
        generate.temperature,
        generate.top_k,
        generate.top_p,
      ),
      seed=generate.seed,
      eos_ids=model.eos_ids,
      # The tokenizer may know fewer ids than the head has rows.
      vocabulary=min(tokenizer.vocab_size(engine), arch.vocab_size),
      dtype=jnp.dtype(model.dtype),
    )
    arguments = model.decoder, placement.put_whole(batch, mesh)
    program = program.lower(*arguments).compile()
    start = time.monotonic()
    drawn = placement.fetch(program(*arguments), np.arange(len(rows)))
    seconds = time.monotonic() - start
  order = np.argsort(drawn.row_B)
  values = jax.tree.map(lambda x: x[order], drawn.values)
  if not values.finite.all():
    raise UserError(
      "the model's logits are not finite",
      str(model.folder),
      "its weights hold NaN or overflow; try --config.generate.dtype=float32",
    )
  continuations = []
  for prompt_ids, tokens, n in zip(rows, values.tokens, values.length):
    ids = tokens[:n].tolist()
    before = engine.decode(prompt_ids)
    after = engine.decode([*prompt_ids, *ids])[len(before) :]
    is_ended = ids[-1] in model.eos_ids
    continuations.append(Continuation(before, after, len(ids), is_ended))
  starts = range(0, len(rows), generate.samples)
  return [continuations[i : i + generate.samples] for i in starts], seconds


def encode(engine, arch, generate: GenerateConfig, text: str) -> list[int]:
  """A prompt's ids, with what the tokenizer puts in front (Llama's BOS).

  Raises:
    UserError: it does not fit the model, or is empty.
  """
  ids = engine.encode(text).ids
  # As in evaluation: a prompt that begins with it does not get it twice.
  plain_ids = engine.encode(text, add_special_tokens=False).ids
  ids = plain_ids if plain_ids[:1] == ids[:1] else ids
  limit = getattr(arch, "max_position_embeddings", None)
  new = generate.max_new_tokens
  if not ids or (limit and len(ids) + new > limit):
    raise UserError(
      f"a prompt of {len(ids):,} tokens and {new:,} new ones do not fit "
      f"{limit:,} positions"
      if ids
      else "a prompt is empty",
      f"--prompt={text[:40]!r}",
      "shorten it, or give fewer max_new_tokens" if ids else "give some text",
    )
  if max(ids) >= arch.vocab_size:
    raise UserError(
      f"the tokenizer's id {max(ids)} is beyond the model's vocabulary of "
      f"{arch.vocab_size:,}",
      generate.model or "the student",
      "the directory's tokenizer.json is of another model",
    )
  return ids


def look(
  generate: GenerateConfig,
  student: epath.Path,
  run: RunConfig,
  dry_run: bool = False,
):
  """Says the continuations of some prompts.

  Args:
    student: folder of the student that writes, if no model is given.
    dry_run: say only what would be done.

  Raises:
    UserError: there is no prompt or no model, or a prompt does not fit.
  """
  if dry_run:
    source = generate.model or "the exported student"
    what = f"{generate.samples} × {generate.max_new_tokens} tokens by {source}"
    plain(f"  {STAGE:9} would continue {len(generate.prompts)} prompts, {what}")
    return
  if not generate.prompts:
    raise UserError(
      "there is nothing to continue",
      "config.generate.prompts",
      'give --prompt="Once upon a time"; it can be given several times',
    )
  folder = (
    hub.resolve(generate.model, generate.revision)
    if generate.model
    else exported(student)
  )
  mesh = sharding.mesh_of(run)
  model = texts.TextModel.load(folder, mesh, generate.dtype)
  by_prompt, seconds = continue_prompts(model, generate.prompts, generate)
  total = 0
  for i, samples in enumerate(by_prompt):
    for one in samples:
      ended = "ended" if one.is_ended else "cut"
      plain(f"--- prompt {i + 1}, {one.n_tokens} new tokens, {ended}")
      plain(one.prompt + one.text)
      total += one.n_tokens
  log(
    STAGE,
    f"{total:,} tokens in {seconds:.1f} s, {total / seconds:.1f} tokens/s, "
    f"batch {len(generate.prompts) * generate.samples}, {generate.dtype}, "
    f"without compilation: {folder}",
  )


def exported(student: epath.Path) -> epath.Path:
  """The Hugging Face directory of a student, by its folder.

  Raises:
    UserError: there is none, or it is not what was exported last.
  """
  directory = student / "hf"
  manifest = manifest_lib.read(directory / MANIFEST)
  if not manifest:
    raise UserError(
      "the student is not exported yet",
      str(directory),
      "run --stages=train,export, or give --config.generate.model",
    )
  if trained := manifest_lib.read(student / MANIFEST):
    manifest.check_inputs({"model": trained})
  manifest.check_content()
  return directory
