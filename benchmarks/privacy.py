"""Does the privacy gate catch generators that give patients away, and let through one that can't?

    python benchmarks/privacy.py --data DATASET          every generator of the list on real films, 5 honest splits
    python benchmarks/privacy.py --data DATASET --splits 40 --only honest       the false-alarm rate
    python benchmarks/privacy.py --quick                 a few on films of the phantom: under 45 s

The films of a dataset's splits are dealt anew by patient: members, held-out films, and a third part that nobody but
the honest "generator" sees, which hands out its films. The others hand out members: as they are or changed, or a few of
them among honest images. `memorisers` is the share of these that the gate fails, `honest` the share of honest ones that
it does not fail. Exit status 1 if one falls short of its goal.
"""

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common.measure import conditions, verdict
from PIL import Image
from scipy.ndimage import gaussian_filter

from vaegan.evaluation.audit import Audit
from vaegan.evaluation.measure import Sets, features_here
from vaegan.metrics.features import make_extractor
from vaegan.metrics.sources import source_of
from vaegan.phantom import PhantomConfig, phantom
from vaegan.shards import Images, read_manifest, read_split

GOALS = dict(memorisers=1.0, honest=0.95)
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A film uint8 (H, W) and random numbers to a film of the same size."""


def to_uint8(film: np.ndarray) -> np.ndarray:
    return np.clip(np.round(film), 0, 255).astype(np.uint8)


def noisy(sigma: float) -> Change:
    return lambda film, rng: to_uint8(film + rng.normal(0, sigma, film.shape))


def cropped(share: float) -> Change:
    def change(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side = round(len(film) * (1 - share))
        y, x = rng.integers(0, len(film) - side + 1, 2)
        return np.asarray(
            Image.fromarray(film[y : y + side, x : x + side]).resize(film.shape[::-1], Image.Resampling.BICUBIC)
        )

    return change


def jpeg(quality: int) -> Change:
    def change(film: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(film).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return change


def several(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return noisy(10)(to_uint8(1.2 * cropped(0.15)(film, rng)[:, ::-1]), rng)


CHANGES: dict[str, Change] = {
    "copies": lambda film, _rng: film,
    "flipped": lambda film, _rng: film[:, ::-1],
    "noise 5": noisy(5),
    "noise 15": noisy(15),
    "noise 25": noisy(25),
    "crop 5 %": cropped(0.05),
    "crop 15 %": cropped(0.15),
    "crop, flip, noise, 20 % brighter": several,
    "JPEG of quality 10": jpeg(10),
    "blur of 2 px": lambda film, _rng: to_uint8(gaussian_filter(film.astype(float), 2)),
}
MIXED = {"1 copy among honest ones": 1, "1 % copies": 0.01, "5 % copies": 0.05, "20 % copies": 0.2}
QUICK = ("copies", "flipped", "noise 15")
"""On the phantom, whose films share one drawn anatomy, subtler copies can't be told from likeness."""


@dataclass(frozen=True)
class Dealt:
    """Films of three groups of patients."""

    members: Images
    held_out: Images
    third: Images


def main() -> int:
    args = _arguments()
    films = _films(args)
    print("  ".join(f"{name}: {value}" for name, value in conditions().items()))
    print(f"\n{'generator':<36}{'gate':<26}what failed")
    names = [args.only] if args.only else list(QUICK if args.quick else [*CHANGES, *MIXED])
    caught, let_through = [], []
    for split in range(args.splits if args.only in (None, "honest") else 0):
        let_through.append(audited("honest", deal(films, args, split), args, split) != "fail")
    for name in names if args.only != "honest" else []:
        caught.append(audited(name, deal(films, args, 0), args, 0) == "fail")
    shares = {name: found for name, found in (("memorisers", caught), ("honest", let_through)) if found}
    met = [verdict(name, float(np.mean(found)), GOALS[name]) for name, found in shares.items()]
    return 0 if all(met) else 1


