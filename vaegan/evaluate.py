"""Compare synthetic images with real ones: every metric with its interval, its real-vs-real floor and its stamp.

    python -m vaegan.evaluate --real data/real --synthetic data/synthetic --out metrics.json \\
        --extractors domain torchvision:squeezenet1_1=squeezenet1_1.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.storage import file_sha256, read_json, write_json
from vaegan.classifier import Task
from vaegan.evaluation.measure import FORMAT_VERSION, Progress, evaluate_images
from vaegan.evaluation.table import table
from vaegan.metrics.features import make_extractor, split_spec, weights_file
from vaegan.shards import dataset_sha256, read_manifest, read_split


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare a synthetic dataset with a real one; write metrics.json and print a table."""

    real: Path
    """Dataset with the real images."""
    synthetic: Path
    """Dataset with the synthetic images."""
    out: Path
    """File to write, such as metrics.json. One that answers the same question is kept."""
    real_split: str = "train"
    """Split of the real dataset to compare with; the domain extractor is trained on it."""
    synthetic_split: str = "train"
    """Split of the synthetic dataset."""
    held_out_split: str = "val"
    """Split of the real dataset for the real-vs-real floor; where it is absent or has fewer than 100 images, or with
    "none", two halves of --real-split that share no patient take its place."""
    extractors: tuple[str, ...] = ("domain",)
    """One or more of: domain (a classifier trained on the real images); inception or inception=FILE (the FID network,
    downloaded where no file is given); torchvision:ARCH=FILE (ARCH as squeezenet1_1, FILE a .safetensors or .pth)."""
    weights: Path | None = None
    """File for the one extractor that is given without =FILE."""
    seed: int = 2020
    """Of subsets, splits and the domain extractor; 2020 draws KID's and IS's as torch-fidelity does."""
    batch_size: int = 32
    """Images per forward pass; changes speed and memory, not the numbers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size ({self.batch_size}) must be at least 1")


def evaluate(config: EvaluateConfig, progress: Progress = lambda _line: None) -> dict[str, Any]:
    """Read both datasets, compare them and write metrics.json; or read it, if it answers the same question already."""
    manifest = read_manifest(config.real)
    files = _weights_files(config)
    held_out_split = config.held_out_split if config.held_out_split in manifest.splits else None
    inputs = {"real": dataset_sha256(config.real), "synthetic": dataset_sha256(config.synthetic)}
    inputs |= {spec: file_sha256(_existing(path)) for spec, path in files.items() if path}
    question = {
        "inputs": inputs,
        "splits": [config.real_split, config.synthetic_split, held_out_split],
        "extractors": list(files),
        "seed": config.seed,
    }
    kept = _answer_to(question, config.out)
    if kept:
        progress(f"{config.out} is there already, for the same images, extractors and seed")
        return kept
    real = read_split(config.real, config.real_split)
    synthetic = read_split(config.synthetic, config.synthetic_split)
    task: Task = "multilabel" if manifest.task == "multilabel" else "multiclass"
    extractors = []
    for spec, path in files.items():
        progress(f"{spec}: building the extractor")
        extractors.append(
            make_extractor(spec, weights=path, real_train=real, task=task, seed=config.seed, device=config.device)
        )
    result = evaluate_images(
        real,
        synthetic,
        extractors,
        held_out=read_split(config.real, held_out_split) if held_out_split else None,
        seed=config.seed,
        batch_size=config.batch_size,
        inputs=inputs,
        progress=progress,
    )
    result = {"question": question, **result}
    write_json(config.out, result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    def command(config: EvaluateConfig) -> None:
        result = evaluate(config, progress=lambda line: print(line, file=sys.stderr, flush=True))
        print(table(result))
        print(f"\n{config.out}")

    return run_command(EvaluateConfig, command, prog="python -m vaegan.evaluate", argv=argv)


def _weights_files(config: EvaluateConfig) -> dict[str, Path | None]:
    """Kind of each extractor (without `=FILE`) to its file; --weights goes to the one that names none."""
    kinds = [split_spec(spec) for spec in config.extractors]
    if not kinds:
        raise UserError("no extractor: expected at least one; type --extractors domain")
    if len({kind for kind, _ in kinds}) < len(kinds):
        raise UserError(f"an extractor is named twice in {' '.join(config.extractors)}; name each once")
    open_kinds = [kind for kind, path in kinds if path is None and kind != "domain"]
    if config.weights and len(open_kinds) != 1:
        raise UserError(
            f"--weights {config.weights} is for the one extractor without =FILE, but there are {len(open_kinds)}; "
            "type --extractors torchvision:ARCH=FILE inception=FILE"
        )
    return {split_spec(spec)[0]: weights_file(spec, config.weights) for spec in config.extractors}


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


if __name__ == "__main__":
    sys.exit(main())
