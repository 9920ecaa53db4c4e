"""Run a stage as a job of a running Ray cluster: pack the project, submit, follow the log, return its exit status."""

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.cli import describe
from cluster.errors import UserError
from cluster.provenance import git_revision
from cluster.session import access_token, check_answers, environment, refused

STAGES = {
    "prepare": "vaegan.prepare",
    "train": "vaegan.train",
    "sample": "vaegan.sample",
    "evaluate": "vaegan.evaluate",
    "inspect": "vaegan.inspect",
    "ablate": "downstream.ablate",
    "report": "downstream.report",
}
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# In the syntax of .gitignore, and beside what the project's own .gitignore names. A package is code: images and models
# of a hospital must not travel to a cluster because they happen to lie in the folder.
EXCLUDES = [
    "/.git/", "/.venv*/", "/runs/", "/data/", "/docs/", "__pycache__/",
    "*.parquet", "*.npz", "*.dcm", "*.jpg", "*.jpeg", "*.safetensors",
]  # fmt: skip
INTERRUPTED = 130
"""Exit status after Ctrl-C, and of a job that somebody stopped."""
NOT_FOUND = 127
"""The shell's exit status for a command it can't find."""
AGENT_TIMEOUT_S = 90.0
"""A head answers before it can run jobs: seconds on an idle machine, a minute on a crowded one."""
LOST_AFTER = 20
"""A head that fails this many questions in a row, one a second, counts as gone."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job: what to run, where, and what goes with it."""

    module: str
    """Run as `python -m`."""
    arguments: tuple[str, ...] = ()
    address: str = DEFAULT_ADDRESS
    """The head's dashboard."""
    working_dir: Path | None = None
    """Folder to pack: its code is what the job imports. None: what is installed on the cluster."""
    cwd: Path = field(default_factory=Path.cwd)
    """Folder of the head that relative paths in `arguments` start from."""
    python: str = "python"
    """The head's interpreter; by default the first on the PATH that `ray start` was called with."""
    submission_id: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    wait: bool = True
    """Follow the job to its end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, submit, and return the job's exit status (2 for a mistake in the command line itself)."""
    logging.disable(logging.INFO)  # Ray's account of its own uploads and sockets
    try:
        return submit(parse(sys.argv[1:] if argv is None else argv))
    except (UserError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> Submission:
    """The submission that a command line describes; every word after STAGE belongs to the stage."""
    parser = _Parser(
        prog="python -m cluster.submit",
        description=f"{__doc__} Flags of this command come before STAGE.",
        epilog="Relative paths in ARGS start from the folder this is called in, which the head must see too: the same "
        "machine, a shared file system, or --cwd. The access token is found as Ray finds it: RAY_AUTH_TOKEN, "
        "RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; RAY_AUTH_MODE=disabled sends none.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        default=_default_address(),
        metavar="URL",
        help="the head's dashboard (default: RAY_API_SERVER_ADDRESS, RAY_DASHBOARD_ADDRESS, then "
        + DEFAULT_ADDRESS
        + ")",
    )
    parser.add_argument(
        "--working-dir", type=Path, default=_project(), metavar="DIR", help="code to pack (default: this project)"
    )
    parser.add_argument(
        "--cwd",
        type=Path,
        default=Path.cwd(),
        metavar="DIR",
        help="folder of the head to run in (default: the caller's)",
    )
    parser.add_argument("--python", default="python", metavar="EXE", help="the head's interpreter (default: python)")
    parser.add_argument("--submission-id", metavar="ID", help="name of the job (default: Ray makes one)")
    parser.add_argument(
        "--env", action="append", default=[], metavar="KEY=VALUE", help="environment variable of the job"
    )
    parser.add_argument("--wait", dest="wait", action="store_true", default=True, help="follow the job (default)")
    parser.add_argument("--detach", dest="wait", action="store_false", help="print the job's name and leave it running")
    parser.add_argument("stage", metavar="STAGE", help=f"{', '.join(STAGES)}, or a module such as vaegan.train")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="what the stage is given")
    flags = parser.parse_args(argv)
    return Submission(
        module=_module(flags.stage),
        arguments=tuple(flags.arguments),
        address=flags.address,
        working_dir=_folder(flags.working_dir) if flags.working_dir else None,
        cwd=Path.cwd() / flags.cwd,
        python=flags.python,
        submission_id=flags.submission_id,
        env=dict(map(_key_and_value, flags.env)),
        wait=flags.wait,
    )


def submit(job: Submission) -> int:
    """Submit a job and, unless it is to be detached, print its log until it ends.

    Returns:
        The exit status of the job's own process; 128 + n where signal n ended it, 130 where it was stopped, 1 where it
        failed before it had a process. 0 at once for a detached job. Ctrl-C leaves the job running and returns 130.

    Raises:
        UserError: no head answers, it refuses us, or it refuses the job.
    """
    client = connect_client(job.address)
    name = _submit(client, job)
    if not job.wait:
        print(name)
        _say(f"job {name} runs; {_how_to_return(name, job.address)}")
        return 0
    try:
        asyncio.run(_follow(client, name))
        return _report(name, _ended(client, name))
    except KeyboardInterrupt:
        _say(f"\njob {name} goes on; {_how_to_return(name, job.address)}")
        return INTERRUPTED


