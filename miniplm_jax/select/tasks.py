"""The former name of `selection.tasks`, which registers tasks of seqio."""

from miniplm_jax.selection.tasks import *  # noqa: F403
