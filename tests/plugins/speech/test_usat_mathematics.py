"""The parts of the voice network that have a closed form: splines, alignment, attention by distance, likelihood of durations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from polyadapt.errors import UserError
from polyadapt_speech.usat.network.alignment import LONGEST_FRAMES, SILENT_SPREAD, SILENT_TOKENS, SPREAD, durations_by_search, log_likelihood
from polyadapt_speech.usat.network.attention import RelativeAttention
from polyadapt_speech.usat.network.config import DurationConfig
from polyadapt_speech.usat.network.duration_posterior import DurationPosterior
from polyadapt_speech.usat.network.durations import DurationPredictor
from polyadapt_speech.usat.network.lengths import frames_of
from polyadapt_speech.usat.network.spline import FLOOR, Spline, spline
from polyadapt_speech.usat.network.wave_discriminators import magnitudes
from polyadapt_speech.usat.training.wave_losses import MelDistance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_spline(*shape: int, bins: int = 7, bound: float = 3.0, dtype: torch.dtype = torch.float32) -> Spline:
    g = generator()
    widths, heights, slopes = (torch.randn(*shape, size, generator=g, dtype=dtype) for size in (bins, bins, bins - 1))
    return spline(widths, heights, slopes, bound)


def test_a_spline_is_undone_by_its_inverse() -> None:
    made = random_spline(400, dtype=torch.float64)
    x = torch.linspace(-4, 4, 400, dtype=torch.float64)
    y, log_derivative = made(x)
    back, inverse_derivative = made.inverse(y)
    assert torch.allclose(back, x, atol=1e-10)
    assert torch.allclose(log_derivative, -inverse_derivative, atol=1e-8)
    outside = x.abs() > 3
    assert outside.any() and torch.equal(y[outside], x[outside]) and not log_derivative[outside].any()


def test_a_spline_rises_and_meets_its_knots() -> None:
    made = random_spline(1, bins=5)
    for knot in range(6):
        value, _ = made(made.x[:, knot])
        assert torch.allclose(value, made.y[:, knot], atol=1e-5)
    fine = Spline(*(part.expand(1000, -1) for part in (made.x, made.y, made.slope)), made.bound)
    values, _ = fine(torch.linspace(-3, 3, 1000))
    assert (values.diff() > 0).all()


def test_the_derivative_of_a_spline_is_that_of_autograd() -> None:
    made = random_spline(200, dtype=torch.float64)
    x = torch.linspace(-2.9, 2.9, 200, dtype=torch.float64, requires_grad=True)
    y, log_derivative = made(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log(), log_derivative, atol=1e-10)


def test_no_bin_of_a_spline_vanishes() -> None:
    made = spline(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([[0.0, 60.0, 0.0]]), torch.full((1, 2), -90.0), 1.0)
    for edges in (made.x, made.y):
        assert float(edges.diff().min()) == pytest.approx(2 * FLOOR, rel=1e-3)
    assert made.slope.tolist() == [[1.0, pytest.approx(FLOOR), pytest.approx(FLOOR), 1.0]]


def best_by_trying(scores: torch.Tensor, lasting: Callable[[int, int], float] = lambda token, frames: 0.0) -> tuple[float, list[int]]:
    """The best sum over all ways to cut the frames into one stretch a token, with what a token's duration adds."""
    tokens, frames = scores.shape
    best, kept = -math.inf, []
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        edges = [0, *cuts, frames]
        total = sum(float(scores[token, start:stop].sum()) + lasting(token, stop - start) for token, (start, stop) in enumerate(itertools.pairwise(edges)))
        if total > best:
            best, kept = total, [stop - start for start, stop in itertools.pairwise(edges)]
    return best, kept


def test_alignment_finds_the_best_of_all_paths() -> None:
    sizes = [(tokens, frames) for tokens in range(1, 5) for frames in range(tokens, 9)]
    scores = torch.randn(len(sizes), 4, 8, generator=generator())
    found = durations_by_search(scores, torch.tensor([size[0] for size in sizes]), torch.tensor([size[1] for size in sizes]))
    for row, (tokens, frames) in enumerate(sizes):
        _, expected = best_by_trying(scores[row, :tokens, :frames])
        assert found[row].tolist() == expected + [0] * (4 - tokens), (tokens, frames)


def test_alignment_with_usual_durations_finds_the_best_of_all_paths() -> None:
    sizes = [(tokens, frames) for tokens in (1, 2, 5, 6) for frames in range(tokens, 11, 2)]
    g = generator()
    scores, usual = 9 * torch.randn(len(sizes), 6, 10, generator=g), 0.2 + 4 * torch.rand(len(sizes), 6, generator=g)
    found = durations_by_search(scores, torch.tensor([size[0] for size in sizes]), torch.tensor([size[1] for size in sizes]), usual)
    for row, (tokens, frames) in enumerate(sizes):
        paced = (usual[row, :tokens] * frames / usual[row, :tokens].sum()).clamp_min(1.0).tolist()

        def lasting(token: int, count: int, paced: list[float] = paced) -> float:
            spread = SILENT_SPREAD if token < SILENT_TOKENS or token >= len(paced) - SILENT_TOKENS else SPREAD
            return -0.5 * (math.log(count / paced[token]) / spread) ** 2

        _, expected = best_by_trying(scores[row, :tokens, :frames], lasting)
        assert found[row].tolist() == expected + [0] * (6 - tokens), (tokens, frames)


