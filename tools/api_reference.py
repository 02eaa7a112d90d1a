"""Writes the API reference: pdoc's pages of lynx_rt, and a page per public header, with its comments.

Usage: python tools/api_reference.py FOLDER, with lynx_rt and pdoc installed.
"""

from __future__ import annotations

import html
import sys
from pathlib import Path

import pdoc
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CppLexer

HEADERS = Path(__file__).resolve().parents[1] / "csrc" / "include" / "lynx_rt"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ max-width: 75em; margin: 2em auto; padding: 0 1em; font-family: system-ui, sans-serif }} pre {{ line-height: 1.35 }} {style}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_headers(folder: Path) -> list[str]:
    """Writes a page per header; returns the file names, relative to the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    formatter = HtmlFormatter(linenos="table", lineanchors="line", anchorlinenos=True)
    names = []
    for header in sorted(HEADERS.glob("*.h")):
        body = highlight(header.read_text(), CppLexer(), formatter)
        page = PAGE.format(title=f"lynx_rt/{header.name}", style=formatter.get_style_defs(), body=body)
        (folder / f"{header.name}.html").write_text(page)
        names.append(f"{folder.name}/{header.name}.html")
    return names


def main(folder: Path) -> None:
    import lynx_rt

    pdoc.render.configure(docformat="markdown", show_source=False)
    # The package's page has all its public names; the modules behind them are not public and get no pages.
    pdoc.pdoc("lynx_rt", "!lynx_rt.", output_directory=folder)
    headers = write_headers(folder / "include")
    items = ['<li><a href="lynx_rt.html">Python: lynx_rt</a></li>']
    items += [f'<li><a href="{name}">C and C++: lynx_rt/{html.escape(Path(name).stem)}</a></li>' for name in headers]
    body = f"<ul>{''.join(items)}</ul>"
    (folder / "index.html").write_text(PAGE.format(title=f"lynx_rt {lynx_rt.__version__}", style="", body=body))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
