"""The public `generate`: text out for text in, by the sampler, from named streams."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bgpo
from bgpo.generation import Generation
from bgpo.models import Policy
from bgpo.spec import RolloutSpec
from tests.bgpo.reference import greedy_decode
from tests.bgpo.tiny import predictor

GREEDY = RolloutSpec(max_completion_length=12, block_length=4, diffusion_steps=6, temperature=0.0)
SAMPLED = RolloutSpec(max_completion_length=12, block_length=4, diffusion_steps=6, temperature=1.0)


@pytest.fixture
def sharp(policy: Policy) -> Policy:
    """Random weights large enough that no two tokens are nearly as likely."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        policy.model.transformer["ff_out"].weight[policy.mask_id] = 0
    return policy


def test_greedy_text_is_that_of_the_published_algorithm(sharp: Policy) -> None:
    prompts = ["1234", "a longer prompt: 9 + 4 = ?", "x"]
    found = bgpo.generate(sharp, prompts, GREEDY)
    for prompt, generation in zip(prompts, found, strict=True):
        ids = sharp.encode_prompt([{"role": "user", "content": prompt}])
        published = greedy_decode(predictor(sharp), ids, length=12, block=4, steps=6, mask_id=sharp.mask_id)
        ends = [i for i, token in enumerate(published) if token in sharp.end_ids]
        assert generation.token_ids == (published[: ends[0] + 1] if ends else published)
        assert generation.text == sharp.tokenizer.decode(generation.token_ids, skip_special_tokens=True)


def test_a_prompt_is_a_text_or_a_conversation(sharp: Policy) -> None:
    conversation = [{"role": "user", "content": "1234"}]
    longer = [{"role": "system", "content": "s"}, *conversation]
    text, same, other = bgpo.generate(sharp, ["1234", conversation, longer], GREEDY)
    assert text == same
    assert text != other


def test_a_seed_names_the_answers(sharp: Policy) -> None:
    first = bgpo.generate(sharp, ["1234"] * 3, SAMPLED, seed=1)
    assert first == bgpo.generate(sharp, ["1234"] * 3, SAMPLED, seed=1)
    assert first != bgpo.generate(sharp, ["1234"] * 3, SAMPLED, seed=2)
    assert len({tuple(generation.token_ids) for generation in first}) == 3, "each prompt has its own stream"


def test_prompt_i_draws_from_stream_i_whatever_stands_around_it(sharp: Policy) -> None:
    together = bgpo.generate(sharp, ["12", "a much longer prompt", "34"], SAMPLED, seed=4)
    assert bgpo.generate(sharp, ["12"], SAMPLED, seed=4) == together[:1]
    assert bgpo.generate(sharp, ["12", "other", "34"], SAMPLED, seed=4)[2] == together[2]


def test_what_does_not_fit_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="empty"):
        bgpo.generate(policy, [], GREEDY)
    with pytest.raises(ValueError, match=r"prompt 1 has 1\d\d tokens; with 12 .* context of 128"):
        bgpo.generate(policy, ["1", "1" * 110], GREEDY)


def test_a_saved_policy_gives_the_same_answers(sharp: Policy, tmp_path: Path) -> None:
    bgpo.save_policy(sharp, tmp_path / "copy")
    again = bgpo.load_policy(tmp_path / "copy")
    assert bgpo.generate(again, ["1234", "5"], SAMPLED, seed=9) == bgpo.generate(sharp, ["1234", "5"], SAMPLED, seed=9)


def test_a_generation_is_plain_data(sharp: Policy) -> None:
    (generation,) = bgpo.generate(sharp, ["1234"], GREEDY)
    assert isinstance(generation, Generation)
    assert all(type(token) is int for token in generation.token_ids)
    assert sharp.mask_id not in generation.token_ids
