"""The command line: `imtalker COMMAND` and its options; each training of `imtalker train` reads its own.

Exit status: 0 done; 2 the input was wrong (one line on stderr); 1 a fault of ours; 130 interrupted. Standard output
carries results only. What is heavy (torch, the networks) is imported by the command that needs it, so that --help
answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

from . import __version__, commands, options
from .errors import InputError
from .evaluate import PROTOCOLS
from .live.limits import LIVE_NFE
from .options import OptionParser

# What the operating system says when a path or a disk of the user's is at fault
USERS_ERRNO = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EFBIG,
}

# Packages that the core does without, and the extra that brings them
EXTRA_OF = {
    "numba": "synth",
    "scipy": "synth",
    "tensorboard": "train",
    "torchmetrics": "evaluate",
    "transformers": "base",
    "huggingface_hub": "base",
    "fastapi": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "python_multipart": "serve",
    "aiortc": "serve",
    "prometheus_client": "serve",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
}

TRAININGS = ("reader", "renderer", "audio", "generator", "bundle", "observer", "recogniser")


def _let_idle_threads_sleep() -> None:
    """GNU OpenMP, which PyTorch brings and which reads this as it is loaded, lets a thread without work turn round and
    round for milliseconds, in the way of ours: from here on for some ten microseconds."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; `argv` without the program's name, by default the process's own."""
    argv = sys.argv[1:] if argv is None else list(argv)
    _let_idle_threads_sleep()
    debug = "--debug" in argv
    try:
        with _terminate_like_interrupt(), warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            args = _parser().parse_args(argv)
            args.run(args)
            sys.stdout.flush()
        return 0
    except SystemExit as stop:  # --help, --version, wrong options
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt as stop:
        return _fail("terminated" if stop.args else "interrupted", 143 if stop.args else 130, debug=False)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            return _fail(_fault(error), 1, debug)
        if extra == "synth" and argv[0] == "evaluate":
            extra = "evaluate"  # brings that one along
        return _fail(f"this needs the Python package {error.name!r}: pip install 'imtalker[{extra}]'", 2, debug)
    except BrokenPipeError:  # the reader of our output has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        return _fail(str(error), 2, debug)
    except OSError as error:
        if error.errno not in USERS_ERRNO:
            return _fail(_fault(error), 1, debug)
        where = f"{os.fspath(error.filename)!r}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror}: check the path, its permissions and the space on the disk", 2, debug)
    except Exception as error:
        return _fail(_fault(error), 1, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    with contextlib.suppress(OSError):  # standard error may be closed, too
        print("imtalker: error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return status


def _fault(error: Exception) -> str:
    return f"this should not happen: {type(error).__name__}: {error} (--debug shows where; please report it)"


@contextlib.contextmanager
def _terminate_like_interrupt():
    """SIGTERM unwinds like Ctrl-C, so that it leaves no partial file either."""

    def stop(signum, frame):
        raise KeyboardInterrupt("terminated")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------------------------------------------------
# Options


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="imtalker", description="One picture of a face, plus speech or a driving video, makes a talking video."
    )
    parser.add_argument("--version", action="version", version=f"imtalker {__version__}")
    parser.set_defaults(run=lambda args: parser.print_help(), command=None)
    listed = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=OptionParser)

    command = listed.add_parser(
        "animate",
        help="a picture speaks",
        description=(
            "Make the face in SOURCE speak AUDIO. With no arguments, a bundled picture speaks a bundled sentence."
        ),
    )
    command.add_argument("source", nargs="?", metavar="SOURCE", help="picture of a face, anything Pillow reads")
    command.add_argument("audio", nargs="?", metavar="AUDIO", help="speech: any audio, or a video with sound")
    _add_making(command)
    _add_sampling(command)
    for name, what in (
        ("pose", "head rotation, 3 angles in radians (looks down, turns to its own left, lifts its left)"),
        ("gaze", "gaze, 2 angles in radians (to its own left, down)"),
        ("cam", "place of the head, 3 numbers (log scale, x, y in crop widths)"),
    ):
        command.add_argument(
            f"--{name}",
            metavar="FILE",
            help=f"{what} per frame at 25 a second: .npy, .npz or .csv; the last row is held",
        )
    command.set_defaults(run=commands.animate)

    command = listed.add_parser(
        "reenact",
        help="a picture copies the motion of a video",
        description="Make the face in SOURCE move as the one in DRIVING. With no arguments, the bundled samples.",
    )
    command.add_argument("source", nargs="?", metavar="SOURCE", help="picture of a face, anything Pillow reads")
    command.add_argument("driving", nargs="?", metavar="DRIVING", help="video of a face; its sound is kept")
    _add_making(command)
    command.add_argument(
        "--driving-crop",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the same for the video (default: as --crop)",
    )
    command.add_argument(
        "--relative",
        action="store_true",
        help="add the driving's change of motion since its first "
        "frame to the source's own motion, instead of copying it",
    )
    command.set_defaults(run=commands.reenact)

    command = listed.add_parser(
        "serve",
        help="a web page, HTTP and live faces",
        description="Serve a page on which a face listens and talks, and HTTP interfaces for programs, until Ctrl-C.",
    )
    command.add_argument(
        "--host", default="127.0.0.1", metavar="HOST", help="(default: 127.0.0.1, this computer alone)"
    )
    command.add_argument(
        "--port", type=options.PORT, default=8000, metavar="N", help="0 takes a free one (default: 8000)"
    )
    command.add_argument(
        "--api-key", metavar="KEY", help="what clients must know; needed with another host; or set IMTALKER_API_KEY"
    )
    command.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a foreign web page that may use it; may be repeated",
    )
    command.add_argument(
        "--sessions", type=options.count_to(1000), default=4, metavar="N", help="live faces at once (default: 4)"
    )
    command.add_argument(
        "--max-upload", type=options.count_to(100_000), default=100, metavar="MB", help="of one request (default: 100)"
    )
    command.add_argument(
        "--max-seconds",
        type=options.count_to(86_400),
        default=600,
        metavar="S",
        help="of sound or video (default: 600)",
    )
    command.add_argument(
        "--speaker", default="espeak", metavar="NAME", help="what speaks text: espeak, espeak:VOICE or MODULE:FUNCTION"
    )
    command.add_argument(
        "--ice", action="append", default=[], metavar="URL",
        help="a STUN or TURN server for WebRTC, as stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT; may be repeated",
    )
    _add_model(command)
    _add_sampling(command, " of a live face", str(LIVE_NFE))
    _add_reporting(command, commands.serve)

    command = listed.add_parser(
        "models",
        help="list, show, fetch, convert and export models",
        description="List, show, fetch, convert and export models.",
    )
    command.set_defaults(run=lambda args, parser=command: parser.print_help())
    kinds = command.add_subparsers(title="commands", metavar="COMMAND", dest="kind", parser_class=OptionParser)
    command = kinds.add_parser("list", help="models that --model can name")
    _add_reporting(command, commands.models_list)
    command = kinds.add_parser("show", help="one model: its sizes, training data and licence")
    command.add_argument("model", nargs="?", default="mini", metavar="NAME|DIR", help="(default: mini)")
    _add_reporting(command, commands.models_show)
    command = kinds.add_parser("pull", help="fetch and convert the published weights (2.7 GB)")
    command.add_argument(
        "model", nargs="?", default="base", choices=("base",), metavar="NAME", help="base, the only one"
    )
    _add_half(command)
    _add_reporting(command, commands.models_pull)
    command = kinds.add_parser("convert", help="make a model's folder from the published files")
    command.add_argument("renderer", type=Path, metavar="RENDERER.ckpt")
    command.add_argument("generator", type=Path, metavar="GENERATOR.ckpt")
    command.add_argument("wav2vec", type=Path, metavar="WAV2VEC_DIR")
    command.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    _add_half(command)
    _add_reporting(command, commands.models_convert)

    command = kinds.add_parser(
        "export",
        help="write a model's networks as graphs for other runtimes",
        description="Write a model's networks into DIR as graphs of stock operators for any batch size, each compared "
        "with the network before anything appears, and graphs.json, which describes their inputs and outputs.",
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    command.add_argument("--model", default="mini", metavar="NAME|DIR", help="(default: mini)")
    command.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx", help="ONNX, or torch.export's own (default: onnx)"
    )
    _add_reporting(command, commands.models_export)

    command = listed.add_parser(
        "evaluate",
        help="measure a model on people that nothing trained on",
        description="Render people whom no network has met, let the model copy, speak and follow controls, and measure "
        "the results against the exact truth, beside a ceiling (the true frames) and a floor (the source standing "
        "still).",
    )
    command.add_argument("--pack", type=Path, required=True, metavar="DIR", help="the pack of head meshes and skins")
    command.add_argument("--people", type=options.count_to(10**4), default=8, metavar="N", help="(default: 8)")
    command.add_argument("--seconds", type=options.SECONDS, default=4.0, metavar="N", help="of each (default: 4)")
    command.add_argument(
        "--corpus", type=Path, metavar="FILE", help="what they say, test.npz of synth --speech (default: spoken now)"
    )
    command.add_argument("--reader", type=Path, metavar="FILE", help="what finds landmarks (default: our face reader)")
    command.add_argument(
        "--observer",
        type=Path,
        metavar="FILE",
        help="what sees pose, gaze, lids and mouth, of train observer (default: ours)",
    )
    command.add_argument(
        "--recogniser",
        metavar="FILE",
        type=Path,
        help="what tells people apart, of train recogniser (default: ours)",
    )
    command.add_argument(
        "--protocols",
        nargs="+",
        choices=PROTOCOLS,
        default=PROTOCOLS,
        metavar="NAME",
        help=f"some of {', '.join(PROTOCOLS)} (default: all)",
    )
    command.add_argument(
        "--compare",
        nargs="*",
        metavar="MODEL",
        help="other models to measure beside it (default: base, if it has been fetched; with no names: none)",
    )
    command.add_argument(
        "--others",
        type=options.count_to(10**4),
        default=92,
        metavar="N",
        help="people whom the source may be mistaken for (default: 92)",
    )
    command.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="networks of the field's metrics: lpips.pt, inception-2015-12-05.pt, i3d_torchscript.pt, arcface.pt, "
        "syncnet.pt, any of them (see docs/training.md)",
    )
    command.add_argument("--report", type=Path, metavar="FILE.html", help="also write a page with pictures and curves")
    _add_model(command)
    _add_sampling(command)
    _add_reporting(command, commands.evaluate)

    command = listed.add_parser(
        "benchmark",
        help="measure speed and cost",
        description="Measure how fast a model runs on this machine, beside the same networks run plainly, in the same "
        "runs; and what each stage needs, beside what the device can do.",
    )
    _add_model(command)
    command.add_argument(
        "--runs", type=options.count_to(100), default=5, metavar="N", help="how often, after warming up (default: 5)"
    )
    command.add_argument(
        "--seconds", type=options.SECONDS, default=2.0, metavar="N", help="of the clips made (default: 2)"
    )
    command.add_argument(
        "--report", type=Path, metavar="FILE.md", help="also write the tables into a page, in place of older ones"
    )
    _add_reporting(command, commands.benchmark)

    command = listed.add_parser(
        "synth",
        help="render synthetic talking heads, or make synthetic speech, for training",
        description="Render synthetic heads with exact ground truth into OUT, one file per "
        "identity; files that are there are kept. With --speech: speech with phoneme times.",
    )
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    command.add_argument(
        "--seed", type=options.SEED, default=0, metavar="N", help="same seed, same people (default: 0)"
    )
    heads = command.add_argument_group("of heads alone")
    heads.add_argument("--pack", type=Path, metavar="DIR", help="the pack of head meshes, skins and hair")
    heads.add_argument("--identities", type=options.count_to(10**7), default=400, metavar="N", help="(default: 400)")
    heads.add_argument(
        "--frames", type=options.count_to(10**4), default=20, metavar="N", help="frames of each (default: 20)"
    )
    heads.add_argument(
        "--size", type=options.count_to(2048), default=256, metavar="S", help="side in pixels (default: 256)"
    )
    heads.add_argument("--split", choices=("train", "heldout"), default="train", help="people who never meet")
    heads.add_argument(
        "--first", type=options.INDEX, default=0, metavar="N", help="number of the first identity (default: 0)"
    )
    heads.add_argument(
        "--steady", action="store_true", help="heads that hardly move while their faces do, as in talking"
    )
    heads.add_argument("--workers", type=options.count_to(256), metavar="N", help="processes (default: one per core)")
    command.add_argument(
        "--speech",
        type=options.count_to(10**6),
        metavar="CLIPS",
        help="instead of heads, CLIPS clips of speech "
        "for training, and a fifteenth as many of other voices for tests (flite and espeak-ng needed)",
    )
    _add_reporting(command, commands.synth)

    command = listed.add_parser(
        "train",
        help="train the networks",
        description="Train one network, or put trained parts together with bundle; "
        "'imtalker train NETWORK --help' lists its options.",
    )
    command.add_argument("network", choices=TRAININGS, metavar="NETWORK", help=", ".join(TRAININGS))
    command.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="what the training itself takes")
    command.set_defaults(run=commands.train)
    return parser


