"""The service over HTTP beside the bare decoder and the same decoder behind plain FastAPI and behind LitServe.

    python benchmarks/service.py                every cell: about half an hour on two cores
    python benchmarks/service.py --quick        the cells with a goal, a turn each, goals 15 % lower: under a minute
    python benchmarks/service.py --only decoder_64_raw one_image

bare        the decoder in this process: latents in memory to pixels, in passes as large as the service's
ours        python -m serve.app, through Ray Serve's proxy
direct      the same service, by its --direct-port
fastapi     common/service_rivals.py
litserve    common/litserve_rival.py, where LitServe is installed: pip install -e '.[bench]'

decoder_64_raw          images/s of ours over bare, NPZ, 64 images per request, one at a time
PEER_16_images          images/s of ours over the peer's, NPZ, 16 images per request, four at a time
PEER_16_concurrent      images/s of direct over the peer's, NPZ, one image per request, sixteen at a time
one_image               images/s of direct over fastapi, NPZ, one image per request, one at a time
png                     images/s of ours as ZIP of PNGs over NPZ, 64 images per request, one at a time

Untrained networks of the paper's width at 64 px, whose time is that of trained ones. Each contestant has one thread
that decodes; ours encodes in another, and LitServe answers from another process. All are up at once: an idle Ray takes
about an eighth of a core from the others; LitServe, which polls, is stopped while it isn't its turn. Same pixels are
checked first. Contestants take turns; ratios are medians over rounds. Exit status 1 if one falls short of its goal.
"""

import argparse
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from common.load import Answers, Cell, LoadGenerator
from common.measure import conditions, ratios, spread, verdict
from common.servers import Server
from PIL import Image

from cluster.session import free_port
from serve.batching import BATCH
from vaegan.acceleration import keep_freed_memory
from vaegan.checkpoint import ModelInfo, export_model
from vaegan.networks import NetworkConfig, Networks
from vaegan.registry import publish
from vaegan.sampler import Sampler

COUNTS = (1, 16, 64, 1024)
CONCURRENCY = (1, 4, 16, 64)
IN_FLIGHT = 1024
"""Most images asked for at once: a core needs a quarter of a minute for them."""
BENCHMARKS = Path(__file__).parent
ACCEPT = {"raw": "application/x-npz", "png": "application/zip"}
MODEL = "bench/1"
QUICK_SLACK = 0.85  # of each goal: a single turn of half a second on a shared machine says no more
CLASSES = ("normal", "pneumonia")


@dataclass(frozen=True)
class Ask:
    """What each contestant is asked in a cell."""

    format: str
    count: int
    concurrency: int

    def __str__(self) -> str:
        return f"{self.format}, {self.count} images per request, {self.concurrency} at a time"


@dataclass(frozen=True)
class Comparison:
    """Images/s of one over another's, in a cell of each."""

    ours: str
    ask: Ask
    rival: str
    goal: float
    rival_ask: Ask | None = None
    """None: the same."""


