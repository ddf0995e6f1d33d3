"""Results as a table for the terminal, as JSON, and as one HTML page with contact sheets and curves."""
from __future__ import annotations

import base64
import html
import io
import json
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import complete
from . import PROTOCOLS
from .protocols import CEILING, FLOOR, MODEL, Result, averages, spreads

UNITS = {"psnr": "dB", "landmark_distance": "%", "expression_error": "%", "landmark_jitter": "%",
         "mouth_lag_frames": "frames"}
COLOURS = {CEILING: "#2a8f4e", MODEL: "#c2410c"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
table{border-collapse:collapse}td,th{padding:.2rem .9rem;text-align:right;border-bottom:1px solid #e2e8f0}
td:first-child,th:first-child{text-align:left}img{max-width:100%;display:block}figure{margin:1.5rem 0}
figcaption,small{color:#64748b}"""


class Report:
    """What was measured, and on what. settings: of the run, by name; those of a title are "model", "people" and
    "seconds". missing: reason by metric that could not be."""

    def __init__(self, settings: dict[str, Any], results: list[Result], missing: dict[str, str]):
        self.settings, self.results, self.missing = settings, results, missing
        self.table, self.spread = averages(results), spreads(results)
        # The ceiling and the floor come last, after the models.
        self.rows = sorted(self.table, key=(CEILING, FLOOR).__contains__)

    def lines(self, protocol: str) -> list[tuple[str, list[str]]]:
        """(metric with its unit, what stands in each row's column) of one protocol, what is not known nowhere."""
        measured = {row: self.table[row].get(protocol, {}) for row in self.rows}
        return [(f"{name} {UNITS.get(name, '')}".strip(),
                 [_with_error(measured[row][name], self.spread[row][protocol].get(name)) for row in self.rows])
                for name in measured.get(MODEL, {}) if name not in self.missing]

    def text(self) -> str:
        """The table for a terminal."""
        lines = []
        for protocol in PROTOCOLS:
            if rows := self.lines(protocol):
                lines += ["", f"{_name(protocol):<30}" + "".join(f"{row[:17]:>18}" for row in self.rows)]
                lines += [f"  {name:<28}" + "".join(f"{value:>18}" for value in values) for name, values in rows]
        lines += ["", *(f"{name}: not measured: {reason}" for name, reason in self.missing.items())]
        return "\n".join(line.rstrip() for line in lines[1:]).rstrip()

    def json(self) -> str:
        """One object: the model's metrics by protocol; the same for the other rows, and standard errors; all rows of
        every clip; settings; null where nothing was measured, with reasons under "not_measured"."""
        clips = [{"protocol": one.protocol, "person": one.person, "rows": one.metrics} for one in self.results]
        others = {row: self.table[row] for row in self.rows if row not in (MODEL, CEILING, FLOOR)}
        told = {**self.table[MODEL], "ceiling": self.table[CEILING], "floor": self.table[FLOOR], "compared": others,
                "standard_error": self.spread[MODEL], "clips": clips, "settings": self.settings,
                "not_measured": self.missing}
        return json.dumps(json.loads(json.dumps(told), parse_constant=lambda name: None))  # JSON knows no NaN

    def write_html(self, path: Path) -> None:
        """One file that needs nothing else."""
        title = html.escape("{model}: {people} people, {seconds:g} s each".format(**self.settings))
        parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>",
                 "<p>Means over people, with their standard errors. Ceiling: the true frames, measured the same way. "
                 "Floor: the source standing still.</p>"]
        parts += [f"<p>{name}: not measured: {html.escape(reason)}</p>" for name, reason in self.missing.items()]
        for protocol in PROTOCOLS:
            head = "".join(f"<th>{html.escape(row)}" for row in self.rows)
            body = "".join(f"<tr><td>{name}" + "".join(f"<td>{value}" for value in values)
                           for name, values in self.lines(protocol))
            if body:
                parts.append(f"<h2>{_name(protocol).capitalize()}</h2><table><tr><th>{head}{body}</table>")
            for result in (r for r in self.results if r.protocol == protocol):
                parts.append(f"<figure><img src='data:image/jpeg;base64,{_encoded(sheet(result))}'>{curves(result)}"
                             f"<figcaption>Person {result.person}: truth above, made below; opening of the mouth, "
                             "truth green, made orange</figcaption></figure>")
        with complete(path) as unfinished:
            unfinished.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _name(protocol: str) -> str:
    return protocol.replace("_", " ")


def _with_error(value: float, error: float | None) -> str:
    """A number with three digits behind the point; a dash where there is none."""
    if isnan(value):
        return "-"
    return f"{value:.3f}" if error is None or isnan(error) else f"{value:.3f} ± {error:.3f}"


def sheet(result: Result) -> np.ndarray:
    """(H, W, 3) uint8: the true frames above the made ones."""
    return np.concatenate([np.concatenate(list(result.frames[row]), 1) for row in (CEILING, MODEL)])


def _encoded(picture: np.ndarray) -> str:
    """JPEG of half the size in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2)).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def curves(result: Result, width: int = 1000, height: int = 90) -> str:
    """The mouth's opening over time, as SVG."""
    top = max(float(np.max([m.max() for m in result.mouths.values()])), 0.05)
    lines = []
    for row, colour in COLOURS.items():
        mouth = result.mouths[row]
        points = " ".join(f"{width * k / max(len(mouth) - 1, 1):.1f},{height * (1 - y / top):.1f}"
                          for k, y in enumerate(mouth))
        lines.append(f"<polyline fill=none stroke='{colour}' stroke-width=2 points='{points}'/>")
    return f"<svg viewBox='0 -4 {width} {height + 8}' width=100%>{''.join(lines)}</svg>"
