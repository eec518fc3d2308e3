"""Pages of reports: a template, the head and style that all pages share, and pictures inside of the page.

A page is one file. It has no script and loads nothing from elsewhere; its content security policy forbids both. What it
is given is escaped.
"""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
STYLE = "page.css"
PICTURE_DPI = 192  # twice that of a page, so that pictures are sharp on dense screens


def page(template: str, **content: Any) -> str:
    """Return the HTML of a page.

    Args:
        template: Name of a file beside this one.
        **content: What the template shows; text is escaped.

    Example:
        >>> record = {"title": "<b>", "created": "2026", "seconds": 1.0, "data": {}, "versions": {}}
        >>> html = page("report.html", record=record, tasks=[])
        >>> "<b>" in html, "&lt;b&gt;" in html
        (False, True)
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = Markup((FOLDER / STYLE).read_text(encoding="utf-8"))  # ours, and no HTML
    return environment.get_template(template).render(style=style, **content)


def picture(figure: "Figure") -> dict[str, Any]:
    """Return a figure as `png`, in base64, and its `width` in CSS pixels, of which an inch has 96."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=PICTURE_DPI, bbox_inches="tight", facecolor="white")
        png = file.getvalue()
    dots = int.from_bytes(png[16:20])  # the width in the header of a PNG
    return {"png": base64.b64encode(png).decode(), "width": dots * 96 // PICTURE_DPI}
