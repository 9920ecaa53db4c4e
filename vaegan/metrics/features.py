"""Extractors by name: the word a person types, to a network with its stamp."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from vaegan.classifier import Task
from vaegan.metrics.domain import domain_extractor
from vaegan.metrics.extractor import Extractor, Features, pick_device
from vaegan.metrics.inception import fid_weights, inception_extractor
from vaegan.metrics.torchvision_net import torchvision_extractor
from vaegan.shards import Images

__all__ = ["Extractor", "Features", "make_extractor", "split_spec", "weights_file"]

TORCHVISION = "torchvision:"
EXPECTED = "expected inception, inception=FILE, torchvision:ARCH=FILE or domain"


def make_extractor(
    spec: str,
    *,
    weights: Path | None = None,
    real_train: Images | None = None,
    task: Task = "multiclass",
    seed: int = 0,
    device: str = "auto",
) -> Extractor:
    """An extractor by its spec.

    Args:
        spec: `inception`, `torchvision:ARCH` or `domain`, the first two optionally followed by `=FILE`.
        weights: the file, where the spec names none. `inception` without a file takes torch-fidelity's download.
        real_train, task, seed: what `domain` is trained on.
        device: "cpu", "cuda" or "auto".

    Raises:
        UserError: an unknown spec, a file that is missing, absent, unreadable or of another network; one class only for
            `domain`.
    """
    kind, _ = split_spec(spec)
    path = weights_file(spec, weights)
    device = pick_device(device)
    if kind == "domain":
        if real_train is None:
            raise ValueError("the domain extractor is trained on real_train; pass it")
        return domain_extractor(real_train, task, seed=seed, device=device)
    if path is None:
        raise UserError(
            f"no weights for the extractor {kind}: expected a file with its state dict, none is downloaded; "
            f"type --extractors {kind}=FILE"
        )
    if kind == "inception":
        return inception_extractor(path, device)
    return torchvision_extractor(kind.removeprefix(TORCHVISION), path, device)


def split_spec(spec: str) -> tuple[str, Path | None]:
    """`torchvision:resnet50=a/b.pth` to ("torchvision:resnet50", Path("a/b.pth")); without `=FILE` the path is None."""
    kind, equals, path = spec.partition("=")
    known = kind in ("inception", "domain") or (kind.startswith(TORCHVISION) and len(kind) > len(TORCHVISION))
    if not known or (equals and not path):
        raise UserError(f"unknown extractor {spec!r}: {EXPECTED}")
    if kind == "domain" and equals:
        raise UserError(f"{spec!r}: the domain extractor is trained on the real images and takes no file; type domain")
    return kind, Path(path) if path else None


def weights_file(spec: str, weights: Path | None = None) -> Path | None:
    """The file an extractor reads: the spec's, else `weights`, else (inception only) the cached or downloaded one."""
    kind, path = split_spec(spec)
    if kind == "domain":
        return None
    return path or weights or (fid_weights() if kind == "inception" else None)
