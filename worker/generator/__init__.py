"""The generator: a process that answers chat completions, with a serving process below it that has the models."""
