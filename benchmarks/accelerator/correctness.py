"""Part correctness: both sides against float64 by torch on CPU.

One model, grouped queries, biases, tied, in weights that bfloat16 holds
exactly. NLL of every token, gradients by kind of parameter, and what a step
of AdamW changes. What transformers is off on the same device is the yardstick.
"""

import pathlib
import re
import time
from typing import Any

import numpy as np
from etils import epath

from benchmarks.accelerator import models, ours, races, theirs
from benchmarks.accelerator.contest import Contender, Entrant, hold
from benchmarks.accelerator.results import Store, reason
from benchmarks.accelerator.settings import Settings

DTYPES = ("float32", "bfloat16")
_REFERENCE = "float64"
_FILES = ("nll", "gradients", "change")
_SHARE = 0.9  # of the part's time until results are there


def run(settings: Settings, store: Store):
  """Holds a contest of no turns: what is told first is the result."""
  sides = [races.OURS, races.THEIRS]
  if not races.has_theirs(settings, store):
    sides.pop()
  wanted = [name for name in sides if not store.is_done(name)]
  if not wanted:
    return
  arch, count, length = settings.plan.exact
  model = models.ready(settings, models.EXACT)
  rows = next(models.batches(arch.vocab_size, count, length))
  by = time.time() + _SHARE * settings.left
  where, platform = settings.scratch, store.facts["platform"]
  made = {
    races.OURS: Contender(races.OURS, _ours, (model, rows, where, by)),
    races.THEIRS: Contender(
      races.THEIRS, _theirs, (model, rows, where, by, platform)
    ),
  }
  reference = Contender(_REFERENCE, _reference, (model, rows, where))
  contenders = [*(made[name] for name in wanted), reference]
  outcome = hold(contenders, 0, ready_by=by, say=settings.say)
  for name in wanted:
    if name in outcome.first:
      store.put(name, outcome.first[name])
    else:
      store.fail(name, outcome.failed[name])


def _reference(model: str, rows, where: str):
  """Torch on CPU in float64; needs the device of nobody."""
  made = pathlib.Path(where, "reference")
  try:
    import torch

    found = _of_torch(model, rows, torch.device("cpu"), _REFERENCE)
  except Exception as e:
    made.write_text(reason(e))  # others wait for it
    raise
  for name, value in zip(_FILES, found):
    np.savez(f"{where}/{name}.npz", **value)
  made.touch()
  return lambda: Entrant({}, lambda: None)


def _theirs(model: str, rows, where: str, by: float, platform: str):
  device = theirs.device_of(platform)

  def prepare():
    found = {d: _of_torch(model, rows, device, d) for d in DTYPES}
    return Entrant(_errors(found, where, by), lambda: None)

  return prepare


def _of_torch(model: str, rows, device, dtype: str):
  """NLL [B, T], gradients and change, by name."""
  import torch
  from torch.nn import functional

  tokens = torch.from_numpy(rows).long().to(device)
  wide = "float64" if dtype == _REFERENCE else "float32"
  train = ours.section(len(rows))

  def nll_of(decoder):
    with torch.autocast(
      device.type, torch.bfloat16, enabled=dtype == "bfloat16"
    ):
      logits = decoder(tokens[:, :-1], use_cache=False).logits
    if dtype != _REFERENCE:
      logits = logits.float()
    targets = tokens[:, 1:].flatten()
    return functional.cross_entropy(
      logits.flatten(0, 1), targets, reduction="none"
    )

  def on_host(tensor):
    # A copy: of float64 on CPU the rest is a view, which the step changes.
    return tensor.detach().to(torch.float64).cpu().numpy().copy()

  # Scoring has its weights in the dtype, training in float32.
  decoder = theirs.load(
    model, device, _REFERENCE if dtype == _REFERENCE else dtype
  )
  with torch.inference_mode():
    nll = on_host(nll_of(decoder.eval()).view(len(rows), -1))
  decoder = theirs.load(model, device, wide).train()
  optimizer = theirs.adamw(decoder, train, fused=dtype != _REFERENCE)
  nll_of(decoder).mean().backward()
  named = dict(decoder.named_parameters())
  gradients = {k: on_host(p.grad).astype(np.float32) for k, p in named.items()}
  before = {k: on_host(p) for k, p in named.items()}
  torch.nn.utils.clip_grad_norm_(decoder.parameters(), train.clip_norm)
  optimizer.step()
  change = {
    k: (on_host(p) - before[k]).astype(np.float32) for k, p in named.items()
  }
  return {"nll": nll}, gradients, change


