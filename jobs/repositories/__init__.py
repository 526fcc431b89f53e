"""All SQL of the project, one module per table. Functions take a session first and never commit."""
