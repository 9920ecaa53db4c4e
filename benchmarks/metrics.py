"""Distances between two folders of images: beside torch-fidelity, clean-fid, the bare network, and with a warm cache.

    python benchmarks/metrics.py                5,000 films with SqueezeNet, 400 with Inception: about twenty minutes
    python benchmarks/metrics.py --quick        96 and 20 films, no neighbours, no million: under 45 s
    python benchmarks/metrics.py --only million the distances of two sets of 1,000,000 x 768 features, and their memory

fidelity    PNG files to FID, KID, IS, precision and recall, cold, same network: torch-fidelity's time over ours
cleanfid    PNG files to FID and KID, cold, same network, resized as torch-fidelity does: clean-fid's time over ours
bare        the network's own time over the time of our extraction, from PNG files to features
warm        the time of a cold extraction over that with a warm cache
neighbours  precision and recall with our blocks, and the search alone with faiss where it is installed
million     seconds and peak memory of 1,000,000 x 768 against as many

Numbers are compared before times. Contestants take turns, with equally many threads; ratios are medians over rounds.
Exit status 1 if one falls short of its goal.
"""

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from common.feature_rivals import Network, inception_trunk, register, squeezenet
from common.films import film_folders
from common.measure import conditions, cpu_seconds, in_turn, ratios, spread, verdict

from vaegan.acceleration import keep_freed_memory
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extraction import extract
from vaegan.metrics.extractor import CPU_BATCH, Extractor, Features
from vaegan.metrics.features import make_extractor
from vaegan.metrics.frechet import frechet_distance, frechet_distance_of_features
from vaegan.metrics.inception_score import inception_score
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics
from vaegan.metrics.moments import Moments
from vaegan.metrics.sources import open_source

GOALS = dict(fidelity=1.5, cleanfid=1.5, bare=0.85, warm=10.0)
# --quick: building the networks weighs beside so few films, and as one block none is computed while others are read
QUICK_GOALS = dict(fidelity=1.2, cleanfid=1.2, bare=0.6, warm=10.0)
SAME_NUMBER = dict(fidelity=1e-4, cleanfid=5e-3)  # relative; clean-fid's kernel is float32
TINY = 1e-6  # two numbers below it are the same
ENOUGH = 769  # films in a set for a Fréchet distance of 768 features
WARM_UP = 12  # films in a set
SUBSET = 20_000  # rows of a million for precision and recall
THEIR_BATCH = 64  # torch-fidelity's default


@dataclass(frozen=True)
class Plan:
    """What to measure, and how often."""

    folder: Path
    count: int
    """Films in each of two sets, for SqueezeNet."""
    inception_count: int
    rounds: int
    quick: bool

    @property
    def goals(self) -> dict[str, float]:
        """By comparison."""
        return QUICK_GOALS if self.quick else GOALS


def main(argv: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few films, one round")
    parser.add_argument("--threads", type=int, default=1, help="of each network (default 1)")
    parser.add_argument("--count", type=int, help="films in each of two sets (default 2500; 48 with --quick)")
    parser.add_argument("--inception-count", type=int, help="the same for Inception (default 200; 10 with --quick)")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default 2; 1 with --quick)")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, help="these comparisons")
    parser.add_argument("--million", choices=MILLION, help=argparse.SUPPRESS)  # what a child of this process measures
    arguments = parser.parse_args(argv)
    if arguments.million:
        print(json.dumps(in_this_process(MILLION[arguments.million])))
        return 0
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # torch-fidelity's four workers
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    for name, value in conditions().items():
        print(f"{name}: {value}")
    names = arguments.only or [name for name in COMPARISONS if not (arguments.quick and name in NOT_QUICK)]
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            Path(folder),
            count=arguments.count or (48 if arguments.quick else 2500),
            inception_count=arguments.inception_count or (10 if arguments.quick else 200),
            rounds=arguments.rounds or (1 if arguments.quick else 2),
            quick=arguments.quick,
        )
        met = [COMPARISONS[name](plan) for name in names]
    return 0 if all(met) else 1


# ---------------------------------------------------------------------------------------------------------- the rivals
Contestant = Callable[[Path, Path], list[float]]
"""Numbers of a folder of real and one of synthetic films."""


