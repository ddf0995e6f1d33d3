"""Put trained parts together to a model folder.

    imtalker train bundle RENDERER_CHECKPOINT GENERATOR AUDIO_ENCODER OUT
"""
from __future__ import annotations

from pathlib import Path

import torch

from ..models.renderer import Renderer, RendererConfig
from ..options import GUIDANCE, OptionParser
from ..synth.motion import FACE
from ..weights import Model, ModelConfig, complete, load_model, save_model
from .audio import load as load_audio_encoder
from .audio import readout_path
from .generator import load as load_generator


def bundle(renderer: Path, generator: Path, audio_encoder: Path, out: Path, *, name: str = "mini",
           training_data: str = "", licence: str = "Apache-2.0", guidance_scale: float = 1.0) -> Path:
    """Write OUT as a model folder, half precision, from a checkpoint of `train.renderer` (its moving average) or a
    model folder whose renderer to keep, the folder of `train.generator` and the file of `train.audio`, whose reading is
    put beside the weights: the generator's training goes on from it."""
    if renderer.is_dir():
        network = load_model(renderer).renderer
    else:
        state = torch.load(renderer, map_location="cpu", weights_only=True)
        network = Renderer(RendererConfig(**state["config"]))
        network.load_state_dict(state["average"])
    flow, _ = load_generator(generator)
    audio = load_audio_encoder(audio_encoder)
    config = ModelConfig(name, network.config, flow.config, audio.config, training_data=training_data, licence=licence,
                         guidance_scale=guidance_scale, expression=(FACE.start, FACE.stop))
    save_model(Model(network, flow, audio, config), out, half=True)
    if (readout := readout_path(audio_encoder)).is_file():
        with complete(readout_path(out)) as unfinished:
            unfinished.write_bytes(readout.read_bytes())
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="imtalker train bundle", description=__doc__.split("\n")[0])
    parser.add_argument("renderer", type=Path, help="checkpoint.pt of `imtalker train renderer`, or a model folder")
    parser.add_argument("generator", type=Path, help="folder of `imtalker train generator`")
    parser.add_argument("audio_encoder", type=Path,
                        help="audio_encoder.safetensors of `imtalker train audio`, or a model folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="mini")
    parser.add_argument("--training-data", default="synthetic heads and synthetic speech of our own making")
    parser.add_argument("--guidance-scale", type=GUIDANCE, default=1.0, help="how it is best sampled (default: 1, off)")
    given = vars(parser.parse_args(arguments))
    print(bundle(given.pop("renderer"), given.pop("generator"), given.pop("audio_encoder"), given.pop("out"), **given))


if __name__ == "__main__":
    main()
