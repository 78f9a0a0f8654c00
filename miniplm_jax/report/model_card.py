"""The README.md of an exported student: what it is and how it came to be."""

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.criteria import criterion
from miniplm_jax.evaluation import heldout
from miniplm_jax.methods import INPUTS, trained_in_words
from miniplm_jax.report.page import Table
from miniplm_jax.training import flops

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
  selection: Manifest | None,
  evaluation: Manifest | None,
) -> str:
  """The card of a student, in Markdown, by manifests.

  Without a selection it was trained on other rows than those that were scored.
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
  counts = trained.counts
  length = counts["tokens"] // (counts["steps"] * train["batch_size"])
  before = trained.details.get(flops.OFFLINE, {"offline": None})
  weights = train.get("domain_weights", ())
  sections = [
    f"---\n{data.to_yaml()}\n---\n# {name}",
    _USE,
    "## Model",
    f"{counts['parameters']:,} parameters: {shape}.",
    "## Data",
    _rows(trained, selection)
    + ". The teacher wrote the end of each (SeqKD)"
    * (GENERATED in trained.inputs)
    + (
      f". Weights of domains {', '.join(weights)}: trained on "
      f"{counts['rows']:,} rows"
      if weights
      else ""
    )
    + (". After MiniPLM (arXiv 2410.17215)." if selection else "."),
    Table(
      ("what", "sha256"),
      [
        *((INPUTS.get(k, k), f"`{v}`") for k, v in trained.inputs.items()),
        ("tokenizer", f"`{trained.tokenizer}`"),
        ("trained weights", f"`{trained.weights}`"),
      ],
    ).markdown(),
    "## Training",
    f"{counts['steps']:,} steps of {train['batch_size']:,} rows of up to "
    f"{length:,} tokens, the tokenizer's model_max_length, "
    f"{counts['tokens']:,} tokens with padding, "
    f"{trained.details['train_flops']:.3g} FLOPs, "
    f"{flops.in_words(before)}; objective "
    f"{trained_in_words(trained.settings)}; AdamW at learning rate "
    f"{train['learning_rate']:g}, {train['dtype']} over float32 weights, "
    f"miniplm_jax {trained.code_version}.",
  ]
  if evaluation:
    sections += [
      "## Evaluation",
      "Loss in nats on held-out rows; the mean of means is over rows of each "
      f"row's mean. {heldout.ignored_in_words(evaluation)}".strip(),
      _loss_table(evaluation).markdown(),
    ]
  return "\n\n".join(sections) + "\n"


def _rows(trained: Manifest, selection: Manifest | None) -> str:
  """What it was trained on, in words."""
  if selection is None:
    rows, which = trained.counts["rows"], trained.settings["rows"]
    return f"{rows:,} packed rows of a corpus ({which})"
  kept, chosen = selection.counts, selection.settings
  by, scores = chosen["definition"], chosen["scores"].items()
  scorers = " and ".join(f"{role} `{name}`" for role, name in scores)
  staged = chosen.get("staged")
  then = staged and f", from step {staged['ends'][0]:,} on again " + (
    f"{len(staged['ends']) - 1} times, by `{staged['definition']}`"
  )
  return (
    f"{kept['kept']:,} of {kept['rows']:,} packed rows of a corpus "
    f"({kept['kept'] / kept['rows']:.1%}), ranked by `{by}`, "
    f"{criterion(by).label}" + f", of {scorers}" * bool(scorers) + (then or "")
  )


def _loss_table(evaluation: Manifest) -> Table:
  losses = heldout.losses(evaluation)
  return Table.of(
    losses,
    ("held-out rows", "", str),
    ("rows", ",", lambda domain: losses[domain]["rows"]),
    ("mean of means", ".4f", lambda domain: losses[domain]["instance_mean"]),
    ("per token", ".4f", lambda domain: losses[domain]["token_mean"]),
  )
