"""How it runs, not what comes out: none of this is part of a fingerprint.

A section of the config.
"""

from miniplm_jax.core.fields import number, path, switch, text, word

# How long something may take, in seconds: up to three years.
_SECONDS = "[0, 1e8]"


def section():
  """Its fields."""
  return {
    # The mesh of a TPU slice; each of several has copies of its own.
    "data": number(1, "[1, 2^20)", -1),  # copies of the weights
    # shards of weights and batch; -1, what is left
    "fsdp": number(-1, "[1, 2^20)", -1),
    "tensor": number(1, "[1, 2^20)", -1),  # shards of heads, FFN and vocabulary
    # The most rows of a device at a time; 0 is all. Gradients of more rows
    # are accumulated, in as few turns of equal size as there can be.
    "per_device_batch_size": number(0, "[0, inf)"),
    # What the backward pass forms again: full, a layer; dots, all but its
    # products; none, only attention's weights.
    "remat": word("full", ("none", "full", "dots")),
    "checkpoint_every": number(1000, "[1, inf)"),  # steps
    "keep_checkpoints": number(2, "[1, inf)"),  # the newest
    # steps; those of its multiples are kept too; 0: none
    "keep_every": number(0, "[0, inf)"),
    # steps between held-out losses; 0 is never
    "eval_every": number(1000, "[0, inf)"),
    "eval_rows": number(512, "[1, inf)"),  # held-out rows of the learning curve
    "log_every_seconds": number(30.0, _SECONDS),
    # Steps between models that are written during training, for others:
    # students/<name>/hf-<step>, as section export says; 0 is never.
    "export_every": number(0, "[0, inf)"),
    # Metrics go to this project of Weights & Biases too; "" is none. Needs
    # the extra wandb; WANDB_MODE=offline keeps them here.
    "wandb_project": text("", r"[^/\\#?%:]*", "leave out /\\#?%:"),
    # A trace of so many steps, in metrics/profile; 0 is none.
    "profile_steps": number(0, "[0, inf)"),
    "profile_first_step": number(10, "[1, inf)"),  # that it begins with
    # A step, or what stands between two, that takes longer has the stacks
    # of all threads written, and goes on; 0 is off.
    "hang_seconds": number(1800.0, _SECONDS),
    # Processes that tokenize; 0 is one a core.
    "tokenize_workers": number(0, "[0, 4096]"),
    # Options of an Apache Beam pipeline that tokenizes instead, such as
    # "--runner=DataflowRunner --region=us-central1".
    "beam": text("", ".*"),
    # records of the corpus that may be left out
    "max_broken": number(0, "[0, 2^63)"),
    # All models score a batch before the next one is read; False takes
    # one model after the other, if they do not fit together.
    "score_together": switch(True),
    # Another worker takes over a part that nobody renewed for so long.
    "lease_seconds": number(120.0, "(0, 1e8]"),
    # Rows of a finished table that are scored again before it counts as
    # finished, see section verify; 0 is off.
    "self_check_rows": number(64, "[0, inf)"),
    "any_code": switch(False),  # what other versions of the code began will do
    # Several processes as one program: HOST:PORT of the first, or "auto"
    # on a TPU pod.
    "coordinator": text(
      "",
      r"(auto|\S+:\d{1,5})?",
      "give HOST:PORT of the first process, or auto on a TPU pod",
    ),
    "processes": number(1, "[1, 2^20)"),
    "process_id": number(0, "[0, 2^20)"),
    # seconds without a sign of a process; then all end
    "lost_after": number(100, "[1, inf)"),
    # A folder, below the workdir if it is relative, of what was compiled, so
    # that the next start need not. "" keeps nothing. JAX_COMPILATION_CACHE_DIR,
    # if it is set, counts instead.
    "compilation_cache": path("compiled"),
    # On GPUs, the same bits each time, which takes longer: see
    # docs/training.md. TPUs and CPUs need it not.
    "deterministic": switch(False),
  }
