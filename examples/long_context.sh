#!/usr/bin/env bash
# Trains a tiny Qwen3 at 64 and then at 256 positions, and reads up to 1,024 with it: by plain rotary
# embedding, YaRN, Dual Chunk Attention, and both. Run it by `make long-context`.
#
# What is there already is not done again: delete runs/long_context to start afresh.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 # more only wait for one another where matrices are small
data=runs/long_context/data

if [ ! -e "$data/curriculum.json" ]; then
    python examples/long_context/texts.py --out "$data"
    python tools/train_tokenizer.py "$data/documents" --out "$data/tokenizer" \
        --vocab-size 282 --sample-mb 1
    python tools/tokenize_corpus.py "$data/documents" --out "$data/tokens" \
        --tokenizer "$data/tokenizer"
    python tools/mix_curriculum.py mix "$data/tokens" --recipe examples/long_context/curriculum.toml \
        --out "$data/curriculum.json"
fi
for stage in short long; do
    printf '\n== %s rows\n' "$stage"
    python -m megatron_qwen3.train "examples/long_context/$stage.toml" \
        examples/long_context/model.toml "$@"
done

printf '\n== beyond the trained length\n'
python tools/read_long.py runs/long_context/long --texts "$data/test.jsonl" --count 64 \
    --key-said '[{key}]' --key-asked '<{key}' --key-digits 4 --out runs/long_context/reading
