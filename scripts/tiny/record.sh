#!/bin/sh
# The evaluations that the model card is made of, of the model in the package.
#
#     scripts/tiny/record.sh [XQUAD]
set -eu
cd "$(dirname "$0")/../.."
xquad=${1:-../shared/data/xquad}
to=scripts/tiny/record
measure() { .venv/bin/m3fast eval "$@" >/dev/null; }
measure "$xquad" --json $to/xquad.json
measure "$xquad" --cross en --json $to/xquad-en.json
for set in handbook help; do
    measure build/tiny/data/dev/$set --json $to/$set.json
done
measure build/tiny/data/dev/handbook --cross en --json $to/handbook-en.json
# builtin.json is what `m3fast eval --json` writes where no XQuAD lies beside the checkout.
