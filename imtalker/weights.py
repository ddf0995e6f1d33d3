"""Models on disk: find, load, check and save. `published.py` makes such a folder from the published checkpoints.

A model is a folder:

    config.json                  what the model is: `ModelConfig`, and the SHA-256 of each file below
    renderer.safetensors         weights, half or single precision
    generator.safetensors
    audio_encoder.safetensors
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .bundled import ASSETS
from .clock import FPS, SAMPLE_RATE
from .errors import InputError
from .files import complete
from .models.audio import MelEncoder, MelEncoderConfig, Wav2Vec2Encoder, Wav2Vec2EncoderConfig
from .models.generator import Generator, GeneratorConfig
from .models.renderer import Renderer, RendererConfig

FORMAT = 1  # of the folder; raised when an older reader could not understand it
PARTS = ("renderer", "generator", "audio_encoder")
AUDIO_ENCODERS = {"mel": (MelEncoderConfig, MelEncoder), "wav2vec2": (Wav2Vec2EncoderConfig, Wav2Vec2Encoder)}
Progress = Callable[[int, int], None]  # done, total
DERIVED = ".num_batches_tracked"  # batch norm's counter: in the state, of no use, not on disk


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its weights."""

    name: str
    renderer: RendererConfig
    generator: GeneratorConfig
    audio_encoder: MelEncoderConfig | Wav2Vec2EncoderConfig
    training_data: str = "unknown"
    licence: str = "unknown"
    nfe: int = 10                 # how the model is best sampled
    guidance_scale: float = 2.0
    expression: tuple[int, int] = (0, 32)  # first to before last number of the motion latent that holds the expression
    steadying: float = 0.0        # frames over which a head that is read off a video is averaged, see `timing.steadied`

    def __post_init__(self):
        if self.nfe < 1 or not math.isfinite(self.guidance_scale):
            raise ValueError(f"nfe is {self.nfe}, guidance_scale {self.guidance_scale}; no motion can be made so")
        if self.renderer.motion_dim != self.generator.motion_dim:
            raise ValueError(f"motion latents of {self.renderer.motion_dim} and of {self.generator.motion_dim} numbers")
        places = self.expression
        if len(places) != 2 or not 0 <= places[0] < places[1] <= self.renderer.motion_dim:
            raise ValueError(f"expression is {places}; a first and a last number of the motion latent are expected")
        if not 0 <= self.steadying <= 10:
            raise ValueError(f"steadying is {self.steadying}; 0 to 10 frames are expected")

    fps = FPS                     # of the motion; the same for every model
    sample_rate = SAMPLE_RATE

    @property
    def size(self) -> int:
        """Side of the frames, pixels."""
        return self.renderer.size


@dataclass(frozen=True)
class Model:
    renderer: Renderer
    generator: Generator
    audio_encoder: MelEncoder | Wav2Vec2Encoder
    config: ModelConfig


def build_model(config: ModelConfig) -> Model:
    """A model with the weights that its modules begin with."""
    encoder = next(module for kind, module in AUDIO_ENCODERS.values() if isinstance(config.audio_encoder, kind))
    return Model(Renderer(config.renderer), Generator(config.generator), encoder(config.audio_encoder), config)


# ----------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class ModelEntry:
    name: str
    origin: str           # "bundled", "fetched", or "published": it can be fetched
    folder: Path | None   # None while not here

    @property
    def bytes(self) -> int | None:
        """On disk; None while not here."""
        return self.folder and sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


