#!/usr/bin/env bash
# Documents, a tokenizer and shards for the study of mixtures beside this file, in half a minute.
#
#   bash examples/reproduce/mixture/data.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../../.."
data=${1:-runs/reproduce/mixture/data}

[ -f "$data/tokens/inventory.parquet" ] && exit 0
python examples/reproduce/mixture/texts.py --out "$data/documents"
python tools/train_tokenizer.py "$data/documents" --out "$data/tokenizer" --vocab-size 640
python tools/tokenize_corpus.py "$data/documents" --out "$data/tokens" --tokenizer "$data/tokenizer"
