"""An experiment's file is read strictly, and spelled out into jobs in order."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.job import Conditions, Job
from eugen3d.cli.experiment.jobs import check_score_flags, make_jobs, make_score_job
from eugen3d.cli.experiment.specification import read_specification

Write = Callable[..., Path]
SCENES = {"disc": {"data": "scene"}}
DENSE = {"train": "eugen-nerf-small", "flags": {"max-num-iterations": 3}}


def jobs_of(path: Path, **conditions: Any) -> list[Job]:
    return make_jobs(read_specification(path), Conditions(Path("out"), **conditions))


def experiment(jobs: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"scenes": SCENES, "jobs": jobs, **top}


def test_jobs_come_after_their_inputs_whatever_the_order_in_the_file(write: Write) -> None:
    jobs = {"refined": {"distill": "student"}, "student": {"distill": "dense"}, "dense": DENSE}
    made = jobs_of(write(experiment(jobs)))
    assert [job.name for job in made] == ["dense", "student", "refined"]
    assert [job.kind for job in made] == ["train", "distill", "distill"]
    dense, student, refined = made
    assert refined.input == student and student.input == dense and dense.input is None
    assert (dense.steps, dense.seed, student.seed) == (3, 42, 0), "the commands' own seeds"
    assert dense.product == dense.folder / "eugen-nerf-small" / "run" / "config.yml"
    assert student.command[student.command.index("--load-config") + 1] == str(dense.product)


def test_grids_and_seeds_make_a_job_each_and_go_on_in_what_starts_from_them(write: Write) -> None:
    jobs = {
        "dense": DENSE | {"seeds": [0, 5]},
        "eugen": {"distill": "dense", "grid": {"num-features": [8, 16], "layers": [[1, 2], "auto"]}},
        "refined": {"distill": "eugen", "flags": {"layers": "none", "refine-steps": 2}},
    }
    made = jobs_of(write(experiment(jobs)))
    assert len(made) == 2 + 2 * 4 + 2 * 4
    names = [job.name for job in made]
    assert "eugen_num-features=8_layers=1-2_seed=5" in names
    refined = next(job for job in made if job.name == "refined_num-features=16_layers=auto_seed=5")
    assert (refined.group, refined.seed) == ("refined_num-features=16_layers=auto", 5)
    assert refined.input is not None and refined.input.name == "eugen_num-features=16_layers=auto_seed=5"
    assert " ".join(refined.command).endswith("--layers none --refine-steps 2 --seed 5")
    assert "--machine.seed 5" in " ".join(made[1].command)
    assert len({job.folder for job in made}) == len(made)


def test_a_plan_stands_for_what_was_planned_and_how(write: Write) -> None:
    jobs = {
        "dense": DENSE,
        "budget": {"plan": "dense", "grid": {"max-flops": ["0.5x", "0.25x"]}},
        "planned": {"distill": "budget", "flags": {"fit-steps": 3}, "seeds": [1, 2]},
    }
    dense, half, quarter, *students = jobs_of(write(experiment(jobs)))
    assert (half.kind, half.name, half.product) == ("plan", "budget_max-flops=0.5x", half.folder / "plan" / "plan.json")
    assert " ".join(half.command).endswith("--device cpu --max-flops 0.5x") and half.folder != quarter.folder
    assert half.command[half.command.index("--load-config") + 1] == str(dense.product)
    assert [one.name for one in students][::2] == ["planned_max-flops=0.5x_seed=1", "planned_max-flops=0.25x_seed=1"]
    for student, plan in zip(students, (half, half, quarter, quarter), strict=True):
        assert student.input == plan and plan.input == dense
        arguments = " ".join(student.command)
        assert f"--load-config {dense.product} --plan {plan.product} --output-dir" in arguments
        assert arguments.endswith(f"--fit-steps 3 --seed {student.seed}")


def test_what_a_job_depends_on_is_in_the_name_of_its_folder(write: Write) -> None:
    jobs: dict[str, Any] = {"dense": DENSE, "student": {"distill": "dense", "flags": {"num-features": 8}}}
    dense, student = jobs_of(write(experiment(jobs)))
    again = jobs_of(write(experiment(jobs, score={"num-images": 1})), threads=7)
    assert [job.folder for job in again] == [dense.folder, student.folder]
    other_student = jobs_of(write(experiment(jobs | {"student": {"distill": "dense", "flags": {"num-features": 9}}})))
    assert other_student[0].folder == dense.folder and other_student[1].folder != student.folder
    longer = DENSE | {"flags": {"max-num-iterations": 4}}
    other_input = jobs_of(write(experiment(jobs | {"dense": longer})))
    assert other_input[0].folder != dense.folder and other_input[1].folder != student.folder
    assert jobs_of(write(experiment(jobs)), device="cuda")[1].folder != student.folder


def test_every_scene_has_every_job_and_its_own_flags(write: Write) -> None:
    scenes = {name: {"data": "scene", "train": {"pipeline.model.far-plane": far}} for name, far in (("a", 3), ("b", 9))}
    made = jobs_of(write({"scenes": scenes, "jobs": {"dense": DENSE, "student": {"distill": "dense"}}}))
    assert [job.key for job in made] == [("a", "dense"), ("a", "student"), ("b", "dense"), ("b", "student")]
    far_planes = [job.command[job.command.index("--pipeline.model.far-plane") + 1] for job in made[::2]]
    assert far_planes == ["3", "9"]


def test_the_score_compares_with_the_run_that_is_named(write: Write) -> None:
    path = write(experiment({"a": DENSE, "b": DENSE}, **{"compare-with": "b", "score": {"crop": [0, 0, 16, 16]}}))
    specification = read_specification(path)
    made = make_jobs(specification, Conditions(Path("out"), threads=2))
    score = make_score_job(specification, made, Conditions(Path("out"), threads=2))
    arguments = " ".join(score.command)
    assert "--names b a --load-config" in arguments and "--crop 0 0 16 16 --device cpu --threads 2" in arguments
    assert make_score_job(specification, made[1:], Conditions(Path("out"), threads=2)).folder != score.folder


def test_booleans_are_spelled_as_the_commands_do(write: Write) -> None:
    flags = {"use_norm": True, "sampling.num-rays": 8}
    train = {"train": "eugen-nerf-small", "flags": {"mixed-precision": False}}
    dense, student = jobs_of(write(experiment({"dense": train, "student": {"distill": "dense", "flags": flags}})))
    assert "--mixed-precision False" in " ".join(dense.command)
    assert " ".join(student.command).endswith("--use-norm --sampling.num-rays 8")
    off = jobs_of(write(experiment({"dense": train, "student": {"distill": "dense", "flags": {"use-norm": False}}})))
    assert off[1].command[-1] == "--no-use-norm"


def test_a_mapping_takes_what_another_has(tmp_path: Path, write: Write) -> None:
    text = write(experiment({"dense": DENSE})).read_text() + (
        "  first: {train: eugen-nerf-small, flags: &shared {max-num-iterations: 4, pipeline.model.far-plane: 3}}\n"
        "  second: {train: eugen-nerf-small, flags: {<<: *shared, pipeline.model.far-plane: 9}}\n"
    )
    path = tmp_path / "merged.yaml"
    path.write_text(text)
    *_, first, second = jobs_of(path)
    assert " ".join(first.command).endswith("--max-num-iterations 4 --pipeline.model.far-plane 3")
    assert " ".join(second.command).endswith("--max-num-iterations 4 --pipeline.model.far-plane 9")


STUDENT = {"distill": "dense"}
PLAN = {"plan": "dense", "flags": {"max-flops": "0.5x"}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("scenes: [", "is not valid YAML (line 1"),
        ("scenes: {}\nscenes: {}", "is not valid YAML (line 2: the key 'scenes' stands twice)"),
        ("- a", "holds a list, expected the keys scenes and jobs"),
        ({"scenes": SCENES, "job": {}}, "job: is unknown, expected one of compare-with, jobs, scenes, score"),
        ({"scenes": SCENES}, "jobs: is missing or empty"),
        ({"scenes": {"a/b": {"data": "scene"}}, "jobs": {"dense": DENSE}}, "scenes: found the name 'a/b'"),
        ({"scenes": {"disc": {}}, "jobs": {"dense": DENSE}}, "scenes.disc.data: is missing"),
        ({"scenes": {"disc": {"data": "gone"}}, "jobs": {"dense": DENSE}}, "scenes.disc.data: found no gone"),
        (
            {"scenes": {"disc": {"data": "scene", "teacher": "gone.yml"}}, "jobs": {"dense": DENSE}},
            "scenes.disc.teacher: found no gone.yml",
        ),
        (
            {"scenes": {"disc": {"data": "scene", "teacher": "try.yaml"}}, "jobs": {"student": {"distill": "teacher"}}},
            "scenes.disc.teacher: try.yaml: holds a dict",
        ),
        (
            {"scenes": {"a": {"data": "scene", "teacher": "try.yaml"}, "b": {"data": "scene"}}, "jobs": {"x": DENSE}},
            "scenes.b.teacher: is missing, expected one as scenes.a has it",
        ),
        (experiment({"dense": "eugen-nerf"}), "jobs.dense: found the text 'eugen-nerf'"),
        (experiment({"dense": {}}), "jobs.dense: has none of train, distill, plan"),
        (experiment({"dense": DENSE | STUDENT}), "jobs.dense: has both train and distill"),
        (experiment({"dense": {"train": "no-nerf"}}), "jobs.dense: the method 'no-nerf' is unknown"),
        (experiment({"dense": DENSE, "s": {"distill": "dens"}}), "jobs.s.distill: found 'dens', expected one of dense"),
        (
            experiment({"dense": DENSE, "p": {"plan": "dense"}, "q": {"plan": "p"}}),
            "jobs.q.plan: found 'p', expected one of dense",
        ),
        (experiment({"dense": DENSE, "p": {"plan": "dense"}}), "jobs.p: found none, expected one budget"),
        (
            experiment({"dense": DENSE, "p": {"plan": "dense", "flags": {"max-flops": "1y"}}}),
            "jobs.p: --max-flops 1y",
        ),
        (
            experiment({"dense": DENSE, "p": PLAN}, **{"compare-with": "p"}),
            "compare-with: found 'p', expected one of dense",
        ),
        (experiment({"dense": DENSE, "s": STUDENT | {"flags": {"plan": "p"}}}), "jobs.s: plan: is set by the"),
        (experiment({"a": {"distill": "b"}, "b": {"distill": "a"}}), "jobs.a.distill: starts from itself"),
        (experiment({"dense": DENSE | {"seed": 1}}), "jobs.dense.seed: is unknown"),
        (experiment({"dense": DENSE | {"seeds": [1, "2"]}}), "jobs.dense.seeds: found [1, '2']"),
        (experiment({"dense": DENSE | {"seeds": [1, 1]}}), "jobs.dense.seeds: found [1, 1], expected each once"),
        (experiment({"dense": DENSE | {"grid": {"vis": "x"}}}), "jobs.dense.grid.vis: found the text 'x'"),
        (experiment({"dense": DENSE | {"grid": {"max-num-iterations": [1]}}}), "stands under flags, too"),
        (experiment({"dense": DENSE | {"seeds": [1]}, "s": STUDENT | {"seeds": [2]}}), "jobs.s.seeds: dense has seeds"),
        (experiment({"dense": DENSE, "s": STUDENT | {"flags": {"num-featurs": 3}}}), "jobs.s: Unrecognized options"),
        (experiment({"dense": DENSE, "s": STUDENT | {"flags": {"phi": "tanh"}}}), "jobs.s: invalid choice 'tanh'"),
        (experiment({"dense": DENSE, "s": STUDENT | {"grid": {"order": ["x"]}}}), "jobs.s: Error parsing --order"),
        (experiment({"dense": DENSE, "s": STUDENT | {"flags": {"seed": 3}}}), "jobs.s: seed: is set by the experiment"),
        (experiment({"dense": DENSE | {"flags": {"max-num-iteration": 3}}}), "jobs.dense: Unrecognized options"),
        (experiment({"dense": DENSE}, score={"num-image": 1}), "score: Unrecognized options: --num-image"),
        (experiment({"dense": DENSE}, score={"downscale-factor": 0}), "score: --downscale-factor 0"),
        (experiment({"dense": DENSE}, score={"scales": [1, 2, 2]}), "score: --scales 1 2 2: expected"),
        (experiment({"dense": DENSE}, score={"output": "x"}), "score: output: is set by the experiment"),
        (experiment({"dense": DENSE}, **{"compare-with": "x"}), "compare-with: found 'x', expected one of dense"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(
    write: Write, content: str | dict[str, Any], expected: str
) -> None:
    path = write(content)
    with pytest.raises(UsageError, match=r"^try\.yaml: ") as refused:
        specification = read_specification(path)
        check_score_flags(specification)
        make_jobs(specification, Conditions(Path("out")))
    message = str(refused.value)
    assert expected in message and "\n" not in message
    assert not re.search(r"[─│╭]|--help", message), "no frame of a terminal"
    assert not Path("out").exists()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml: not found, expected an experiment's YAML file"):
        read_specification(Path("nowhere.yaml"))
