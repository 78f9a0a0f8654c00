"""What stage evaluate can be told of zero-shot tasks.

A section of the config.
"""

from miniplm_jax.core.fields import number, path, several, switch, text, word

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
    # Each becomes a file's name.
    "tasks": several(text("", r"\w[\w.-]*", "give names of tasks of lm_eval")),
    # A folder with a folder of files for each task that is read from there
    # and not from the hub, as docs/evaluation.md says.
    "task_data": path(""),
    # ask no hub: local files, and what was fetched before
    "offline": switch(False),
    # the first so many of each task; 0 is all
    "documents": number(0, "[0, inf)"),
    "scorers": switch(False),  # the teacher and the reference too
    "dtype": word("bfloat16", ("float32", "bfloat16")),  # of the computation
  }
