"""Every relative link of the Markdown files points at a file of the tree, and at a heading that is there."""

from __future__ import annotations

import re
import sys
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {"build", ".git", ".venv", "node_modules"}
# [text](target) and [name]: target; code is taken out before.
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """All Markdown files of the tree."""
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(part in LEFT_OUT or part.startswith(".venv") for part in path.relative_to(ROOT).parts)
    )


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    text = re.sub(
        r"^(```|~~~).*?^\1", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 1
        unique = anchor
        while unique in found:
            unique, number = f"{anchor}-{number}", number + 1
        found.add(unique)
    return found


def broken(document: Path) -> list[str]:
    """Links of a document that lead nowhere."""
    wrong = []
    for inline, reference in LINK.findall(CODE.sub("", document.read_text(encoding="utf-8"))):
        target = inline or reference
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = urllib.parse.unquote(target).partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            wrong.append(f"{target}: no such heading")
    return wrong


def main() -> int:
    found = documents()
    wrong = [f"{path.relative_to(ROOT)}: {line}" for path in found for line in broken(path)]
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    if not found:
        print("no documents found", file=sys.stderr)
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
