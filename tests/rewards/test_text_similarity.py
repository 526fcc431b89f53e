"""`text_similarity` against published examples, the packages themselves and BLEU worked out here, and odd texts."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Grader, GraderSettings, Resources, Sample, compile_grader
from bgpo.rewards.settings import JudgeSettings
from bgpo.rewards.text_similarity import MAX_TEXT, cosine

METRICS = ["fuzzy_match", "bleu", "gleu", "meteor", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l"]
MILITARY = (
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is to insure the troops forever hearing the activity guidebook that party direct",
)
FOX = ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")


class NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


def grader(metric: str, resources: Resources | None = None, **fields: Any) -> Grader:
    spec = {
        "type": "text_similarity",
        "name": "alike",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference }}",
        "evaluation_metric": metric,
    }
    return compile_grader({**spec, **fields}, resources)


GRADERS = {metric: grader(metric) for metric in METRICS}


def grade(metric: str, text: str, reference: str) -> Grade:
    return GRADERS[metric].grade(Sample(text), {"reference": reference})


def package(metric: str, text: str, reference: str) -> float:
    """The value as the package gives it to its own users."""
    tokenize = Tokenizer13a()
    tokens, wanted = tokenize(text.rstrip()).split(), tokenize(reference.rstrip()).split()
    match metric:
        case "fuzzy_match":
            return fuzz.ratio(text, reference) / 100
        case "bleu":
            return sentence_bleu(text, [reference]).score / 100
        case "gleu":
            return float(sentence_gleu([wanted], tokens))
        case "meteor":
            return float(single_meteor_score(wanted, tokens, wordnet=NoSynonyms()))
    kind = "rougeL" if metric == "rouge_l" else f"rouge{metric[-1]}"
    return float(RougeScorer([kind]).score(reference, text)[kind].fmeasure)


@pytest.mark.parametrize(
    ("metric", "text", "reference", "score"),
    [
        ("fuzzy_match", "this is a test", "this is a test!", 0.9655),  # rapidfuzz's README, to its two places
        ("gleu", MILITARY[1], MILITARY[0], 0.4394),  # nltk's documentation cuts them off: 0.4393, 0.1206
        ("gleu", MILITARY[2], MILITARY[0], 0.1207),
        ("meteor", MILITARY[1], MILITARY[0], 0.6944),
        ("meteor", "this is a cat", "non matching hypothesis", 0.0),
        ("rouge_1", FOX[1], FOX[0], 2 * 6 / (8 + 9)),  # rouge-score's README: 6 of 8 and 9 words
        ("rouge_l", FOX[1], FOX[0], 2 * 5 / (8 + 9)),
        ("rouge_2", "a b c d", "a b x c d", 2 * 2 / (3 + 4)),
        ("rouge_4", "a b c d e", "b c d e f", 2 * 1 / (2 + 2)),
        ("rouge_5", "a b c d", "a b c d", 0.0),  # nothing of five words in four
    ],
)
def test_published_values(metric: str, text: str, reference: str, score: float) -> None:
    assert grade(metric, text, reference).score == pytest.approx(score, abs=5e-5)


def test_bleu_is_the_formula_of_the_paper() -> None:
    text, reference = (
        tuple(line.split()) for line in ("the cat sat on the old red mat", "the cat sat on the red mat so")
    )
    logs = []
    for n in range(1, 5):
        ours = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        theirs = Counter(reference[i : i + n] for i in range(len(reference) - n + 1))
        logs.append(math.log(sum((ours & theirs).values()) / sum(ours.values())))
    expected = math.exp(1 - len(reference) / len(text) + sum(logs) / 4)
    assert grade("bleu", " ".join(text), " ".join(reference)).score == pytest.approx(expected)


WORDS = st.lists(
    st.sampled_from(["the", "cat", "cats", "Running", "runs", "sat,", "it's", "1,000", "$5", "Z\u00fcrich"])
)
TEXTS = WORDS.map(" ".join) | WORDS.map("\n".join) | st.text()


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, reference=TEXTS)
def test_equals_the_package_on_any_text(metric: str, text: str, reference: str) -> None:
    result = grade(metric, text, reference)
    assert result.error is None
    assert 0.0 <= result.score <= 1.0
    assert result.score == pytest.approx(package(metric, text, reference), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("text", "reference"), [("", "a"), ("a", ""), ("", ""), (" \n", "?!"), ("\ud800", "\ud800")])
def test_texts_without_words_have_a_score(metric: str, text: str, reference: str) -> None:
    result = grade(metric, text, reference)
    assert result.error is None
    if metric == "fuzzy_match":
        assert result.score == float(text == reference)
    elif metric.startswith("rouge"):
        assert result.score == 0.0


def test_solved_from_the_threshold() -> None:
    assert not grade("fuzzy_match", "abcd", "abce").solved
    for metric in ("fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"):
        assert grade(metric, MILITARY[0], MILITARY[0]).solved
    low = grader("fuzzy_match", pass_threshold=0.75)
    assert [low.grade(Sample(text), {"reference": "abcd"}).solved for text in ("abcx", "abxx")] == [True, False]
    assert low.grade(Sample("abcx"), {"reference": "abcd"}).metrics == {"solved": 1.0}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.timeout(30)  # fails on another order of growth, not on a busy machine
def test_long_texts_are_cut(metric: str) -> None:
    for unit in ("a ", "y", ".", "1,", "&"):
        reference = (unit * MAX_TEXT)[:MAX_TEXT]
        cut = grade(metric, reference + "x" * 1_000_000, reference)
        assert cut.score == grade(metric, reference, reference).score
    longer = grade(metric, "a", "a" * (MAX_TEXT + 1))
    assert longer.error is not None
    assert longer.error.message == "reference has 65537 characters, more than the 65536 that are compared"


def test_tokenizers_keep_no_texts() -> None:
    grade("bleu", "some text", "of a tenant")
    assert Tokenizer13a.__call__.cache_info().currsize == 0


class Embeddings(BaseHTTPRequestHandler):
    """An /embeddings endpoint: how often a, b and c are in a text."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = request["input"]
        data = [{"index": n, "embedding": [text.count(c) for c in "abc"]} for n, text in enumerate(texts)]
        body = json.dumps({"data": data, "model": request["model"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def embeddings() -> Iterator[Resources]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    judge = JudgeSettings(base_url=f"http://127.0.0.1:{server.server_port}", allow_private=True)
    yield Resources(GraderSettings(judges={"embed": judge}, embedding_model="embed"))
    server.shutdown()
    thread.join()
    server.server_close()


def test_cosine_of_the_judges_embeddings(embeddings: Resources) -> None:
    with grader("cosine", embeddings, pass_threshold=0.7) as alike:
        for text, reference, score in [
            ("ab", "ab", 1.0),
            ("ab", "a", math.sqrt(0.5)),
            ("a", "c", 0.0),
            ("x", "a", 0.0),  # an embedding of nothing but zeros
            ("", "a", 0.0),
        ]:
            result = alike.grade(Sample(text), {"reference": reference})
            assert result.error is None
            assert result.score == pytest.approx(score)
            assert result.solved == (score > 0.7)


def test_cosine_needs_an_embedding_model() -> None:
    for settings_ in (GraderSettings(), GraderSettings(embedding_model="nobody")):
        with pytest.raises(SpecError, match=r"none configured|no judge") as caught:
            grader("cosine", Resources(settings_))
        assert caught.value.param == "evaluation_metric"


def test_a_judge_that_cannot_be_asked_is_an_error(embeddings: Resources) -> None:
    gone = JudgeSettings(base_url="http://127.0.0.1:9", allow_private=True, timeout_seconds=1.0)
    resources = Resources(GraderSettings(judges={"embed": gone}, embedding_model="embed"))
    result = grader("cosine", resources).grade(Sample("a"), {"reference": "a"})
    assert result.error is not None
    assert result.error.kind == "model_grader_server_error"


@given(st.lists(st.tuples(*[st.floats(-1e150, 1e150)] * 2), min_size=1, max_size=9))
def test_cosine_is_between_its_bounds(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    value = cosine(one, other)
    assert abs(value) <= 1.0 + 1e-9
    assert cosine(one, [-x for x in other]) == -value
