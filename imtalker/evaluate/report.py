"""Results as a table for the terminal and as one HTML page with contact sheets and curves."""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from .protocols import PROTOCOLS, ROWS, Result

UNITS = {"psnr": "dB", "landmark_distance": "%", "expression_error": "%", "landmark_jitter": "%",
         "mouth_lag_frames": "frames"}
COLOURS = {"ceiling": "#2a8f4e", "model": "#c2410c", "floor": "#94a3b8"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
table{border-collapse:collapse}td,th{padding:.2rem .9rem;text-align:right;border-bottom:1px solid #e2e8f0}
td:first-child,th:first-child{text-align:left}img{max-width:100%;display:block}figure{margin:1.5rem 0}
figcaption{color:#64748b}"""


def rows_of(table: dict, protocol: str) -> list[tuple[str, list[float]]]:
    """(metric, its values in the order of ROWS) of one protocol."""
    names = table[ROWS[0]].get(protocol, {})
    return [(name, [table[row][protocol][name] for row in ROWS]) for name in names]


def text(table: dict) -> str:
    """The table for a terminal."""
    lines = []
    for protocol in PROTOCOLS:
        rows = rows_of(table, protocol)
        if rows:
            lines += ["", f"{protocol.replace('_', ' '):<30}" + "".join(f"{row:>12}" for row in ROWS)]
            lines += [f"  {name:<28}" + "".join(f"{value:>12.3f}" for value in values) + f" {UNITS.get(name, '')}"
                      for name, values in rows]
    return "\n".join(line.rstrip() for line in lines[1:])


def write_html(path: Path, title: str, table: dict, results: list[Result]) -> None:
    """One file that needs nothing else."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
             f"<h1>{html.escape(title)}</h1>"]
    for protocol in PROTOCOLS:
        rows = rows_of(table, protocol)
        if not rows:
            continue
        head = "".join(f"<th>{row}" for row in ROWS)
        body = "".join(f"<tr><td>{name} {UNITS.get(name, '')}" + "".join(f"<td>{v:.3f}" for v in values)
                       for name, values in rows)
        parts.append(f"<h2>{protocol.replace('_', ' ').capitalize()}</h2><table><tr><th>{head}{body}</table>")
        for result in (r for r in results if r.protocol == protocol):
            parts.append(f"<figure><img src='data:image/jpeg;base64,{picture(result)}'>{curves(result)}<figcaption>"
                         f"Person {result.person}: truth above, made below; opening of the mouth, truth green, made "
                         "orange</figcaption></figure>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def picture(result: Result) -> str:
    """The true frames above the made ones, JPEG in base64."""
    sheet = np.concatenate([np.concatenate(list(result.frames[row]), 1) for row in ("ceiling", "model")])
    file = io.BytesIO()
    Image.fromarray(sheet).resize((sheet.shape[1] // 2, sheet.shape[0] // 2)).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def curves(result: Result, width: int = 1000, height: int = 90) -> str:
    """The mouth's opening over time, as SVG."""
    top = max(float(np.max([m.max() for m in result.mouths.values()])), 0.05)
    lines = []
    for row in ("ceiling", "model"):
        mouth = result.mouths[row]
        points = " ".join(f"{width * k / max(len(mouth) - 1, 1):.1f},{height * (1 - y / top):.1f}"
                          for k, y in enumerate(mouth))
        lines.append(f"<polyline fill=none stroke='{COLOURS[row]}' stroke-width=2 points='{points}'/>")
    return f"<svg viewBox='0 -4 {width} {height + 8}' width=100%>{''.join(lines)}</svg>"
