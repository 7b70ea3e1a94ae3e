#!/usr/bin/env bash
# From text to a curriculum, with the tools that any corpus goes through: documents, a tokenizer,
# shards, and what each stage reads of them. What is there already is not done again.
#
#   bash examples/quickstart/data.sh [FOLDER [SIZE OF THE VOCABULARY [RECIPE]]]
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:-runs/quickstart/data}
vocab_size=${2:-2048}
recipe=${3:-examples/quickstart/curriculum.toml}

python examples/quickstart/prepare.py --out "$data/documents"
made=$(cat "$data/vocab_size" 2>/dev/null || true)
if [ "$data/documents/manifest.json" -nt "$data/tokens/inventory.parquet" ] || [ "$made" != "$vocab_size" ]; then
    rm -rf "$data/tokenizer" "$data/tokens"
    # A small sample, in which the many languages, of which there is little, have their part.
    python tools/train_tokenizer.py "$data/documents" --out "$data/tokenizer" \
        --vocab-size "$vocab_size" --sample-mb 0.6
    python tools/tokenize_corpus.py "$data/documents" --out "$data/tokens" \
        --tokenizer "$data/tokenizer"
    echo "$vocab_size" > "$data/vocab_size"
fi
python tools/mix_curriculum.py mix "$data/tokens" --recipe "$recipe" \
    --out "$data/curriculum.json" --rows 3