def compare_fidelity(plan: Plan) -> bool:
    """Whether all of torch-fidelity's metrics take us less of the time, with SqueezeNet."""
    network = squeezenet(plan.folder)
    name = register(network)

    def ours(real: Path, synthetic: Path) -> list[float]:
        x, y = our_features(network, plan, real, synthetic)
        overlap = manifold_metrics(x.features, y.features)
        return [
            frechet_distance_of_features(x.features, y.features),
            kernel_distance(x.features, y.features).value,
            overlap.precision,
            overlap.recall,
            inception_score(y.probabilities).value,
        ]

    def theirs(real: Path, synthetic: Path) -> list[float]:
        found = torch_fidelity.calculate_metrics(
            input1=str(synthetic), input2=str(real), cuda=False, feature_extractor=name, batch_size=THEIR_BATCH,
            fid=True, kid=True, prc=True, isc=True, kid_subset_size=min(1000, count_of(real)), cache=False,
            verbose=False,
        )  # fmt: skip
        keys = ("frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall")
        return [found[key] for key in (*keys, "inception_score_mean")]

    return race(f"fidelity_{network.name}", plan, plan.count, {"ours": ours, "torch-fidelity": theirs})


def compare_cleanfid(plan: Plan) -> bool:
    """Whether kernel and Fréchet distance take us less of clean-fid's time, with each network."""
    if importlib.util.find_spec("cleanfid") is None:
        print("\ncleanfid is left out, as it isn't installed: pip install -e '.[bench]' brings it")
        return True
    met = []
    for network, count in networks(plan):
        contestants = {"ours": our_two(network, plan), "clean-fid": cleanfids_two(network)}
        met.append(race(f"cleanfid_{network.name}", plan, count, contestants))
    return all(met)


def our_two(network: Network, plan: Plan) -> Contestant:
    """Kernel distance and, where there are images enough for one, Fréchet distance."""

    def ours(real: Path, synthetic: Path) -> list[float]:
        x, y = (each.features for each in our_features(network, plan, real, synthetic))
        found = [kernel_distance(x, y).value]
        return [*found, frechet_distance_of_features(x, y)] if count_of(real) >= ENOUGH else found

    return ours


