"""The frame of every HTML page: title, style and conditions; a page needs no other file and no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eugen3d.cli.files import write_whole


def write_page(path: Path, body: Path, title: str, conditions: Mapping[str, str], **parts: str) -> None:
    """Write a page.

    Args:
        path: the HTML file.
        body: the template of what follows the conditions.
        title: plain text, like the conditions.
        parts: what the body's template names, as HTML.
    """
    listed = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in conditions.items())
    frame = {"style": style(), "title": escape(title), "conditions": "\n".join(listed)}
    content = _template(body).substitute(parts)
    write_whole(path, _template(Path(__file__).with_name("page.html")).substitute(frame, body=content))


def title_of(subject: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The title of a page on runs: their names, where these are few."""
    return f"{subject}: {', '.join(run['name'] for run in runs) if len(runs) <= 6 else f'{len(runs)} runs'}"


def measured_on(result: Mapping[str, Any]) -> dict[str, str]:
    """When, and with which versions, a result was measured."""
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "date": result["date"].replace("T", " ").replace("+00:00", " UTC"),
    }


def style() -> str:
    """The style sheet that all pages have."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf8")


def _template(path: Path) -> Template:
    return Template(path.read_text(encoding="utf8"))
