"""What is the encoder worth? Anomaly detection, a linear probe with few labels, and what its dimensions stand for.

    python benchmarks/encoder.py --data DATASET --normal MODEL... --all MODEL...
                                                tables, docs/results/encoder.json and encoder.md
    python benchmarks/encoder.py --quick        tiny models of phantom films, made here: under 45 s

anomaly   a model trained on normal films only: AUROC of the others on held-out films by its score (error in Dis_l + KL)
          and its parts, beside what needs no network: PCA, Mahalanobis and neighbour distances of the same normal films
probe     a model trained on all films without labels: logistic regression on mu with few labelled films, beside raw
          pixels, PCA of all films, and an encoder with random weights; several draws of the labelled films
latents   how many dimensions are used, what each goes with, and pictures of what each does (--out)

Several models of other seeds may be given; intervals then hold their spread too. Intervals are a bootstrap over
patients, labelled sets and models (downstream/statistics.py), differences are paired. Films that a model was trained on
must be those of the dataset's train split (for --normal: its normal films, or the train split of --normal-data), and no
patient of them may be held out: both are checked. Exit status 1 if one falls short of its goal.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.encoder_page import page
from common.measure import conditions, verdict
from common.one_class import Baselines, flat, mahalanobis, neighbour_distance
from common.probe import labelled_set, probe, scaled
from sklearn.decomposition import PCA
from tqdm import tqdm

from cluster.errors import UserError
from cluster.storage import atomic_file, write_json
from downstream.statistics import Gain, paired_gain
from vaegan.anomaly import anomaly
from vaegan.export import hashes_sha256
from vaegan.images import encode_png, pixel_hash
from vaegan.loop import train_loop
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import OptimizerConfig
from vaegan.phantom import CLASSES, PhantomConfig, phantom
from vaegan.recipe import TrainConfig
from vaegan.sampler import Sampler
from vaegan.shards import DatasetWriter, Images, read_manifest, read_split
from vaegan.traversal import conditioning, latent_use, sheet, traverse, typical
from vaegan.validation import ValidationConfig

GOALS = dict(anomaly=1.0, anomaly_strongest=1.0, probe=1.0, probe_pca=1.0)
# --quick only says that the program works: a model made in seconds is worse than PCA, and at these it is above chance
QUICK_GOALS = dict(anomaly=0.6, anomaly_strongest=0.6, probe=0.75, probe_pca=0.75)
JUDGED_COUNT = 50  # labelled films at which the probe is judged
COUNTS = (10, 25, 50, 100, 250, 1000)
REACH, STEPS = 2.5, 9  # of a traversal, in standard deviations of the prior; and images in its row
SCORE = "VAE-GAN, Dis_l + KL"
PARTS = {"features": "VAE-GAN, Dis_l alone", "kl": "VAE-GAN, KL alone", "pixels": "VAE-GAN, pixel error"}
RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Films:
    """Films with their classes' names, of which one is the normal one."""

    images: Images
    classes: tuple[str, ...]
    normal: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def positive(self) -> np.ndarray:
        """Whether a film is other than normal, bool (N,)."""
        return self.images.labels[:, self.classes.index(self.normal)] == 0

    @property
    def patients(self) -> np.ndarray:
        """Ids, str (N,); a film without a patient is one of its own."""
        ids = self.images.patient_id.astype(str)
        return np.where(ids == "", [f"film {row}" for row in range(len(ids))], ids)

    def take(self, rows: np.ndarray) -> "Films":
        return Films(self.images.take(rows), self.classes, self.normal)

    def labels_for(self, sampler: Sampler) -> np.ndarray:
        """The films' own labels over a model's classes, (N, K)."""
        return conditioning(sampler.info.classes, self.images.labels, self.classes)


