#!/bin/sh
# What int8 loses, measured anew: the JSON files of scripts/int8/record, then the tables of docs/int8.md.
#
#     scripts/int8/measure.sh [MODEL ...]
#
# From a checkout's root, on a CPU with VNNI or AMX. Models: m3fast-tiny, before it was rounded, in TINY; minilm
# and e5-small, which are folders in MODELS. DATA: where xquad/ and handbook-sections/ are.
set -eu
DATA=${DATA:-../shared/data}
MODELS=${MODELS:-build/int8}
TINY=${TINY:-build/tiny/trained}
PYTHON=${PYTHON:-.venv/bin/python}
LANGUAGES=${LANGUAGES:-en,de,zh,ar}
RECORD=scripts/int8/record
HANDBOOK=build/int8/handbook

$PYTHON scripts/int8/handbook.py "$DATA/handbook-sections/debian-handbook-sections.14-locales.json.gz" $HANDBOOK
[ $# -gt 0 ] || set -- m3fast-tiny minilm e5-small
for name; do
    case $name in
        m3fast-tiny) folder=$TINY languages=$LANGUAGES ;;
        minilm) folder=$MODELS/$name languages=en ;;  # an English model
        *) folder=$MODELS/$name languages=$LANGUAGES ;;
    esac
    for data in xquad handbook; do
        case $data in
            xquad) texts=$DATA/xquad ;;
            handbook) texts="$HANDBOOK/en $HANDBOOK/de $HANDBOOK/zh $HANDBOOK/ar" ;;
        esac
        # An empty M3FAST_CPU_PATH is the machine's best path; AVX2 without VNNI has 7 bits.
        for bits in 8 7; do
            [ $bits = 8 ] && path= || path=avx2
            M3FAST_CPU_PATH=$path $PYTHON -m m3fast eval $texts --languages $languages \
                --model $folder --max-length 256 --dtype int8 --against float32 \
                --json $RECORD/$name-$data-$bits.json
        done
    done
done
$PYTHON scripts/int8/page.py
