"""The sub-commands of `bgpo`, by what they are about."""
