"""Pages that lie elsewhere in the repository, and links that work both there and on the site."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(docs/")


def on_files(files, config):
    """Add the pages to those of docs/."""
    for source, page in PAGES.items():
        text = PICTURE.sub(r"![\1](", (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Links to files of the repository: the site's page of it, or where it has none, text."""
    sources = {name: source for source, name in PAGES.items()}
    folder = (ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def link(found):
        text, target, anchor = found.groups()
        file = (folder / target).resolve()
        if not file.exists():
            return found[0]  # which the strict build complains of
        if file.is_relative_to(DOCS):
            return f"[{text}]({file.relative_to(DOCS).as_posix()}{anchor or ''})"
        known = PAGES.get(file.relative_to(ROOT).as_posix())
        return f"[{text}]({known}{anchor or ''})" if known else text

    return LINK.sub(link, markdown)
