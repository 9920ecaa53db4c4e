import subprocess
import sys
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.errors import UserError
from cluster.session import free_port
from cluster.submit import (
    STAGES,
    Submission,
    _when_an_agent_is_there,
    connect_client,
    entrypoint,
    exit_status,
    main,
    parse,
)

ECHO = "import sys, pathlib; pathlib.Path('seen').write_text('|'.join(sys.argv[1:])); import packed"


@pytest.fixture
def folders(tmp_path):
    """Where Ray unpacked the code, and where the caller stood; both have a module `packed`."""
    package, caller = tmp_path / "package", tmp_path / "the caller's"
    for folder, text in [(package, "print('packed code')"), (caller, "print('code at home')")]:
        folder.mkdir()
        (folder / "packed.py").write_text(text)
        (folder / "echo.py").write_text(ECHO)
    return package, caller


def run_as_ray_does(job: Submission, package: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        entrypoint(job), shell=True, cwd=package, env={"PYTHONPATH": str(package)}, capture_output=True, text=True
    )


def test_the_job_runs_the_packed_code_in_the_callers_folder_with_the_arguments_as_they_were(folders):
    package, caller = folders
    words = ("--out", "runs/x", "it's $HOME", "a b", "*", "")
    job = Submission(module="echo", arguments=words, cwd=caller, python=sys.executable)
    finished = run_as_ray_does(job, package)
    assert finished.stdout == "packed code\n", finished.stderr
    assert (caller / "seen").read_text() == "|".join(words)


def test_a_folder_the_head_does_not_have_is_a_users_mistake_and_nothing_runs(folders, tmp_path):
    package, _ = folders
    finished = run_as_ray_does(Submission(module="echo", cwd=tmp_path / "gone", python=sys.executable), package)
    assert finished.returncode == 2
    assert "--cwd" in finished.stdout
    assert not (package / "seen").exists()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),  # a user's mistake stays one
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, -9, 137),  # killed, told as a shell tells it
        (JobStatus.FAILED, None, 1),  # never had a process
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_the_exit_status_is_the_jobs_own(status, code, expected):
    job = JobDetails(type=JobType.SUBMISSION, entrypoint="", status=status, driver_exit_code=code)
    assert exit_status(job) == expected


def test_every_word_after_the_stage_belongs_to_the_stage():
    job = parse(["--env", "A=b=c", "--detach", "train", "--address", "x", "--env", "y", "--help"])
    assert job.module == "vaegan.train"
    assert job.arguments == ("--address", "x", "--env", "y", "--help")
    assert job.env == {"A": "b=c"}
    assert not job.wait


def test_a_module_is_a_stage_too():
    assert parse(["some.module"]).module == "some.module"


def test_every_stage_is_a_module_of_the_project():
    root = Path(__file__).parents[2]
    missing = [module for module in STAGES.values() if not (root / f"{module.replace('.', '/')}.py").is_file()]
    assert not missing


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),  # a session's address, not a dashboard's
        ({"RAY_ADDRESS": "http://c:1"}, "http://c:1"),
        ({"RAY_DASHBOARD_ADDRESS": "http://b:1", "RAY_ADDRESS": "http://c:1"}, "http://b:1"),
        ({"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_DASHBOARD_ADDRESS": "http://b:1"}, "http://a:1"),
    ],
)
def test_the_default_address_is_found_where_ray_finds_it(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parse(["train"]).address == expected


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tran"], "'tran'"),
        ([], "STAGE"),
        (["--env", "novalue", "train"], "novalue"),
        (["--working-dir", "no/such/folder", "train"], "no/such/folder"),
        (["--address", "localhost", "train"], "'localhost'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence_and_status_2(capsys, words, found):
    assert main(words) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: ")
    assert sentence.count("\n") == 1
    assert found in sentence


def test_no_head_at_the_address_is_said_with_what_to_do():
    with pytest.raises(UserError, match="ray start --head"):
        connect_client(f"http://127.0.0.1:{free_port()}")


def test_a_head_too_young_for_jobs_is_asked_again(monkeypatch):
    answers = iter([RuntimeError("status code 500: No available agent to submit job"), "job-1"])

    def submit() -> str:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr("cluster.submit.time.sleep", lambda seconds: None)
    assert _when_an_agent_is_there(submit) == "job-1"


def test_another_refusal_is_told_at_once():
    def submit() -> str:
        raise RuntimeError("no such working directory")

    with pytest.raises(RuntimeError, match="no such working directory"):
        _when_an_agent_is_there(submit)