def test_usual_durations_decide_where_sound_does_not() -> None:
    """Two tokens between silence that sound alike: by sound alone the first lasts one frame."""
    scores = torch.zeros(1, 6, 12)
    usual = torch.tensor([[1.0, 1.0, 2.0, 6.0, 1.0, 1.0]])
    tokens, frames = torch.tensor([6]), torch.tensor([12])
    assert durations_by_search(scores, tokens, frames, usual).tolist() == [[1, 1, 2, 6, 1, 1]]
    assert durations_by_search(scores, tokens, frames, 3 * usual).tolist() == [[1, 1, 2, 6, 1, 1]]  # at whatever pace
    assert durations_by_search(scores, tokens, frames).tolist() != [[1, 1, 2, 6, 1, 1]]


def test_a_long_recording_of_a_short_text_is_laid_along_to_its_end() -> None:
    frames = 5 * LONGEST_FRAMES
    found = durations_by_search(torch.zeros(1, 3, frames), torch.tensor([3]), torch.tensor([frames]), torch.ones(1, 3))
    assert int(found.sum()) == frames and int(found.min()) >= 1


def test_alignment_refuses_a_recording_that_is_too_short() -> None:
    with pytest.raises(UserError, match="row 1 has 2 frames for 3 tokens.*does not belong to the recording"):
        durations_by_search(torch.zeros(2, 3, 4), torch.tensor([3, 3]), torch.tensor([4, 2]))


def test_likelihood_is_that_of_normal_distributions() -> None:
    g = generator()
    z, mean, log_deviation = torch.randn(2, 5, 7, generator=g), torch.randn(2, 5, 3, generator=g), torch.randn(2, 5, 3, generator=g) * 0.3
    expected = torch.distributions.Normal(mean[..., None], log_deviation.exp()[..., None]).log_prob(z[:, :, None, :]).sum(1)
    assert torch.allclose(log_likelihood(z, mean, log_deviation), expected, atol=1e-4)


def test_densities_and_spectra_do_not_round_under_autocast() -> None:
    """In bfloat16 a density that is summed over 192 channels is off by several nats, and a spectrum by a hundredth."""
    g = generator()
    z, mean, log_deviation = torch.randn(1, 192, 30, generator=g), torch.randn(1, 192, 9, generator=g), torch.randn(1, 192, 9, generator=g) * 0.3
    sound, mel = torch.randn(2, 2048, generator=g), MelDistance(256, 22_050)
    measured = (lambda: log_likelihood(z, mean, log_deviation), lambda: magnitudes(sound, 256, 64), lambda: mel.levels(sound))
    for measure in measured:
        exact = measure()
        with torch.autocast("cpu", torch.bfloat16):
            assert (sound @ sound.T).dtype == torch.bfloat16
            assert torch.equal(measure(), exact)


def test_frames_repeat_their_tokens() -> None:
    durations = torch.tensor([[2, 0, 3], [1, 1, 0], [0, 0, 0]])
    frames = frames_of(durations)
    assert frames.lengths.tolist() == [5, 2, 1]  # a row of nothing lasts one frame
    assert frames.token[0].tolist() == [0, 0, 2, 2, 2] and frames.token[1, :2].tolist() == [0, 1]
    assert frames.mask[:, 0].sum(-1).tolist() == [5, 2, 1]
    spread = frames.spread(torch.tensor([[[10.0, 20.0, 30.0]]] * 3))
    assert spread[:2, 0].tolist() == [[10, 10, 30, 30, 30], [10, 20, 0, 0, 0]]


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
def test_attention_by_distance_is_the_formula(tokens: int) -> None:
    """Against loops over pairs, also for texts that are shorter than the window."""
    torch.manual_seed(0)
    attention = RelativeAttention(8, 2, 3)
    x = torch.randn(1, tokens, 8, generator=generator())
    with torch.no_grad():
        found = attention(x, torch.ones(1, tokens))[0]
        q, k, v = (project(x[0]).unflatten(-1, (2, 4)) for project in (attention.q, attention.k, attention.v))  # (T, H, d)
        for i in range(tokens):
            mixed = []
            for head in range(2):
                near = {j: attention.k_offsets[j - i + 3] if abs(j - i) <= 3 else torch.zeros(4) for j in range(tokens)}
                weights = torch.stack([q[i, head] @ (k[j, head] + near[j]) / 2 for j in range(tokens)]).softmax(0)
                values = [v[j, head] + (attention.v_offsets[j - i + 3] if abs(j - i) <= 3 else 0) for j in range(tokens)]
                mixed.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            assert torch.allclose(found[i], attention.o(torch.cat(mixed)), atol=1e-5)


