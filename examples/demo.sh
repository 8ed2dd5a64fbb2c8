#!/bin/sh
# Bake, inspect, check, read and train a few steps, on the built-in teacher.
set -e
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
run parbake build sine-teacher --num-samples 256 -o demo.zarr
run parbake build sine-teacher --validation -o demo-validation.zarr
run parbake inspect demo.zarr
run parbake check demo.zarr
printf '\n$ parbake check demo.zarr sine-teacher --num-samples 256 --db-max -6   # another recipe\n'
parbake check demo.zarr sine-teacher --num-samples 256 --db-max -6 || echo "(exit code $?)"
run parbake verify demo.zarr
run python examples/train_student.py demo.zarr demo-validation.zarr