def cleanfids_two(network: Network) -> Contestant:
    """The same by clean-fid, which takes a network of one's own for the Fréchet distance alone, so by its parts.

    Of fewer images than features scipy's matrix square root may be complex, and clean-fid end in an error.
    """
    from cleanfid import fid

    def theirs(real: Path, synthetic: Path) -> list[float]:
        built = network.build()
        features = [
            fid.get_folder_features(
                str(folder), lambda images: built(images.round().to(torch.uint8))[0], num_workers=2,
                batch_size=THEIR_BATCH, device=torch.device("cpu"), mode="legacy_tensorflow", verbose=False,
            )
            for folder in (real, synthetic)
        ]  # fmt: skip
        found = [fid.kernel_distance(*features)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `disp` argument", DeprecationWarning)  # of SciPy 1.17's sqrtm
            return [*found, float(fid.fid_from_feats(*features))] if count_of(real) >= ENOUGH else found

    return theirs


def our_features(network: Network, plan: Plan, *paths: Path) -> list[Features]:
    """From files to features in this process, as the command does it: cold, and kept in a new cache."""
    extractor = make_extractor(network.spec, device="cpu")
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        return [extract(open_source(path), extractor, cache=FeatureCache(Path(folder))) for path in paths]


def race(name: str, plan: Plan, count: int, contestants: dict[str, Contestant]) -> bool:
    """Compare two contestants' numbers and times on `count` films each; the verdict."""
    numbers: dict[str, list[float]] = {}
    processor_s: dict[str, float] = dict.fromkeys(contestants, 0.0)

    def run(which: str) -> None:
        started_s = cpu_seconds()
        numbers[which] = contestants[which](*folders(plan, count))
        processor_s[which] += cpu_seconds() - started_s

    for contestant in contestants.values() if count > WARM_UP else ():  # what is slow once only
        contestant(*folders(plan, WARM_UP))
    times = in_turn({which: partial(run, which) for which in contestants}, plan.rounds)
    ours, theirs = contestants
    apart = [abs(a - b) / max(abs(b), TINY) for a, b in zip(numbers[ours], numbers[theirs], strict=True)]
    print(f"\n{name}, 2 x {count} films: numbers apart by {', '.join(f'{each:.1e}' for each in apart)} (relative)")
    for which, each in times.items():
        values = " ".join(f"{value:.6g}" for value in numbers[which])
        print(f"  {which:16} {spread(each):>28} s, processor {processor_s[which] / plan.rounds:7.2f} s   {values}")
    kind = name.split("_")[0]
    drawn = kind == "cleanfid" and count > 1000  # clean-fid's subsets are another draw every time
    if max(apart[drawn:]) > SAME_NUMBER[kind]:
        print(f"error: more than {SAME_NUMBER[kind]:g} apart, so the times say nothing", file=sys.stderr)
        return False
    return verdict(name, statistics.median(ratios(times[theirs], times[ours])), plan.goals[kind])


def count_of(folder: Path) -> int:
    """Films in a folder."""
    return sum(1 for _ in folder.iterdir())


def networks(plan: Plan) -> list[tuple[Network, int]]:
    """Each network with its number of films in a set."""
    return [(squeezenet(plan.folder), plan.count), (inception_trunk(plan.folder), plan.inception_count)]


# ----------------------------------------------------------------------------------------------- our own parts, in turn
def compare_bare(plan: Plan) -> bool:
    """Whether reading, decoding, caching and collecting cost little beside the network, for each network."""
    met = []
    for network, count in networks(plan):
        extractor = make_extractor(network.spec, device="cpu")
        real, _ = folders(plan, count)
        pixels = torch.from_numpy(open_source(real).pixels(range(count))).permute(0, 3, 1, 2)
        contestants = {"bare": partial(bare, extractor, pixels), "extraction": partial(whole, extractor, plan, real)}
        bare(extractor, pixels[:CPU_BATCH])
        times = in_turn(contestants, max(2, plan.rounds))
        print(f"\nbare, {network.name}, {count} films")
        for which, each in times.items():
            print(f"  {which:16} {spread(each):>28} s   {count / statistics.median(each):8.1f} images/s")
        ratio = statistics.median(ratios(times["bare"], times["extraction"]))
        met.append(verdict(f"bare_{network.name}", ratio, plan.goals["bare"]))
    return all(met)


def bare(extractor: Extractor, pixels: torch.Tensor) -> None:
    """The network alone on images (N, C, H, W) in memory."""
    with torch.inference_mode():
        for start in range(0, len(pixels), CPU_BATCH):
            extractor.network(pixels[start : start + CPU_BATCH])


def whole(extractor: Extractor, plan: Plan, path: Path) -> None:
    """All that extraction does, cold."""
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        extract(open_source(path), extractor, cache=FeatureCache(Path(folder)))


def compare_warm(plan: Plan) -> bool:
    """Whether a second command finds what the first computed."""
    extractor = make_extractor(squeezenet(plan.folder).spec, device="cpu")
    cache = FeatureCache(plan.folder / "cache")
    real, _ = folders(plan, plan.count)

    def cold() -> None:
        shutil.rmtree(cache.folder, ignore_errors=True)
        warm()

    def warm() -> None:
        extract(open_source(real), extractor, cache=cache)

    times = in_turn({"cold": cold, "warm": warm}, max(2, plan.rounds))
    print(f"\nwarm, {plan.count} films; opening the folder, which hashes all files, is in both")
    for which, each in times.items():
        print(f"  {which:16} {spread(each, digits=3):>28} s")
    return verdict("warm", statistics.median(ratios(times["cold"], times["warm"])), plan.goals["warm"])


def compare_neighbours(plan: Plan) -> bool:
    """Seconds for the distances to the fifth neighbour among N rows; no goal, but an opinion on faiss."""
    searches: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ours, float64": fifth_neighbour}
    if importlib.util.find_spec("faiss"):
        searches["faiss IndexFlatL2, float32"] = faiss_fifth_neighbour
    print("\nneighbours, N x 768, distance to the fifth other row of the same set, seconds")
    for count in (5_000, 20_000):
        x = features(count, seed=0)
        exact = fifth_neighbour(x)
        for name, times in in_turn(
            {name: partial(search, x) for name, search in searches.items()}, plan.rounds
        ).items():
            apart = np.abs(np.sqrt(searches[name](x) / exact) - 1).max()
            print(f"  N = {count:6} {name:28} {spread(times):>28}   off by at most {apart:.1e} of a distance")
    return True


def fifth_neighbour(x: np.ndarray) -> np.ndarray:
    """Squared distances, ours."""
    from vaegan.metrics.neighbours import neighbour_distances

    return neighbour_distances(x.astype(np.float64), (5,))[:, 0]


def faiss_fifth_neighbour(x: np.ndarray) -> np.ndarray:
    """Squared distances, by faiss's exhaustive index."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    return index.search(x, 6)[0][:, 5]


# ---------------------------------------------------------------------------------------------------------- the million
def compare_million(_plan: Plan) -> bool:
    """Print what 1,000,000 x 768 against as many costs, each metric in a process of its own."""
    print(
        "\nmillion: 1,000,000 x 768 float32 features (2.9 GiB) of two sets; both in memory but for the Fréchet distance"
    )
    for name in MILLION:
        done = subprocess.run([sys.executable, __file__, "--million", name], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  {name:44} {found['seconds']:8.1f} s   peak {found['peak_gib']:5.1f} GiB   {found['value']:.6g}",
            flush=True,
        )
    return True


def in_this_process(work: Callable[[int], float], count: int = 1_000_000) -> dict[str, float]:
    """Seconds without making the features, peak memory with them."""
    torch.set_num_threads(1)
    value, taken_s = work(count)
    # not getrusage: across fork and exec its peak is that of the process that started this one
    status = Path("/proc/self/status").read_text().split()
    return dict(value=value, seconds=taken_s, peak_gib=int(status[status.index("VmHWM:") + 1]) / 2**20)


def frechet_of_million(count: int) -> tuple[float, float]:
    """Moments merged from blocks that are made one by one, as from a stream."""
    taken_s = 0.0
    totals = []
    for seed in (0, 1):
        total: Moments | None = None
        for start in range(0, count, 10_000):
            block = features(10_000, seed=seed * count + start, shift=0.1 * seed)
            started_s = time.perf_counter()
            part = Moments.of(block)
            total = part if total is None else total.merge(part)
            taken_s += time.perf_counter() - started_s
        assert total is not None
        totals.append(total)
    started_s = time.perf_counter()
    x, y = totals
    value = frechet_distance(x.mean, x.covariance, y.mean, y.covariance)
    return value, taken_s + time.perf_counter() - started_s


def kernel_of_million(count: int) -> tuple[float, float]:
    """100 pairs of subsets of 1,000."""
    x, y = features(count, seed=0), features(count, seed=1, shift=0.1)
    started_s = time.perf_counter()
    return kernel_distance(x, y).value, time.perf_counter() - started_s


def manifold_of_subset(count: int) -> tuple[float, float]:
    """Precision of rows drawn at random: all pairs of a million would take days on a core, wherever they are held."""
    rng = np.random.default_rng(0)
    x, y = (features(count, seed=seed, shift=0.1 * seed)[rng.permutation(count)[:SUBSET]] for seed in (0, 1))
    started_s = time.perf_counter()
    return manifold_metrics(x, y).precision, time.perf_counter() - started_s


def features(count: int, *, seed: int, dim: int = 768, shift: float = 0.0) -> np.ndarray:
    """Made-up rows (count, dim) float32 whose variances fall off as a network's do."""
    scale = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    rows = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    rows *= scale
    rows += np.float32(shift) * scale
    return rows


def folders(plan: Plan, count: int) -> tuple[Path, Path]:
    """Two folders of `count` films, made once for each count."""
    place = plan.folder / str(count)
    if not place.exists():
        place.mkdir()
        started_s = time.perf_counter()
        film_folders(place, count)
        print(f"2 x {count} phantoms, 64 px, grey PNG (made in {time.perf_counter() - started_s:.0f} s)", flush=True)
    return place / "real", place / "synthetic"


MILLION = {
    "Frechet distance": frechet_of_million,
    "kernel distance": kernel_of_million,
    f"precision and so on of {SUBSET} rows": manifold_of_subset,
}
COMPARISONS = {
    "fidelity": compare_fidelity,
    "cleanfid": compare_cleanfid,
    "bare": compare_bare,
    "warm": compare_warm,
    "neighbours": compare_neighbours,
    "million": compare_million,
}
NOT_QUICK = ("neighbours", "million")

if __name__ == "__main__":
    sys.exit(main())
