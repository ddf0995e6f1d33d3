"""What each command of the command line does with its parsed options.

A command checks all that can be checked quickly before anything slow, prints its result, as JSON if asked, and leaves
errors to its caller.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from pathlib import Path

from . import __version__
from .bundled import ASSETS
from .errors import InputError
from .files import check_writable
from .memory import keep_freed_memory, peak_memory

BAR_DELAY = 2.0  # seconds that something may take before a progress bar appears


# ---------------------------------------------------------------------------------------------------------------------
# animate, reenact


def animate(args):
    inputs = _inputs(args.source, args.audio, "sample.wav", "speech: a sound file, or a video with sound")
    controls = {"pose": args.pose, "gaze": args.gaze, "cam": args.cam}
    sampling = {"seed": args.seed, "nfe": args.nfe, "guidance_scale": args.guidance}
    _make(args, *inputs, **controls, **sampling)


def reenact(args):
    inputs = _inputs(args.source, args.driving, "sample.mp4", "a video of a face")
    crop = args.crop if args.driving_crop is None else args.driving_crop
    _make(args, *inputs, crop=crop, relative=args.relative)


def _inputs(source: str | None, driving: str | None, sample: str, expected: str) -> tuple[Path, Path]:
    """Both inputs, or the bundled samples; that they can be read is checked before anything slow."""
    from .media import files, picture

    source = ASSETS / "sample.png" if source is None else source
    driving = ASSETS / sample if driving is None else driving
    files.check_readable(source, picture.EXPECTED)
    files.check_readable(driving, expected)
    return Path(source), Path(driving)


def _output(given: str | None, *inputs: Path) -> Path:
    """Where the video goes; that it can be written there is checked before anything slow."""
    from .media import check_output

    output = Path("_".join(path.stem for path in inputs) + ".mp4" if given is None else given)
    target = check_output(output)
    if target.exists() and any(target.samefile(path) for path in inputs):
        raise InputError(f"output {str(output)!r} is one of the inputs, expected another file: choose another name")
    return output


def _talker(args):
    from .pipeline import IMTalker

    talker = IMTalker.from_pretrained(args.model, device=args.device, precision=args.precision)
    if talker.device.type == "cpu":  # not before: what loading took is given back
        keep_freed_memory()
    return talker


def _make(args, picture: Path, driving: Path, **how):
    """Animate or reenact, as the command is called: write the clip with a progress bar, then say what was made."""
    output = _output(args.output, picture, driving)
    talker = _talker(args)
    source = talker.encode_source(picture, face=args.face, crop=args.crop, whole=args.whole)
    clip = getattr(talker, args.command)(source, driving, fps=args.fps, **how)
    start = time.perf_counter()
    with _bar(clip.expected, "frames", args.quiet) as bar:
        frames = clip.save(output, progress=lambda done: bar.update(done - bar.n))
    elapsed = time.perf_counter() - start
    width, height = clip.size
    seconds = float(frames / clip.fps)
    if args.json:
        print(
            json.dumps(
                {
                    "output": str(output),
                    "frames": frames,
                    "fps": float(clip.fps),
                    "seconds": round(seconds, 3),
                    "width": width,
                    "height": height,
                    "elapsed_seconds": round(elapsed, 3),
                    "frames_per_second": round(frames / elapsed, 2),
                    "model": talker.name,
                    "device": str(talker.device),
                    "precision": talker.precision,
                    "seed": args.seed,
                }
            )
        )
    elif not args.quiet:
        print(
            f"{output}: {seconds:.1f} s, {width}x{height}, {float(clip.fps):g} frames a second, made in {elapsed:.1f} s"
        )


def _bar(total: int | None, unit: str, quiet: bool, **options):
    """A progress bar on a terminal, for what takes longer than two seconds; otherwise nothing."""
    from tqdm import tqdm

    quiet = True if quiet else None  # None: only on a terminal
    return tqdm(total=total, unit=" " + unit, delay=BAR_DELAY, leave=False, disable=quiet, **options)


# ---------------------------------------------------------------------------------------------------------------------
# serve


def serve(args):
    from .live.limits import Limits
    from .live.rtc import ice_server
    from .live.server import serve
    from .live.service import Service
    from .live.speech import load_speaker

    limits = Limits(args.sessions, upload_bytes=args.max_upload * 2**20, seconds=args.max_seconds)
    service = Service(
        lambda: _talker(args),
        limits,
        speaker=load_speaker(args.speaker),
        nfe=args.nfe,
        guidance=args.guidance,
        ice=tuple(map(ice_server, args.ice)),
    )

    def told(address: str) -> None:
        talker = service.talker
        if args.json:
            print(json.dumps({"address": address, "model": talker.name, "device": str(talker.device)}), flush=True)
        elif not args.quiet:
            print(f"{talker.name} on {talker.device} is ready at {address} (Ctrl-C stops it)", flush=True)

    key = args.api_key or os.environ.get("IMTALKER_API_KEY") or None  # a variable that is empty is none
    origins = tuple(origin.rstrip("/") for origin in args.allow_origin)  # browsers name them without
    serve(service, args.host, args.port, key, origins, told)


# ---------------------------------------------------------------------------------------------------------------------
# models


def models_list(args):
    from .weights import available_models

    entries = available_models()
    if args.json:
        rows = [
            {"name": entry.name, "origin": entry.origin, "folder": _text(entry.folder), "bytes": entry.bytes}
            for entry in entries
        ]
        print(json.dumps({"models": rows}))
        return
    for entry in entries:
        size = "" if entry.bytes is None else f"{entry.bytes / 1e6:.1f} MB"
        print(f"{entry.name:<12} {entry.origin:<10} {size:>10}  {entry.folder or f'imtalker models pull {entry.name}'}")


def models_show(args):
    from .weights import PARTS, find_model, load_model

    folder = find_model(args.model)
    model = load_model(folder)
    config = dataclasses.asdict(model.config)
    parts = {
        part: {
            "parameters": sum(p.numel() for p in getattr(model, part).parameters()),
            "bytes": (folder / f"{part}.safetensors").stat().st_size,
        }
        for part in PARTS
    }
    if args.json:
        print(
            json.dumps(
                {"folder": str(folder), "size": model.config.size, "fps": model.config.fps, "parts": parts, **config}
            )
        )
        return
    print(f"{model.config.name}: {model.config.size}x{model.config.size} frames, in {folder}")
    for part, numbers in parts.items():
        print(f"  {part:<14} {numbers['parameters'] / 1e6:6.2f} M parameters, {numbers['bytes'] / 1e6:6.2f} MB")
    print(f"  sampled with nfe {model.config.nfe}, guidance scale {model.config.guidance_scale:g}")
    print(f"  trained on {model.config.training_data}")
    print(f"  licence {model.config.licence}")


def models_pull(args):
    from .published import pull

    quiet = args.quiet or not sys.stderr.isatty()
    _convert(args, lambda progress: pull(args.model, args.half, progress, quiet))


def models_convert(args):
    from .published import convert

    files = args.renderer, args.generator, args.wav2vec, args.folder
    _convert(args, lambda progress: convert(*files, args.half, progress))


def models_export(args):
    import logging

    from .export import export

    def told(name: str, error: float) -> None:
        if not args.quiet and not args.json:
            print(f"  {name:<15} differs by {error:.1e}", flush=True)

    if not args.debug:
        logging.disable(logging.WARNING)  # the exporter's, about packages that nothing here uses
    try:
        described = export(args.model, args.folder, args.format, told)
    finally:
        logging.disable(logging.NOTSET)
    if args.json:
        print(json.dumps({"folder": str(args.folder), **json.loads(described.read_text(encoding="utf-8"))}))
    elif not args.quiet:
        print(f"{described}: what the graphs take and give")


def _convert(args, make):
    """Make a model's folder with a progress bar; tell where it is, and what making it took."""
    started = time.monotonic()
    with _bar(None, "B", args.quiet, unit_scale=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        folder = make(progress)
    report = {"folder": str(folder), "elapsed_seconds": round(time.monotonic() - started, 1)}
    if peak := peak_memory():
        report["peak_memory_bytes"] = peak
    if args.json:
        print(json.dumps(report))
    elif not args.quiet:
        memory = f", at most {peak / 1e9:.1f} GB of memory" if peak else ""
        print(f"{folder}: use it with --model {folder} ({report['elapsed_seconds']:.1f} s{memory})")


def _text(path) -> str | None:
    return None if path is None else str(path)


# ---------------------------------------------------------------------------------------------------------------------
# evaluate, benchmark


def evaluate(args):
    from .evaluate.field import Networks
    from .evaluate.identity import Recogniser
    from .evaluate.observer import load_observer
    from .evaluate.protocols import MODEL, Judges, count_results, evaluate
    from .evaluate.report import Report
    from .face import Reader, default_reader
    from .face.reader import load_reader
    from .pipeline import IMTalker
    from .weights import available_models

    if args.report:
        check_writable(args.report, "report")
    if MODEL in (args.compare or ()):
        raise InputError(f"--compare {MODEL}: this is what the first row is called: give the folder's path")
    if args.compare is None:  # the published model, if it is here
        args.compare = [entry.name for entry in available_models() if entry.name == "base" and entry.folder]
    networks = Networks(args.weights)
    reader = Reader(load_reader(args.reader)) if args.reader else default_reader()
    judges = Judges(reader, load_observer(args.observer), Recogniser.load(args.recogniser), networks)
    talkers = {MODEL: _talker(args)}
    for name in args.compare:
        talkers[name] = IMTalker.from_pretrained(name, device=args.device, precision=args.precision)
    with _bar(count_results(args.people, args.protocols), "clips", args.quiet) as bar:
        results = list(
            evaluate(
                talkers,
                args.pack,
                judges,
                args.people,
                args.seconds,
                corpus=args.corpus,
                protocols=args.protocols,
                others=args.others,
                nfe=args.nfe,
                guidance_scale=args.guidance,
                progress=bar.update,
            )
        )
    model = talkers[MODEL]
    settings = {
        "model": args.model,
        "people": args.people,
        "seconds": args.seconds,
        "nfe": model.config.nfe if args.nfe is None else args.nfe,
        "guidance_scale": model.config.guidance_scale if args.guidance is None else args.guidance,
        "others": args.others,
        "device": str(model.device),
        "precision": model.precision,
        **{name: _text(getattr(args, name)) for name in ("pack", "corpus", "weights")},
        **{judge: _text(getattr(args, judge)) for judge in ("reader", "observer", "recogniser")},
        "version": __version__,
    }
    report = Report(settings, results, networks.missing)
    if args.json:
        print(report.json())
    elif not args.quiet:
        print(report.text())
    if args.report:  # the numbers are told, whatever becomes of it
        report.write_html(args.report)


def benchmark(args):
    from .bench.benchmark import benchmark
    from .bench.report import text, write

    if args.report:
        check_writable(args.report, "report")
    with _bar(args.runs + 1, "runs", args.quiet) as bar:
        result = benchmark(
            args.model, args.device, args.precision, runs=args.runs, seconds=args.seconds, progress=bar.update
        )
    if args.json:
        print(json.dumps(result))
    elif not args.quiet:
        print(text(result))
    if args.report:
        write(args.report, result)


# ---------------------------------------------------------------------------------------------------------------------
# synth, train


def synth(args):
    if args.speech:
        from .synth.speech import check_new, write_corpus

        check_new(args.out)
        say = None if args.quiet or args.json else lambda line: print(line, file=sys.stderr)
        files = [
            write_corpus(args.out, args.speech, args.seed, report=say),
            write_corpus(args.out, max(args.speech // 15, 1), args.seed, held_out=True, report=say),
        ]
        result, line = {"files": [str(file) for file in files]}, " and ".join(map(str, files))
    else:
        from .synth.dataset import write_dataset

        if args.pack is None:
            raise InputError(
                "synth renders heads from a pack of meshes and textures, none given: name its folder with --pack"
            )
        with _bar(args.identities, "people", args.quiet) as bar:
            result = write_dataset(
                args.out,
                identities=args.identities,
                frames=args.frames,
                size=args.size,
                split=args.split,
                seed=args.seed,
                workers=args.workers,
                pack=args.pack,
                first=args.first,
                steady=args.steady,
                progress=lambda done, total, rate: (
                    bar.set_postfix_str(f"{rate:.1f} frames/s", refresh=False),
                    bar.update(done - bar.n),
                ),
            )
        line = (
            f"{args.out}: {result['identities']} identities, {result['frames']} frames rendered now, "
            f"{result['frames_per_second']:.1f} a second"
        )
    if args.json:
        print(json.dumps(result))
    elif not args.quiet:
        print(line)


def train(args):
    training = importlib.import_module(f".train.{args.network}", __package__)
    keep_freed_memory()  # nearly half of a step on a CPU goes into clearing pages otherwise
    training.main([option for option in args.options if option != "--debug"])
