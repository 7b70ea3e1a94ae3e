#!/usr/bin/env bash
# Trains a tiny sparse Qwen3 through its three pretraining stages on this machine: real text, real
# megatron-core, eight ranks (tensor 2 x pipeline 2 x expert 2). Run it by `make quickstart`.
#
# What is there already is not done again: delete runs/quickstart to start afresh.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 # eight ranks share few cores

bash examples/quickstart/data.sh
for stage in 1_general 2_reasoning 3_long_context; do
    printf '\n== stage %s\n' "${stage/_/: }"
    torchrun --nproc-per-node 8 -m megatron_qwen3.train \
        "examples/quickstart/stage_$stage.toml" examples/quickstart/model.toml "$@"
done
python tools/report.py runs/quickstart/stage_* --out runs/quickstart/report.html

printf '\n== export to Hugging Face\n'
rm -rf runs/quickstart/hf
python tools/convert_checkpoint.py to-hf runs/quickstart/stage_3_long_context runs/quickstart/hf
python tools/convert_checkpoint.py verify runs/quickstart/hf runs/quickstart/stage_3_long_context

printf '\n== a sample\n'
python -m megatron_qwen3.generate runs/quickstart/hf --max-new-tokens 60 --temperature 0.7 \
    --prompt 'The river ' --prompt 'def main(' --prompt '今天'
