"""The paper's tables and figures at small scale (arXiv 2510.11683): `python -m benchmarks.paper --help`.

A table is made in two stages. `run` executes jobs, each a process of its own whose result is one small JSON file named
by what it ran; a job whose file exists is not run again, so an interrupted session goes on where it stopped and tables
that share a configuration share its run. `table1`, `table2`, `table3`, `figure1` and `figure3` only read those files.
"""
