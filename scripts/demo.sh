#!/usr/bin/env bash
# The main job on the embedded scene: train three small NeRFs, plan and distil the embedded teacher, score them all.
# Run again, it reuses what is there and continues what was interrupted.
#
#   scripts/demo.sh [--device cpu|cuda]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=cpu
while (($#)); do
    case $1 in
        --device) device=${2:-} && shift 2 || { echo "error: --device: nothing follows, expected cpu or cuda" >&2; exit 2; } ;;
        *) echo "error: $1: unknown, expected --device cpu|cuda" >&2 && exit 2 ;;
    esac
done
[[ $device == cpu || $device == cuda ]] || { echo "error: --device $device: unknown, expected cpu or cuda" >&2 && exit 2; }

bash scripts/install.sh
export PATH="$PWD/.venv/bin:$PATH"

scene=data/still_life
teacher=$scene/teacher/config.yml
out=outputs/demo
steps=300

# train NAME [FLAGS...]: eugen-nerf-small for $steps steps; goes on from the last checkpoint there is.
train() {
    local name=$1 run=$out/$1/eugen-nerf-small/run last=-1 resume=()
    shift
    for checkpoint in "$run"/nerfstudio_models/step-*.ckpt; do
        [[ -e $checkpoint ]] && last=$((10#$(basename "$checkpoint" .ckpt | cut -d- -f2)))
    done
    ((last + 1 >= steps)) && echo "$name: trained already" && return
    ((last >= 0)) && resume=(--load-dir "$run/nerfstudio_models")
    echo "$name: training, steps $((last + 1)) to $steps"
    ns-train eugen-nerf-small --output-dir "$out" --experiment-name "$name" --timestamp run \
        --machine.device-type "$device" --vis tensorboard --logging.local-writer.enable False --logging.profiler none \
        --max-num-iterations $((steps - last - 1)) --optimizers.fields.scheduler.max-steps $steps \
        --pipeline.model.bounding-radius 1.4 "${resume[@]}" "$@" --data $scene >"$out/$name.log" 2>&1 ||
        { tail -n 20 "$out/$name.log" >&2 && exit 1; }
}

# distil NAME CONFIG [FLAGS...]: a student of the run that CONFIG describes.
distil() {
    local name=$1 config=$2
    shift 2
    [[ -e $out/$name/config.yml ]] && echo "$name: distilled already" && return
    echo "$name: distilling"
    eugen3d distill --load-config "$config" --output-dir "$out/$name" --device "$device" "$@"
}

mkdir -p $out
train eugen-scratch
train dense-scratch --pipeline.model.layer.kind linear
# The plain network that costs what eugen-scratch costs once folded.
train narrow-scratch --pipeline.model.layer.kind linear --pipeline.model.layer-width 80

# What to replace, by what and how large, for a quarter of the teacher's operations: in closed form, with the
# same size everywhere beside it; then with gradient steps layer by layer, and end to end.
if [[ ! -e $out/plan ]]; then
    echo "plan: measuring"
    eugen3d plan --load-config $teacher --output-dir $out/plan --device "$device" --max-flops 0.25x --front-shares 0.25 \
        --num-views 2 --downscale-factor 8 --sampling.num-rays 2048
fi
distil planned $teacher --plan $out/plan/plan.json --sampling.num-rays 6144
distil uniform $teacher --num-features 64 --layers 1 2 3 4 5 6 7 --sampling.num-rays 6144
distil layerwise $teacher --plan $out/plan/plan.json --sampling.num-rays 6144 --fit-steps 100
distil refined $out/layerwise/config.yml --layers none --refine-steps 300

small=eugen-nerf-small/run/config.yml
eugen3d score --device "$device" --num-images 4 --downscale-factor 2 --output $out/score.json --report $out/report.html \
    --names teacher eugen-scratch dense-scratch narrow-scratch uniform planned layerwise refined \
    --load-config $teacher $out/eugen-scratch/$small $out/dense-scratch/$small $out/narrow-scratch/$small \
    $out/{uniform,planned,layerwise,refined}/config.yml