def _ours(model: str, rows, where: str, by: float):
  import jax

  from miniplm_jax.models import sharding

  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])

  def prepare():
    with jax.set_mesh(mesh):
      found = {d: _of_ours(model, rows, mesh, d) for d in DTYPES}
    return Entrant(_errors(found, where, by), lambda: None)

  return prepare


def _of_ours(model: str, rows, mesh, dtype: str):
  """The same of our kernels: scoring's, the objective's, the step's."""
  import jax
  import jax.numpy as jnp

  from benchmarks.accelerator.races import REMAT
  from miniplm_jax.models import head, huggingface, likelihood, placement
  from miniplm_jax.training.objective import NextToken

  path, train = epath.Path(model), ours.section(len(rows), dtype)
  inputs, targets = jnp.asarray(rows[:, :-1]), jnp.asarray(rows[:, 1:])

  @jax.jit
  def nll_of(decoder):
    with likelihood.matmul_precision(dtype):
      hidden = decoder(inputs, dtype=jnp.dtype(dtype))
      return head.token_nll(
        hidden, decoder.head_VxD, targets, decoder.arch.vocab_size
      )

  nll = np.asarray(nll_of(huggingface.load(path, mesh, jnp.dtype(dtype))))
  decoder = huggingface.load(path, mesh)
  objective = NextToken(train, models.EOS, REMAT)
  counts = np.full(len(rows), rows.shape[1], np.int32)
  batch = placement.put({"tokens": rows, "length": counts}, mesh)
  arrays, _ = objective.loss_inputs(batch, decoder, (), None)
  loss = jax.jit(jax.grad(lambda *a: objective.loss(*a, frozen=())[0]))
  gradients = huggingface.to_tensors(loss(decoder, *arrays))
  before = huggingface.to_tensors(decoder)
  state, _, step = ours.started(decoder, train, objective, mesh, 1)
  state, _ = step(state, batch)
  after = huggingface.to_tensors(state.model)
  change = {k: after[k] - before[k] for k in before}
  return {"nll": nll.astype(np.float64)}, gradients, change


def _errors(found: dict[str, Any], where: str, by: float) -> dict[str, Any]:
  """Of each dtype, against the reference; waits for it.

  Raises:
    RuntimeError: it could not be made.
    TimeoutError: there is none in time.
  """
  made = pathlib.Path(where, "reference")
  while not made.exists():
    if time.time() > by:
      raise TimeoutError("the float64 reference was not made in time")
    time.sleep(0.2)
  if why := made.read_text():
    raise RuntimeError(f"there is no reference: {why}")
  wanted = [np.load(f"{where}/{name}.npz") for name in _FILES]
  return {
    dtype: _errors_of(*values, *wanted) for dtype, values in found.items()
  }


def _errors_of(nll, gradients, change, nll64, gradients64, change64):
  off = nll["nll"] - nll64["nll"]
  return {
    "nll_most": np.abs(off).max(),
    "nll_mean": np.abs(off).mean(),
    "nll_rms": np.sqrt(np.mean(off**2)),
    "nll_bias": off.mean(),
    "tokens": off.size,
    "gradients": _relative(gradients, gradients64),
    "change": _relative(change, change64),
  }


def _relative(found, wanted) -> dict[str, float]:
  """‖found − wanted‖ / ‖wanted‖ by kind of parameter, and of all."""
  off, size = {}, {}
  for name in wanted.files:
    reference = wanted[name].astype(np.float64)
    kind = re.sub(r"^.*layers\.\d+\.|^model\.|\.weight$", "", name)
    difference = np.sum((found[name] - reference) ** 2)
    for group in (kind, "all"):
      off[group] = off.get(group, 0) + difference
      size[group] = size.get(group, 0) + np.sum(reference**2)
  return {group: np.sqrt(off[group] / size[group]) for group in off}
