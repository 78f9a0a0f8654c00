"""The README.md of an exported student: what it is and how it came to be."""

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.criteria import CRITERIA
from miniplm_jax.evaluation import heldout
from miniplm_jax.methods import INPUTS, trained_in_words
from miniplm_jax.report.table import Table
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
  name: str, trained: Manifest, selection: Manifest, evaluation: Manifest | None
) -> str:
  """The card of a student, in Markdown, by manifests."""
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
  definition = CRITERIA[chosen["definition"]]
  weights = train.get("domain_weights", ())
  scorers = [f"{role} `{name}`" for role, name in chosen["scores"].items()]
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
    + (
      f". Weights of domains {', '.join(weights)}: trained on "
      f"{counts['rows']:,} rows"
      if weights
      else ""
    )
    + ". After MiniPLM (arXiv 2410.17215).",
    Table(
      ("what", "sha256"),
      [
        *((INPUTS.get(k, k), f"`{v}`") for k, v in trained.inputs.items()),
        ("tokenizer", f"`{trained.tokenizer}`"),
        ("trained weights", f"`{trained.weights}`"),
      ],
    ).markdown(),
    "## Training",
    f"{counts['steps']:,} steps of {train['batch_size']:,} rows, "
    f"{counts['tokens']:,} tokens with padding, "
    f"{trained.details['train_flops']:.3g} FLOPs, "
    f"{flops.in_words(trained.details.get(flops.OFFLINE, {}))}; objective "
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


def _loss_table(evaluation: Manifest) -> Table:
  losses = heldout.losses(evaluation)
  return Table.of(
    losses,
    ("held-out rows", "", str),
    ("rows", ",", lambda domain: losses[domain]["rows"]),
    ("mean of means", ".4f", lambda domain: losses[domain]["instance_mean"]),
    ("per token", ".4f", lambda domain: losses[domain]["token_mean"]),
  )
