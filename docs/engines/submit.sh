#!/bin/bash
# bash submit.sh MODEL FOLDER [flags of evaluate]: an array of jobs that do the parts, and one that joins them into FOLDER/whole.
# array.sbatch lies in the folder from which this is called.
set -euo pipefail
folder=$2
array=$(sbatch --parsable array.sbatch "$@")
sbatch --dependency=afterok:"$array" --wrap "nonsingular merge ${folder@Q}/shard-* --out ${folder@Q}/whole"
echo "parts: job $array; then they are joined into $folder/whole"
