"""Links between Markdown files, which work on a code host, made to work on the site.

On the site the README, CONTRIBUTING, strategies, scenarios and every linked source file are pages
below `reference/`. All paths here are relative to the root of the repository, unless a name says
`page`: those are names of pages, relative to `docs/` and without suffix.
"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
PAGES = {
    "README.md": "reference/readme",
    "CONTRIBUTING.md": "reference/contributing",
    "CHANGELOG.md": "reference/changelog",
    "strategies": "reference/strategies/index",
    "scenarios": "reference/scenarios/index",
}  # further ones are added as they are written


def target_page(path: str) -> str:
    """Return the page that shows a file or folder of the repository."""
    return PAGES.get(path) or f"reference/source/{path}"


def relink(text: str, folder: str, page: str) -> str:
    """Return Markdown with its links changed for the page that shows it.

    Args:
        text: Markdown.
        folder: where its relative links start: the folder of the file that it is from.
        page: the page that will show it.
    """

    def moved(match: re.Match[str]) -> str:
        path = os.path.normpath(ROOT / folder / match[2])
        if not Path(path).exists():
            return match[0]  # Sphinx says so
        path = os.path.relpath(path, ROOT)
        inside = path.startswith("docs/")
        new = path.removeprefix("docs/") if inside else f"{target_page(path)}.md"
        return match[1] + os.path.relpath(new, Path(page).parent) + match[3]

    return LINK.sub(moved, text)


def linked_sources(text: str, folder: str) -> set[str]:
    """Return the files and folders outside docs/ that Markdown links to and that have no page."""
    paths = {os.path.normpath(ROOT / folder / match[2]) for match in LINK.finditer(text)}
    inside = {os.path.relpath(path, ROOT) for path in paths if Path(path).exists()}
    return {path for path in inside if not path.startswith("docs/") and path not in PAGES}
