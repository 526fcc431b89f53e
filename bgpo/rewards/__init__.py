"""Rewards: graders as data (`GraderSpec`), compiled once and run on many samples. Torch-free."""

from __future__ import annotations

from bgpo.rewards.spec import GraderSpec, parse_grader_spec

__all__ = ["GraderSpec", "parse_grader_spec"]
