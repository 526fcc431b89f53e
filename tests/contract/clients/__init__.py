"""The client-side program of the contract suite: checks that run in the environment of each tested `openai` release."""

from tests.contract.clients import extensions, rows, surprises
from tests.contract.clients.contract import CHECKS, VERSION

__all__ = ["CHECKS", "VERSION", "extensions", "rows", "surprises"]
