"""Sphinx: the pages of this folder, and the reference from docstrings.

    python -m sphinx -W --keep-going -b html docs build/docs

The pages are Markdown that GitHub shows as it is, so nothing here needs a directive in
them: the table of contents is read off the list of links in index.md. Docstrings are
plain text with indented equations; `docstring` turns them into reStructuredText.
"""

import re
import sys
import textwrap
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import a2os2a_jax  # noqa: E402

project = "a2os2a_jax"
author = "The a2os2a_jax authors"
copyright = author
release = version = a2os2a_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["figures"]
html_theme = "furo"
html_title = f"a2os2a_jax {release}"
html_copy_source = False
smartquotes = False  # "text" in a docstring is code

myst_heading_anchors = 3

nitpicky = True  # a reference that leads nowhere is a warning
nitpick_ignore_regex = [  # types of jax and of Python, which are not documented here
    ("py:.*", r"(?!a2os2a_jax\.).*"),
    ("py:.*", r"a2os2a_jax\..*(State|SpikeFn|PyTree)"),
]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

LINK = re.compile(r"^- \[.*?\]\(([\w/]+)\.(?:md|rst)\)", re.M)
OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./[^)]+\.md)(?:#[\w-]*)?\)")  # ../README.md
SECTION = re.compile(
    r"^(Args|Returns|Raises|Attributes|Source|Example|Examples):\s*(.*)$"
)
ENTRY = re.compile(r"^([\w*][\w*.,` -]*|\*\*\w+): (.*)$")


def contents(text: str) -> str:
    """index.md with a hidden table of contents for each of its headings."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    trees = [
        f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```"
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
        if (pages := LINK.findall(body))
    ]
    return "\n\n".join([text, *trees])


def docstring(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: prose, equations as they stand, sections."""
    out: list[str] = []
    for title, body in _sections(lines):
        if title is None:
            out += _prose(body)
        elif title in ("Args", "Attributes", "Raises"):
            out += [f".. rubric:: {title}", "", *_entries(body)]
        else:
            out += [f".. rubric:: {title}", "", *_prose(body)]
    return out


def _sections(lines: list[str]):
    """[(None or a title, its lines, flush left)]."""
    found: list[tuple[str | None, list[str], list[str]]] = [(None, [], [])]
    for line in lines:
        if head := SECTION.match(line):
            found.append((head[1], [head[2]] if head[2] else [], []))
        elif found[-1][0] is not None and line and not line.startswith(" "):
            found.append((None, [], [line]))  # prose goes on after a section
        else:
            found[-1][2].append(line)
    return [
        (title, body if title is None else first + _flush(body))
        for title, first, body in found
    ]


def _flush(body: list[str]) -> list[str]:
    """Without the indentation that all lines share."""
    return textwrap.dedent("\n".join(body)).split("\n")


def _prose(body: list[str]) -> list[str]:
    """Paragraphs, lists of "- ", and what is indented word for word."""
    out: list[str] = []
    for kind, lines in _groups(body):
        if kind == "as it is":
            out += ["::", "", *(f"   {x}" for x in lines), ""]
        elif kind == "list":
            items = "\n".join(x if x[:2] == "- " else x.strip() for x in lines)
            items = re.split(r"^- ", items, flags=re.M)[1:]
            out += ["- " + _inline(" ".join(x.split())) for x in items]
            out += [""]
        else:  # in one line, since `code` may go over the end of one
            out += [_inline(" ".join(lines)), ""]
    return out


def _groups(body: list[str]):
    """(kind, lines): "prose", "list" or "as it is", in order."""
    groups: list[tuple[str, list[str]]] = []
    fresh = True
    for x in body:
        if not x.strip():
            fresh = True
            if groups and groups[-1][0] == "as it is":
                groups[-1][1].append("")
            continue
        if x.startswith("- "):
            kind = "list"
        elif x.startswith(" ") and groups and groups[-1][0] == "list" and not fresh:
            kind = "list"
        else:
            kind = "as it is" if x.startswith(" ") else "prose"
        joins = kind != "prose" or not fresh
        if groups and groups[-1][0] == kind and joins:
            groups[-1][1].append(x)
        else:
            groups.append((kind, [x]))
        fresh = False
    for kind, lines in groups:
        while lines and not lines[-1]:
            lines.pop()
        if kind == "as it is":
            cut = min(len(x) - len(x.lstrip()) for x in lines if x)
            lines[:] = [x[cut:] for x in lines]
    return groups


def _entries(body: list[str]) -> list[str]:
    """`name: what it is`, what belongs to it indented: a list of definitions."""
    out: list[str] = []
    held: list[str] = []

    def close():
        if held:
            lines = held[:1] + _flush(held[1:])
            out.extend(f"   {x}" if x else "" for x in _prose(lines))
            held.clear()

    for x in body:
        entry = ENTRY.match(x)
        if entry:
            close()
            out += [f"``{entry[1].strip('`')}``"]
            held.append(entry[2])
        elif held:
            held.append(x)
        else:
            out += _prose([x])
    close()
    return out


def _inline(text: str) -> str:
    """`code` as literal text, and nothing else as markup."""
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{' '.join(part[1:-1].split())}``"
            # markup has to end at a word's end
            if i + 1 < len(parts) and re.match(r"\w", parts[i + 1]):
                parts[i] += "\\ "
        else:
            parts[i] = re.sub(r"([\\*|_`])", r"\\\1", part)
    return "".join(parts)


def setup(app):
    def read(app, docname, source):
        # Other files outside are offered for download by MyST itself.
        source[0] = OUTSIDE.sub(r"{download}`\1 <\2>`", source[0])
        if docname == "index":
            source[0] = contents(source[0])

    def process(app, what, name, obj, options, lines):
        lines[:] = docstring(lines)

    def skip(app, what, name, obj, skipped, options):
        # fields of NamedTuples, which Python describes as "Alias for field number 0"
        return True if type(obj).__name__ == "_tuplegetter" else None

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
