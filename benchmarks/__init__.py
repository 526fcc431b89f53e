"""Every performance claim and results table, each a command: `python benchmarks/NAME.py --json PATH`."""
