"""Built-in tasks: data made here, with disjoint train and test splits, and the grader that fits. Torch-free.

`python -m bgpo.tasks {sudoku|countdown} --split train --rows N --seed S --out F.jsonl` writes a dataset.
"""
