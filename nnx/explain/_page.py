"""All explanations on one page: a single file that needs no network, no script and no other file."""

import base64
import json
from collections.abc import Mapping
from html import escape

from nnx.explain import Explanation, Picture, Subject, _draw, module

FIGURES = 10_000  # characters of them
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d6470; --paper: #fff; --line: #e3e5e8; --link: #0a5cad }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #9aa1ab; --paper: #15171a; --line: #2b2f35; --link: #7db9f0 } }
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
pre { overflow-x: auto; font-size: .78rem; line-height: 1.35; max-height: 24rem; background: color-mix(in srgb, var(--ink) 5%, transparent);
  padding: .7rem; border-radius: .4rem }
"""


def render(subject: Subject, found: Mapping[str, Explanation | str]) -> str:
    """The page: what was explained, each explanation with its reading, pictures and figures, and what there is none of,
    with the reason."""
    config = subject.kept.config
    title = f"What a network learned: {config.model.name} on {config.dataset.name}"
    made = {name: each for name, each in found.items() if isinstance(each, Explanation)}
    left_out = {name: each for name, each in found.items() if isinstance(each, str)}
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in made)
    reasons = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in left_out.items())
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_facts(subject))}</p>',
        f"<nav>{links}</nav>",
        *(section(name, each) for name, each in made.items()),
        f"<section><h2>Not here</h2><ul>{reasons}</ul></section>" if reasons else "",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def section(name: str, explanation: Explanation) -> str:
    """One explainer's part of a page: what it shows, how to read it, its pictures, and its figures folded away."""
    figures = json.dumps(explanation.figures, indent=1, allow_nan=False)
    if len(figures) > FIGURES:
        figures = (
            f"{figures[:FIGURES]}\n... and {len(figures) - FIGURES:,} more characters, which nnx explain --json prints"
        )
    return "\n".join(
        [
            f'<section id="{escape(name)}"><h2>{escape(name)}</h2>',
            f'<p class="soft">{escape(first_line(name))}</p>',
            f"<p>{escape(explanation.reading)}</p>",
            *map(figure, explanation.pictures),
            f"<details><summary>Figures</summary><pre>{escape(figures)}</pre></details></section>",
        ]
    )


def figure(picture: Picture) -> str:
    """A picture inside the page, at the size that it was drawn for, with its caption; on a phone a wide one can be
    moved sideways."""
    width, height = (
        round(int.from_bytes(picture.png[start : start + 4]) * 96 / _draw.DOTS) for start in (16, 20)
    )  # of the PNG's header
    data = base64.b64encode(picture.png).decode()
    wide = ' class="wide"' if width > 500 else ""
    image = f'<img{wide} width="{width}" height="{height}" alt="{escape(picture.caption)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(picture.caption)}</figcaption></figure>'


def first_line(name: str) -> str:
    """What an explainer shows, in its own words."""
    line = (module(name).__doc__ or "").strip().partition("\n")[0].removeprefix(f"{name.capitalize()}: ")
    return line[:1].upper() + line[1:]


def _facts(subject: Subject) -> str:
    record = subject.kept.record
    accuracy = (
        f"; {record['val_accuracy']:.2%} right in validation".replace("%", " %") if "val_accuracy" in record else ""
    )
    epoch = f"after epoch {record['epoch']}" if "epoch" in record else "before any training"
    asked = ", ".join(subject.names[:10]) + (", …" if len(subject.names) > 10 else "")
    return f"The network {epoch}{accuracy}. Asked about: {asked}."
