import math

import pytest
import torch

from imtalker import flow


def test_path_ends_at_noise_and_data_and_its_slope_is_the_target():
    x_0, x_1 = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    torch.testing.assert_close(flow.interpolate(x_0, x_1, torch.zeros(3)), x_0)
    torch.testing.assert_close(flow.interpolate(x_0, x_1, torch.ones(3)), x_1)
    t = torch.tensor([0.2, 0.5, 0.9])
    slope = (flow.interpolate(x_0, x_1, t + 0.05) - flow.interpolate(x_0, x_1, t)) / 0.05
    torch.testing.assert_close(slope, flow.target_velocity(x_0, x_1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("nfe", [1, 3, 10])
def test_constant_velocity_is_integrated_exactly(nfe):
    x_0, x_1 = torch.randn(4, 2), torch.randn(4, 2)
    end = flow.euler(lambda x, t: flow.target_velocity(x_0, x_1), x_0, flow.time_grid(nfe))
    torch.testing.assert_close(end, x_1)


def test_exponential_decay_follows_the_closed_form_of_euler_and_converges():
    x_0 = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for nfe in (2, 10, 1000):
        end = flow.euler(lambda x, t: -x, x_0, flow.time_grid(nfe))
        torch.testing.assert_close(end, x_0 * (1 - 1 / nfe) ** nfe, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(end, x_0 * math.exp(-1), atol=1e-3, rtol=1e-3)


def test_time_reaches_the_field():
    # dx/dt = 2t from 0: the left Riemann sum over n steps is 1 - 1/n
    end = flow.euler(lambda x, t: 2 * t, torch.zeros(()), flow.time_grid(8))
    assert end.item() == pytest.approx(1 - 1 / 8)


def test_nfe_counts_evaluations():
    calls = []
    flow.euler(lambda x, t: calls.append(t.item()) or x, torch.zeros(1), flow.time_grid(10))
    assert len(calls) == 10 and calls[0] == 0 and max(calls) < 1 and flow.time_grid(10)[-1] == 1


@pytest.mark.parametrize("nfe", [0, -3])
def test_no_steps_is_refused(nfe):
    with pytest.raises(ValueError, match="nfe"):
        flow.time_grid(nfe)


def test_guidance():
    v_0, v_1 = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(flow.guide(v_0, v_1, 1.0), v_1)
    torch.testing.assert_close(flow.guide(v_0, v_1, 0.0), v_0)
    torch.testing.assert_close(flow.guide(v_0, v_1, 3.0), 3 * v_1 - 2 * v_0)
