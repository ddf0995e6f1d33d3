import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from imtalker import weights
from imtalker.errors import InputError
from imtalker.files import complete
from imtalker.models.audio import MelEncoderConfig
from imtalker.models.generator import GeneratorConfig
from imtalker.models.renderer import RendererConfig
from imtalker.weights import ModelConfig, available_models, build_model, load_model, save_model

CONFIG = ModelConfig(
    "tiny",
    RendererConfig(size=64, stem=8, widths=(16, 16, 8, 8), encoder_residuals=1, identity_dim=16,
                   motion_stem=8, motion_widths=(8, 16, 16), adapter_hidden=16, const_channels=8, map_convs=2,
                   attention_levels=2, heads=2, fine="sample", synthesis_residuals=((0, 1),) * 3,
                   synthesis_attention=("global", "window", "none")),
    GeneratorConfig(audio_dim=12, condition_dim=8, width=16, depth=2, heads=2, mlp_ratio=2, modulation_rank=4),
    MelEncoderConfig(dim=12, width=16),
    training_data="nothing", licence="Apache-2.0", guidance_scale=1.5)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return save_model(build_model(CONFIG), tmp_path / "tiny", half=False)


def rewrite(folder, **changes):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    values.update(changes)
    file.write_text(json.dumps(values))


def refused(folder, *words):
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def tensors(model):
    return {f"{part}.{name}": x for part in weights.PARTS
            for name, x in weights.stored_tensors(getattr(model, part)).items()}


def test_what_is_saved_is_loaded(tmp_path):
    torch.manual_seed(0)
    model = build_model(CONFIG)
    loaded = load_model(save_model(model, tmp_path / "model", half=False))
    assert loaded.config == CONFIG and loaded.config.size == 64 and loaded.config.fps == 25
    before, after = tensors(model), tensors(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in (loaded.renderer, loaded.generator, loaded.audio_encoder))
    assert not any(x.requires_grad for x in loaded.generator.parameters())


def test_half_on_disk_is_single_in_memory(tmp_path):
    model = build_model(CONFIG)
    whole, half = save_model(model, tmp_path / "a", half=False), save_model(model, tmp_path / "b", half=True)
    size = lambda folder: (folder / "generator.safetensors").stat().st_size
    assert size(half) < 0.75 * size(whole)
    for name, x in tensors(load_model(half)).items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, tensors(model)[name], atol=1e-3, rtol=1e-3)
        if x.ndim == 1:
            assert torch.equal(x, tensors(model)[name])


def test_files_are_plain_safetensors(folder):
    read = load_file(folder / "renderer.safetensors")
    wanted = weights.stored_tensors(load_model(folder).renderer)
    assert read.keys() == wanted.keys() and all(torch.equal(read[name], x) for name, x in wanted.items())


def test_saving_over_a_model_replaces_it(folder):
    model = build_model(dataclasses.replace(CONFIG, name="second"))
    assert load_model(save_model(model, folder)).config.name == "second"
    assert sorted(file.name for file in folder.iterdir()) == [
        "audio_encoder.safetensors", "config.json", "generator.safetensors", "renderer.safetensors"]


