"""The body of a create request as pydantic models, and its translation into a `bgpo.spec.Recipe` and back."""
