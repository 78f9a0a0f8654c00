"""Pre-trains p_ref on D_ref, and a teacher where none is given.

Both are trained by the student's trainer on a split of their own, which is
never scored, and end as a Hugging Face directory: `score` reads a model that
was trained here as it reads one from the hub.
"""

from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.training import step as training_step
from miniplm_jax.training.spec import TrainSpec


def teacher_steps(config, workdir: Workdir) -> list[Step]:
  """The teacher, if the config does not name one."""
  return _steps("teacher", config, workdir)


def reference_steps(config, workdir: Workdir) -> list[Step]:
  """The reference, if the config does not name one."""
  return _steps("reference", config, workdir)


def _steps(role: str, config, workdir: Workdir) -> list[Step]:
  c = getattr(config, role)
  if c.path or c.scores:
    return []
  return [
    training_step.step(
      TrainSpec(
        stage=role,
        folder=workdir.scorer(role),
        shape=c.model,
        train=c.train,
        run=config.run,
        max_length=config.corpus.max_length,
        rows=f"split {role}",
        row_ids=lambda corpus, unused_inputs: corpus.rows_of(role),
        ignore_domains=config.evaluate.ignore_domains,
        writes_hf=True,
      ),
      {"corpus": workdir.corpus / MANIFEST},
    )
  ]