COMPARISONS = {
    "decoder_64_raw": Comparison("ours", Ask("raw", 64, 1), "bare", 0.9),
    "fastapi_16_images": Comparison("ours", Ask("raw", 16, 4), "fastapi", 1.0),
    "litserve_16_images": Comparison("ours", Ask("raw", 16, 4), "litserve", 1.0),
    "fastapi_16_concurrent": Comparison("direct", Ask("raw", 1, 16), "fastapi", 1.0),
    "litserve_16_concurrent": Comparison("direct", Ask("raw", 1, 16), "litserve", 1.0),
    "one_image": Comparison("direct", Ask("raw", 1, 1), "fastapi", 0.8),
    "png": Comparison("ours", Ask("png", 64, 1), "ours", 0.9, Ask("raw", 64, 1)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print every cell and comparison; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the cells with a goal, shortly")
    parser.add_argument("--rounds", type=int, help="turns of each in a cell (default 2; 1 with --quick, 3 with --only)")
    parser.add_argument("--seconds", type=float, help="of each turn, at least (default 2; 0.5 with --quick)")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, help="the cells of these comparisons")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    for name, value in conditions().items():
        print(f"{name}: {value}")
    rounds = arguments.rounds or (3 if arguments.only else 1 if arguments.quick else 2)
    seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    wanted = {name: COMPARISONS[name] for name in arguments.only or COMPARISONS}
    if arguments.quick and not arguments.only:
        del wanted["png"]  # made at the speed of raw ones: a single turn of each says nothing
    if importlib.util.find_spec("litserve") is None:
        print("litserve is left out, as it isn't installed: pip install -e '.[bench]' brings it")
        wanted = {name: each for name, each in wanted.items() if each.rival != "litserve"}
    with tempfile.TemporaryDirectory() as folder, field_of(Path(folder)) as contestants:
        check(contestants)
        found: Results = {}
        if arguments.quick or arguments.only:
            asked = cells_of(wanted, also=() if arguments.quick else ("ours", "direct"))
        else:
            asked = [(ask, list(contestants)) for ask in all_cells()]
        for ask, names in asked:
            found |= measure(ask, {name: contestants[name] for name in names}, rounds, seconds)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(
        f"\nload average at the end: {load:.2f}"
        + (f", of {cores} cores: ratios say little" if load > 2 * cores else "")
    )
    slack = QUICK_SLACK if arguments.quick else 1.0
    met = [judge(name, each, found, slack) for name, each in wanted.items()]
    return 0 if all(met) else 1


# ------------------------------------------------------------------------------------------------------ the contestants
@dataclass
class Bare:
    """The decoder alone."""

    sampler: Sampler
    latents: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def turn(self, ask: Ask, seconds: float) -> tuple[Answers, float]:
        """As often as time allows, one call after another; no latency but that of a call."""
        if ask.count not in self.latents:
            labels = self.sampler.labels_of(CLASSES[:1], ask.count)
            self.latents[ask.count] = self.sampler.latents(labels, 0, np.arange(ask.count)), labels
        z, labels = self.latents[ask.count]
        latencies_s: list[float] = []
        began_s, used_s = time.perf_counter(), time.process_time()
        while time.perf_counter() - began_s < seconds or not latencies_s:
            call_s = time.perf_counter()
            for at in range(0, ask.count, BATCH):
                self.sampler.decode(z[at : at + BATCH], labels[at : at + BATCH])
            latencies_s.append(time.perf_counter() - call_s)
        took_s = time.perf_counter() - began_s
        return Answers(ask.count, took_s, latencies_s, 0, 0, 0.0), time.process_time() - used_s


@dataclass
class Service:
    """One way to ask a server."""

    server: Server
    url: str
    load: LoadGenerator
    held: bool = False
    """Whether its processes rest while it isn't its turn."""
    says_format: bool = False
    """Whether the body says if PNG is wanted, instead of Accept."""

    def body(self, format: str) -> dict[str, Any]:
        return (
            dict(model="bench", seed=1) | {"class": CLASSES[0]} | ({"png": format == "png"} if self.says_format else {})
        )

    def turn(self, ask: Ask, seconds: float) -> tuple[Answers, float]:
        """Requests for `seconds`; the answers, and what the server's processes used of processors, in seconds."""
        if self.held:
            self.server.hold(False)
        used_s = self.server.processor_s()
        accept = "image/png" if (ask.format, ask.count) == ("png", 1) else ACCEPT[ask.format]
        answers = self.load.send(
            Cell(
                url=f"{self.url}/v1/samples", accept=accept, body=self.body(ask.format), count=ask.count,
                concurrency=ask.concurrency, seconds=seconds,
            )
        )  # fmt: skip
        used_s = self.server.processor_s() - used_s
        if self.held:
            self.server.hold(True)
        return answers, used_s

    def pixels(self, count: int, format: str) -> np.ndarray:
        """The first images, uint8 (N, H, W, C)."""
        if self.held:
            self.server.hold(False)
        answer = httpx.post(
            f"{self.url}/v1/samples",
            json=self.body(format) | {"count": count},
            headers={"Accept": ACCEPT[format]},
            timeout=120,
        )
        if self.held:
            self.server.hold(True)
        if answer.status_code != 200:
            raise RuntimeError(f"{self.url} answers {answer.status_code}: {answer.text[:300]}")
        if format == "raw":
            return np.load(io.BytesIO(answer.content))["pixels"]
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            return np.stack([np.asarray(Image.open(archive.open(name)))[:, :, None] for name in names])


Contestant = Bare | Service


@contextmanager
def field_of(folder: Path) -> Iterator[dict[str, Contestant]]:
    """All contestants by name, ready."""
    registry = folder / "registry"
    model = make_model(folder / "exported", registry)
    ports = {name: free_port() for name in ("ours", "direct", "fastapi", "litserve")}
    url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    rival = lambda name: ["--model", str(model), "--port", str(ports[name])]  # noqa: E731
    service = [
        "-m", "serve.app", "--registry", str(registry), "--port", str(ports["ours"]),
        "--direct-port", str(ports["direct"]), "--max-waiting", "128", "--cluster.num-cpus", "2",
    ]  # fmt: skip
    commands = {
        "ours": (service, "/readyz", BENCHMARKS.parent),
        "fastapi": (["-m", "common.service_rivals", *rival("fastapi")], "/health", BENCHMARKS),
        "litserve": (["-m", "common.litserve_rival", *rival("litserve")], "/health", BENCHMARKS),
    }
    if importlib.util.find_spec("litserve") is None:
        del commands["litserve"]
    with ExitStack() as stack:
        load = stack.enter_context(LoadGenerator())
        servers = {
            name: stack.enter_context(Server(arguments, url[name], health, cwd, folder / f"{name}.log"))
            for name, (arguments, health, cwd) in commands.items()
        }
        began_s = time.perf_counter()
        for server in servers.values():
            server.wait()
        print(f"all are up after {time.perf_counter() - began_s:.0f} s", flush=True)
        contestants: dict[str, Contestant] = {"bare": Bare(Sampler.from_model(model))}
        contestants["ours"] = Service(servers["ours"], url["ours"], load)
        contestants["direct"] = Service(servers["ours"], url["direct"], load)
        contestants["fastapi"] = Service(servers["fastapi"], url["fastapi"], load)
        if "litserve" in servers:
            servers["litserve"].hold(True)
            contestants["litserve"] = Service(servers["litserve"], url["litserve"], load, held=True, says_format=True)
        yield contestants
        for server in servers.values():  # all at once; leaving waits for one after the other
            server.process.terminate()


def make_model(folder: Path, registry: Path) -> Path:
    """Publish a decoder as wide as the paper's, with the weights it starts with; its folder."""
    torch.manual_seed(0)
    config = NetworkConfig(width=64, latent_dim=128, hidden=64)  # `hidden` is the encoder's alone
    networks = Networks(config, size=64, channels=1, num_classes=len(CLASSES))
    name, version = MODEL.split("/")
    info = ModelInfo(
        name=name, version=version, networks=config, size=64, channels=1, task="multiclass", classes=CLASSES,
        class_counts=(1, 1), latents=("prior",), images_seen=0, num_training_images=2, data_sha256="0" * 64,
        provenance={},
    )  # fmt: skip
    export_model(folder, networks, {}, info, card=f"# {MODEL}\n\nUntrained.\n")
    publish(folder, registry, MODEL)
    return registry / MODEL


# ------------------------------------------------------------------------------------------------------- measuring
Results = dict[tuple[Ask, str], list[Answers]]


def check(contestants: dict[str, Contestant]) -> None:
    """Raise RuntimeError unless all hand out the same images."""
    bare = contestants["bare"]
    assert isinstance(bare, Bare)
    expected = bare.sampler(bare.sampler.labels_of(CLASSES[:1], 3), 1, np.arange(3))
    for name, contestant in contestants.items():
        for format in ACCEPT:
            if isinstance(contestant, Service) and not np.array_equal(contestant.pixels(3, format), expected):
                raise RuntimeError(f"{name} hands out other images than the decoder makes, as {format}")


def all_cells() -> list[Ask]:
    """Every format, count and concurrency, but no more images at once than `IN_FLIGHT`."""
    return [
        Ask(format, count, concurrency)
        for format in ACCEPT
        for count in COUNTS
        for concurrency in CONCURRENCY
        if concurrency == 1 or count * concurrency <= IN_FLIGHT
    ]


def cells_of(comparisons: dict[str, Comparison], also: Sequence[str]) -> list[tuple[Ask, list[str]]]:
    """The cells that comparisons need, each with the names of whom to ask, those of `also` among them."""
    needed: dict[Ask, list[str]] = {}
    for each in comparisons.values():
        for ask, name in ((each.rival_ask or each.ask, each.rival), (each.ask, each.ours)):
            names = needed.setdefault(ask, [])
            names.extend(other for other in (name, *also) if other not in names)
    return list(needed.items())


def measure(ask: Ask, contestants: dict[str, Contestant], rounds: int, seconds: float) -> Results:
    """Turns of each in one cell, printed."""
    answers: dict[str, list[Answers]] = {name: [] for name in contestants}
    used_ms: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            answer, used_s = contestant.turn(ask, seconds)
            answers[name].append(answer)
            used_ms[name].append(1e3 * used_s / max(len(answer.latencies_s) * ask.count, 1))
    print(f"\n{ask} (load {os.getloadavg()[0]:.1f})")
    print(f"  {'':9} {'images/s':>24} {'p50':>8} {'p95':>8} {'p99':>8} ms   processor ms/image   client busy")
    for name, each in answers.items():
        p50, p95, p99 = (statistics.median(values) for values in zip(*(a.percentiles_ms() for a in each), strict=True))
        client = statistics.median(a.client_s / a.took_s for a in each)
        failures = sum(a.failures for a in each)
        print(
            f"  {name:9} {spread([a.images_per_s for a in each], digits=1):>24} {p50:8.1f} {p95:8.1f} {p99:8.1f} "
            f"{statistics.median(used_ms[name]):20.1f} {client:14.0%}" + (f"   {failures} refused" if failures else ""),
            flush=True,
        )
    return {(ask, name): each for name, each in answers.items()}


def judge(name: str, comparison: Comparison, found: Results, slack: float) -> bool:
    """Print a comparison's line; whether its goal is met."""
    speed: Callable[[Ask, str], list[float]] = lambda ask, who: [a.images_per_s for a in found[ask, who]]  # noqa: E731
    ours = speed(comparison.ask, comparison.ours)
    theirs = speed(comparison.rival_ask or comparison.ask, comparison.rival)
    return verdict(name, statistics.median(ratios(ours, theirs)), round(comparison.goal * slack, 3))


if __name__ == "__main__":
    sys.exit(main())
