"""All explanations on one HTML page: a self-contained file without scripts."""

import base64
import json
from collections.abc import Mapping
from html import escape

from nnx.explain import Explanation, Picture, Subject, _draw, _titles, module

MAX_JSON = 10_000  # characters of an explanation's numbers on the page
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d6470; --paper: #fff; --line: #e3e5e8; --link: #0a5cad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --soft: #9aa1ab; --paper: #15171a; --line: #2b2f35; --link: #7db9f0 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1.1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .3rem }
h2 { font-size: 1.2rem; margin: 0 0 .2rem }
section { border-top: 1px solid var(--line); margin-top: 2.2rem; padding-top: 1.4rem }
p { margin: .3rem 0 .8rem }
.soft, figcaption, summary, li { color: var(--soft); font-size: .92rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: 1rem }
a { color: var(--link); text-decoration: none }
a:hover { text-decoration: underline }
figure { margin: 1.2rem 0 }
.scroll { overflow-x: auto }
img { display: block; max-width: 100%; height: auto }
@media (max-width: 40rem) { img.wide { max-width: none; width: 40rem } }
figcaption { margin-top: .35rem }
pre { overflow-x: auto; font-size: .78rem; line-height: 1.35; max-height: 24rem; padding: .7rem; border-radius: .4rem;
  background: color-mix(in srgb, var(--ink) 5%, transparent) }
"""


def render(subject: Subject, results: Mapping[str, Explanation | str]) -> str:
    """The page: each explanation with its reading, pictures and numbers, then the explainers without one and why."""
    title = f"What the network learned: {_titles.page_title(subject.checkpoint.config)}"
    explanations = {name: result for name, result in results.items() if isinstance(result, Explanation)}
    left_out = {name: result for name, result in results.items() if isinstance(result, str)}
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in explanations)
    reasons = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in left_out.items())
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_describe(subject))}</p>',
        f"<nav>{links}</nav>",
        *(section_html(name, explanation) for name, explanation in explanations.items()),
        f"<section><h2>Not shown</h2><ul>{reasons}</ul></section>" if reasons else "",
    ]
    head = [
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    page = [f'<!doctype html>\n<html lang="en"><head>{"".join(head)}</head><body>', *body, "</body></html>\n"]
    return "\n".join(page)


def section_html(name: str, explanation: Explanation) -> str:
    """The section of one explainer: what it shows, how to read it, its pictures, and its numbers folded away."""
    numbers = json.dumps(explanation.figures, indent=1, allow_nan=False)
    if len(numbers) > MAX_JSON:
        numbers = f"{numbers[:MAX_JSON]}\n... {len(numbers) - MAX_JSON:,} more characters: nnx explain --json"
    return "\n".join(
        [
            f'<section id="{escape(name)}"><h2>{escape(name)}</h2>',
            f'<p class="soft">{escape(summary_line(name))}</p>',
            f"<p>{escape(explanation.reading)}</p>",
            *map(picture_html, explanation.pictures),
            f"<details><summary>Numbers</summary><pre>{escape(numbers)}</pre></details></section>",
        ]
    )


def picture_html(picture: Picture) -> str:
    """A picture in the size for which it was drawn, with its caption; on a phone a wide one scrolls sideways."""
    header = (picture.png[16:20], picture.png[20:24])  # of the PNG: width and height
    width, height = (round(int.from_bytes(pixels) * 96 / _draw.DPI) for pixels in header)
    data = base64.b64encode(picture.png).decode()
    wide = ' class="wide"' if width > 500 else ""
    caption = escape(picture.caption)
    image = f'<img{wide} width="{width}" height="{height}" alt="{caption}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{caption}</figcaption></figure>'


def summary_line(name: str) -> str:
    """What an explainer shows: the first line of its module."""
    line = (module(name).__doc__ or "").strip().partition("\n")[0].removeprefix(f"{name.capitalize()}: ")
    return line[:1].upper() + line[1:]


def _describe(subject: Subject) -> str:
    record = subject.checkpoint.record
    epoch = f"after epoch {record['epoch']}" if "epoch" in record else "before training"
    accuracy = f", validation accuracy {100 * record['val_accuracy']:.2f} %" if "val_accuracy" in record else ""
    samples = ", ".join(subject.names[:10]) + (", …" if len(subject.names) > 10 else "")
    return f"Network {epoch}{accuracy}. Samples: {samples}."
