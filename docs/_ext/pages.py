"""A Sphinx extension that writes the pages which are made from the code, before each build.

They are Markdown below `docs/reference/`: the README and its quickstart, CONTRIBUTING, a page for
each strategy and scenario, the public API, and every source file that a page links to.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from api import api_pages, keep_bars, no_signature
from entries import entry_pages
from links import PAGES, ROOT, linked_sources, relink
from sphinx.application import Sphinx


def write(files: Mapping[str, str]) -> None:
    """Write files below docs/ in place of those of an earlier build."""
    shutil.rmtree(ROOT / "docs/reference", ignore_errors=True)
    for name, text in files.items():
        path = ROOT / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def source_page(path: str, page: str) -> str:
    """Return a page that shows a file, or lists the files of a folder; search does not find it."""
    metadata = "---\norphan: true\nnosearch: true\n---\n\n"
    head = f"{metadata}# {path}\n\n"
    file = ROOT / path
    if file.is_dir():
        names = sorted(f.name for f in file.iterdir() if f.suffix in (".py", ".md"))
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    if file.suffix == ".md":
        return metadata + relink(file.read_text(), str(Path(path).parent), page)
    up = "../" * page.count("/")
    return f"{head}```{{literalinclude}} {up}../{path}\n```\n"


def write_pages(app: Sphinx) -> None:
    """Write all of them."""
    written = entry_pages() | api_pages()  # which also enters the entries in PAGES
    files = {name: (ROOT / name).read_text() for name in PAGES if name.endswith(".md")}
    texts = [(text, "") for text in files.values()]
    for file in (ROOT / "docs").rglob("*.md"):
        if ROOT / "docs/reference" not in file.parents:
            texts.append((file.read_text(), str(file.parent.relative_to(ROOT))))
    for path in sorted(set().union(*(linked_sources(*text) for text in texts))):
        page = f"reference/source/{path}"
        written[page] = source_page(path, page)
    written |= {PAGES[name]: relink(text, "", PAGES[name]) for name, text in files.items()}
    introduction = files["README.md"].partition("\n")[2].partition("\n## ")[0]
    pages = {f"{page}.md": text for page, text in written.items()}
    write(pages | {"reference/introduction.txt": relink(introduction, "", "index")})


def change_links(app: Sphinx, page: str, content: list[str]) -> None:
    """Change the links of a page that is committed; those of the others are changed already."""
    if not page.startswith("reference/"):
        content[0] = relink(content[0], str(Path("docs", page).parent), page)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", change_links)
    app.connect("autodoc-process-docstring", keep_bars, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", no_signature)
    return {"parallel_read_safe": True}
