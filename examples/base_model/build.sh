#!/usr/bin/env bash
# Make the shipped base model, examples/models/tiny-llada, from nothing: random weights, noisy demonstrations of both
# built-in tasks, masked-diffusion supervised fine-tuning. About half an hour on one core. Everything is seeded; on the
# same machine and library versions the result is the same to the bit.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../../.venv/bin/python}
rm -rf work && mkdir work
"$python" -m bgpo.models.scratch --out work/start --seed 0
# An imperfect demonstrator: 65 % of the Sudoku answers are wrong in 2 to 5 cells, half of the Countdown answers.
"$python" -m bgpo.tasks sudoku --split train --rows 24000 --seed 1 --demonstrations --noise 0.65 --out work/sudoku.jsonl
"$python" -m bgpo.tasks countdown --split train --rows 12000 --seed 1 --demonstrations --noise 0.5 --out work/countdown.jsonl
cat work/sudoku.jsonl work/countdown.jsonl > work/train.jsonl
"$python" -m bgpo.tasks sudoku --split test --rows 128 --seed 1 --out work/validation.jsonl
"$python" -m bgpo.run spec.json > work/records.jsonl
grep '"metric"' work/records.jsonl > log.jsonl
rm -rf ../models/tiny-llada && mkdir -p ../models/tiny-llada
find work/checkpoints/step-* -maxdepth 1 -type f ! -name manifest.json -exec cp {} ../models/tiny-llada/ \;  # trainer_state/ stays behind
