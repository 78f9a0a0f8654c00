"""The README.md of an exported student: what it is and how it came to be."""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.page import markdown_table
from miniplm_jax.core.workdir import CONVERTED, GENERATED
from miniplm_jax.select.definitions import DEFINITIONS
from miniplm_jax.trainer import flops

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```"""


def write(
  name: str,
  trained: Manifest,
  selection: Manifest,
  losses: Mapping[str, Mapping[str, Any]],
) -> str:
  """The card, in Markdown.

  Args:
    name: the student's.
    trained: manifest of its training.
    selection: manifest of the rows that it was trained on.
    losses: held-out loss by domain, empty if it was not evaluated.
  """
  import huggingface_hub

  data = huggingface_hub.ModelCardData(
    library_name="transformers",
    pipeline_tag="text-generation",
    tags=["miniplm", "jax"],
  )
  model, train = trained.settings["model"], trained.settings["train"]
  sizes = {k: v for k, v in model.items() if type(v) is int and v}
  sizes.pop("rope_original_length", None)
  shape = ", ".join(f"{k} {v:,}" for k, v in sizes.items())
  counts, kept = trained.counts, selection.counts
  chosen = selection.settings
  definition = DEFINITIONS[chosen["definition"]]
  scorers = [f"{role} `{name}`" for role, name in chosen["scores"].items()]
  made_from = {"corpus": "corpus", "selection": "selection manifest"}
  if GENERATED in trained.inputs:
    made_from[GENERATED] = "rows that the teacher wrote in part"
  if CONVERTED in trained.inputs:
    made_from[CONVERTED] = "the selection in this tokenizer"
  if "init" in trained.inputs:
    made_from["init"] = "model that it began with"
  sections = [
    f"---\n{data.to_yaml()}\n---\n# {name}",
    _USE,
    "## Model",
    f"{counts['parameters']:,} parameters: {shape}.",
    "## Data",
    f"{kept['kept']:,} of {kept['rows']:,} packed rows of a corpus "
    f"({kept['kept'] / kept['rows']:.1%}), ranked by `{chosen['definition']}`, "
    f"{definition.label}"
    + f", of {' and '.join(scorers)}" * bool(scorers)
    + ". The teacher wrote the end of each (SeqKD)"
    * (GENERATED in trained.inputs)
    + ". After MiniPLM (arXiv 2410.17215).",
    markdown_table(
      ["what", "sha256"],
      [
        *([label, f"`{trained.inputs[n]}`"] for n, label in made_from.items()),
        ["tokenizer", f"`{trained.tokenizer}`"],
        ["trained weights", f"`{trained.weights}`"],
      ],
    ),
    "## Training",
    f"{counts['steps']:,} steps of {train['batch_size']:,} rows, "
    f"{counts['tokens']:,} tokens with padding, "
    f"{trained.details['train_flops']:.3g} FLOPs, "
    f"{flops.in_words(trained.details.get(flops.OFFLINE, {}))}; AdamW at "
    f"learning rate "
    f"{train['learning_rate']:g}, {train['dtype']} over float32 weights, "
    f"miniplm_jax {trained.code_version}.",
  ]
  if losses:
    sections += [
      "## Evaluation",
      "Loss in nats on held-out rows; the mean of means is over rows of each "
      "row's mean.",
      markdown_table(
        ["held-out rows", "mean of means", "per token"],
        [
          [domain, f"{loss['instance_mean']:.4f}", f"{loss['token_mean']:.4f}"]
          for domain, loss in losses.items()
        ],
      ),
    ]
  return "\n\n".join(sections) + "\n"
