"""Motion of synthetic heads: the latent, its inverse for the mouth, and that people would call it natural."""
import numpy as np
import pytest

from imtalker.errors import InputError
from imtalker.models.latent import FACE
from imtalker.synth import motion
from imtalker.synth.motion import BLINK, EXPRESSIONS, INDEX, Motion, latent, talking, varied
from imtalker.synth.visemes import OPENING, VISEMES, babble, curves, from_festival, from_flite, from_ipa, segments


def a_basis():
    return np.random.default_rng(0).standard_normal((motion.COMPONENTS, len(EXPRESSIONS))).astype(np.float32)


def write_pack(folder):
    """A pack of 80 vertices whose expressions are mixtures of ten movements."""
    rng = np.random.default_rng(0)
    count, vertices = len(EXPRESSIONS), 80
    delta = rng.standard_normal((count, 10)) @ rng.standard_normal((10, vertices * 3)) * 100
    np.savez(folder / "heads.npz", expr_names=np.array(EXPRESSIONS), expr_ptr=np.arange(count + 1) * vertices,
             expr_idx=np.tile(np.arange(vertices), count), expr_delta=delta.reshape(-1, 3).astype(np.int16),
             verts=rng.standard_normal((vertices, 3)), vgroup=np.zeros(vertices, np.uint8), w_head=np.ones(vertices),
             lm_68=np.arange(68), lm_lips_outer_loop=np.arange(5), lm_lips_inner_loop=np.arange(5, 9))


def test_latent_holds_the_geometry_in_known_units():
    one = Motion(np.float32([[.3, -.3, 0]]), np.float32([[.15, .08, 0]]), np.float32([[.3, 0]]),
                 np.zeros((1, len(EXPRESSIONS)), np.float32))
    one.expression[0, BLINK] = 1, .5
    numbers = latent(one, a_basis() * 0)
    assert numbers.shape == (1, motion.LATENT) and numbers.dtype == np.float32
    np.testing.assert_allclose(numbers[0, :10], [1, -1, 0, 1, 1, 0, 1, 0, 2, 1], atol=1e-6)


def test_basis_is_deterministic_free_of_the_eyes_and_of_unit_spread(tmp_path):
    write_pack(tmp_path)
    basis = motion.expression_basis(tmp_path)
    np.testing.assert_array_equal(basis, motion.expression_basis(tmp_path))
    assert basis.shape == (22, 67) and basis.dtype == np.float32
    eyes = [i for name, i in INDEX.items() if name.startswith(("eyeBlink", "eyeLook"))]
    assert not basis[:, eyes].any()
    spread = np.sqrt(np.diag(basis @ motion._spread() @ basis.T))
    np.testing.assert_allclose(spread, 1, atol=.02)


def test_the_mouth_can_be_read_back_from_the_latent(tmp_path):
    write_pack(tmp_path)
    basis, gap = motion.expression_basis(tmp_path), motion.mouth_gap(tmp_path)
    talk = talking(np.random.default_rng(1), frames=500)
    read = latent(talk, basis)[:, FACE] @ motion.mouth_decoder(basis, gap)
    assert np.corrcoef(read, talk.expression @ gap)[0, 1] > .9


def test_missing_pack_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match="head pack"):
        motion.expression_basis(tmp_path)


def test_talking_is_natural():
    clips = [talking(np.random.default_rng(seed), frames=500) for seed in range(12)]
    pose = np.degrees(np.concatenate([c.pose - c.pose.mean(0) for c in clips]))
    assert .5 < pose.std() < 4                                              # the head stays near its base pose ...
    jitter = np.degrees(np.concatenate([np.diff(c.pose, 2, axis=0) for c in clips]))
    assert np.abs(jitter).mean() < .15                                      # ... and moves smoothly
    closed = np.concatenate([np.diff((c.expression[:, BLINK[0]] > .5).astype(int)) == 1 for c in clips])
    assert 8 < closed.sum() / (12 * 500 / 25 / 60) < 24                     # blinks a minute
    lengths = [len(run) for c in clips for run in np.split(c.expression[:, BLINK[0]], np.flatnonzero(
        np.diff((c.expression[:, BLINK[0]] > .1).astype(int))) + 1) if run[0] > .1]
    assert 4 <= np.median(lengths) <= 11                                    # frames, so about 0.3 s
    gaze = np.degrees(np.concatenate([c.gaze for c in clips]))
    assert np.abs(gaze).max() <= 30.01
    for c in clips:
        assert c.expression.min() >= 0 and c.expression.max() <= 1 and len(c) == 500
        assert all(getattr(c, name).dtype == np.float32 for name in ("pose", "cam", "gaze", "expression"))


def test_talking_about_a_base_stays_there():
    base = varied(np.random.default_rng(3), 1)
    calm = talking(np.random.default_rng(4), frames=250, base=base, calm=.5)
    assert np.degrees(np.abs(calm.pose.mean(0) - base.pose[0])).max() < 4


def test_varied_covers_wide_poses_and_closed_eyes():
    wide = varied(np.random.default_rng(0), 300)
    assert np.degrees(np.abs(wide.pose[:, 1])).max() > 30
    assert (wide.expression[:, BLINK].min(1) > .9).mean() > .05
    assert wide.expression.min() >= 0 and wide.expression.max() <= 1


def test_lips_close_for_bilabials_whatever_surrounds_them():
    rows = [(0, .1, "aa"), (.1, .15, "PP"), (.15, .35, "aa"), (.35, .41, "FF"), (.41, .6, "O"), (.6, 1.6, "sil")]
    weights = curves(rows, 40)
    assert weights.shape == (40, 15)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert weights[2:4, VISEMES.index("PP")].max() > .85
    assert weights[7:10, VISEMES.index("FF")].max() > .85
    assert weights[20:38, 0].min() > .97                                    # a pause is shut
    opening = weights @ OPENING
    assert opening[5:8].max() > .5 and opening[2:4].min() < .15
    assert np.abs(np.diff(weights, axis=0)).max() < .95                     # no single-frame flips


def test_silence_is_shut():
    weights = curves([], 10)
    assert (weights[:, 0] == 1).all()


def test_phones_of_all_speakers_map_to_visemes():
    assert from_flite("ay") == ["aa", "I"] and from_flite("b") == ["PP"] and from_flite("pau") == ["sil"]
    assert from_ipa("aʊ") == ["aa", "U"] and from_ipa("tʃ") == ["CH"]
    assert from_ipa("(en)") == [] and from_ipa("") == ["sil"]
    assert from_ipa("ˈiː") == ["I"]
    assert from_festival("a1") == ["aa"] and from_festival("c~") == ["CH"]
    assert segments([(0., .2, "ow")], from_flite) == [(0., .1, "O"), (.1, .2, "U")]


def test_babble_fills_the_time():
    rows = babble(np.random.default_rng(0), 5)
    assert rows[-1][1] >= 5 and all(a[1] == b[0] for a, b in zip(rows, rows[1:]))
