"""How it runs, not what comes out: none of this is part of a fingerprint.

A section of `config.default()`.
"""


def section():
  """Its fields."""
  return {
    # The mesh of a TPU slice; each of several has copies of its own.
    "data": 1,  # copies of the weights
    "fsdp": -1,  # shards of weights and batch; -1, what is left
    "tensor": 1,  # shards of heads, FFN and vocabulary
    # The most rows of a device at a time; 0 is all. Gradients of more rows
    # are accumulated, in as few turns of equal size as there can be.
    "per_device_batch_size": 0,
    # What the backward pass forms again: full, a layer; dots, all but its
    # products; none, only attention's weights.
    "remat": "full",
    "checkpoint_every": 1000,  # steps
    "keep_checkpoints": 2,  # the newest
    "keep_every": 0,  # steps; those of its multiples are kept too; 0: none
    "eval_every": 1000,  # steps between held-out losses; 0 is never
    "eval_rows": 512,  # held-out rows of the learning curve
    "log_every_seconds": 30.0,
    # Steps between models that are written during training, for others:
    # students/<name>/hf-<step>, as section export says; 0 is never.
    "export_every": 0,
    # Metrics go to this project of Weights & Biases too; "" is none. Needs
    # the extra wandb; WANDB_MODE=offline keeps them here.
    "wandb_project": "",
    # A trace of so many steps, in metrics/profile; 0 is none.
    "profile_steps": 0,
    "profile_first_step": 10,  # that it begins with
    # A step, or what stands between two, that takes longer has the stacks
    # of all threads written, and goes on; 0 is off.
    "hang_seconds": 1800.0,
    # Processes that tokenize; 0 is one a core.
    "tokenize_workers": 0,
    # Options of an Apache Beam pipeline that tokenizes instead, such as
    # "--runner=DataflowRunner --region=us-central1".
    "beam": "",
    "max_broken": 0,  # records of the corpus that may be left out
    # All models score a batch before the next one is read; False takes
    # one model after the other, if they do not fit together.
    "score_together": True,
    # Another worker takes over a part that nobody renewed for so long.
    "lease_seconds": 120.0,
    # Rows of a finished table that are scored again before it counts as
    # finished, see section verify; 0 is off.
    "self_check_rows": 64,
    "any_code": False,  # scores by other versions of the code will do
    # Several processes as one program: HOST:PORT of the first, or "auto"
    # on a TPU pod.
    "coordinator": "",
    "processes": 1,
    "process_id": 0,
    "lost_after": 100,  # seconds without a sign of a process; then all end
    # A folder, below the workdir if it is relative, of what was compiled, so
    # that the next start need not. "" keeps nothing. JAX_COMPILATION_CACHE_DIR,
    # if it is set, counts instead.
    "compilation_cache": "compiled",
    # On GPUs, the same bits each time, which takes longer: see
    # docs/training.md. TPUs and CPUs need it not.
    "deterministic": False,
  }