def main() -> int:
    args = _arguments()
    try:
        return benchmark(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def benchmark(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            made_here(args, Path(folder))
        result = measured(args)
        args.results.mkdir(parents=True, exist_ok=True)
        write_json(args.results / "encoder.json", result)
        text = page(result)
        (args.results / "encoder.md").write_text(text, encoding="utf-8")
    print(text)
    goals = QUICK_GOALS if args.quick else GOALS
    met = [verdict(name, ratio, goals[name]) for name, ratio in ratios_of(result).items()]
    return 0 if all(met) else 1


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the models given allow, ready for JSON."""
    classes = read_manifest(args.data).classes
    normal = args.negative or next((name for name in classes if name.lower() == "normal"), classes[0])
    train, held_out = (Films(read_split(args.data, split), classes, normal) for split in ("train", args.split))
    result: dict[str, Any] = {"conditions": conditions(), "data": args.data.name, "split": args.split, "normal": normal}
    result["held_out"] = about(held_out)
    if args.normal:
        normals = train.take(np.flatnonzero(~train.positive))
        if args.normal_data is not None:
            normals = Films(read_split(args.normal_data, "train"), read_manifest(args.normal_data).classes, normal)
        samplers = [loaded(model, normals, held_out) for model in args.normal]
        result["anomaly"] = measure_anomaly(samplers, normals, held_out)
        result["latents of normal films"] = measure_latents(samplers, normals, args.dimensions)
        draw(samplers[0], normals, args.dimensions, args.out / "traversal_normal.png")
    if args.all:
        samplers = [loaded(model, train, held_out) for model in args.all]
        result["probe"] = measure_probe(samplers, train, held_out, args.counts, args.draws, whole=not args.quick)
        result["latents of all films"] = measure_latents(samplers, train, args.dimensions)
        draw(samplers[0], train, args.dimensions, args.out / "traversal_all.png")
    return result


def loaded(model: Path, train: Films, held_out: Films) -> Sampler:
    """A model that was trained on these films and on nobody who is held out.

    Raises:
        UserError: it was not.
    """
    sampler = Sampler.from_model(model)
    found = hashes_sha256(pixel_hash(film) for film in train.images.pixels)
    if found != sampler.info.data_sha256:
        raise UserError(
            f"{model} was trained on {sampler.info.num_training_images} films (data {sampler.info.data_sha256[:12]}), "
            f"and these are {len(train)} others ({found[:12]}): baselines must see the same; give its training dataset "
            "as --data, or as --normal-data"
        )
    if shared := set(train.images.patient_id) & set(held_out.images.patient_id) - {""}:
        raise UserError(
            f"{len(shared)} held-out patients are among the training films of {model}, such as {sorted(shared)[0]}: "
            "choose another --split"
        )
    return sampler


# ------------------------------------------------------------------------------------------------- anomaly detection


def measure_anomaly(samplers: Sequence[Sampler], normals: Films, held_out: Films) -> dict[str, Any]:
    """AUROC of each score, and the model's score minus each."""
    baselines = Baselines.fit(normals.images.pixels)
    dim = samplers[0].info.networks.latent_dim
    without = {name: values[None] for name, values in baselines.scores(held_out.images.pixels, dim).items()}
    of_models = [model_scores(sampler, normals, held_out) for sampler in samplers]
    scores = {name: np.stack([each[name] for each in of_models]) for name in of_models[0]} | without
    cubes = {name: values[:, None, None] for name, values in scores.items()}
    return {
        "models": [identity(sampler) for sampler in samplers],
        "training": about(normals),
        "judged": baselines.judged,
        "baselines": list(without),
        "score": SCORE,
        "rows": compared(cubes, SCORE, held_out),
    }


def model_scores(sampler: Sampler, normals: Films, held_out: Films) -> dict[str, np.ndarray]:
    """A model's own scores of held-out films (N,), and distances among its posterior means."""
    # every film as if it were normal, since that is the question; a model of one class knows no other
    as_normal = np.tile(normals.labels_for(sampler)[:1], (len(held_out), 1))
    found = anomaly(sampler, held_out.images.pixels, as_normal)
    fitted, _ = sampler.encode(normals.images.pixels, normals.labels_for(sampler))
    mu, _ = sampler.encode(held_out.images.pixels, as_normal)
    return (
        {SCORE: found["score"]}
        | {words: found[name] for name, words in PARTS.items() if name in found}
        | {
            "mu, nearest neighbours": neighbour_distance(fitted, mu),
            "mu, Mahalanobis distance": mahalanobis(fitted, mu),
        }
    )


def compared(cubes: Mapping[str, np.ndarray], subject: str, held_out: Films) -> list[dict[str, Any]]:
    """AUROC of each of several scores with its interval, and the subject's minus each, paired.

    Args:
        cubes: (models, labelled sets, films) with an axis of 1 where there is nothing to vary, as (G, 1, S, N).
    """
    rows = []
    for name, cube in cubes.items():
        nothing = np.zeros((1, 1, *cube.shape[2:]))  # a constant's AUROC is a half
        own = gain(cube, nothing, held_out)
        of_models = [gain(one[None], nothing, held_out).arm_score for one in cube] if len(cube) > 1 else [own.arm_score]
        row: dict[str, Any] = {
            "name": name,
            "auroc": own.arm_score,
            "interval": [max(0.0, 0.5 + own.interval[0]), min(1.0, 0.5 + own.interval[1])],
            "range": [min(of_models), max(of_models)],
        }
        if name != subject:
            less = gain(cubes[subject], cube, held_out)
            row["subject_minus"] = {"value": less.value, "interval": list(less.interval)}
        rows.append(row)
    return rows


def gain(arm: np.ndarray, control: np.ndarray, held_out: Films) -> Gain:
    """AUROC of scores (G, 1, S, N) less that of others, with the interval of all that was drawn at random."""
    arm = np.broadcast_to(arm, (max(len(arm), len(control)), *arm.shape[1:]))
    labels = held_out.positive.astype(np.uint8)[:, None]
    return paired_gain(arm[..., None], control[..., None], labels, held_out.patients, classes=[0])


# ------------------------------------------------------------------------------------------------------ linear probe


def measure_probe(
    samplers: Sequence[Sampler], train: Films, held_out: Films, counts: Sequence[int], draws: int, *, whole: bool = True
) -> dict[str, Any]:
    """AUROC of a logistic regression on each kind of features by number of labelled films; with all if `whole`."""
    features = all_features(samplers, train, held_out)
    subject = next(iter(features))
    results = []
    usable = [count for count in counts if count < len(train)]
    sets = {n: [labelled_set(train.positive, train.patients, n, np.random.default_rng([n, draw]))
                for draw in range(draws)] for n in usable}  # fmt: skip
    if whole:
        sets[len(train)] = [np.arange(len(train))]
    with tqdm(total=sum(map(len, sets.values())), desc="probes", file=sys.stderr) as bar:
        for count, drawn in sets.items():
            odds: dict[str, list[np.ndarray]] = {name: [] for name in features}
            for rows in drawn:
                for name, versions in features.items():
                    odds[name].append(np.stack([
                        probe(fitted[rows], train.positive[rows], train.patients[rows], others)
                        for fitted, others in versions
                    ]))  # fmt: skip
                bar.update()
            cubes = {name: np.stack(found, axis=1)[:, None] for name, found in odds.items()}
            results.append({"films": count, "draws": len(drawn), "rows": compared(cubes, subject, held_out)})
    return {
        "models": [identity(sampler) for sampler in samplers],
        "training": about(train),
        "label_input": label_input(samplers[0]),
        "subject": subject,
        "counts": results,
    }


Features = list[tuple[np.ndarray, np.ndarray]]
"""Of training films (N, D) and of held-out films (M, D), for each of several models."""


def all_features(samplers: Sequence[Sampler], train: Films, held_out: Films) -> dict[str, Features]:
    """Kinds of features, the encoder's first; everything that is fitted is fitted on all training films, unlabelled."""
    dim = samplers[0].info.networks.latent_dim
    raw = flat(train.images.pixels), flat(held_out.images.pixels)
    pca = PCA(dim, svd_solver="randomized", random_state=0).fit(raw[0])
    reduced = tuple(map(pca.transform, raw))
    found = {
        "mu": [encoded(sampler, train, held_out) for sampler in samplers],
        "mu, random weights": [encoded(untrained(s, seed), train, held_out) for seed, s in enumerate(samplers)],
        "pixels": [raw],
        f"PCA, {dim} components": [reduced],
        f"PCA, {dim} components, whitened": [tuple(values / pca.explained_variance_**0.5 for values in reduced)],
    }
    return {name: [tuple(scaled(*pair)) for pair in versions] for name, versions in found.items()}


def encoded(sampler: Sampler, train: Films, held_out: Films) -> tuple[np.ndarray, np.ndarray]:
    """mu of both, with the same label input for every film: its own would tell a conditional encoder the answer."""
    counts = np.array(sampler.info.class_counts, dtype=np.float64)
    average = counts / max(counts.sum(), 1)
    train_mu, held_out_mu = (
        sampler.encode(films.images.pixels, np.tile(average, (len(films), 1)))[0] for films in (train, held_out)
    )
    return train_mu, held_out_mu


def label_input(sampler: Sampler) -> str:
    """What a model's encoder is told of a film's label in the probe."""
    if not sampler.info.classes:
        return "none: the model is unconditional"
    return (
        f"the shares of {' and '.join(sampler.info.classes)} in training, for every film: the model is conditional and "
        "its encoder takes the label as input, which would tell it the answer; it was trained with true labels, so "
        "this is an input that it never saw"
    )


def untrained(sampler: Sampler, seed: int) -> Sampler:
    """The same architecture with random weights."""
    info = sampler.info
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(info.networks, size=info.size, channels=info.channels, num_classes=len(info.classes))
    return Sampler(networks.eval().requires_grad_(False), {}, info)


# ------------------------------------------------------------------------------------------------- latent dimensions


def measure_latents(samplers: Sequence[Sampler], films: Films, dimensions: int) -> list[dict[str, Any]]:
    """For each model, how many dimensions are used, and of the most used ones what they go with."""
    return [latents_of(sampler, films, dimensions) for sampler in samplers]


def latents_of(sampler: Sampler, films: Films, dimensions: int) -> dict[str, Any]:
    mu, log_var = sampler.encode(films.images.pixels, films.labels_for(sampler))
    use = latent_use(mu, log_var)
    facts = facts_of(films, with_label=not sampler.info.classes)
    rows = []
    for dimension in use.order[:dimensions]:
        goes_with = {name: float(np.corrcoef(mu[:, dimension], values)[0, 1]) for name, values in facts.items()}
        rows.append({
            "dimension": int(dimension), "kl": float(use.kl[dimension]), "variance": float(use.variance[dimension]),
            "correlations": {name: r for name, r in goes_with.items() if np.isfinite(r)},
        })  # fmt: skip
    return {
        "model": identity(sampler),
        "latent_dim": len(use.kl),
        "active": int(use.active.sum()),
        "informative": int(use.informative.sum()),
        "kl": float(use.kl.sum()),
        "kl_sorted": [round(float(value), 4) for value in use.kl[use.order]],
        "most_used": rows,
    }


def facts_of(films: Films, *, with_label: bool) -> dict[str, np.ndarray]:
    """Simple facts of each film, (N,) each, that a dimension may stand for.

    The label is left out for a conditional model, whose encoder is told it, and where all films share it.
    """
    film = films.images.pixels.mean(axis=3)
    height, width = film.shape[1:]
    contrast = film.std(axis=(1, 2))
    steps = np.abs(np.diff(film, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(film, axis=2)).mean(axis=(1, 2))
    middle = film[:, height // 4 : -(height // 4), width // 4 : -(width // 4)].mean(axis=(1, 2))
    facts = {
        "brightness": film.mean(axis=(1, 2)),
        "contrast": contrast,
        "sharpness": steps / np.maximum(contrast, 1e-6),  # grey levels from pixel to pixel, beside the film's own range
        "left over right": film[:, :, : width // 2].mean(axis=(1, 2)) - film[:, :, width // 2 :].mean(axis=(1, 2)),
        "top over bottom": film[:, : height // 2].mean(axis=(1, 2)) - film[:, height // 2 :].mean(axis=(1, 2)),
        "middle over rim": middle - film.mean(axis=(1, 2)),
    }
    if with_label and len(set(films.positive)) == 2:
        facts[f"not {films.normal}"] = films.positive.astype(np.float64)
    return facts


def draw(sampler: Sampler, films: Films, dimensions: int, path: Path) -> None:
    """A row for each of the most used dimensions, from the film nearest to the mean; below it what it changes."""
    labels = films.labels_for(sampler)
    mu, log_var = sampler.encode(films.images.pixels, labels)
    shown = latent_use(mu, log_var).order[:dimensions]
    start = typical(mu)
    images = traverse(sampler, mu[start], labels[start], shown, np.linspace(-REACH, REACH, STEPS))
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode_png(sheet(images), {"Comment": f"synthetic; dimensions {shown.tolist()}"}))
    print(path, file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------- frame


def about(films: Films) -> dict[str, int]:
    """Counts of films."""
    return {
        "films": len(films),
        "patients": len(set(films.patients)),
        "positive": int(films.positive.sum()),
    }


def identity(sampler: Sampler) -> str:
    """A model's address and the first digits of its tensors' hash: seeds of one recipe may share a name."""
    return f"{sampler.info.address_prefix} {sampler.info.tensors_sha256[:8]}"


def ratios_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The subject's AUROC over the judged baseline's, and over that of the strongest, as the held-out films have it."""
    found = {}
    if "anomaly" in result:
        auroc = {row["name"]: row["auroc"] for row in result["anomaly"]["rows"]}
        found["anomaly"] = auroc[SCORE] / auroc[result["anomaly"]["judged"]]
        found["anomaly_strongest"] = auroc[SCORE] / max(auroc[name] for name in result["anomaly"]["baselines"])
    for each in result.get("probe", {}).get("counts", []):
        if each["films"] == JUDGED_COUNT:
            auroc = {row["name"]: row["auroc"] for row in each["rows"]}
            found["probe"] = auroc[result["probe"]["subject"]] / auroc["pixels"]
            found["probe_pca"] = auroc[result["probe"]["subject"]] / max(v for k, v in auroc.items() if "PCA" in k)
    return found


def made_here(args: argparse.Namespace, folder: Path) -> None:
    """Tiny models of phantom films, and the arguments that point to them."""
    films = phantom(PhantomConfig(patients=700), size=32, seed=0)
    of_patient = np.unique(films.patient_id.astype(str), return_inverse=True)[1]
    parts = {"train": np.flatnonzero(of_patient < 350), "val": np.flatnonzero(of_patient >= 350)}
    splits = {split: films.take(rows) for split, rows in parts.items()}
    normals = splits["train"].take(np.flatnonzero(splits["train"].labels[:, 0]))
    args.data = write_dataset(folder / "all", splits)
    only_normal = write_dataset(folder / "normal", {"train": normals, "val": splits["val"].take([0])})
    for name, data in (("normal", only_normal), ("all", args.data)):
        setattr(args, name, [train_loop(quick_config(data, folder / f"{name}_run"))])
    args.results, args.out = args.results or folder, folder


def write_dataset(path: Path, splits: Mapping[str, Images]) -> Path:
    with DatasetWriter(path, task="multiclass", classes=CLASSES, height=32, width=32, channels=1) as writer:
        for split, images in splits.items():
            writer.add(split, images)
        writer.finish()
    return path


def quick_config(data: Path, run_dir: Path) -> TrainConfig:
    return TrainConfig(
        data=data,
        run_dir=run_dir,
        model=NetworkConfig(width=8, latent_dim=16, hidden=64, conditional=False),
        loss=LossConfig(gamma=0.05, pixel_weight=10.0, beta=0.5),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, discriminator_learning_rate=1e-4),
        validation=ValidationConfig(metric="none"),
        batch_size=16,
        total_images=1600,
        checkpoint_images=1600,
        num_workers=0,
        precision="float32",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset of vaegan.prepare with both classes")
    parser.add_argument("--normal", type=Path, nargs="+", default=[], help="models trained on normal films only")
    parser.add_argument("--all", type=Path, nargs="+", default=[], help="models trained on the whole train split")
    parser.add_argument("--normal-data", type=Path, help="dataset whose train split --normal was trained on")
    parser.add_argument("--split", default="val", help="whose films are held out: val, or test at the very end")
    parser.add_argument("--negative", help="the class that is normal; by default the one of that name, or the first")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="labelled films; all come besides")
    parser.add_argument("--draws", type=int, default=10, help="labelled sets of each count")
    parser.add_argument("--dimensions", type=int, default=10, help="latent dimensions that are told and drawn")
    parser.add_argument("--out", type=Path, default=Path("runs/encoder"), help="folder for pictures of patients' films")
    parser.add_argument("--results", type=Path, help="folder for encoder.json and encoder.md (default docs/results)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--quick", action="store_true", help="tiny models of phantom films, made here")
    args = parser.parse_args()
    if args.quick:
        args.counts, args.draws, args.dimensions = [JUDGED_COUNT], 5, 4
        return args
    if args.data is None or not (args.normal or args.all):
        parser.error("give --data and at least one of --normal and --all, or --quick")
    args.results = args.results or RESULTS
    return args


if __name__ == "__main__":
    sys.exit(main())