def audited(name: str, dealt: Dealt, args: argparse.Namespace, seed: int) -> str:
    """The gate's verdict on a generator's images, printed with what failed."""
    images = generated(name, dealt, args.count, seed)
    sets = Sets(
        real=source_of(dealt.members, "members"),
        synthetic=source_of(images, name),
        held_out=source_of(dealt.held_out, "held-out films"),
    )
    extractors = [make_extractor(spec, device="cpu") for spec in args.extractors]
    found = Audit.prepare(sets).run([(each, features_here(sets.all, each)) for each in extractors], seed)
    failed = [check["name"] for check in found["checks"] if check["verdict"] == "fail"]
    detail = found["checks"][0]["detail"]
    copies = f"{detail['copies_of_members']} copies of members, {detail['copies_of_held_out']} of others"
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    print(f"{name:<36}{found['verdict']:<26}{copies}; {', '.join(failed[:3]) or 'nothing'}{more}", flush=True)
    return found["verdict"]


def generated(name: str, dealt: Dealt, count: int, seed: int) -> Images:
    """What a generator hands out, as many images as asked for or as there are honest films."""
    rng = np.random.default_rng(seed)
    honest = dealt.third.take(np.arange(min(count, len(dealt.third))))
    if name == "honest":
        return honest
    if name in CHANGES:
        return changed(dealt.members, len(honest), [CHANGES[name]], rng)
    copies = MIXED[name] if MIXED[name] == 1 else max(1, round(MIXED[name] * len(honest)))
    ways = [CHANGES[way] for way in ("noise 15", "flipped", "crop 5 %", "crop 15 %", "JPEG of quality 10")]
    honest.pixels[:copies] = changed(dealt.members, int(copies), ways, rng).pixels
    return honest


def changed(members: Images, count: int, ways: list[Change], rng: np.random.Generator) -> Images:
    """Members drawn at random, without repeats while there are enough, each changed in one of the ways in turn."""
    rows = rng.choice(len(members), count, replace=count > len(members))
    films = [ways[number % len(ways)](members.pixels[row, :, :, 0], rng) for number, row in enumerate(rows)]
    names = [f"{number}" for number in range(count)]
    return Images.real(np.stack(films)[..., None], members.labels[rows], names, names)


def deal(films: Images, args: argparse.Namespace, seed: int) -> Dealt:
    """Patients in random order, dealt until each part has its films."""
    rng = np.random.default_rng([2020, seed])
    patients, number = np.unique(films.patient_id.astype(str), return_inverse=True)
    place = rng.permutation(len(patients))[number]
    order = np.argsort(place, kind="stable")
    ends = np.cumsum([args.members, args.held_out, args.count])
    parts = np.searchsorted(ends, np.arange(len(order)), side="right")
    last_of_patient = np.maximum.accumulate(parts)
    first = np.searchsorted(place[order], place[order])  # a patient's films follow its first one
    parts = last_of_patient[first]
    return Dealt(*(films.take(order[parts == part]) for part in range(3)))


def _films(args: argparse.Namespace) -> Images:
    if args.data is None:
        return phantom(PhantomConfig(patients=args.members + args.held_out + args.count), size=64, seed=0)
    splits = read_manifest(args.data).splits
    return Images.concatenate([read_split(args.data, split) for split in args.from_splits if split in splits])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset of vaegan.prepare; without it films of the phantom")
    parser.add_argument("--from-splits", nargs="+", default=["train", "val"], help="whose films are dealt anew")
    parser.add_argument("--extractors", nargs="+", default=["gist"], help="as vaegan.evaluate takes them")
    parser.add_argument("--members", type=int, default=600, help="films")
    parser.add_argument("--held-out", type=int, default=450, help="films")
    parser.add_argument("--count", type=int, default=320, help="films of the third part, and images of each generator")
    parser.add_argument("--splits", type=int, default=5, help="honest generators, each with other patients")
    parser.add_argument("--only", choices=["honest", *CHANGES, *MIXED], help="one generator")
    parser.add_argument("--quick", action="store_true", help="a few generators on few films of the phantom")
    args = parser.parse_args()
    if args.quick:
        args.members, args.held_out, args.count, args.splits = 150, 150, 60, 1
    return args


if __name__ == "__main__":
    sys.exit(main())
