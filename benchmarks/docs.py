"""Tables and pictures in documents, made from the committed results: nobody types a number."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from . import ranks, report
from .results import load
from .sass import command as sass

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER.parent / "README.md"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
SHARDS_PAGE = PAGE.with_name("distributed.md")
GPU_PAGE = PAGE.with_name("gpu.md")
PICTURES = PAGE.with_suffix("")
VIEWS: dict[str, Callable[[Path], str]] = {
    "": lambda path: report.markdown(load(path)),
    ":summary": lambda path: report.summary(load(path)),
    ":shards": lambda path: ranks.markdown(ranks.load(path)),
    ":sass": lambda path: sass.markdown(sass.load(path)),
}
MARKED = re.compile(
    r"(<!-- benchmark:(?P<name>[\w.-]+)(?P<view>:summary|:shards|:sass|) -->\n).*?(<!-- /benchmark -->)", re.DOTALL
)


def update() -> None:
    """Bring README.md, pages in docs and their pictures in line with benchmarks/results.

    Raises:
        OSError: this is an installed copy, which has no documents.
    """
    for path in (README, PAGE, SHARDS_PAGE, GPU_PAGE):
        path.write_text(with_tables(path.read_text()))
    from .plots import draw  # matplotlib is not everywhere

    draw(load(RESULTS / "cpu.json"), PICTURES, digest())


def digest(path: Path = RESULTS / "cpu.json") -> str:
    """What the pictures carry: the SHA-256 of the results that they were drawn from."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_tables(text: str, results: Path = RESULTS) -> str:
    """The text with what stands between its markers made from the JSON that they name.

    `benchmark:NAME` is all of NAME.json, `benchmark:NAME:summary` its summary, `benchmark:NAME:shards` what
    benchmarks.ranks wrote, `benchmark:NAME:sass` what the command sass wrote; all are empty without that file.
    """

    def table(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        content = f"\n{VIEWS[match['view']](path)}\n\n" if path.exists() else ""
        return f"{match[1]}{content}{match[4]}"

    return MARKED.sub(table, text)
