"""The figures of a benchmark as Markdown, and the page that collects them: one section per model and device."""

from __future__ import annotations

import re
from pathlib import Path

from ..files import complete
from .benchmark import FIRST_SOUND

HEAD = "# Performance\n"


def text(result: dict) -> str:
    """One section, from its heading on."""
    spread = result["spread"]

    def rate(label: str, name: str) -> str:
        fps, (low, high) = result[f"{name}_fps"], spread[f"{name}_fps"]
        row = f"| {label} | {_number(fps)} ({_number(low)} to {_number(high)}) | {_number(1000 / fps)} |"
        if f"{name}_ratio" not in result:
            return row + " | |"
        low, high = spread[f"{name}_ratio"]
        plain = _number(1000 / result[f"{name}_plain_fps"])
        return row + f" {plain} | {result[f'{name}_ratio']:.2f} × ({low:.2f} to {high:.2f}) |"

    def figure(label: str, name: str, unit: str) -> str:
        low, high = spread[name]
        return f"| {label} | {_number(result[name])} {unit} ({_number(low)} to {_number(high)}) |"

    share = f"{100 * result['matrix_share']:.0f} %"
    lines = [
        heading(result),
        "",
        f"{result['date']}, {result['machine']}, {result['precision']}; {result['versions']}. Medians of "
        f"{result['runs']} runs, in brackets least and greatest; clips of {result['seconds']:g} s; where nothing else "
        f"is said, networks make {result['batch']} {'frames' if result['batch'] > 1 else 'frame'} at a time.",
        "",
        f"| {result['size']}×{result['size']} | frames a second | ms a frame | plain | ratio |",
        "|---|---|---|---|---|",
        rate("`animate`, whole, with video encoding", "animate"),
        rate("`reenact`, whole, with video encoding", "reenact"),
        rate("animate, networks alone", "animate_network"),
        rate("reenact, networks alone", "reenact_network"),
        rate("animate, networks, one frame at a time", "animate_network_alone"),
        rate("reenact, networks, one frame at a time", "reenact_network_alone"),
        rate("of these: motion latent to frame", "renderer"),
        rate("of these: picture to motion latent", "motion_encoder"),
        "",
        "| | |",
        "|---|---|",
        figure(f"live: first frame after the first {FIRST_SOUND:g} s of sound", "live_first_frame_ms", "ms"),
        figure("live: work for each frame", "live_frame_ms", "ms"),
        figure("start: from Enter to the first frame of `imtalker animate`", "start_first_frame_s", "s"),
        figure("seconds of work for a second of video", "real_time_factor", "s"),
        figure("peak memory of `imtalker animate`", "peak_memory_mb", "MB"),
        *([figure("of its GPU", "peak_gpu_memory_mb", "MB")] if result["peak_gpu_memory_mb"] else []),
        f"| motion latent to frame: needed, plain | {result['gflop_per_frame']:.2f}, "
        f"{result['plain_gflop_per_frame']:.2f} GFLOP |",
        f"| reached, of what a matrix product reaches | {_number(result['achieved_gflops'])} of "
        f"{_number(result['matrix_gflops'])} GFLOP/s, {share} |",
        f"| memory copy | {_number(result['copy_gbs'])} GB/s |",
    ]
    if "launches_batch" in result:
        lines.append(
            f"| kernel launches: a batch, one frame, one plain frame | {result['launches_batch']}, "
            f"{result['launches_frame']}, {result['launches_plain_frame']} |"
        )
    lines += ["", "| stage | ms | GFLOP | MB | operators | bound, ms | share reached |", "|" + 7 * "---|"]
    for stage in result["stages"]:
        low, high = stage["spread"]
        row = f"| {stage['stage']}, a {stage['per']} | {_number(stage['ms'])} ({_number(low)} to {_number(high)}) |"
        if "gflop" in stage:
            row += (f" {stage['gflop']:.3g} | {_number(stage['megabytes'])} | {stage['operators']} |"
                    f" {_number(stage['bound_ms'])} | {100 * stage['share']:.0f} % |")
        else:
            row += " | | | | |"
        lines.append(row)
    return "\n".join(lines) + "\n"


def heading(result: dict) -> str:
    return f"## `{result['model']}` on {result['device']}"


def write(file: Path, result: dict) -> None:
    """Put the section into `file`, in place of one with the same heading; all else in it stays."""
    page = file.read_text(encoding="utf-8") if file.exists() else HEAD
    section, start = text(result), heading(result) + "\n"
    before, found, after = page.partition(start)
    if found:
        rest = re.search(r"^## ", after, re.M)
        page = before + section + ("\n" + after[rest.start() :] if rest else "")
    else:
        page = page.rstrip("\n") + "\n\n" + section
    with complete(file) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _number(x: float) -> str:
    """Three digits that count."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