def cache_folder() -> Path | None:
    """Where fetched models are kept: $IMTALKER_CACHE, else imtalker/ in the user's cache folder; None where the user,
    as in some containers, has no home."""
    if given := os.environ.get("IMTALKER_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imtalker"
    except RuntimeError:
        return None


def available_models() -> list[ModelEntry]:
    """Models that can be named: bundled ones, fetched ones, and those that could be fetched."""
    entries: dict[str, ModelEntry] = {}
    for origin, parent in (("bundled", ASSETS), ("fetched", cache_folder())):
        for file in sorted(parent.glob("*/config.json")) if parent else ():
            entries.setdefault(file.parent.name, ModelEntry(file.parent.name, origin, file.parent))
    entries.setdefault("base", ModelEntry("base", "published", None))
    return list(entries.values())


def find_model(name_or_path: str | os.PathLike) -> Path:
    """The folder of a model given by name or as a folder. A name wins over a folder; "./name" is always a folder."""
    given = os.fspath(name_or_path)
    entries = {entry.name: entry for entry in available_models()}
    if given in entries:
        folder = entries[given].folder
        if folder is None:
            raise InputError(f"the model {given!r} is not on this computer; type: imtalker models pull {given}")
        return folder
    folder = Path(os.path.expanduser(given))
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise InputError(f"the folder {given!r} has no config.json; give a folder written by 'imtalker models convert' "
                         "or by training")
    here = ", ".join(entry.name for entry in entries.values() if entry.folder) or "none"
    raise InputError(f"no model {given!r}; on this computer: {here}; to fetch the published one, type: "
                     "imtalker models pull base; or give a model's folder")


# ----------------------------------------------------------------------------------------------------------- loading


def load_model(name_or_path: str | os.PathLike = "mini", device: str | torch.device = "cpu") -> Model:
    """A model by name ("mini", "base") or folder, ready for inference: float32, evaluation mode, no gradients.

    Raises InputError where the folder, a file or a tensor is not what config.json says.
    """
    folder = find_model(name_or_path)
    config, checksums = read_config(folder)
    try:
        with _NoInitialisation():
            model = build_model(config)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise InputError(f"no networks can be built as {str(folder / 'config.json')!r} says ({error}): "
                         "fetch or copy the model again") from error
    for part in PARTS:
        load_weights(getattr(model, part), folder / f"{part}.safetensors", checksums[f"{part}.safetensors"])
        getattr(model, part).requires_grad_(False).eval().to(device)
    return model


def load_weights(module: nn.Module, file: Path, checksum: str | None = None) -> None:
    """Fill `module` from a .safetensors file: every tensor, nothing left over, every shape as it should be.

    What is stored in the module's own precision stays mapped: it is read from disk when it is used, and shared with
    other processes. The file is never written to; ours replace a file, they do not change it.
    """
    if not file.is_file():
        raise InputError(f"the file {str(file)!r} is missing; fetch or copy the model again")
    if checksum is not None and checksum_of(file) != checksum:
        raise InputError(f"the file {str(file)!r} is damaged: it is not the one that its config.json describes; "
                         "fetch or copy the model again")
    wanted = stored_tensors(module)
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
            check_tensors(shapes, {name: tuple(x.shape) for name, x in wanted.items()}, repr(str(file)))
            stored = {name: tensors.get_tensor(name).to(x.dtype) for name, x in wanted.items()}
        module.load_state_dict(stored, assign=True, strict=False)  # checked above; batch norm's counters are absent
    except (SafetensorError, OSError) as error:
        raise InputError(f"the file {str(file)!r} cannot be read as safetensors ({error}); "
                         "fetch or copy the model again") from error


def is_whole(folder: Path) -> bool:
    """Whether a model's folder holds what its config.json describes."""
    try:
        return all(checksum_of(folder / file) == checksum for file, checksum in read_config(folder)[1].items())
    except (InputError, OSError):
        return False


def is_half(file: Path) -> bool:
    """Whether a .safetensors file holds float16."""
    with safe_open(file, framework="pt") as tensors:
        return any(tensors.get_slice(name).get_dtype() == "F16" for name in tensors.keys())


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in module.state_dict().items() if not name.endswith(DERIVED)}


def check_tensors(given: Mapping[str, tuple], wanted: Mapping[str, tuple], where: str) -> None:
    """Names and shapes must be the same on both sides; the error names those that are not."""
    faults = []
    for what, names in (("missing", [name for name in wanted if name not in given]),
                        ("left over", [name for name in given if name not in wanted]),
                        ("of another shape", [f"{name} {given[name]} instead of {wanted[name]}" for name in wanted
                                              if name in given and given[name] != wanted[name]])):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            faults.append(f"{what}: {', '.join(names[:4])}{more}")
    if faults:
        raise InputError(f"the weights in {where} do not fit the model; {'; '.join(faults)}; "
                         "use weights and configuration of the same model")


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, str]]:
    """config.json of a model's folder, and the checksums of its files by name. Unknown keys are refused."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}); a model's config.json is expected") from error
    try:
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"format {FORMAT} is expected: use weights made for this version of imtalker")
        del values["format"]
        encoder = dict(values.get("audio_encoder", {}))
        kind = encoder.pop("kind", None)
        if kind not in AUDIO_ENCODERS:
            raise ValueError(f"audio_encoder.kind {kind!r} is none of {', '.join(AUDIO_ENCODERS)}")
        values["renderer"] = read_dataclass(RendererConfig, values.get("renderer", {}), "renderer.")
        values["generator"] = read_dataclass(GeneratorConfig, values.get("generator", {}), "generator.")
        values["audio_encoder"] = read_dataclass(AUDIO_ENCODERS[kind][0], encoder, "audio_encoder.")
        files = values.pop("files", {})
        wanted = {f"{part}.safetensors" for part in PARTS}
        if set(files) != wanted or not all(isinstance(checksum, str) for checksum in files.values()):
            raise ValueError("files must give the SHA-256 of renderer, generator and audio_encoder.safetensors")
        repeated = {name: values.pop(name, None) for name in ("fps", "sample_rate", "size")}
        config = read_dataclass(ModelConfig, values, "")
        for name, value in repeated.items():
            if value != getattr(config, name):
                raise ValueError(f"{name} is {value}, the rest of the file says {getattr(config, name)}")
    except (TypeError, ValueError) as error:
        raise InputError(f"{str(file)!r} is not a configuration that this version understands: {error}") from error
    return config, files


def read_dataclass(kind: type, values: dict, section: str):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [section + name for name in values if name not in fields]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    missing = [section + name for name, field in fields.items()
               if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in values.items():
        default = fields[name].default
        expected = (int, float) if isinstance(default, float) else type(default)
        if default is not dataclasses.MISSING and not isinstance(value, expected):
            raise ValueError(f"{section}{name} is {value!r}; a value like {default!r} is expected")
    return kind(**values)


class _NoInitialisation(TorchFunctionMode):
    """Modules built inside leave their weights as memory was: strict loading fills every one, and this is quicker."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        if function is torch.randn:
            return torch.empty(*args, **kwargs)
        return function(*args, **kwargs)


