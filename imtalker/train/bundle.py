"""Put trained parts together to a model folder.

    imtalker train bundle RENDERER_CHECKPOINT GENERATOR AUDIO_ENCODER OUT
"""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..files import complete, readable
from ..models.generator import Generator
from ..models.latent import FACE
from ..models.renderer import Renderer, RendererConfig
from ..options import GUIDANCE, OptionParser
from ..weights import (
    PARTS,
    Model,
    ModelConfig,
    find_model,
    load_model,
    read_config,
    save_model,
    stored_tensors,
    stored_type,
)
from .audio import READOUT, readout_path
from .audio import load as load_audio_encoder
from .generator import DESCRIPTION
from .generator import load as load_generator
from .loop import load_checkpoint

OURS = "synthetic heads and synthetic speech of our own making"


def bundle(renderer: str | Path, generator: str | Path, audio_encoder: str | Path, out: Path, *,
           name: str | None = None, training_data: str | None = None, licence: str | None = None,
           guidance_scale: float | None = None) -> Path:
    """Write OUT as a model folder, half precision, from a checkpoint of `train.renderer` (its moving average), the
    folder of `train.generator` and the file of `train.audio`, whose reading is put beside the weights: the generator's
    training goes on from it. In place of each a model, given by name or as a folder, whose part to keep. What is not
    said is the models': of how to sample it the generator's, of data and licence everyone's; where all parts are new,
    those of our synthetic data. `name`: by default the folder's.

    Raises InputError for an encoder that the generator cannot hear, and for weights that are not finite."""
    painter, flow = renderer_of(renderer), generator_of(generator)
    audio = load_audio_encoder(audio_encoder)
    if (heard := flow.config.audio_dim) != audio.dim:
        raise InputError(f"the generator hears {heard} numbers a frame, the audio encoder tells {audio.dim}: take the "
                         "encoder that the generator was trained with")
    models = [config_of(part) for part in (renderer, generator, audio_encoder)]
    parts = {"renderer": painter.config, "generator": flow.config, "audio_encoder": audio.config}
    config = replace(models[1] or ModelConfig("", **parts, guidance_scale=1.0), **parts,
                     name=name or out.resolve().name,
                     training_data=training_data or _together(models, "training_data", OURS),
                     licence=licence or _together(models, "licence", "Apache-2.0"))
    if flow.config.control_scale:  # an anchored latent
        config = replace(config, expression=(FACE.start, FACE.stop), steadying=1.0)
    if guidance_scale is not None:
        config = replace(config, guidance_scale=guidance_scale)
    model = Model(painter, flow, audio, config)
    for part in PARTS:
        for weight, x in stored_tensors(getattr(model, part)).items():
            if not x.to(stored_type(x, half=True)).isfinite().all():
                raise InputError(f"{weight} of the {part} is not finite in half precision: train it again, at a lower "
                                 "--learning-rate")
    save_model(model, out, half=True)
    if (readout := readout_path(audio_encoder)).is_file():
        with complete(out / READOUT) as unfinished:
            unfinished.write_bytes(readout.read_bytes())
    return out


def config_of(given: str | Path) -> ModelConfig | None:
    """Of a model; None for what a training wrote."""
    if os.path.isfile(given) or (Path(given) / DESCRIPTION).is_file():
        return None
    return read_config(find_model(given))[0]


def _together(models: list[ModelConfig | None], name: str, new: str) -> str:
    """What is said of several parts, each once; `new` of those that no model is the source of."""
    return "; ".join(dict.fromkeys(getattr(model, name) if model else new for model in models))


def renderer_of(given: str | Path) -> Renderer:
    if not os.path.isfile(given):
        return load_model(given).renderer
    state = load_checkpoint(given, "cpu")
    with readable(given, "give checkpoint.pt of imtalker train renderer, or a model's name or folder"):
        renderer = Renderer(RendererConfig(**state["config"]))
        renderer.load_state_dict(state["average"])
    return renderer


def generator_of(given: str | Path) -> Generator:
    return load_generator(given)[0] if (Path(given) / DESCRIPTION).is_file() else load_model(given).generator


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="imtalker train bundle", description=__doc__.split("\n")[0])
    parser.add_argument("renderer", help="checkpoint.pt of `imtalker train renderer`, or a model's name or folder")
    parser.add_argument("generator", help="folder of `imtalker train generator`, or a model's name or folder")
    parser.add_argument("audio_encoder",
                        help="audio_encoder.safetensors of `imtalker train audio`, or a model's name or folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--name", help="what it is called in reports (default: the folder's name)")
    parser.add_argument("--training-data", help="what it was trained on (default: as the models say, else our own)")
    parser.add_argument("--licence", help="of the weights (default: as the models say, else Apache-2.0)")
    parser.add_argument("--guidance-scale", type=GUIDANCE,
                        help="how it is best sampled (default: as the generator's model, else 1, off)")
    given = vars(parser.parse_args(arguments))
    print(bundle(given.pop("renderer"), given.pop("generator"), given.pop("audio_encoder"), given.pop("out"), **given))


if __name__ == "__main__":
    main()
