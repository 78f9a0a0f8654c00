"""How a run is carried out."""

import dataclasses
from typing import Self

from miniplm_jax.core import fields as f
from miniplm_jax.core.fields import Section

# How long something may take, in seconds: up to three years.
_SECONDS = "[0, 1e8]"
REMAT = ("none", "full", "dots")
_MOST = 1000  # steps between checkpoints, or held-out losses, if none are said


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
  """How it runs, not what comes out: none of it is in a fingerprint."""

  # The mesh of a TPU slice; each of several has copies of its own.
  data: int = f.number(1, "[1, 2^20)", -1)  # copies of the weights
  # shards of weights and batch; -1, what is left
  fsdp: int = f.number(-1, "[1, 2^20)", -1)
  # shards of heads, FFN and vocabulary
  tensor: int = f.number(1, "[1, 2^20)", -1)
  # The most rows of a device at a time; 0 is all. Gradients of more rows
  # are accumulated, in as few turns of equal size as there can be.
  per_device_batch_size: int = f.number(0, "[0, inf)")
  # What the backward pass forms again: full, a layer; dots, all but its
  # products; none, only attention's weights.
  remat: str = f.word("full", REMAT)
  # steps; 0 is a tenth of the training, and 1000 at most
  checkpoint_every: int = f.number(0, "[0, inf)")
  keep_checkpoints: int = f.number(2, "[1, inf)")  # the newest
  # steps; those of its multiples are kept too; 0: none
  keep_every: int = f.number(0, "[0, inf)")
  # steps between held-out losses; 0 is never; -1 is a twentieth of the
  # training, and 1000 at most
  eval_every: int = f.number(-1, "[0, inf)", -1)
  # held-out rows of the learning curve
  eval_rows: int = f.number(512, "[1, inf)")
  log_every_seconds: float = f.number(30.0, _SECONDS)
  # Steps between models that are written during training, for others:
  # students/<name>/hf-<step>, as section export says; 0 is never.
  export_every: int = f.number(0, "[0, inf)")
  # Metrics go to this project of Weights & Biases too; "" is none. Needs
  # the extra wandb; WANDB_MODE=offline keeps them here.
  wandb_project: str = f.text("", r"[^/\\#?%:]*", "leave out /\\#?%:")
  # A trace of so many steps, in metrics/profile; 0 is none.
  profile_steps: int = f.number(0, "[0, inf)")
  profile_first_step: int = f.number(10, "[1, inf)")  # that it begins with
  # A step, or what stands between two, that takes longer has the stacks
  # of all threads written, and goes on; 0 is off.
  hang_seconds: float = f.number(1800.0, _SECONDS)
  # Processes that tokenize; 0 is one a core.
  tokenize_workers: int = f.number(0, "[0, 4096]")
  # Options of an Apache Beam pipeline that tokenizes instead, such as
  # "--runner=DataflowRunner --region=us-central1".
  beam: str = f.text("", ".*")
  # records of the corpus that may be left out
  max_broken: int = f.number(0, "[0, 2^63)")
  # All models score a batch before the next one is read; False takes
  # one model after the other, if they do not fit together.
  score_together: bool = f.switch(True)
  # Another worker takes over a part that nobody renewed for so long.
  lease_seconds: float = f.number(120.0, "(0, 1e8]")
  # Rows of a finished table that are scored again before it counts as
  # finished, see section verify; 0 is off.
  self_check_rows: int = f.number(64, "[0, inf)")
  # what other versions of the code began will do
  any_code: bool = f.switch(False)
  # Several processes as one program: HOST:PORT of the first, or "auto"
  # on a TPU pod.
  coordinator: str = f.text(
    "",
    r"(auto|\S+:\d{1,5})?",
    "give HOST:PORT of the first process, or auto on a TPU pod",
  )
  processes: int = f.number(1, "[1, 2^20)")
  process_id: int = f.number(0, "[0, 2^20)")
  # seconds without a sign of a process; then all end
  lost_after: int = f.number(100, "[1, inf)")
  # A folder, below the workdir if it is relative, of what was compiled, so
  # that the next start need not. "" keeps nothing. JAX_COMPILATION_CACHE_DIR,
  # if it is set, counts instead.
  compilation_cache: str = f.path("compiled")
  # On GPUs, the same bits each time, which takes longer: see
  # docs/training.md. TPUs and CPUs need it not.
  deterministic: bool = f.switch(False)

  def _rules(self):
    good = (self.data, self.fsdp, self.tensor).count(-1) <= 1
    yield "data, fsdp, tensor", good, "let one be -1, what is left"
    every = self.checkpoint_every or _MOST
    hint = f"give 0 or a multiple of checkpoint_every, {every}"
    yield "keep_every", self.keep_every % every == 0, hint
    good = self.process_id < self.processes or self.coordinator == "auto"
    yield "process_id", good, "give less than run.processes"

  def of(self, steps: int) -> Self:
    """The same for a training of so many steps: every interval is known."""
    tenth, twentieth = (min(-(-steps // n), _MOST) for n in (10, 20))
    saves = _MOST if self.keep_every else tenth  # that is a multiple of it
    looks = twentieth if self.eval_every < 0 else self.eval_every
    saves = self.checkpoint_every or saves
    return self.replace(checkpoint_every=saves, eval_every=looks)
