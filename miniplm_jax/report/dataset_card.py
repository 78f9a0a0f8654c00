"""card.md of a selection: a Hugging Face dataset card."""

import itertools
from collections.abc import Mapping

from miniplm_jax.core.manifest import Manifest, code_version
from miniplm_jax.criteria import criterion
from miniplm_jax.report import selection_tables as tables
from miniplm_jax.report.page import Table
from miniplm_jax.report.selection_tables import SelectionReport

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")

_FILES = """\
`rows.npy` holds the ids of the kept rows: int64, ascending, counted from 0 over
all rows of the packed corpus. The rows themselves stay in the corpus; no text
is in this folder but the samples in `report.html`."""

_LOAD = """\
```python
import numpy as np

rows = np.load("rows.npy")
```

The rows as token ids, by random access, and as a seqio task in which the
selection is a filter over the scores:

```python
from miniplm_jax.core import manifest
from miniplm_jax.corpus.store import Corpus

corpus = Corpus(manifest.require("WORKDIR/corpus/manifest.json"))
instances = corpus.read(rows[:8])

import seqio
from miniplm_jax.selection import tasks

task = seqio.get_mixture_or_task(tasks.register("WORKDIR", "{name}"))
dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False)
```"""

_LIMITS = """\
- The ranking knows nothing of truth, safety or personal data: nothing here was
  filtered for that.
- Another teacher, reference, tokenizer or definition ranks otherwise; the
  tables of domains and lengths show what this one favors.
- The licence of the texts is that of the corpus, which this card does not
  know."""

_CITATION = """\
```bibtex
@inproceedings{gu2025miniplm,
  title = {MiniPLM: Knowledge Distillation for Pre-Training Language Models},
  author = {Gu, Yuxian and Zhou, Hao and Meng, Fandong and Zhou, Jie and
            Huang, Minlie},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  url = {https://arxiv.org/abs/2410.17215},
}
```"""


def write(selection: SelectionReport, inputs: Mapping[str, Manifest]) -> str:
  """The card, in Markdown with YAML before it; of a selection's inputs."""
  return "\n\n".join(_sections(selection, inputs)) + "\n"


def _sections(selection: SelectionReport, inputs: Mapping[str, Manifest]):
  import huggingface_hub

  summary, definition = selection.summary, selection.definition
  in_words = criterion(definition).in_words
  data = huggingface_hub.DatasetCardData(
    pretty_name=f"MiniPLM selection {selection.name}",
    size_categories=[size_category(summary.total.kept_rows)],
    tags=["pretraining", "data-selection", "difference-sampling", "miniplm"],
  )
  yield f"---\n{data.to_yaml()}\n---\n# Selection {selection.name}"
  yield tables.lead(selection)
  yield _FILES
  yield "## How it was made"
  later = selection.later and (
    ". That is the score in all tables here, and in the first stage of a "
    f"training; the rows of later ones are by {selection.later}, `student` "
    "being the student as it was then"
  )
  yield (
    "Rows of D, the corpus without what the models were trained on here and "
    "without the held-out rows, were scored and ranked; the kept ones are in "
    f"corpus order. The score is `{definition}` ({selection.label})"
    + (f": {in_words}" if in_words else "")
    + later
    + ". Difference Sampling of MiniPLM (arXiv 2410.17215) takes the highest "
    "by `mean_diff` or `sum_diff`. The settings, and the sha256 fingerprints "
    "of what was read:"
  )
  yield tables.made_table(selection, inputs).markdown()
  yield f"Made by miniplm_jax {code_version()}."
  yield "## What was kept"
  yield tables.domain_table(summary).markdown()
  yield tables.length_table(summary).markdown()
  if summary.has_noise:
    yield tables.noise_words(summary)
  if selection.dropped or selection.contaminated:
    columns, rows = ("reason", ("rows of D", ",")), selection.dropped.items()
    yield "## Left out before the ranking"
    if rows:
      yield Table(columns, list(rows)).markdown()
    yield from tables.contaminated_words(selection)
  if selection.duplicates:
    yield tables.duplicates(selection.duplicates).markdown()
  if selection.overlaps:
    yield tables.overlap(selection.overlaps).markdown()
  else:
    yield "## Overlap with evaluation sets"
    yield "Not measured: no evaluation set was named."
  if selection.agreement:
    yield tables.agreement(selection.name, selection.agreement).markdown()
  yield "## Use"
  yield _LOAD.format(name=selection.name)
  yield "## Limits"
  yield _LIMITS
  yield "## Citation"
  yield _CITATION


def size_category(rows: int) -> str:
  """Hugging Face's name for so many rows."""
  if rows < 1000:
    return "n<1K"
  for i, (low, high) in enumerate(itertools.pairwise(_SIZES)):
    if rows < 10 ** (i + 4):
      return f"{low}<n<{high}"
  return "n>1T"
