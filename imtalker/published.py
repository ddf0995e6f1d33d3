"""The published weights: what their tensors are called, how they become a model's folder, where they are fetched.

This is the only place that knows published names.
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import InputError
from .models.audio import Wav2Vec2EncoderConfig
from .models.generator import CONDITIONS, GeneratorConfig
from .models.renderer import RendererConfig
from .weights import (
    ModelConfig,
    Progress,
    build_model,
    cache_folder,
    check_tensors,
    checksum_of,
    is_half,
    is_whole,
    read_dataclass,
    stored_tensors,
    write_model,
)

HUB_REPOSITORY = "cbsjtu01/IMTalker"
HUB_FILES = ("renderer.ckpt", "generator.ckpt",
             "wav2vec2-base-960h/config.json", "wav2vec2-base-960h/pytorch_model.bin")

# In the checkpoints, but derived from sizes or without effect on any output.
UNUSED = re.compile(r"(\.kernel|\.relative_position_index|\.attn_mask|\.inv_freq|\.num_batches_tracked|\.noise\.weight"
                    r"|^dense_feature_encoder\.equalconv\.(weight|bias)|masked_spec_embed)$")


def published_renderer_names(config: RendererConfig) -> dict[str, str]:
    """Published module or tensor name -> ours. A module's name stands for all of its tensors."""
    names: dict[str, str] = {}

    def mlp(theirs: str, ours: str) -> None:
        names.update({f"{theirs}.linear_layers.{i}": f"{ours}.hidden.{i}" for i in range(4)})
        names[f"{theirs}.final_linear"] = f"{ours}.out"

    def conv_block(theirs: str, ours: str, residuals: int) -> None:
        names.update({f"{theirs}.conv1": f"{ours}.conv1", f"{theirs}.norm.norm": f"{ours}.norm",
                      f"{theirs}.conv2": f"{ours}.conv2"})
        for i in range(residuals):
            for k in (1, 2):
                names[f"{theirs}.feat_res_block{i + 1}.conv{k}.conv"] = f"{ours}.residuals.{i}.conv{k}"
                names[f"{theirs}.feat_res_block{i + 1}.conv{k}.norm.norm"] = f"{ours}.residuals.{i}.norm{k}"

    names["dense_feature_encoder.initial_conv.0"] = "appearance_encoder.stem"
    names["dense_feature_encoder.initial_conv.1"] = "appearance_encoder.stem_norm"
    for i in range(len(config.widths)):
        theirs = "down_block_0" if i == 0 else f"down_blocks.{i - 1}"
        conv_block(f"dense_feature_encoder.{theirs}", f"appearance_encoder.blocks.{i}", config.encoder_residuals)
    mlp("dense_feature_encoder", "appearance_encoder.identity")

    names["latent_token_encoder.conv1"] = "motion_encoder.stem"
    for i in range(len(config.motion_widths)):
        theirs, ours = f"latent_token_encoder.res_blocks.{i}", f"motion_encoder.blocks.{i}"
        names.update({f"{theirs}.conv1.0": f"{ours}.conv1", f"{theirs}.conv1.1.bias": f"{ours}.bias1",
                      f"{theirs}.conv2.1": f"{ours}.conv2", f"{theirs}.conv2.2.bias": f"{ours}.bias2",
                      f"{theirs}.skip.1": f"{ours}.skip", f"{theirs}.skip.2.bias": f"{ours}.bias_skip"})
    names["latent_token_encoder.equalconv"] = "motion_encoder.last"
    mlp("latent_token_encoder", "motion_encoder.head")

    names["adapt.in_layer"] = "adapter.join"
    mlp("adapt", "adapter.head")

    names["latent_token_decoder.const"] = "motion_decoder.const"
    for i in range(1 + config.attention_levels * config.map_convs):
        level, k = divmod(i - 1, config.map_convs)
        theirs = f"latent_token_decoder.style_conv_layers.{i}"
        ours = f"motion_decoder.levels.{level}.{k}" if i else "motion_decoder.first"
        names.update({f"{theirs}.conv.weight": f"{ours}.weight", f"{theirs}.conv.modulation": f"{ours}.modulation",
                      f"{theirs}.activate.bias": f"{ours}.bias"})

    for i in range(config.attention_levels):
        for layer in ("q_proj", "k_proj", "v_proj", "proj"):
            names[f"imt.{i}.block_efc.{layer}"] = f"transfer.levels.{i}.{layer}"

    for i, (before, after) in enumerate(config.synthesis_residuals):
        conv_block(f"frame_decoder.upconv_blocks.{i}", f"synthesis.up.{i}", before)
        conv_block(f"frame_decoder.resblocks.{i}", f"synthesis.join.{i}", after)
        windowed = config.synthesis_attention[i] == "window"
        for k in range(2 if windowed else 1):
            theirs, ours = f"frame_decoder.transformer_blocks.{i}.blocks.{k}", f"synthesis.attention.{i}.{k}"
            names.update({f"{theirs}.{norm}": f"{ours}.{norm}" for norm in ("norm_q", "norm_kv", "norm_ffn")})
            suffix = "" if windowed else "_proj"
            names.update({f"{theirs}.attn.{x}{suffix}": f"{ours}.{x}_proj" for x in "qkv"})
            names.update({f"{theirs}.attn.proj": f"{ours}.proj", f"{theirs}.mlp.0": f"{ours}.ffn.0",
                          f"{theirs}.mlp.{2 if windowed else 3}": f"{ours}.ffn.2"})
            if windowed:
                names[f"{theirs}.attn.relative_position_bias_table"] = f"{ours}.relative_bias"
            else:
                names.update({f"{theirs}.{x}_pos_embedding": f"{ours}.{x}_position" for x in "qk"})
    names["frame_decoder.final_conv.1"] = "synthesis.to_rgb"
    return names


