"""Extractors by name: the word a person types, to a network with its stamp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.errors import UserError
from vaegan.classifier import Task
from vaegan.metrics.domain import domain_extractor
from vaegan.metrics.extractor import Extractor, Features, pick_device
from vaegan.metrics.gist import gist_extractor
from vaegan.metrics.inception import STAGES, fid_weights, inception_extractor
from vaegan.metrics.torchscript import torchscript_extractor
from vaegan.metrics.torchvision_net import torchvision_extractor
from vaegan.shards import Images

__all__ = ["Extractor", "Features", "make_extractor", "split_spec", "weights_file"]

TORCHVISION, INCEPTION, TORCHSCRIPT = "torchvision:", "inception:", "torchscript"
WITHOUT_FILE = ("domain", "gist")
EXPECTED = (
    "expected inception, inception=FILE, inception:768=FILE, torchvision:ARCH=FILE, torchscript=FILE, domain or gist"
)


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
        spec: `inception` or `inception:LAYER` (64, 192, 768 or 2048; else the deepest there is), `torchvision:ARCH`,
            `torchscript`, optionally followed by `=FILE` (a TorchScript file is a program); `domain`; `gist`.
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
    if kind == "gist":
        return replace(gist_extractor(device), spec=spec)
    if path is None:
        raise UserError(
            f"no weights for the extractor {kind}: expected a file with its weights, none is downloaded; "
            f"type --extractors {kind}=FILE"
        )
    if kind == "inception" or kind.startswith(INCEPTION):
        made = inception_extractor(path, device, layer=kind.partition(":")[2] or None)
    elif kind == TORCHSCRIPT:
        made = torchscript_extractor(path, device)
    else:
        made = torchvision_extractor(kind.removeprefix(TORCHVISION), path, device)
    return replace(made, spec=f"{kind}={path.absolute()}")


def split_spec(spec: str) -> tuple[str, Path | None]:
    """`torchvision:resnet50=a/b.pth` to ("torchvision:resnet50", Path("a/b.pth")); without `=FILE` the path is None."""
    kind, equals, path = spec.partition("=")
    known = kind in ("inception", *WITHOUT_FILE, TORCHSCRIPT, *(f"{INCEPTION}{layer}" for layer in STAGES))
    known = known or (kind.startswith(TORCHVISION) and len(kind) > len(TORCHVISION))
    if not known or (equals and not path):
        raise UserError(f"unknown extractor {spec!r}: {EXPECTED}")
    if kind in WITHOUT_FILE and equals:
        how = "trained on the real images" if kind == "domain" else "a fixed bank of filters"
        raise UserError(f"{spec!r}: the {kind} extractor is {how} and takes no file; type {kind}")
    return kind, Path(path) if path else None


def weights_file(spec: str, weights: Path | None = None) -> Path | None:
    """The file an extractor reads: the spec's, else `weights`, else (inception only) the cached or downloaded one."""
    kind, path = split_spec(spec)
    if kind in WITHOUT_FILE:
        return None
    return path or weights or (fid_weights() if kind.startswith("inception") else None)
