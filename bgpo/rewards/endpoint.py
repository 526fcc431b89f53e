"""`endpoint`: the score that an HTTP endpoint of the user's gives.

    POST {"sample": {"output_text": ...}, "item": {...}, "trace_id": "..."}    ->  {"score": 0.5}
    POST {"samples": [{"sample": ..., "item": ..., "trace_id": ...}, ...]}     ->  {"scores": [0.5, ...]}

Each request is signed when the specification names a secret (Standard Webhooks, as webhooks are), goes through
`bgpo.egress`, and is tried again when that may help. A `trace_id` names one sample to be graded and is the same in each
try, as is the request's `webhook-id`, so an endpoint can tell a repetition. Solved means the upper end of `range`, or 1
without one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bgpo.egress import Caller, CallFailed, Egress, EgressRefused, Gate, check_url, signing
from bgpo.errors import SpecError
from bgpo.rewards.grade import Grade, GradeErrorInfo, GradeFault, Grader, Sample, clipped
from bgpo.rewards.received import finite_number, parse_json
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import SECRET, EndpointSpec

Question = dict[str, Any]


class EndpointGrader(Grader):
    """Compiled `endpoint`.

    Raises:
        SpecError: the URL is not allowed, or a secret is missing or cannot be used.
    """

    def __init__(self, spec: EndpointSpec, resources: Resources) -> None:
        self.name, self.type, self.concurrency = spec.name, spec.type, spec.concurrency
        self._url, self._timeout_s, self._range = spec.url, spec.timeout_seconds, spec.range
        self._batch_size = spec.batch_size if spec.batch else None
        rules = resources.settings.egress
        try:
            check_url(spec.url, allow_private=rules.allow_private, ports=rules.ports, hosts=rules.hosts)
        except EgressRefused as refused:
            raise SpecError(refused.message, "url") from refused
        self._headers = {name: _filled(name, value, resources.secrets) for name, value in spec.headers.items()}
        self._keys = _signing_keys(spec.signing_secret, resources.secrets)
        egress = Egress(allow_private=rules.allow_private, ports=rules.ports, hosts=rules.hosts)
        gate = Gate(spec.concurrency, spec.requests_per_minute)
        self._caller = Caller(egress, gate, [resources.secrets[name] for name in spec.secret_names()])

    def _grade_all(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        if self._batch_size is None:
            return super()._grade_all(samples, items)
        pairs = list(zip(samples, items, strict=True))
        batches = [pairs[begin : begin + self._batch_size] for begin in range(0, len(pairs), self._batch_size)]
        if not batches:
            return []
        with ThreadPoolExecutor(min(self.concurrency, len(batches))) as executor:
            return [grade for grades in executor.map(self._grade_batch, batches) for grade in grades]

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        body = self._ask(_question(sample, item))
        return self._scored(self._field(body, "score"), "score", body)

    def _grade_batch(self, pairs: Sequence[tuple[Sample, Mapping[str, Any]]]) -> list[Grade]:
        begin = time.perf_counter()
        try:
            grades = self._scores([_question(*pair) for pair in pairs])
        except GradeFault as fault:
            grades = [_failed(fault)] * len(pairs)
        seconds = time.perf_counter() - begin
        return [self._labelled(grade, seconds) for grade in grades]

    def _scores(self, questions: Sequence[Question]) -> list[Grade]:
        body = self._ask({"samples": questions})
        scores = self._field(body, "scores")
        if not isinstance(scores, list) or len(scores) != len(questions):
            raise self._unusable(f"scores must be a list of {len(questions)} numbers, one for each sample", body)
        grades = []
        for index, score in enumerate(scores):
            try:
                grades.append(self._scored(score, f"scores[{index}]", body))
            except GradeFault as fault:
                grades.append(_failed(fault))
        return grades

    def _ask(self, question: Question) -> bytes:
        try:
            content = json.dumps(question, allow_nan=False).encode()
        except ValueError as error:
            raise GradeFault("the item has a number that JSON cannot hold (NaN or infinity)") from error
        message_id = f"msg_{uuid.uuid4().hex}"
        try:
            return self._caller.post(
                self._url, content, lambda: self._signed(message_id, content), timeout_s=self._timeout_s
            )
        except CallFailed as failed:
            raise GradeFault(f"the endpoint could not be asked: {failed.message}", details=failed.details) from failed

    def _signed(self, message_id: str, content: bytes) -> dict[str, str]:
        if not self._keys:
            return {"content-type": "application/json", "webhook-id": message_id, **self._headers}
        return signing.headers(message_id, time.time(), content, self._keys) | self._headers

    def _field(self, body: bytes, name: str) -> Any:
        try:
            answer = parse_json(body)
        except ValueError as error:
            raise self._unusable("it is not JSON", body) from error
        if not isinstance(answer, dict) or name not in answer:
            raise self._unusable(f"it is no JSON object with {name!r}", body)
        return answer[name]

    def _scored(self, value: Any, field: str, body: bytes) -> Grade:
        try:
            score = clipped(finite_number(value), self._range)
        except ValueError as error:
            raise self._unusable(f"{field}: {error}", body) from error
        return Grade(score, solved=score >= (1.0 if self._range is None else self._range[1]))

    def _unusable(self, why: str, body: bytes) -> GradeFault:
        return GradeFault(f"the endpoint's answer cannot be used: {why}", details=self._caller.excerpt(body))


def _question(sample: Sample, item: Mapping[str, Any]) -> Question:
    return {"sample": sample.variables(), "item": dict(item), "trace_id": str(uuid.uuid4())}


def _failed(fault: GradeFault) -> Grade:
    error: GradeErrorInfo = fault.info
    return Grade(0.0, solved=False, error=error)


def _filled(header: str, value: str, secrets: Mapping[str, str]) -> str:
    for name in SECRET.findall(value):
        secret = _secret(name, secrets, f"headers.{header}")
        if not (secret.isascii() and secret.isprintable()):
            raise SpecError(f"the secret {name} has characters that a header cannot have", f"headers.{header}")
    return SECRET.sub(lambda match: secrets[match[1]], value)


def _signing_keys(name: str | None, secrets: Mapping[str, str]) -> list[bytes]:
    if name is None:
        return []
    try:
        found = signing.keys(_secret(name, secrets, "signing_secret"))
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"the secret {name} cannot sign: {error}", "signing_secret") from error
    if not found:
        raise SpecError(f"the secret {name} is empty", "signing_secret")
    return found


def _secret(name: str, secrets: Mapping[str, str], param: str) -> str:
    if name not in secrets:
        raise SpecError(f"there is no secret {name}: store it first", param)
    return secrets[name]
