"""What mkdocs does not do by itself, see mkdocs.yml.

Pages link to files of the repository that are outside docs/. Of those the ones
in `PAGES` are pages of the site; any other is shown as it is, under source/. So
a link holds in both places, and the site needs nothing but itself.
"""

import ast
import dataclasses
import html as html_lib
import inspect
import io
import json
import pathlib
import posixpath
import re
import tokenize

from mkdocs.structure.files import File

from miniplm_jax import config
from miniplm_jax.core import fields
from miniplm_jax.models import architecture

ROOT = pathlib.Path(__file__).parents[1]
# Files that are pages.
COPIED = {
  "BUILD.md": "build.md",
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
  "gcp/README.md": "gcp.md",
  "notebooks/miniplm_tpu_demo.ipynb": "notebook.md",
}
# Where a link to something else goes.
PAGES = COPIED | {
  "README.md": "index.md",
  "docs/accelerators": "accelerators/README.md",
  "miniplm_jax/config": "reference/config.md",
}
FIELDS = "reference/config.md"
# A link or a picture; its text may go over lines, code has no links.
LINK = re.compile(r"(!?\[[^\[\]]*\])\(([^()\s]+)\)")
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.M | re.S)
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml"}


def on_files(files, config):
  """Adds the pages that are not in docs/."""
  own = {f.src_uri: "docs/" + f.src_uri for f in files.documentation_pages()}
  texts = {uri: (ROOT / name).read_text() for uri, name in own.items()}
  made = {page: _source(name) for name, page in COPIED.items()}
  texts |= made
  made[FIELDS] = texts.pop(FIELDS, "") + "\n".join(_sections())
  for uri, text in texts.items():
    for _, target in LINK.findall(CODE.sub("", text)):
      page, path = _page(uri, target)
      if page and page.startswith("source/") and page not in made:
        made[page] = _source(path)
  for uri, text in made.items():
    if old := files.get_file_from_path(uri):
      files.remove(old)
    files.append(File.generated(config, uri, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Lets links go to the pages of the site."""
  here = page.file.src_uri
  if here.startswith("source/"):
    return markdown
  kept = []  # code, which has no links

  def keep(match):
    kept.append(match[0])
    return f"\0{len(kept) - 1}\0"

  def change(match):
    to, _ = _page(here, match[2])
    if not to:
      return match[0]
    relative = posixpath.relpath(to, posixpath.dirname(here) or ".")
    mark = "#" + match[2].partition("#")[2] if "#" in match[2] else ""
    return f"{match[1]}({relative}{mark})"

  markdown = LINK.sub(change, CODE.sub(keep, markdown))
  return re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], markdown)


def on_page_content(html, page, config, files):
  """Lets pages and sections that docstrings name be links."""
  here = page.file.src_uri
  if here != "api.md" and not here.startswith("reference/"):
    return html
  root = "" if here == "api.md" else "../"
  html = re.sub(
    r"(?<![\w/>])docs/(\w+)\.md", rf'<a href="{root}\1.html">\1</a>', html
  )
  if here == FIELDS:
    return html
  names = "|".join(kind.__name__ for kind in _kinds())
  link = rf'<a href="{root}{FIELDS[:-3]}.html#\2">\1</a>'
  return re.sub(rf"(<code>({names})(?:\.\w+)?</code>)(?!</a>)", link, html)


def _file(uri: str) -> str:
  """The file of the repository that a page is made of."""
  names = {page: name for name, page in COPIED.items()}
  return names.get(uri, "docs/" + uri)


def _page(uri: str, target: str) -> tuple[str | None, str]:
  """The page that a link goes to, and its file; None if mkdocs knows better."""
  place = target.partition("#")[0]
  if not place or re.match(r"\w+:", place):
    return None, ""
  folder = posixpath.dirname(_file(uri))
  path = posixpath.normpath(posixpath.join(folder, place))
  if path in PAGES:
    return PAGES[path], path
  if path.startswith("docs/"):
    return path.removeprefix("docs/"), path
  if not (ROOT / path).exists():
    return None, ""  # mkdocs warns of it
  return f"source/{path}.md", path


def _source(name: str) -> str:
  """A file as a page; of a folder its Python files."""
  path = ROOT / name
  if path.suffix == ".ipynb":
    return "\n\n".join(_cells(json.loads(path.read_text())))
  if path.is_dir():
    files = sorted(path.glob("*.py"))
    return "\n\n".join([f"{UNSEARCHED}# {name}", *map(_listing, files)])
  if path.suffix == ".md":
    return path.read_text()
  return f"{UNSEARCHED}# {name}\n\n{_listing(path)}"


def _cells(notebook: dict):
  """The cells of a notebook with what they have put out, as Markdown."""
  for cell in notebook["cells"]:
    text = "".join(cell["source"])
    if cell["cell_type"] != "code":
      yield text
      continue
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
      data = output.get("data", {})
      if picture := data.get("image/png"):
        picture = "".join(picture).replace("\n", "")
        yield f"![What the cell draws](data:image/png;base64,{picture})"
      elif table := data.get("text/markdown"):
        yield "".join(table)
      elif text := output.get("text", data.get("text/plain")):
        yield f"```text\n{''.join(text)}\n```"


def _listing(path: pathlib.Path) -> str:
  language = LANGUAGES.get(path.suffix, "text")
  title = path.relative_to(ROOT)
  text = path.read_text()
  return f'````{language} title="{title}" linenums="1"\n{text}\n````'


# ---- fields of the config


def _kinds() -> dict[type, str]:
  """The sections, and what each is called on the command line."""
  names = {config.Config: "config"}
  nested = [config.Config]
  later = fields.sections_of(config.methods.MethodSections)
  for kind in nested:
    sections = fields.sections_of(kind)
    for name, other in sorted(sections.items(), key=lambda s: s[0] in later):
      if other not in names and not issubclass(
        other, architecture.Architecture
      ):
        names[other] = f"{names[kind]}.{name}"
        nested.append(other)
  names[config.sections.ScorerConfig] = "config.teacher, config.reference"
  names[config.TrainConfig] = "config.train, config.teacher.train and others"
  for kind in (architecture.Transformer, architecture.Mamba):
    names[kind] = f"{kind.__name__}, the shape of a model"
  return names


def _sections():
  """The lines of the tables of all fields, section by section."""
  for kind, name in _kinds().items():
    yield from _section(name, kind)


def _section(name: str, kind: type):
  comments = {}
  for base in reversed(kind.__mro__):
    if issubclass(base, fields.Section) and base is not fields.Section:
      comments |= _comments(base)
  rules = fields.rules_of(kind)
  if not rules:
    return
  about = f"`{kind.__name__}`. {inspect.getdoc(kind)}"
  yield from (f"\n## {name} {{#{kind.__name__}}}", "", about, "")
  yield from (
    "| field | default | says | may be |",
    "| --- | --- | --- | --- |",
  )
  for field in dataclasses.fields(kind):
    if field.name in rules:
      rule = rules[field.name]
      advice = _advice(rule.item or rule)
      advice = f"any number, each {advice}" if rule.item else advice
      name = f"<code>{field.name}</code>"
      says = comments.get(field.name, "")
      row = [name, f"<code>{_default(field)}</code>", says, advice]
      yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def _advice(rule: fields.Rule) -> str:
  advice = rule.advice + ", ".join(word or '""' for word in rule.words)
  return advice.removeprefix("give ").removeprefix("choose from ")


def _default(field) -> str:
  value = repr(field.default).replace("'", '"')
  return html_lib.escape(value) if len(value) <= 60 else "…"


def _comments(kind: type) -> dict[str, str]:
  """The comment of each field of a class: above it, and behind it."""
  path = pathlib.Path(ROOT, *kind.__module__.split(".")).with_suffix(".py")
  text = path.read_text()
  lines = text.splitlines()
  comments = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  }
  (node,) = (
    n
    for n in ast.parse(text).body
    if isinstance(n, ast.ClassDef) and n.name == kind.__name__
  )
  found = {}
  for field in node.body:
    if isinstance(field, ast.AnnAssign):
      first = field.lineno
      while lines[first - 2].lstrip().startswith("#"):
        first -= 1
      own = range(first, field.end_lineno + 1)
      said = [comments[line] for line in own if line in comments]
      found[field.target.id] = " ".join(said).replace("<", "&lt;")
  return found
