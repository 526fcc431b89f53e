"""Tasks: data made here or converted from published formats, and the grader that fits. Torch-free.

`python -m bgpo.tasks {sudoku|countdown} --split train --rows N --seed S --out F.jsonl` generates a dataset with
disjoint train and test splits; `python -m bgpo.tasks {gsm8k|math|code} --input PUBLISHED.jsonl --out F.jsonl` converts
one.
"""
