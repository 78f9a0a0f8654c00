"""The tokenizer that a corpus has beside its rows: a copy, or trained on it."""

from etils import epath, epy

from miniplm_jax.config import CorpusConfig, StudentConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log

with epy.lazy_imports():
  from miniplm_jax.corpus import tokenizer
  from miniplm_jax.models import hub

TRAIN = "train"  # a corpus.tokenizer: it is trained on the corpus's text


def copied(
  named: CorpusConfig | StudentConfig,
  directory: epath.Path,
  stage: str,
  section: str,
) -> "tokenizer.Tokenizer":
  """Returns a corpus's own copy of a tokenizer, which it makes if it has none.

  Raises:
    UserError: there is one, and it is no copy of the folder that is named.
  """
  path = directory / "tokenizer.json"
  tokens = named.eos_token, named.bos_token
  revision, is_made = named.tokenizer_revision, path.exists()
  is_local = hub.GivenTokenizer(named.tokenizer, revision).is_folder
  if not is_made or (is_local and named.tokenizer != TRAIN):
    folder = hub.resolve(named.tokenizer, revision, weights=False)
    original = tokenizer.load(folder, *tokens, section)
    if not is_made:
      keep(original, directory, stage, section)
    elif path.read_bytes() != original.to_files()[path.name]:
      raise UserError(
        f"this is no copy of config.{section}.tokenizer={named.tokenizer}",
        f"{path}",
        "restore it, or remove it: it is copied again",
      )
  return tokenizer.load(directory, *tokens, section)


def keep(
  original: "tokenizer.Tokenizer",
  directory: epath.Path,
  stage: str,
  section: str,
):
  """Saves the one that a corpus is made with, and says what BOS is."""
  original.token_bytes()  # raises UserError if they cannot be told
  if original.adds != (original.bos_token, ""):
    around = " and ".join(filter(None, original.adds)) or "nothing"
    log(
      stage,
      f"the tokenizer puts {around} around a text: in rows it follows "
      f"{original.bos_token or 'no BOS'}, and so it does in evaluation, "
      f"generation and export; --config.{section}.bos_token= says it",
    )
  tokenizer.save(original, directory)
