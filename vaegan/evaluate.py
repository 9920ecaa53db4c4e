"""Compare synthetic images with real ones: quality, diversity and privacy, every number with interval, floor and stamp.

    python -m vaegan.evaluate --real data/real --model runs/gen/model --out runs/gen/metrics.json

The exit status is the privacy gate's: 0 pass, 1 fail, 3 too little data to say; 2 is a mistake in the command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.cli import run_command
from cluster.config import ClusterConfig
from cluster.errors import UserError
from cluster.storage import atomic_file, file_sha256, read_json, write_json
from vaegan.card import record_audit
from vaegan.checkpoint import CARD, ModelInfo, read_info
from vaegan.evaluation.audit import Audit, for_card
from vaegan.evaluation.measure import FORMAT_VERSION, FeaturesOf, Measured, Progress, Sets, features_here, measure
from vaegan.evaluation.page import render_html
from vaegan.evaluation.paper import chosen_checkpoints, markdown, trajectory
from vaegan.evaluation.paper_plot import plot
from vaegan.evaluation.synthesis import synthesize
from vaegan.evaluation.table import table
from vaegan.metrics.cache import FeatureCache, default_folder
from vaegan.metrics.extraction import progress_bar
from vaegan.metrics.extractor import EXTRACTION_VERSION, Extractor, Features, pick_device
from vaegan.metrics.features import WITHOUT_FILE, make_extractor, split_spec, weights_file
from vaegan.metrics.intervals import draw_rows
from vaegan.metrics.privacy.gate import EXIT_STATUS, Verdict
from vaegan.metrics.sources import ImageSource, open_source, source_splits
from vaegan.sampler import Sampler
from vaegan.shards import is_dataset, read_manifest

WITHOUT_REFERENCE = "gist"
"""What the privacy audit looks through where all others were trained on the images it asks about."""
MAX_DOMAIN_IMAGES = 20_000
DEFAULT_COUNT = 5_000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare synthetic images with real ones; write metrics.json and metrics.html, print a table.

    Images are a dataset of vaegan.prepare or vaegan.sample, a folder of image files, Parquet, .npz or .npy. Exit
    status: 0 where the privacy gate passes, 1 where it fails, 3 where there is too little data to say.
    """

    real: Path
    """Real images. For the privacy gate: those the generator was trained on."""
    out: Path
    """File to write, such as metrics.json; the page and the figures go beside it. One that answers the same question is
    kept."""
    synthetic: Path | None = None
    """Synthetic images; without them --model draws some."""
    model: Path | None = None
    """The model folder that the synthetic images are of: attacks that need the weights are tried too, and the verdict
    is written into its card."""
    count: int = 0
    """Images that --model draws, of the real ones' classes in their proportions; 0 takes as many as there are real
    ones, at most 5,000."""
    latent: str = "prior"
    """Source of z that --model draws from: prior, or one that its card lists, such as mixture or gaussian."""
    real_split: str = "train"
    """Split of the real images to compare with; the domain extractor is trained on it."""
    synthetic_split: str = "train"
    """Split of the synthetic images."""
    held_out: Path | None = None
    """Real images of the same kind that the generator has not seen; without it they are a split of --real."""
    held_out_split: str = "val"
    """Which split they are, for the floor and the privacy gate; "none" for none. Fewer than 100 make no floor: two
    halves of --real-split that share no patient do."""
    size: int | None = None
    """Make all images squares of that many pixels; without it all must have one size."""
    extractors: tuple[str, ...] = ()
    """One or more of: inception or inception=FILE, inception:768=FILE (the FID network, downloaded where no file is
    given); torchvision:ARCH=FILE; torchscript=FILE (a program: only from those you trust); domain (a classifier trained
    on the real images); gist (a fixed bank of filters). The default is domain and gist."""
    weights: Path | None = None
    """File for the one extractor that is given without =FILE."""
    skip_privacy: bool = False
    """Measure quality and diversity only; the exit status then says nothing of privacy."""
    paper: Path | None = None
    """A run: measure its checkpoints and write the paper's Table 1 and Figure 1 beside ours, with their caveats."""
    paper_checkpoints: int = 12
    """How many of them, from the first to the last at even ratios of images seen."""
    workers: int = 0
    """Ray workers that compute features, 0 for this process; all of them must see the image files."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Which Ray cluster the workers are on."""
    cache: str = "default"
    """Folder where features are kept by content and extractor; default is AUGRAY_CACHE or ~/.cache/augray/features,
    none keeps nothing."""
    seed: int = 2020
    """Of subsets, splits and the domain extractor; 2020 draws KID's and IS's as torch-fidelity does."""
    batch_size: int = 0
    """Images per forward pass; changes speed and memory, not the numbers. 0 suits the device."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "count", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected 0 or more")
        if self.paper_checkpoints < 2:
            raise ValueError(f"--paper-checkpoints is {self.paper_checkpoints}: expected 2 or more")
        if (self.paper is None) and self.synthetic is None and self.model is None:
            raise ValueError("no synthetic images: expected --synthetic DATASET, or --model MODEL that draws some")


def evaluate(config: EvaluateConfig, progress: Progress = lambda _line: None) -> dict[str, Any]:
    """Compare, and write metrics.json and metrics.html; or read it, if it answers the same question already."""
    files = _weights_files(config)
    real = open_source(config.real, config.real_split, size=config.size)
    held_out = _held_out(config)
    synthetic = None if config.synthetic is None else open_source(
        config.synthetic, config.synthetic_split, size=config.size
    )  # fmt: skip
    question = _question(config, files, {"real": real, "held_out": held_out, "synthetic": synthetic})
    kept = _answer_to(question, config.out)
    if kept and config.out.with_suffix(".html").exists():
        progress(f"{config.out} is there already, for the same images, extractors and seed")
        return kept
    device = pick_device(config.device)
    sampler = None if config.model is None else Sampler.from_model(config.model, device)
    if sampler is not None and config.synthetic is not None:
        _check_drawn_from(config.synthetic, sampler.info)
    if synthetic is None:
        assert sampler is not None
        count = config.count or min(len(real), DEFAULT_COUNT)
        progress(f"{sampler.info.address_prefix}: drawing {count} images")
        synthetic = synthesize(sampler, real, count, latent=config.latent)
    sets = Sets(**_alike_in_colour(real=real, synthetic=synthetic, held_out=held_out))
    cache = _cache(config)
    audit = None
    if not config.skip_privacy:
        progress("privacy: fingerprints")
        audit = Audit.prepare(sets, sampler, cache)
    extractors = _extractors(config, files, sets.real, progress)
    features_of = _features_of(config, cache)
    measured = measure(
        sets, extractors, features_of=features_of, seed=config.seed, inputs=question["inputs"], progress=progress
    )
    if audit is not None:
        progress("privacy: copies, nearest neighbours, membership")
        found = measured.features
        if all(extractor.trained_on_reference for extractor, _ in found):
            spare = make_extractor(WITHOUT_REFERENCE, device=device)
            found = [*found, (spare, features_of(sets.all, spare))]
        measured.result["privacy"] = audit.run(found, config.seed)
    if cache is not None and cache.problem:
        progress(f"warning: {cache.problem}")
    result = {"question": question, **measured.result}
    _write(config.out, result, measured)
    return result


def reproduce(config: EvaluateConfig, run_dir: Path, progress: Progress = lambda _line: None) -> str:
    """The paper's table and figure for a run's checkpoints, written as .json, .md and .png; returns the table."""
    names = [folder.name for folder in chosen_checkpoints(run_dir, config.paper_checkpoints)]
    files = _weights_files(config)
    real = open_source(config.real, config.real_split, size=config.size)
    held_out = _held_out(config)
    question = _question(config, files, {"real": real, "held_out": held_out}) | {"checkpoints": names}
    document = _answer_to(question, config.out)
    if document is None:
        found = trajectory(
            run_dir, real, held_out, _extractors(config, files, real, progress),
            features_of=_features_of(config, _cache(config)), most=config.paper_checkpoints, seed=config.seed,
            device=pick_device(config.device), inputs=question["inputs"], progress=progress,
        )  # fmt: skip
        document = {"format": FORMAT_VERSION, "question": question, **found}
        plot(document, config.out.with_suffix(".png"))
        config.out.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
        write_json(config.out, document)
    return markdown(document)


def main(argv: Sequence[str] | None = None) -> int:
    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def command(config: EvaluateConfig) -> int:
        if config.paper is not None:
            with _session(config):
                table_1 = reproduce(config, config.paper, show)
            print(table_1)
            print(config.out, config.out.with_suffix(".md"), config.out.with_suffix(".png"), sep="\n")
            return 0
        with _session(config):
            result = evaluate(config, show)
        print(table(result))
        print("", config.out, config.out.with_suffix(".html"), sep="\n")
        if result["privacy"] is None:
            return 0
        if config.model is not None:
            record_audit(config.model, for_card(result))
            print(config.model / CARD)
        return EXIT_STATUS[Verdict(result["privacy"]["verdict"])]

    return run_command(EvaluateConfig, command, prog="python -m vaegan.evaluate", argv=argv)


def _check_drawn_from(synthetic: Path, model: ModelInfo) -> None:
    """Refuse a dataset that says it was drawn from another model: its verdict would stand in the wrong card."""
    if not is_dataset(synthetic):
        return
    drawn = read_manifest(synthetic).report.get("sample", {})
    if drawn.get("tensors_sha256", model.tensors_sha256) != model.tensors_sha256:
        raise UserError(
            f"{synthetic} was drawn from {drawn.get('model')} (tensors {drawn['tensors_sha256'][:12]}), not from "
            f"{model.address_prefix} (tensors {model.tensors_sha256[:12]}): give the model it was drawn from, or leave "
            "--synthetic out"
        )


def _alike_in_colour(**sources: ImageSource | None) -> dict[str, Any]:
    """The same sources; where some are in colour, grey ones get their channel three times."""
    coloured = any(source is not None and source.shape[2] == 3 for source in sources.values())
    return {name: source.as_rgb() if source and coloured else source for name, source in sources.items()}


def _held_out(config: EvaluateConfig) -> ImageSource | None:
    """The images that the generator has not seen, if there are any."""
    path = config.held_out or config.real
    if config.held_out_split == "none" or (path == config.real and config.held_out_split == config.real_split):
        return None
    if config.held_out is None and config.held_out_split not in source_splits(config.real):
        return None
    split = config.held_out_split if config.held_out_split in source_splits(path) else None
    return open_source(path, split, size=config.size)


def _weights_files(config: EvaluateConfig) -> dict[str, Path | None]:
    """Kind of each extractor (without `=FILE`) to its file; --weights goes to the one that names none."""
    kinds = [split_spec(spec) for spec in config.extractors]
    if len({kind for kind, _ in kinds}) < len(kinds):
        raise UserError(f"an extractor is named twice in {' '.join(config.extractors)}; name each once")
    open_kinds = [kind for kind, path in kinds if path is None and kind not in WITHOUT_FILE]
    if config.weights and len(open_kinds) != 1:
        raise UserError(
            f"--weights {config.weights} is for the one extractor without =FILE, but there are {len(open_kinds)}; "
            "type --extractors torchvision:ARCH=FILE inception=FILE"
        )
    return {split_spec(spec)[0]: weights_file(spec, config.weights) for spec in config.extractors}


def _extractors(
    config: EvaluateConfig, files: Mapping[str, Path | None], real: ImageSource, progress: Progress
) -> list[Extractor]:
    """Those that were asked for; by default those that need no file and, of these, not `domain` with a single class."""
    kinds = dict(files)
    if not kinds:
        labels = real.labels[real.has_label]
        two_classes = bool(labels.size) and bool(np.ptp(labels, axis=0).any())
        kinds = dict.fromkeys(kind for kind in WITHOUT_FILE if two_classes or kind != "domain")
    made = []
    for kind, path in kinds.items():
        progress(f"{kind}: building the extractor")
        options: dict[str, Any] = _domain_options(real) if kind == "domain" else {}
        made.append(make_extractor(kind, weights=path, seed=config.seed, device=config.device, **options))
    return made


def _domain_options(real: ImageSource) -> dict[str, Any]:
    """Real images for the domain extractor, drawn where there are very many; and whether their classes exclude."""
    known = np.flatnonzero(real.has_label)
    images = real.images(known[draw_rows(len(known), MAX_DOMAIN_IMAGES, np.random.default_rng(0))])
    exclusive = bool((real.labels[known].sum(axis=1) == 1).all())
    return {"real_train": images, "task": "multiclass" if exclusive else "multilabel"}


def _features_of(config: EvaluateConfig, cache: FeatureCache | None) -> FeaturesOf:
    """How this command computes features: here, or on Ray workers where another process can make the extractor."""
    here = partial(features_here, batch_size=config.batch_size or None, cache=cache)
    if not config.workers:
        return here
    from vaegan.actors import extraction_workers  # Ray takes seconds to import, which others need not wait for

    def there(sources: Mapping[str, ImageSource], extractor: Extractor) -> dict[str, Features]:
        if not extractor.spec:
            return here(sources, extractor)
        build = partial(make_extractor, extractor.spec, device=config.device)
        on_gpu = float(pick_device(config.device) != "cpu")
        found = {}
        with extraction_workers(
            build, config.workers, batch_size=config.batch_size or None, gpus_per_worker=on_gpu
        ) as workers:
            for name, source in sources.items():
                with progress_bar(f"{extractor.name}, {name}") as bar:
                    found[name] = workers.extract(source, cache=cache, progress=bar)
        return found

    return there


@contextmanager
def _session(config: EvaluateConfig) -> Iterator[None]:
    """The Ray cluster of the workers, if there are any."""
    if not config.workers:
        yield
        return
    from cluster.session import connect

    with connect(config.cluster):
        yield


def _cache(config: EvaluateConfig) -> FeatureCache | None:
    if config.cache == "none":
        return None
    return FeatureCache(default_folder() if config.cache == "default" else Path(config.cache))


def _question(
    config: EvaluateConfig, files: Mapping[str, Path | None], sources: Mapping[str, ImageSource | None]
) -> dict[str, Any]:
    """All that decides on the answer."""
    inputs = {name: source.sha256 for name, source in sources.items() if source is not None}
    inputs |= {spec: file_sha256(_existing(path)) for spec, path in files.items() if path}
    if config.model is not None:
        inputs["model"] = read_info(config.model).tensors_sha256
    return {
        "inputs": inputs,
        "extractors": list(files) or "default",
        "code": EXTRACTION_VERSION,
        "seed": config.seed,
        "size": config.size,
        "samples": [config.count, config.latent] if config.synthetic is None else None,
        "privacy": not config.skip_privacy,
    }


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"no weights file {path}: expected a .safetensors or .pth state dict; check the path after =")
    return path


def _answer_to(question: dict[str, Any], out: Path) -> dict[str, Any] | None:
    """What `out` holds if it was written for the same question by this version, else None."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: expected a file to write, such as {out / 'metrics.json'}")
    out.parent.mkdir(parents=True, exist_ok=True)  # an unwritable place is found before the work, not after
    if not out.exists():
        return None
    try:
        content = read_json(out)
    except UserError:
        return None
    same = isinstance(content, dict) and content.get("question") == question and content.get("format") == FORMAT_VERSION
    return content if same else None


def _write(out: Path, result: dict[str, Any], measured: Measured) -> None:
    """The page, then the document: where that is, all is."""
    with atomic_file(out.with_suffix(".html")) as temporary:
        temporary.write_text(render_html(result, measured.gallery()), encoding="utf-8")
    write_json(out, result)


if __name__ == "__main__":
    sys.exit(main())