def living_durations() -> tuple[DurationConfig, DurationPredictor, DurationPosterior]:
    """Predictor and posterior whose last layers, zero at the start, are not."""
    torch.manual_seed(0)
    config = DurationConfig(8, flows=3, bins=4)
    predictor, posterior = DurationPredictor(config, 6), DurationPosterior(config)
    g = generator(1)
    with torch.no_grad():
        for parameter in (*predictor.parameters(), *posterior.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.1)
    return config, predictor, posterior


def test_sampling_durations_is_the_inverse_of_their_flow() -> None:
    """Also: the first spline, which a voice that speaks leaves out, would change nothing."""
    _, predictor, posterior = living_durations()
    g = generator(2)
    hidden, mask, z = torch.randn(2, 6, 5, generator=g), torch.ones(2, 1, 5), torch.randn(2, 2, 5, generator=g)
    with torch.no_grad():
        condition = predictor.condition(hidden, mask)
        noise, _ = posterior._through(z, mask, condition, predictor.affine, [posterior.first, *predictor.flows])
        assert torch.allclose(predictor(hidden, mask, noise), z[:, 0], atol=1e-4)


def test_the_bound_of_durations_counts_the_volume_of_its_flow() -> None:
    """log|det| of the flow of one token, against autograd's Jacobian."""
    _, predictor, posterior = living_durations()
    hidden, mask = torch.randn(1, 6, 1, generator=generator(3)).double(), torch.ones(1, 1, 1).double()
    predictor, posterior = predictor.double(), posterior.double()
    condition = predictor.condition(hidden, mask).detach()

    def flow(z: torch.Tensor) -> torch.Tensor:
        return posterior._through(z.reshape(1, 2, 1), mask, condition, predictor.affine, [posterior.first, *predictor.flows])[0].flatten()

    z = torch.tensor([0.4, -0.7], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow, z)
    _, volume = posterior._through(z.reshape(1, 2, 1), mask, condition, predictor.affine, [posterior.first, *predictor.flows])
    assert torch.allclose(volume, jacobian.det().abs().log()[None], atol=1e-9)


def test_durations_are_as_likely_as_they_are_sampled() -> None:
    """exp(-bound) is an unbiased estimate of p(d), by importance sampling with q; p(d) is also how often the predictor says d."""
    _, predictor, posterior = living_durations()
    draws = 6000
    with torch.no_grad():
        predictor.affine.shift[0] = 0.7  # durations of a few frames
        for flow in posterior.flows:  # a q that is wider than p everywhere, so that no draw counts for thousands
            flow.after.weight.zero_()  # type: ignore[union-attr,operator]
            flow.after.bias.zero_()  # type: ignore[union-attr,operator]
        posterior.affine.shift.zero_()
        posterior.affine.log_scale.fill_(0.6)
        hidden, mask = torch.randn(1, 6, 1, generator=generator(5)).expand(draws, -1, -1), torch.ones(draws, 1, 1)
        said = predictor(hidden, mask, torch.randn(draws, 2, 1, generator=generator(6))).exp().ceil()
        sampled = [float((said == duration).float().mean()) for duration in range(1, 13)]
        assert sum(sampled) > 0.9 and max(sampled) < 0.5
        for duration, often in enumerate(sampled, 1):
            bound = posterior(predictor, hidden, mask, torch.full((draws, 1), duration), torch.randn(draws, 2, 1, generator=generator(duration)))
            assert float((-bound).exp().mean()) == pytest.approx(often, abs=0.02), duration


def test_training_durations_makes_them_likely() -> None:
    """Tokens that last 2 and 9 frames: the predictor learns which is which."""
    torch.manual_seed(0)
    config = DurationConfig(16, flows=2, bins=4)
    predictor, posterior = DurationPredictor(config, 4), DurationPosterior(config)
    hidden = torch.eye(4)[:, :2].repeat(1, 6)[None].repeat(8, 1, 1)  # (8, 4, 12): tokens in turn
    durations, mask = torch.tensor([2, 9] * 6).repeat(8, 1), torch.ones(8, 1, 12)
    optimiser = torch.optim.AdamW([*predictor.parameters(), *posterior.parameters()], lr=5e-3)
    losses, g = [], generator()
    for _ in range(80):
        loss = posterior(predictor, hidden, mask, durations, torch.randn(8, 2, 12, generator=g)).mean() / 12
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    with torch.no_grad():
        said = predictor(hidden, mask, torch.zeros(8, 2, 12)).exp()[0, :2]
    assert 1 < said[0] < 3 and 7 < said[1] < 11


def test_the_bound_ignores_padding() -> None:
    _, predictor, posterior = living_durations()
    g = generator(4)
    hidden, noise, durations = torch.randn(1, 6, 5, generator=g), torch.randn(1, 2, 5, generator=g), torch.tensor([[3, 1, 4, 0, 0]])
    mask = torch.tensor([[[1.0, 1, 1, 0, 0]]])
    with torch.no_grad():
        whole = posterior(predictor, hidden, mask, durations, noise)
        alone = posterior(predictor, hidden[..., :3], mask[..., :3], durations[:, :3], noise[..., :3])
    assert torch.allclose(whole, alone, rtol=1e-5)
