"""What stage evaluate can be told of zero-shot tasks.

A section of `config.default()`, and its rules for `config_rules.check`.
"""

import re

GROUP = "miniplm"
# The paper's nine. acc_norm where a task has it, else acc; their plain mean.
PAPER_TASKS = (
  "hellaswag",
  "lambada_openai",
  "winogrande",
  "openbookqa",
  "arc_easy",
  "arc_challenge",
  "piqa",
  "social_iqa",
  "storycloze_2018",
)


def section():
  """Its fields."""
  return {
    # Names of lm-evaluation-harness, which the extra `eval` brings; "miniplm"
    # is the paper's nine, () is none.
    "tasks": (),
    # A folder with a folder of files for each task that is read from there
    # and not from the hub, as docs/evaluation.md says.
    "task_data": "",
    "offline": False,  # ask no hub: local files, and what was fetched before
    "documents": 0,  # the first so many of each task; 0 is all
    "scorers": False,  # the teacher and the reference too
    "dtype": "bfloat16",  # of the computation
  }


def rules(config, among, at_least):
  """Rules as those of `config_rules`, and the makers of two kinds of them."""
  c = config.evaluation
  for name in c.tasks:
    # It becomes a file's name.
    good = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name)
    yield "evaluation.tasks", name, good, "give names of tasks of lm_eval"
  yield at_least("evaluation.documents", c.documents, 0)
  yield among("evaluation.dtype", c.dtype, ("float32", "bfloat16"))
