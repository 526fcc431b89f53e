"""What a checkpoint is refused for when it is loaded: its parts speak of different tokens or positions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from bgpo.errors import ModelError
from bgpo.models import Policy, load_policy, save_policy
from bgpo.models.converted import ConvertedModel
from bgpo.models.dream import DreamConfig, DreamModel
from bgpo.models.layout import save_weights
from bgpo.models.scratch import FamilyName, create_checkpoint

FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"
DREAM = FIXTURES / "dream-7b-instruct"
in_house = pytest.mark.skipif(not DREAM.is_dir(), reason="the published metadata lies beside the repository in-house")
PROBE = [{"role": "user", "content": "What is 6 x 7?"}]

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a small checkpoint of a family."""

    def create(family: FamilyName = "dream", **sizes: Any) -> Path:
        small = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 48, "max_sequence_length": 64}
        create_checkpoint(tmp_path / family, family=family, **small | sizes)
        return tmp_path / family

    return create


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refused(directory: Path, match: str) -> str | None:
    with pytest.raises(ModelError, match=match) as caught:
        load_policy(directory)
    return caught.value.param


def without_json(directory: Path, **settings: Any) -> None:
    """Write the byte tokenizer in the form that Dream and Qwen are published in: vocab.json and merges.txt."""
    content = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {str(token.pop("id")): token for token in content["added_tokens"]}
    edit(directory / "tokenizer_config.json", added_tokens_decoder=added, **settings)


@pytest.mark.parametrize("tokenizer_class", ["DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_tokenizer_in_vocab_and_merges_is_the_same(make: Make, family: FamilyName, tokenizer_class: str) -> None:
    directory = make(family)
    text = "Sudoku 数独: 12+34\n\nend"
    expected = load_policy(directory)
    # The code that a published tokenizer_config.json names is not run.
    without_json(directory, tokenizer_class=tokenizer_class, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    policy = load_policy(directory)
    # GPT-2 splits text in its own way, so the ids may differ; what they say may not.
    prompts = [each.tokenizer.decode(each.encode_prompt(PROBE)) for each in (policy, expected)]
    assert prompts[0] == prompts[1]
    if tokenizer_class != "GPT2Tokenizer":
        assert policy.encode_prompt(PROBE) == expected.encode_prompt(PROBE)
    assert policy.decode(policy.encode(text)) == text
    assert (policy.mask_id, policy.end_ids) == (expected.mask_id, expected.end_ids)


def test_other_tokenizer_files_are_refused_with_what_to_do(make: Make) -> None:
    directory = make()
    without_json(directory, tokenizer_class="SomeTokenizer")
    assert refused(directory, "'SomeTokenizer' is not known") == "tokenizer_config.json.tokenizer_class"
    (directory / "tokenizer_config.json").unlink()
    refused(directory, r"tokenizer_config\.json cannot be read")
    (directory / "merges.txt").unlink()
    (directory / "tokenizer.model").write_bytes(b"sentencepiece")
    refused(directory, r"save_pretrained\(...\) writes tokenizer.json")


@in_house
def test_dream_s_published_tokenizer_and_config_make_a_policy(tmp_path: Path) -> None:
    """The real tokenizer files and config.json over a network that is only narrower."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        shutil.copyfile(DREAM / name, tmp_path / name)
    (tmp_path / "config.json").write_text((DREAM / "config.json").read_text())
    narrow = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    edit(tmp_path / "config.json", **narrow, num_attention_heads=2, num_key_value_heads=1)
    model = DreamModel(DreamConfig.from_json(json.loads((tmp_path / "config.json").read_text())))
    model.initialize(torch.Generator().manual_seed(0))
    save_weights(model, tmp_path)
    policy = load_policy(tmp_path)
    assert (policy.mask_id, policy.end_ids, policy.remasking) == (151666, (151643, 151645), "entropy")
    ids = policy.encode_prompt([{"role": "user", "content": "What is 6 x 7?"}])
    assert policy.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is 6 x 7?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[:3] == [151644, 8948, 198]
    assert policy.decode([*policy.encode("naïve 12 数独"), 151645, 151666]) == "naïve 12 数独"


def test_a_mask_token_that_a_text_may_contain(make: Make) -> None:
    directory = make("llada")
    letter = load_policy(directory).encode("a")[0]
    edit(directory / "config.json", mask_token_id=letter)
    edit(directory / "tokenizer_config.json", mask_token=...)
    assert refused(directory, "ordinary token 'a'") == "config.json.mask_token_id"


def test_config_and_tokenizer_that_name_different_mask_tokens(make: Make) -> None:
    directory = make()
    edit(directory / "config.json", mask_token_id=300)
    assert refused(directory, "mask token is 276, the config's 300") == "config.json.mask_token_id"


def test_a_template_that_closes_answers_with_an_unknown_token(make: Make) -> None:
    """Such a model would end its answers and never be seen to."""
    directory = make()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|done|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|done|>"))
    assert refused(directory, r"closes an answer with token 277 \('<\|done\|>'\)") == "config.json.eos_token_id"
    edit(directory / "config.json", eos_token_id=[273, 277])
    assert load_policy(directory).end_ids == (273, 277, 275)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no') }}", "chat template fails: no"),
        ("{{ messages[0].content.unknown.thing }}", "chat template fails"),
        ("{% for message in messages %}{{ message.role }}: ...{% endfor %}", "does not survive"),
        ("{% for message in messages %}", "chat template fails"),
    ],
    ids=str,
)
def test_a_template_that_loses_the_conversation(make: Make, template: str, says: str) -> None:
    directory = make()
    (directory / "chat_template.jinja").write_text(template)
    assert refused(directory, says) == "tokenizer_config.json.chat_template"


def test_a_tokenizer_that_loses_text(make: Make) -> None:
    directory = make()
    content = json.loads((directory / "tokenizer.json").read_text())
    edit(directory / "tokenizer.json", normalizer={"type": "Lowercase"})
    assert content["normalizer"] is None
    assert refused(directory, "does not survive encoding") == "tokenizer_config.json.chat_template"


def learn_probe(policy: Policy) -> None:
    """Train until the tokens that the self-test masks are predicted."""
    ids = torch.tensor(policy.encode(str(policy.tokenizer.apply_chat_template(PROBE, tokenize=False))))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    masked = torch.arange(2, len(ids), 4)
    tokens = ids.index_fill(0, masked, policy.mask_id)
    for _ in range(60):
        logits = policy.model.logits(policy.model(tokens[None])[0, masked])
        loss = torch.nn.functional.cross_entropy(logits, ids[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3


@pytest.mark.parametrize("shift", [True, False])
def test_a_trained_model_read_one_position_off(make: Make, shift: bool) -> None:
    directory = make("qwen3")
    edit(directory / "config.json", bgpo_logit_shift=shift)
    policy = load_policy(directory)
    learn_probe(policy)
    save_policy(policy, directory)
    assert load_policy(directory).model.shift == shift
    edit(directory / "config.json", bgpo_logit_shift=not shift)
    where = "one position later" if shift else "at their own position"
    assert refused(directory, where) == "config.json.bgpo_logit_shift"


def test_attention_that_stays_causal_is_noticed(make: Make) -> None:
    model = load_policy(make("qwen3")).model
    assert isinstance(model, ConvertedModel)
    model.check()
    model.model.layers[0].self_attn.is_causal = True
    with pytest.raises(ModelError, match="does not reach later positions"):
        model.check()