def _add_making(command: OptionParser):
    """The options that animate and reenact share."""
    command.add_argument(
        "-o",
        "--output",
        metavar="OUT.mp4",
        help="the video to write (default: both inputs' names joined by _, in this folder)",
    )
    _add_model(command)
    command.add_argument(
        "--seed", type=options.SEED, default=0, metavar="N", help="same seed, same frames (default: 0)"
    )
    command.add_argument(
        "--face", type=options.INDEX, default=0, metavar="N", help="which face of the picture; 0 is the largest"
    )
    command.add_argument(
        "--crop",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="find the face and cut it out; --no-crop takes the centred square as it is",
    )
    command.add_argument("--whole", action="store_true", help="the whole picture, with the face moving in its place")
    command.add_argument(
        "--fps", type=options.RATE, default=25.0, metavar="F", help="frames per second of the video (default: 25)"
    )
    _add_reporting(command)


def _add_model(command: OptionParser) -> None:
    command.add_argument(
        "--model", default="mini", metavar="NAME|DIR", help="mini, base (once fetched), or a folder (default: mini)"
    )
    command.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or mps (default: auto)")
    command.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "mixed", "bfloat16", "float16"),
        help="mixed: frames are painted in half precision, all else is float32. auto takes bfloat16 on a CUDA device "
        "that has it, with mini mixed, there and on CPUs that multiply bfloat16 (default: auto)",
    )


def _add_sampling(command: OptionParser, whose: str = "", nfe: str = "the model's") -> None:
    command.add_argument(
        "--nfe",
        type=options.count_to(1000),
        metavar="N",
        help=f"evaluations of the velocity network per window of frames{whose} (default: {nfe}); fewer are faster",
    )
    command.add_argument(
        "--guidance",
        type=options.GUIDANCE,
        metavar="S",
        help=f"guidance scale{whose}: how strongly the speech is followed; 1 is off (default: the model's)",
    )


def _add_half(command: argparse.ArgumentParser) -> None:
    command.add_argument("--half", action="store_true", help="float16 on disk: half the size, nearly the same pictures")


def _add_reporting(command: OptionParser, run=None):
    """The options that every command has, and the function that it runs."""
    command.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    command.add_argument("--quiet", action="store_true", help="no progress bar and no result line")
    command.add_argument("--debug", action="store_true", help="tracebacks")
    if run is not None:
        command.set_defaults(run=run)
