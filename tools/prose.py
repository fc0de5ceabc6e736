"""Print how the prose of this repository reads, in a few numbers: ``make prose``. A mirror, not a gate.

The numbers are those of docstrings and of Markdown: how often "what" and "one" come in 1,000 words, the share of
clauses that open with one of `OPENERS`, and the lines of code over 120 characters. Well-kept projects of the kind have
under 1, under 4 and under 1 %.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Words that put a second thought in the place of a noun.
OPENERS = {"what", "who", "whoever", "one", "those", "that", "of"}

LONGEST_LINE = 120

_CODE = re.compile(r"```.*?```|``[^`]*``|`[^`]*`|^(?: {4,}|\|)[^\n]*$", re.DOTALL | re.MULTILINE)
_CLAUSE = re.compile(r"[.;:,!?()]+\s|\n\s*\n")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def main() -> int:
    """Print the numbers of each package, of the documents, and of the lines."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    paths = [ROOT / file for file in files if file and (ROOT / file).is_file()]
    print(f"{'':16}{'words':>9}{'what':>7}{'one':>7}{'openers':>9}")
    code = [path for path in paths if path.suffix == ".py"]
    for folder in ("producers", "workers", "results_store"):
        _print(folder, [text for path in code if _under(path, folder) for text in docstrings(path)])
    _print("docstrings", [text for path in code if not _under(path, "tests") for text in docstrings(path)])
    _print("Markdown", [path.read_text(encoding="utf-8") for path in paths if path.suffix == ".md"])
    over = sum(len(line) > LONGEST_LINE for path in code for line in path.read_text(encoding="utf-8").splitlines())
    print(f"\n{over} lines of code are over {LONGEST_LINE} characters")
    return 0


def _under(path: Path, folder: str) -> bool:
    return path.relative_to(ROOT).parts[0] == folder


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module and of all that is in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield text


def _print(name: str, texts: Iterable[str]) -> None:
    words: Counter[str] = Counter()
    clauses = opened = 0
    for text in texts:
        prose = _CODE.sub("", text)
        words.update(word.lower() for word in _WORD.findall(prose))
        for clause in _CLAUSE.split(prose):
            if first := _WORD.search(clause):
                clauses += 1
                opened += first[0].lower() in OPENERS
    total = max(words.total(), 1)
    rates = [1000 * words[word] / total for word in ("what", "one")]
    print(f"{name:16}{total:9,}{rates[0]:7.1f}{rates[1]:7.1f}{opened / max(clauses, 1):9.1%}")


if __name__ == "__main__":
    sys.exit(main())
