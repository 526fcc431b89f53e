"""The streams against SplitMix64 in plain Python integers, and against what randomness must look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from bgpo.diffusion.rng import Purpose, gumbel, stream_keys, substreams, uniform

WORD = 2**64 - 1


def splitmix64(state: int, count: int) -> list[int]:
    """Steele, Lea, Flood (2014), as published by Vigna."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        numbers.append(z ^ (z >> 31))
    return numbers


def state_before(output: int) -> int:
    """The state from which SplitMix64's next output is `output`."""

    def unshift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits):
            result = value ^ (result >> bits)
        return result

    z = unshift(output, 31)
    z = unshift((z * pow(0x94D049BB133111EB, -1, 2**64)) & WORD, 27)
    z = unshift((z * pow(0xBF58476D1CE4E5B9, -1, 2**64)) & WORD, 30)
    return (z - 0x9E3779B97F4A7C15) & WORD


def as_int64(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def test_the_generator_in_this_file_gives_the_published_numbers() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4) == published
    assert [splitmix64(state_before(number), 1)[0] for number in published] == published


@pytest.mark.parametrize("key", [0, 1, 1234567, 2**63, WORD])
def test_uniform_is_splitmix64_started_at_the_key(key: int) -> None:
    drawn = uniform(torch.tensor(as_int64(key)), 50)
    expected = [number / 2**64 for number in splitmix64(key, 50)]
    assert drawn.dtype == torch.float64
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=0, atol=2**-51)


@pytest.mark.parametrize("bits", [0, WORD])
def test_uniform_is_strictly_inside_the_unit_interval(bits: int) -> None:
    key = torch.tensor(as_int64(state_before(bits)))
    number = float(uniform(key, 1))
    assert 0 < number < 1
    assert torch.isfinite(gumbel(key, 1)).all()


def test_streams_have_uniform_numbers() -> None:
    numbers = uniform(stream_keys(3, Purpose.ELBO, torch.arange(200)), 500)
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 0.01
    # Finer than KS sees: the low bits of the numbers, and one number of each of many streams.
    low_bits = (numbers.flatten() * 2**40).frac().numpy()
    assert stats.kstest(low_bits, "uniform").pvalue > 0.01
    firsts = uniform(stream_keys(3, Purpose.ELBO, torch.arange(50_000)), 1).flatten().numpy()
    assert stats.kstest(firsts, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "parts",
    [
        (torch.arange(300), 0),
        (0, torch.arange(300)),
        (torch.arange(300)[:, None] * torch.ones(1, 1, dtype=torch.int64), 5),
    ],
)
def test_neighbouring_streams_are_independent(parts: tuple[int | torch.Tensor, ...]) -> None:
    numbers = uniform(stream_keys(11, Purpose.ROLLOUT, *parts).flatten(), 400).numpy()
    pairs = np.concatenate([numbers[:-1].reshape(-1, 1), numbers[1:].reshape(-1, 1)], axis=1)
    cells = np.histogram2d(pairs[:, 0], pairs[:, 1], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.flatten()).pvalue > 0.01
    # A stream that repeats its neighbour with an offset would show in a lagged correlation.
    for lag in range(-5, 6):
        left = numbers[:-1, max(lag, 0) : 400 + min(lag, 0)]
        right = numbers[1:, max(-lag, 0) : 400 + min(-lag, 0)]
        assert abs(np.corrcoef(left.flatten(), right.flatten())[0, 1]) < 4 / left.size**0.5


def test_names_give_the_same_streams_for_ever() -> None:
    """Resumed runs and published seeds depend on it: a part is folded in between two rounds of SplitMix64's mixing."""

    def fold(key: int, part: int) -> int:
        (mixed,) = splitmix64(key, 1)
        folded = mixed ^ ((part * 0x94D049BB133111EB + 0x9E3779B97F4A7C15) & WORD)
        return splitmix64((folded - 0x9E3779B97F4A7C15) & WORD, 1)[0]

    key = 12
    for part in (Purpose.ELBO, 7, -3, 2**40):
        key = fold(key, int(part))
    assert int(stream_keys(12, Purpose.ELBO, 7, -3, 2**40)) == as_int64(key)
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "ROLLOUT": 1,
        "ELBO": 2,
        "EVALUATION": 3,
        "SUPERVISED": 4,
        "DATA_ORDER": 5,
        "GENERATE": 6,
        "PROMPT_MASK": 7,
        "PREFERENCE": 8,
    }


def test_names_that_differ_anywhere_name_different_streams() -> None:
    names = [
        stream_keys(seed, purpose, *parts)
        for seed in (0, 1, 2**31 - 1)
        for purpose in Purpose
        for parts in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (-1,), (2**40,))
    ]
    assert len({int(name) for name in names}) == len(names)


def test_a_stream_does_not_depend_on_its_batch_or_on_how_much_is_drawn() -> None:
    prompts, samples = torch.arange(6)[:, None], torch.arange(4)
    keys = stream_keys(5, Purpose.ROLLOUT, 9, prompts, samples)
    assert keys.shape == (6, 4)
    numbers = uniform(keys, 30)
    for prompt in range(6):
        for sample in range(4):
            alone = uniform(stream_keys(5, Purpose.ROLLOUT, 9, prompt, sample), 7)
            assert torch.equal(numbers[prompt, sample, :7], alone)
            nested = substreams(substreams(stream_keys(5, Purpose.ROLLOUT, 9), prompt), sample)
            assert torch.equal(nested, keys[prompt, sample])


def test_gumbel_noise_has_the_gumbel_distribution() -> None:
    noise = gumbel(stream_keys(1, Purpose.GENERATE, torch.arange(100)), 500)
    assert noise.dtype == torch.float64
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 0.01


def test_drawing_leaves_the_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    uniform(stream_keys(0, Purpose.ELBO, torch.arange(3)), 10)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
