import argparse
import hashlib

import pytest
import torch
from test_weights import CONFIG

from imtalker import published
from imtalker.errors import InputError
from imtalker.models.generator import Generator, GeneratorConfig
from imtalker.models.renderer import Renderer, RendererConfig
from imtalker.weights import build_model, save_model, stored_tensors


@pytest.mark.parametrize("names, module", [
    (published.published_renderer_names, Renderer), (published.published_generator_names, Generator)])
def test_every_tensor_has_exactly_one_published_name(names, module):
    config = RendererConfig() if module is Renderer else GeneratorConfig()
    with torch.device("meta"):
        wanted = set(stored_tensors(module(config)))
    listed = list(names(config).values())
    ours = set(listed)
    assert len(listed) == len(ours)
    for name in wanted:
        parent = name.rpartition(".")[0]
        assert (name in ours) + (parent in ours) == 1, name
    for name in ours:
        assert name in wanted or any(other.startswith(name + ".") for other in wanted), name


def test_renaming_is_strict_and_drops_what_is_derived():
    module = torch.nn.ModuleDict({"ours": torch.nn.Linear(3, 2)})
    given = {"theirs.weight": torch.ones(1, 2, 3), "theirs.bias": torch.ones(1, 2, 1, 1),
             "blur.kernel": torch.ones(4, 4), "x.num_batches_tracked": torch.tensor(9)}
    renamed = published.renamed(given, {"theirs": "ours"}, module, "x.ckpt")
    assert {name: tuple(x.shape) for name, x in renamed.items()} == {"ours.weight": (2, 3), "ours.bias": (2,)}
    with pytest.raises(InputError, match="x.ckpt.*missing: ours.bias.*left over: stranger"):
        published.renamed({"theirs.weight": torch.ones(2, 3), "stranger": torch.ones(1)}, {"theirs": "ours"}, module,
                          "x.ckpt")
    with pytest.raises(InputError, match=r"another shape: ours.weight \(3, 2\) instead of \(2, 3\)"):
        published.renamed(given | {"theirs.weight": torch.ones(3, 2)}, {"theirs": "ours"}, module, "x.ckpt")


@pytest.mark.parametrize("names", [("weight_g", "weight_v"),
                                   ("parametrizations.weight.original0", "parametrizations.weight.original1")])
def test_weight_norm_is_folded(names):
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3), dim=2)
    layer.parametrizations.weight.original0.data.mul_(1.7)
    g, v = layer.parametrizations.weight.original0.data, layer.parametrizations.weight.original1.data
    folded = published.folded_weight_norm({f"conv.{names[0]}": g, f"conv.{names[1]}": v, "conv.bias": layer.bias.data})
    assert folded.keys() == {"conv.weight", "conv.bias"}
    torch.testing.assert_close(folded["conv.weight"], layer.weight.data)


def test_moving_averages_are_preferred(tmp_path):
    torch.save({"state_dict": {"model.a.weight": torch.zeros(2), "model.a.running_mean": torch.ones(2),
                               "disc.b": torch.ones(1)},
                "ema_state_dict": {"a.weight": torch.full((2,), 5.0)},
                "hyper_parameters": {"opt": argparse.Namespace(lr=1e-4)}}, tmp_path / "x.ckpt")
    tensors = published.read_checkpoint(tmp_path / "x.ckpt", "model.")
    assert {name: x.tolist() for name, x in tensors.items()} == {"a.weight": [5, 5], "a.running_mean": [1, 1]}


class Sly:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_files_that_are_no_checkpoint_are_refused(tmp_path, capsys):
    file = tmp_path / "x.ckpt"
    with pytest.raises(InputError, match="x.ckpt.*does not exist"):
        published.read_checkpoint(file)
    file.write_bytes(b"hello")
    with pytest.raises(InputError, match="x.ckpt.*cannot be read"):
        published.read_checkpoint(file)
    torch.save({"state_dict": {"disc.a": torch.ones(1)}}, file)
    with pytest.raises(InputError, match="x.ckpt.*gen"):
        published.read_checkpoint(file, "gen.")
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="x.ckpt.*list"):
        published.read_checkpoint(file)
    torch.save({"state_dict": Sly()}, file)
    with pytest.raises(InputError, match="x.ckpt.*cannot be read"):
        published.read_checkpoint(file)
    assert "ran" not in capsys.readouterr().out


def test_wav2vec_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "config.json"
    with pytest.raises(InputError, match="config.json.*wav2vec2-base-960h"):
        published.wav2vec_config(file)
    file.write_text('{"do_stable_layer_norm": true}')
    with pytest.raises(InputError, match="do_stable_layer_norm=True"):
        published.wav2vec_config(file)
    file.write_text('{"hidden_size": 768, "vocab_size": 32}')
    assert published.wav2vec_config(file).hidden_size == 768


def test_cache_names_tell_damaged_files(tmp_path):
    big, small = tmp_path / hashlib.sha256(b"big").hexdigest(), tmp_path / hashlib.sha1(b"blob 5\0small").hexdigest()
    big.write_bytes(b"big")
    small.write_bytes(b"small")
    (tmp_path / "name").symlink_to(big)
    assert published.intact(tmp_path / "name") and published.intact(small)
    big.write_bytes(b"bug")
    small.write_bytes(b"smell")
    assert not published.intact(tmp_path / "name") and not published.intact(small)
    published.remove(tmp_path / "name")
    assert not big.exists() and not (tmp_path / "name").is_symlink()
    (tmp_path / "plain").write_bytes(b"a cache without links")
    assert published.intact(tmp_path / "plain")


def test_pull_of_another_name_and_of_a_model_that_is_here(monkeypatch, tmp_path):
    monkeypatch.setenv("IMTALKER_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="'large'"):
        published.pull("large")

    def fetch(file):
        raise InputError("it is fetched")

    monkeypatch.setattr(published, "fetch", fetch)
    folder = save_model(build_model(CONFIG), tmp_path / "base", half=True)
    assert published.pull(half=True) == folder
    with pytest.raises(InputError, match="it is fetched"):  # in full
        published.pull()
    file = folder / "audio_encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="it is fetched"):  # instead of the damaged one
        published.pull(half=True)
