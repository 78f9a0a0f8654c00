"""Stage export: a directory that transformers loads, with a model card."""

from miniplm_jax.config import for_method, methods
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.job import Job
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.models import architecture

STAGE = "export"


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job a student."""
  return [_job(config, workdir, for_method(config, m)) for m in methods(config)]


def _job(config, workdir: Workdir, names) -> Job:
  directory = workdir.student(names.student)
  return Job(
    stage=STAGE,
    manifest=directory / "hf" / MANIFEST,
    settings={"name": names.student},
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "model": directory / MANIFEST,
    },
    outputs=(directory / "hf",),
    summary=f"{directory / 'hf'} for transformers",
    run=lambda inputs: _run(config, names, directory, inputs),
  )


def _run(config, names, directory, inputs):
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.trainer import training_job

  run = config.run
  corpus = Corpus(inputs["corpus"])
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  arch = architecture.make(config.student.model)
  model = training_job.restore(inputs["model"], arch, config.train, mesh)
  extra = corpus.tokenizer().to_files()
  extra["README.md"] = _model_card(names, directory, inputs).encode()
  written = huggingface.save(directory / "hf", model, corpus.eos_id, extra)
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {"parameters": arch.parameters()},
    "files": written,
  }


def _model_card(names, directory, inputs) -> str:
  trained = inputs["model"]
  evaluation = manifest_lib.read(directory / "evaluation.json")
  losses = {}
  if evaluation and evaluation.inputs["model"] == trained.fingerprint:
    losses = evaluation.details["loss"]
  lines = [
    "---",
    "library_name: transformers",
    "tags: [miniplm]",
    "---",
    f"# {names.student}",
    "",
    f"{trained.counts['parameters']:,} parameters, pre-trained for "
    f"{trained.counts['steps']:,} steps on {trained.counts['rows']:,} rows: "
    f"{trained.settings['rows']}, ranked by {names.definition}.",
    "",
    f"- corpus fingerprint: `{trained.inputs['corpus']}`",
    f"- selection fingerprint: `{trained.inputs['selection']}`",
    f"- weights fingerprint: `{trained.weights}`",
    f"- made with miniplm_jax {trained.code_version}",
  ]
  if losses:
    lines += [
      "",
      "| held-out rows | mean of means (nats) | per token (nats) |",
      "| --- | --- | --- |",
    ]
    lines += [
      f"| {domain} | {loss['instance_mean']:.4f} | {loss['token_mean']:.4f} |"
      for domain, loss in losses.items()
    ]
  return "\n".join(lines) + "\n"