def connect_client(address: str) -> JobSubmissionClient:
    """A client of the head whose dashboard is at `address`, with this user's access token if there is one.

    Raises:
        UserError: nothing answers there, what answers is no Ray head, or it refuses the token.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(
            f"{address!r} isn't the address of a Ray dashboard: expected http://HOST:PORT, such as {DEFAULT_ADDRESS}"
        )
    remedy = (
        "start one with `ray start --head --dashboard-port PORT` and give its dashboard's address "
        "with --address or in RAY_API_SERVER_ADDRESS"
    )
    check_answers(url.hostname, url.port or (443 if url.scheme == "https" else 80), remedy)
    token = access_token()
    try:
        with environment(RAY_API_SERVER_ADDRESS=address):  # Ray believes this variable rather than its own argument
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    except AuthenticationError:
        raise refused(address) from None
    except (RuntimeError, OSError, KeyError) as error:
        raise UserError(f"what answers at {address} isn't a Ray dashboard ({_line(error)}); {remedy}") from None


def entrypoint(job: Submission) -> str:
    """The shell command that the head runs, in the folder into which it unpacked the working directory.

    It goes to the caller's folder, so that `--out runs/x` means there what it means here and outlives the job. What is
    imported stays the packed code: Ray put it on PYTHONPATH, and `-P` keeps Python from looking at home first.
    """
    folder = shlex.quote(str(job.cwd))
    missing = shlex.quote(
        f"error: the head has no folder {job.cwd}, from which relative paths start: "
        "give one that it has with cluster.submit --cwd DIR"
    )
    command = shlex.join([job.python, "-P", "-m", job.module, *job.arguments])
    return f"cd {folder} || {{ echo {missing}; exit 2; }}; exec {command}"


def exit_status(job: JobDetails) -> int:
    """The exit status to return for a job that has ended."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return INTERRUPTED
    if not job.driver_exit_code:
        return 1
    return job.driver_exit_code if job.driver_exit_code > 0 else 128 - job.driver_exit_code


async def _follow(client: JobSubmissionClient, name: str) -> None:
    """Print a job's log until it ends. A broken connection is taken up again after the last character printed."""
    printed = failures = 0
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(name):  # from the first line on
                print(text[max(0, printed - seen) :], end="", flush=True)
                seen += len(text)
                printed, failures = max(printed, seen), 0
            return
        except (RuntimeError, aiohttp.ClientError) as error:
            failures += 1
            if failures == LOST_AFTER:
                raise _lost(name, error) from None
            await asyncio.sleep(1)


def _ended(client: JobSubmissionClient, name: str) -> JobDetails:
    """What the head says of a job once it has ended; the log may close a moment before."""
    failures = 0
    while True:
        try:
            details = client.get_job_info(name)
            if details.status.is_terminal():
                return details
            failures = 0
        except (RuntimeError, OSError) as error:  # requests' own errors are OSErrors
            failures += 1
            if failures == LOST_AFTER:
                raise _lost(name, error) from None
        time.sleep(1 if failures else 0.2)


def _submit(client: JobSubmissionClient, job: Submission) -> str:
    revision = git_revision()  # the package has no .git to ask
    env = ({"AUGRAY_GIT_REVISION": revision} if revision else {}) | job.env
    runtime_env: dict[str, object] = {"env_vars": env}
    if job.working_dir:
        runtime_env |= {"working_dir": str(job.working_dir), "excludes": EXCLUDES}
    try:
        with environment(
            RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES=""
        ):  # else Ray warns that it leaves out .git and .venv
            return _when_an_agent_is_there(
                lambda: client.submit_job(
                    entrypoint=entrypoint(job), submission_id=job.submission_id, runtime_env=runtime_env
                )
            )
    except AuthenticationError:
        raise refused(job.address) from None
    except (RuntimeError, ValueError) as error:
        if job.submission_id and "already" in str(error):
            raise UserError(
                f"the head has a job named {job.submission_id} already: expected a name not used before; "
                "choose another --submission-id or leave it out"
            ) from None
        raise UserError(f"the head at {job.address} refuses the job: {_line(error)}") from None


def _when_an_agent_is_there(submit: Callable[[], str]) -> str:
    """Submit, again and again for a minute or two while the head is too young to take jobs."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def _report(name: str, job: JobDetails) -> int:
    status = exit_status(job)
    if job.status == JobStatus.STOPPED:
        _say(f"job {name} was stopped")
    elif status and job.driver_exit_code is None:  # it never ran, so its log does not say why
        _say(f"job {name} failed: {_line(job.message)}")
    elif status == NOT_FOUND:
        _say(
            f"job {name} failed: the head found no interpreter of that name; start Ray where the environment is "
            "activated, or name the interpreter with --python"
        )
    elif status:
        _say(f"job {name} failed with exit status {status}")
    return status


def _default_address() -> str:
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_ADDRESS"):
        value = os.environ.get(variable, "")
        if value.startswith("http"):  # RAY_ADDRESS may also be the host:port of a session
            return value
    return DEFAULT_ADDRESS


def _project() -> Path | None:
    """The checkout this file is part of; None where it was installed."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def _module(stage: str) -> str:
    if stage not in STAGES and "." not in stage:
        raise UserError(
            f"no stage {stage!r}: expected one of {', '.join(STAGES)}, or a module such as vaegan.train; "
            "flags of cluster.submit come before the stage"
        )
    return STAGES.get(stage, stage)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"--working-dir {path} is no folder: expected the project's root, which is packed for the job")
    return path.resolve()


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--env {text}: expected KEY=VALUE, such as --env OMP_NUM_THREADS=4")
    return key, value


def _lost(name: str, error: Exception) -> UserError:
    return UserError(
        f"the head stopped answering while job {name} ran ({_line(error)}): check that it is up, then ask it with "
        f"`ray job status {name}`"
    )


def _how_to_return(name: str, address: str) -> str:
    flags = f"--address {address} {name}"
    return f"follow it with `ray job logs --follow {flags}`, end it with `ray job stop {flags}`"


def _line(error: object) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


if __name__ == "__main__":
    sys.exit(main())