def checksum_of(file: Path, digest=None) -> str:
    """SHA-256 of a file in hexadecimal digits, or what `digest`, which may hold a beginning already, makes of it."""
    digest = digest or hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ saving


def save_model(model: Model, folder: str | os.PathLike, half: bool = True) -> Path:
    """Write a model's folder. `half`: matrices and kernels in float16; vectors (biases, norms) stay float32."""
    tensors = {part: stored_tensors(getattr(model, part)) for part in PARTS}
    return write_model(model.config, tensors, folder, half)


def write_model(config: ModelConfig, tensors: Mapping[str, Mapping[str, Tensor]], folder: str | os.PathLike,
                half: bool, progress: Progress | None = None) -> Path:
    """Write config.json and one .safetensors file per part; all appear when all are complete, config.json last.

    progress(done, total) is called with the bytes of weights written so far. Raises InputError for weights that are not
    finite as they would be stored; then nothing is written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total, done, files = sum(stored_size(x, half) for part in PARTS for x in tensors[part].values()), 0, {}

    def written(size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(done, total)

    kind = next(name for name, (kind, _) in AUDIO_ENCODERS.items() if isinstance(config.audio_encoder, kind))
    values = {"format": FORMAT, **dataclasses.asdict(config), "fps": config.fps, "sample_rate": config.sample_rate,
              "size": config.size, "files": files}
    values["audio_encoder"] = {"kind": kind, **values["audio_encoder"]}
    with ExitStack() as together:  # what is entered first is left last
        described = together.enter_context(complete(folder / "config.json"))
        for part in PARTS:
            file = f"{part}.safetensors"
            unfinished = together.enter_context(complete(folder / file))
            files[file] = write_tensors(tensors[part], unfinished, half, written)
        described.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def stored_type(x: Tensor, half: bool) -> torch.dtype:
    """float16 for matrices and kernels if `half`; vectors are always float32."""
    return torch.float16 if half and x.ndim > 1 else torch.float32


def stored_size(x: Tensor, half: bool) -> int:
    """Bytes on disk."""
    return x.numel() * stored_type(x, half).itemsize


def write_tensors(tensors: Mapping[str, Tensor], file: Path, half: bool, written: Callable[[int], None]) -> str:
    """Write a .safetensors file, one tensor at a time, and return its SHA-256; `written` is told the bytes of each.

    The library would hold the whole file in memory once more, which for the published weights is half a gigabyte.
    """
    # the widest type first, then by name, as the library does: every tensor begins at a multiple of its type's width
    names = sorted(tensors, key=lambda name: (-stored_type(tensors[name], half).itemsize, name))
    header, start = {}, 0
    for name in names:
        dtype, end = stored_type(tensors[name], half), start + stored_size(tensors[name], half)
        header[name] = {"dtype": {torch.float16: "F16", torch.float32: "F32"}[dtype],
                        "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)

    def pieces() -> Iterator[bytes]:
        yield len(head).to_bytes(8, "little") + head
        for name in names:
            x = tensors[name].detach().to("cpu", stored_type(tensors[name], half))
            if not x.isfinite().all():
                raise InputError(f"{name} has values that are not finite in {x.dtype}: nothing is written; expected "
                                 "whole weights" + (", or store them in float32, without --half" if half else ""))
            yield x.contiguous().numpy().tobytes()
            written(stored_size(x, half))

    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for piece in pieces():
            stream.write(piece)
            digest.update(piece)
    return digest.hexdigest()