def published_generator_names(config: GeneratorConfig) -> dict[str, str]:
    """As `published_renderer_names`."""
    names = {"fmt.x_embedder.proj": "embed", "fmt.t_embedder.mlp.0": "time.inner", "fmt.t_embedder.mlp.2": "time.outer",
             "fmt.c_embedder": "condition", "fmt.decoder.adaLN_modulation.1": "out_modulation.linear",
             "fmt.decoder.linear": "out"}
    for i in range(config.depth):
        theirs, ours = f"fmt.blocks.{i}", f"blocks.{i}"
        names.update({f"{theirs}.attn.qkv": f"{ours}.attention.qkv", f"{theirs}.attn.proj": f"{ours}.attention.out",
                      f"{theirs}.mlp.fc1": f"{ours}.mlp.0", f"{theirs}.mlp.fc2": f"{ours}.mlp.2",
                      f"{theirs}.adaLN_modulation.1": f"{ours}.modulation.linear"})
    for kind in CONDITIONS:
        names.update({f"{kind}_projection.{i}": f"projections.{kind}.{i}" for i in (0, 1)})
    return names


def convert(renderer_ckpt: str | os.PathLike, generator_ckpt: str | os.PathLike, wav2vec_dir: str | os.PathLike,
            out: str | os.PathLike, half: bool = False, progress: Progress | None = None) -> Path:
    """Turn the published files into a model's folder; returns it.

    The checkpoints stay memory-mapped and are written tensor by tensor. Moving averages of the weights are preferred
    where a checkpoint holds them. The audio encoder is the generator checkpoint's own, or else that of `wav2vec_dir`
    (model.safetensors or pytorch_model.bin). half: matrices and kernels in float16 on disk. progress(done, total)
    counts bytes. Anything missing, left over or of another shape is an InputError that names it.
    """
    wav2vec_dir = Path(wav2vec_dir)
    config = ModelConfig("base", RendererConfig(), GeneratorConfig(), wav2vec_config(wav2vec_dir / "config.json"),
                         training_data="VFHQ, VoxCeleb2, MultiTalk (as published, arXiv 2511.22167)",
                         licence=f"as published at huggingface.co/{HUB_REPOSITORY}", guidance_scale=3.0)
    with torch.device("meta"):  # shapes only
        wanted = build_model(config)

    renderer = renamed(read_checkpoint(renderer_ckpt, "gen."), published_renderer_names(config.renderer),
                       wanted.renderer, renderer_ckpt)
    published = read_checkpoint(generator_ckpt, "model.")
    audio = {name.removeprefix("audio_encoder.wav2vec2."): x for name, x in published.items()
             if name.startswith("audio_encoder.")}
    generator = {name: x for name, x in published.items() if not name.startswith("audio_encoder.")}
    generator = renamed(generator, published_generator_names(config.generator), wanted.generator, generator_ckpt)
    source = generator_ckpt
    if not audio:
        source = wav2vec_dir / "model.safetensors"
        if not source.is_file():
            source = wav2vec_dir / "pytorch_model.bin"
        audio = {name.removeprefix("wav2vec2."): x for name, x in read_checkpoint(source).items()
                 if not name.startswith("lm_head.")}
    audio = folded_weight_norm(audio)
    modules = {name.rpartition(".")[0]: f"wav2vec2.{name.rpartition('.')[0]}" for name in audio}
    audio = renamed(audio, modules, wanted.audio_encoder, source)
    return write_model(config, {"renderer": renderer, "generator": generator, "audio_encoder": audio}, out, half,
                       progress)


