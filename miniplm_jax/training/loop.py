"""The training loop, read from top to bottom.

Batch s is a function of (rows, seed, s), the state after s steps is
checkpoint s, so a run that was killed goes on as if it had not been.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.config import RunConfig, TrainConfig
from miniplm_jax.core import distributed, signals
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, log
from miniplm_jax.core.signals import Stopped
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import placement, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import batches, optimizer, watch
from miniplm_jax.training.checkpoints import Checkpoints
from miniplm_jax.training.objective import NextToken
from miniplm_jax.training.spec import TrainSpec
from miniplm_jax.training.telemetry import STEPS, Clock, Heldout, Telemetry


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["step", "model", "opt_state"],
  meta_fields=[],
)
@dataclasses.dataclass
class State:
  """Everything that a checkpoint holds."""

  step: Any  # int32, batches consumed
  model: nnx.Module  # the parameters, float32
  opt_state: Any  # optax's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """A training and what was read for it."""

  spec: TrainSpec
  corpus: Corpus
  row_ids: np.ndarray  # to train on, in corpus order
  curve_ids: np.ndarray  # the held-out rows of the learning curve
  # What decides the result, and the rows of the curve, JSON; checkpoints
  # carry it.
  made_by: Mapping[str, Any] | None = None
  # What is minimized; None is the plain next-token loss.
  objective: NextToken | None = None
  # () → the weights to begin with, float32 on the mesh; None draws them.
  begin: Callable[[], nnx.Module] | None = None
  # (the state's shapes) → the step, the state, and whether the learning curve
  # is of the same rows, of a training that this one goes on from.
  goes_on: Callable[[State], tuple[int, State, bool]] | None = None
  # (step, model), called every run.export_every steps; None is never.
  export: Callable[[int, nnx.Module], None] | None = None


def _new_state(
  arch: Architecture, train: TrainConfig | None, new_model, key
) -> State:
  model = new_model(arch, nnx.Rngs(key))
  if train is None:
    return State(None, model, None)
  opt_state = optimizer.make(train).init(model)
  return State(jnp.zeros((), jnp.int32), model, opt_state)


def abstract_state(
  arch: Architecture,
  train: TrainConfig | None,
  mesh: Mesh,
  new_model=NextToken.new_model,
) -> State:
  """The state as ShapeDtypeStructs with their shardings.

  Without an optimizer, `train` being None, of what is trained alone.
  """
  new = functools.partial(_new_state, arch, train, new_model)
  shapes = jax.eval_shape(new, jax.random.key(0))
  return jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
    shapes,
    sharding.shardings(shapes, mesh),
  )


def step_function(
  abstract: State,
  train: TrainConfig,
  objective: NextToken,
  mesh: Mesh,
  microbatches: int,
):
  """The jitted training step: (state, batch, frozen) → (state, metrics).

  The state has the shardings of `abstract` and is donated; `frozen` is the
  objective's. Weights are normalized over the whole batch before it is split,
  so the gradient is the sum of the microbatches', and the result the same. The
  objective's first pass, if it has one, takes the same microbatches.
  """
  tx = optimizer.make(train)
  # optax counts the updates of `opt_state`, as many as `state.step`.
  schedule = optimizer.learning_rate_schedule(train)

  # A microbatch has rows of every device: the inner axis is split off.
  def split(x):
    x = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
    where = NamedSharding(mesh, P(None, sharding.BATCH))
    return jax.lax.with_sharding_constraint(x, where)

  def merge(x):
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return jax.lax.with_sharding_constraint(x, sharding.batch_sharding(mesh))

  def step(state: State, batch, frozen=()) -> tuple[State, dict[str, Any]]:
    # What is drawn in a step depends on the seed and the step alone.
    key = jax.random.fold_in(jax.random.key(train.seed), state.step)
    if objective.first_pass:
      one = functools.partial(objective.first_pass, state.model)
      values = jax.lax.map(one, jax.tree.map(split, batch))
      batch = batch | jax.tree.map(merge, values)
    inputs, total = objective.loss_inputs(batch, state.model, frozen, key)

    def grad_of(*inputs):
      loss_of = functools.partial(objective.loss, frozen=frozen)
      return jax.value_and_grad(loss_of, has_aux=True)(state.model, *inputs)

    if microbatches == 1:
      (loss, parts), grads = grad_of(*inputs)
    else:

      def accumulate(added, xs):
        return jax.tree.map(jnp.add, added, grad_of(*xs)), None

      xs = tuple(map(split, inputs))
      first = jax.eval_shape(grad_of, *(x[0] for x in xs))
      zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)
      ((loss, parts), grads), _ = jax.lax.scan(accumulate, zero, xs)
    updates, opt_state = tx.update(grads, state.opt_state, state.model)
    metrics = {
      "train/loss": loss,
      "train/grad_norm": optax.global_norm(grads),
      "train/learning_rate": schedule(state.step),
      "train/total_weights": total,
      **parts,
    }
    model = optax.apply_updates(state.model, updates)
    return State(state.step + 1, model, opt_state), metrics

  where = jax.tree.map(lambda s: s.sharding, abstract)
  return jax.jit(step, donate_argnums=0, out_shardings=(where, None))


def train(training: Training, mesh: Mesh) -> nnx.Module:
  """Trains to its last step, from the newest checkpoint if there is one.

  Returns:
    The trained model.

  Raises:
    UserError: the loss is not finite, or the shapes do not fit together.
    Stopped: on a signal, after saving.
  """
  spec, corpus = training.spec, training.corpus
  t, run = spec.train, spec.run.of(spec.train.steps)
  objective = training.objective or NextToken(t, corpus.eos_id, run.remat)
  microbatches = _microbatches(training, mesh)
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    clock = Clock(spec.folder / "metrics")
    stack.push(_closing(functools.partial(clock.close, spec.name)))
    # 1. The state: the newest sound checkpoint, else that of an earlier stage,
    # else a new one from the seed.
    checkpoints = Checkpoints(
      spec.folder / "checkpoints",
      run.keep_checkpoints,
      run.keep_every,
      training.made_by,
    )
    stack.push(_closing(checkpoints.close))
    abstract = abstract_state(spec.shape, t, mesh, objective.new_model)
    first, state = checkpoints.restore_newest(spec.name, abstract)
    is_same_curve = not first or checkpoints.is_same_curve(first)
    if first:
      log(spec.name, f"restored checkpoint {first} of {t.steps} steps")
    elif training.goes_on:
      first, state, is_same_curve = training.goes_on(abstract)
      log(spec.name, f"goes on after step {first} of {t.steps} steps")
    else:
      new = functools.partial(_new_state, spec.shape, t, objective.new_model)
      where = jax.tree.map(lambda s: s.sharding, abstract)
      state = jax.jit(new, out_shardings=where)(jax.random.key(t.seed))
      model = training.begin() if training.begin else state.model
      model = objective.started(model)
      state = dataclasses.replace(state, model=model)
    _say_size(training, run)

    # 2. Data, compiled functions, logs.
    before, last_step = spec.between[0], spec.last_step
    stream = batches.stream(
      corpus,
      training.row_ids,
      t,
      first_step=first - before,
      steps=last_step - before,
      mesh=mesh,
      with_rows=objective.with_rows,
    )
    step_fn = step_function(abstract, t, objective, mesh, microbatches)
    dtype, curve_ids = jnp.dtype(t.dtype), training.curve_ids
    heldout = Heldout(
      corpus, curve_ids, dtype, mesh, t.batch_size // microbatches
    )
    has_curve = objective.has_curve and len(curve_ids)
    eval_every = run.eval_every if has_curve else 0
    telemetry = Telemetry(spec, first, clock, is_same_curve)
    stack.push(_closing(telemetry.close))
    profile = watch.Profile(spec, telemetry)
    stack.push(_closing(profile.close))
    watchdog = watch.Watchdog(
      spec.name, spec.folder / "metrics", run.hang_seconds
    )
    progress = stack.enter_context(
      Progress(spec.name, last_step, "steps", first, every=float("inf"))
    )

    # 3. The loop. Nothing in it waits for the step that it dispatched; what
    # is read is the step before.
    stack.enter_context(watchdog.watching())
    clock.switch(STEPS)
    for done in range(first + 1, last_step + 1):
      batch = next(stream)
      row_ids = batch.pop("row_id")
      batch = placement.put(batch, mesh)
      if done == first + 1:
        # jit keeps it for the call below.
        with telemetry.outside("compilation"):
          compiled = step_fn.lower(abstract, batch, objective.frozen).compile()
          log(
            spec.name, watch.memory_report(abstract, objective.frozen, compiled)
          )
          distributed.meet()  # on CPU the first collective waits for 30 s
        # From here on there are steps to lose.
        stack.enter_context(signals.deferred())
      profile.before(done)
      with jax.profiler.StepTraceAnnotation("train", step_num=done):
        state, values = step_fn(state, batch, objective.frozen)
      telemetry.add(done, values, row_ids)
      profile.after(done)
      watchdog.beat(done)
      progress.update(1, telemetry.note)
      stop = distributed.stops_at(done, signals.stop_requested())
      last = done == last_step
      if eval_every and (last or done % eval_every == 0):
        with telemetry.outside("evaluation"):
          losses = heldout(state.model)
        telemetry.write(done, losses)
      if training.export and done % run.export_every == 0:
        with telemetry.outside("export"):
          training.export(done, state.model)
      if last or stop or done % run.checkpoint_every == 0:
        # A loss that is not finite raises here, before it is saved.
        with telemetry.outside("saving"):
          # Before: a resumed run drops lines, it adds none.
          telemetry.save(done)
          checkpoints.save(done, state)
          if last or stop:  # while no signal makes it hurry
            checkpoints.wait()
      if stop:
        log(spec.name, f"stopped by a signal, saved checkpoint {done}")
        raise Stopped(stop)
  return state.model


def _closing(close: Callable[[], None]):
  """Closes at the end; after an error what then fails too says nothing new."""

  def end(kind, *unused):
    with contextlib.suppress(*([UserError, OSError] if kind else [])):
      close()

  return end


def _microbatches(training: Training, mesh: Mesh) -> int:
  """Returns how many a batch is split into, by per_device_batch_size."""
  spec, corpus = training.spec, training.corpus
  t, shards = spec.train, sharding.batch_shards(mesh)
  rows, odd = divmod(t.batch_size, shards)
  if odd:
    raise UserError(
      f"batch_size {t.batch_size} does not split over {shards} devices",
      f"config of {spec.name}",
      "choose a multiple, or another mesh",
    )
  corpus.check_vocabulary(
    spec.shape.vocab_size,
    f"config of {spec.name}",
    "set the model's vocab_size to that or more",
  )
  if not len(training.row_ids):
    raise UserError(
      "there are no rows to train on",
      f"{spec.name}, corpus {corpus.directory}",
      "give the split a larger share, or a larger corpus",
    )
  most = min(spec.run.per_device_batch_size or rows, rows)
  return next(n for n in range(-(-rows // most), rows + 1) if rows % n == 0)


def _say_size(training: Training, run: RunConfig):
  spec, row_ids = training.spec, training.row_ids
  t, weights = spec.train, spec.train.domain_weights
  count = len(batches.trained_on(training.corpus, row_ids, weights))
  steps = spec.last_step - spec.between[0]
  epochs = steps * t.batch_size / count
  log(
    spec.name,
    f"{spec.shape.parameters():,} parameters, {steps:,} steps of "
    f"{t.batch_size} rows, {epochs:.2f} epochs of {count:,} rows; every "
    f"{run.checkpoint_every:,} a checkpoint, every {run.eval_every:,} a "
    "held-out loss",
  )
  if weights:
    domains = batches.by_domain(training.corpus, row_ids, weights)
    for name, rows, share in domains:
      epochs = float(share * steps * t.batch_size / len(rows))
      log(
        spec.name,
        f"{name}: {float(share):.1%} of the rows, {epochs:.2f} epochs",
      )
