"""README's and docs' fenced blocks, for the tests that run them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README": ROOT / "README.md"} | {
    path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))
}
NOT_RUN = " not-run"  # behind the language: compiled or listed, never executed
INFOS = {"python", "python not-run", "sh", "sh not-run", "text", "json", "diff", ""}
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)
WARNING = re.compile(r"not run here", re.I)


class Block(NamedTuple):
    """info: what stands behind the opening fence. around: the paragraphs beside it."""

    info: str
    code: str
    around: str

    @property
    def commands(self) -> list[str]:
        """Of a shell block, with lines joined that end in a backslash."""
        lines = re.sub(r"\\\n\s*", "", self.code).splitlines()
        bare = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines)
        return [line for line in bare if line]


def blocks(text: str) -> list[Block]:
    """All fenced blocks, in order."""
    found = []
    for match in FENCE.finditer(text):
        before = _paragraphs(text[: match.start()])[-1:]
        after = _paragraphs(text[match.end() :])[:1]
        found.append(Block(match[1].strip(), match[2], "\n".join(before + after)))
    return found


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def of(page: str) -> list[Block]:
    return blocks(PAGES[page].read_text(encoding="utf-8"))