def test_weights_that_are_not_finite_are_not_saved(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = build_model(dataclasses.replace(CONFIG, name="second"))
    model.generator.embed.weight.data[0, 0] = 1e6  # too large for half precision
    with pytest.raises(InputError, match="embed.weight"):
        save_model(model, folder, half=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before  # nor the parts that would do


def test_a_complete_file_is_as_readable_as_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        with complete(tmp_path / "weights") as unfinished:
            save_file({"x": torch.zeros(2)}, unfinished)
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_nothing_is_left_of_a_file_that_cannot_be_put_in_place(tmp_path):
    (tmp_path / "weights").mkdir()
    with pytest.raises(OSError), complete(tmp_path / "weights") as unfinished:
        unfinished.write_bytes(b"whole")
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


def test_a_model_can_be_loaded_where_nobody_has_a_home(folder, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("IMTALKER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weights.Path, "home", no_home)
    assert load_model(folder).config == CONFIG


@pytest.mark.parametrize("part", weights.PARTS)
def test_damaged_files_are_named(folder, part):
    file = folder / f"{part}.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(folder, file.name, "damaged")
    file.write_bytes(content[:-100])
    refused(folder, file.name, "damaged")
    file.unlink()
    refused(folder, file.name, "missing")


def test_file_that_is_no_safetensors_is_named(folder):
    file = folder / "generator.safetensors"
    file.write_bytes(b"not weights at all, whatever the name says")
    with pytest.raises(InputError, match="generator.safetensors.*cannot be read"):
        weights.load_weights(load_model_part(), file)


def load_model_part():
    return build_model(CONFIG).generator


def test_wrong_tensors_are_named(folder):
    file = folder / "generator.safetensors"
    content = load_file(file)
    content["surplus.weight"] = torch.zeros(1)
    content["out.bias"] = torch.zeros(7)
    del content["embed.weight"]
    save_file(content, file)
    with pytest.raises(InputError) as caught:
        weights.load_weights(load_model_part(), file)
    message = str(caught.value)
    for words in ("missing: embed.weight", "left over: surplus.weight", "out.bias (7,) instead of (32,)", file.name):
        assert words in message, message


def test_unknown_and_contradictory_configuration_is_refused(folder):
    original = (folder / "config.json").read_text()
    values = json.loads(original)
    for changes, words in [({"colour": "blue"}, ("unknown", "colour")),
                           ({"renderer": {**values["renderer"], "sharpness": 3}}, ("unknown", "renderer.sharpness")),
                           ({"audio_encoder": {"kind": "ears"}}, ("ears", "mel")),
                           ({"size": 512}, ("size", "512", "64")),
                           ({"generator": {**values["generator"], "width": "wide"}}, ("generator.width", "wide")),
                           ({"format": 99}, ("format",)), ({"files": {}}, ("SHA-256",)),
                           ({"files": dict.fromkeys(values["files"])}, ("SHA-256",)),
                           ({"nfe": 0}, ("nfe is 0",)), ({"expression": [10, 33]}, ("expression", "33")),
                           ({"generator": {**values["generator"], "noise": [1., 2.]}}, ("noise has 2", "32")),
                           ({"generator": {**values["generator"], "heads": 0}}, ("no networks can be built",)),
                           ({"renderer": {**values["renderer"], "widths": ["a", "b"]}}, ("no networks can be built",)),
                           ({"renderer": {**values["renderer"], "synthesis_attention": ["none"]}}, ("no networks",))]:
        rewrite(folder, **changes)
        refused(folder, "config.json", *words)
        (folder / "config.json").write_text(original)
    (folder / "config.json").write_text("{")
    refused(folder, "config.json", "cannot be read")


def test_weights_of_another_configuration_are_refused(folder):
    generator = {**json.loads((folder / "config.json").read_text())["generator"], "depth": 3}
    rewrite(folder, generator=generator)
    refused(folder, "generator.safetensors", "missing", "blocks.2.")


def test_models_are_found_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("IMTALKER_CACHE", str(tmp_path))
    assert {(entry.name, entry.origin) for entry in available_models()} >= {("tiny", "fetched"), ("base", "published")}
    assert load_model("tiny").config == CONFIG


def test_unknown_names_say_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("IMTALKER_CACHE", str(tmp_path))
    refused("huge", "'huge'", "models pull base", "folder")
    refused("base", "models pull base")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.json")


@pytest.mark.skipif(not (weights.ASSETS / "mini" / "config.json").exists(), reason="no bundled model in this checkout")
def test_bundled_model_loads():
    model = load_model("mini")
    assert model.config.name == "mini" and model.config.size == 256 and model.audio_encoder.dim == 128
    assert model.generator.config.motion_dim == model.renderer.config.motion_dim == 32
