"""OpenAI's `text_similarity`: how alike two texts are, by published metrics, each with its reference package's value.

    fuzzy_match   rapidfuzz `fuzz.ratio`
    bleu          sacrebleu's sentence BLEU (13a tokens, exponential smoothing, effective order)
    gleu          nltk's sentence GLEU, on the same tokens
    meteor        nltk's METEOR, on the same tokens, with exact and stem matches: WordNet would have to be downloaded
    rouge_1 ... 5, rouge_l   the F-measure of rouge-score, without stemmer
    cosine        of two embeddings by the operator's judge for embeddings

All are from 0 to 1. ROUGE reads ASCII letters and digits only, and METEOR stays below 1 for equal texts, as published.
OpenAI does not say which of rapidfuzz's functions or which tokens it takes. The libraries are imported when a metric is
compiled: they take a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bgpo.errors import SpecError
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import TextSimilaritySpec
from bgpo.rewards.templates import parse_template

MAX_TEXT = 65_536
"""Characters that are compared: of the input the first ones, while a longer reference is an error of the row."""

Metric = Callable[[str, str], float]
"""Of the input and the reference."""


class TextSimilarityGrader(Grader):
    """Compiled `text_similarity`. Solved from `pass_threshold`, or from 1."""

    metric_names = ("solved",)

    def __init__(self, spec: TextSimilaritySpec, resources: Resources) -> None:
        self.name, self.type = spec.name, spec.type
        self._input = parse_template(spec.input)
        self._reference = parse_template(spec.reference)
        self._threshold = 1.0 if spec.pass_threshold is None else spec.pass_threshold
        if spec.evaluation_metric == "cosine":
            self._metric, self.concurrency = _cosine(resources)
        else:
            self._metric = _metric(spec.evaluation_metric)

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        reference = rendered(self._reference, sample, item)
        if len(reference) > MAX_TEXT:
            raise GradeFault(f"reference has {len(reference)} characters, more than the {MAX_TEXT} that are compared")
        value = self._metric(rendered(self._input, sample, item)[:MAX_TEXT], reference)
        score = min(max(value, 0.0), 1.0)
        solved = score >= self._threshold
        return Grade(score, solved=solved, metrics={"solved": float(solved)})


def _metric(name: str) -> Metric:
    if name.startswith("rouge_"):
        return _rouge_l() if name == "rouge_l" else _rouge_n(f"rouge{name[-1]}")
    return {"fuzzy_match": _fuzzy_match, "bleu": _bleu, "gleu": _gleu, "meteor": _meteor}[name]()


def _fuzzy_match() -> Metric:
    from rapidfuzz import fuzz

    return lambda text, reference: fuzz.ratio(text, reference) / 100


def _rouge_n(kind: str) -> Metric:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind])
    return lambda text, reference: float(scorer.score(reference, text)[kind].fmeasure)


def _rouge_l() -> Metric:
    """Of rouge-score, but for its table of all pairs of tokens, which takes gigabytes for a long text."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer()

    def metric(text: str, reference: str) -> float:
        tokens, wanted = tokenizer.tokenize(text), tokenizer.tokenize(reference)
        if not tokens or not wanted:
            return 0.0
        common = LCSseq.similarity(tokens, wanted)
        return float(fmeasure(common / len(tokens), common / len(wanted)))

    return metric


def _tokens() -> Callable[[str], list[str]]:
    """The tokens of BLEU."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    make: Callable[[], Callable[[str], str]] = Tokenizer13a
    tokenizer = make()

    def tokens(text: str) -> list[str]:
        found = tokenizer(text.rstrip()).split()
        for cached in (Tokenizer13a.__call__, TokenizerRegexp.__call__):
            cached.cache_clear()  # they would keep the last 65,536 texts
        return found

    return tokens


def _bleu() -> Metric:
    from sacrebleu.metrics.bleu import BLEU

    bleu, tokens = BLEU(tokenize="none", effective_order=True), _tokens()

    def metric(text: str, reference: str) -> float:
        return float(bleu.sentence_score(" ".join(tokens(text)), [" ".join(tokens(reference))]).score / 100)

    return metric


def _gleu() -> Metric:
    from nltk.translate.gleu_score import sentence_gleu

    tokens = _tokens()
    return lambda text, reference: float(sentence_gleu([tokens(reference)], tokens(text)))


def _meteor() -> Metric:
    from nltk.translate.meteor_score import single_meteor_score

    tokens, synonyms = _tokens(), _NoSynonyms()
    return lambda text, reference: float(single_meteor_score(tokens(reference), tokens(text), wordnet=synonyms))


class _NoSynonyms:
    """A WordNet without words."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _cosine(resources: Resources) -> tuple[Metric, int]:
    """The metric, and how many texts are worth comparing at a time."""
    name = resources.settings.embedding_model
    if name is None:
        raise SpecError("cosine needs an embedding model, and this service has none configured", "evaluation_metric")
    from bgpo.rewards.judge import JudgeClient

    try:
        judge = JudgeClient(name, resources)
    except SpecError as error:
        raise SpecError(error.message, "evaluation_metric") from error

    def metric(text: str, reference: str) -> float:
        if not text.strip() or not reference.strip():
            return 0.0  # embedding endpoints refuse an empty text
        return cosine(*judge.embed([text, reference]))

    return metric, resources.settings.judges[name].concurrency


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors of the same length; 0 when one of them is zero."""
    scale = math.hypot(*one), math.hypot(*other)
    if 0.0 in scale:
        return 0.0
    return math.fsum(a / scale[0] * (b / scale[1]) for a, b in zip(one, other, strict=True))