def read_checkpoint(file: str | os.PathLike, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a published checkpoint by name without `prefix`, memory-mapped; names without it are dropped."""
    try:
        if os.fspath(file).endswith(".safetensors"):
            loaded = load_file(file)
        else:
            # an options namespace among the hyper-parameters is only numbers and strings; anything else stays refused
            with torch.serialization.safe_globals([argparse.Namespace]):
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise InputError(f"the file {str(file)!r} does not exist; give a published checkpoint") from None
    except Exception as error:  # torch raises many kinds for damaged and for foreign files
        raise InputError(f"{str(file)!r} cannot be read as a checkpoint ({first_line(error)}); "
                         "fetch it again") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{str(file)!r} holds a {type(loaded).__name__}; a published checkpoint is expected")
    tensors = {name.removeprefix(prefix): x for name, x in tensors_of(loaded.get("state_dict", loaded)).items()
               if name.startswith(prefix)}
    if not tensors:
        raise InputError(f"{str(file)!r} holds no tensor named {prefix}…; is it the right checkpoint?")
    # parameters only; what batch norm counted comes from the state
    return tensors | tensors_of(loaded.get("ema_state_dict"))


def tensors_of(given) -> dict[str, Tensor]:
    """What of a part of a checkpoint is tensors by name."""
    return {name: x for name, x in (given.items() if isinstance(given, Mapping) else ())
            if isinstance(name, str) and isinstance(x, Tensor)}


def renamed(published: Mapping[str, Tensor], names: Mapping[str, str], module: nn.Module, file) -> dict[str, Tensor]:
    """Published tensors under our names, after checking them against `module`."""
    wanted = {name: tuple(x.shape) for name, x in stored_tensors(module).items()}
    tensors = {}
    for name, x in published.items():
        if UNUSED.search(name):
            continue
        parent, _, last = name.rpartition(".")
        # an unknown name stays as it is, and so is found to be left over
        ours = names.get(name) or (f"{names[parent]}.{last}" if parent in names else name)
        shape = wanted.get(ours)
        if shape is not None and [n for n in shape if n != 1] == [n for n in x.shape if n != 1]:
            x = x.reshape(shape)  # published biases and modulated kernels carry dimensions of one
        tensors[ours] = x
    check_tensors({name: tuple(x.shape) for name, x in tensors.items()}, wanted, repr(os.fspath(file)))
    return tensors


def folded_weight_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """weight_g (1, 1, n), weight_v (..., n) -> weight = g v / |v|, the norm over all but the last dimension."""
    tensors = dict(tensors)
    parametrized = "parametrizations.weight.original"  # what newer versions of torch call them
    for old, new in (("weight_g", "weight_v"), (f"{parametrized}0", f"{parametrized}1")):
        for name in [name for name in tensors if name.endswith(f".{old}")]:
            stem = name.removesuffix(old)
            if stem + new in tensors:
                g, v = tensors.pop(name), tensors.pop(stem + new)
                tensors[f"{stem}weight"] = g * v / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True)
    return tensors


def wav2vec_config(file: Path) -> Wav2Vec2EncoderConfig:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}); "
                         "the config.json of wav2vec2-base-960h is expected") from error
    expected = {"model_type": "wav2vec2", "feat_extract_norm": "group", "do_stable_layer_norm": False,
                "conv_bias": False}
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise InputError(f"{str(file)!r} says {name}={values[name]!r}; "
                             f"{value!r} is expected, as in wav2vec2-base-960h")
    known = {field.name for field in dataclasses.fields(Wav2Vec2EncoderConfig)}
    return read_dataclass(Wav2Vec2EncoderConfig, {name: value for name, value in values.items() if name in known}, "")


def pull(name: str = "base", half: bool = False, progress: Progress | None = None, quiet: bool = False) -> Path:
    """Fetch the published weights from the Hugging Face hub (2.7 GB) and convert them; returns the model's folder.

    What is there already, whole and as `half` wants it, is kept. Files that the hub's own cache holds already are used
    from there; a download that was cut off is resumed. half, progress: see `convert`. quiet: no progress bars of the
    hub's client. Raises InputError when a file cannot be had.
    """
    if name != "base":
        raise InputError(f"no published model {name!r}; there is: base")
    cache = cache_folder()
    if cache is None:
        raise InputError("there is no home folder to keep the model in: name one with the variable IMTALKER_CACHE")
    folder = cache / name
    if is_whole(folder) and is_half(folder / "renderer.safetensors") == half:
        return folder
    try:
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise InputError("fetching needs the huggingface_hub library; type: pip install 'imtalker[base]'") from error
    if quiet:
        disable_progress_bars()
    renderer, generator, config, _ = [fetch(file) for file in HUB_FILES]
    return convert(renderer, generator, config.parent, folder, half, progress)


def fetch(file: str) -> Path:
    """One published file in the hub's cache, downloaded if it is not there or not what the hub says it is."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # the cache first: without a network the hub's client would retry for half a minute
        path = Path(hf_hub_download(HUB_REPOSITORY, file, local_files_only=True))
        if intact(path):
            return path
        remove(path)
    except LocalEntryNotFoundError:
        pass
    try:
        path = Path(hf_hub_download(HUB_REPOSITORY, file))
    except Exception as error:  # no network, no space, no such file: the hub's client has a kind for each
        raise InputError(f"{file} of {HUB_REPOSITORY} cannot be fetched ({first_line(error)}); try again, it goes on "
                         f"where it stopped; or fetch {', '.join(HUB_FILES)} by other means, then type: "
                         "imtalker models convert RENDERER.ckpt GENERATOR.ckpt WAV2VEC_DIR DIR") from error
    if not intact(path):
        remove(path)
        raise InputError(f"{file} of {HUB_REPOSITORY} arrived damaged: it has not the checksum that the hub gives; "
                         "it was removed; type again: imtalker models pull base")
    return path


def intact(path: Path) -> bool:
    """Whether a file in the hub's cache is what the hub says: the cache names it by its SHA-256, small ones by git's
    SHA-1. A cache without symbolic links keeps no such name; there the file is taken as it is."""
    file = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", file.name):
        return True
    git = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False) if len(file.name) == 40 else None
    return checksum_of(file, git) == file.name


def remove(path: Path) -> None:
    """Take a file out of the hub's cache: its name and what it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
