"""What tells a run that is lost from one that is only noisy, by the figures it logs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

MEMORY = 20  # logs whose gradient norms say what is usual
ENOUGH = 5  # logs after which they do


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """When a run counts as lost, and how often it is taken back to its last good checkpoint."""

    enabled: bool = True
    """Whether to watch for more than figures that are not finite, which count as a fault in any case."""
    patience: int = 5
    """Logs in a row (ten between checkpoints) that must show a fault, except for NaN and norms, where one is enough."""
    norm_growth: float = 100.0
    """A gradient norm explodes at this many times its median over the last 20 logs."""
    won: float = 0.01
    """The discriminator has won where mean D(x) is above 1 less this and mean D of all generated images below it."""
    collapsed_kl: float = 0.01
    """The latents carry nothing where no dimension has more KL divergence than this, in nats."""
    escaped_kl: float = 4.0
    """The latents have left the prior where their mean KL divergence per dimension is above this, in nats."""
    min_spread: float = 0.1
    """Samples have collapsed where a pixel varies over them by less than this share of what it does over real ones."""
    rate_factor: float = 0.25
    """What a rollback multiplies all learning rates by, above 0 and below 1."""
    max_rollbacks: int = 2
    """Rollbacks in a run; the fault after them ends it."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.max_rollbacks < 0:
            raise ValueError("watchdog.patience: expected 1 or more; watchdog.max_rollbacks: expected 0 or more")
        if not 0 < self.rate_factor < 1:
            raise ValueError(f"watchdog.rate_factor is {self.rate_factor}: expected more than 0 and less than 1")
        if self.norm_growth <= 1:
            raise ValueError(f"watchdog.norm_growth is {self.norm_growth}: expected more than 1")


@dataclass(frozen=True)
class Fault:
    """Why a run is lost."""

    what: str
    """Clause with the figures that show it."""
    remedy: str
    """What to change, as an imperative."""


@dataclass
class Memory:
    """What the watchdog remembers between logs; part of a checkpoint, so that a resumed run sees what it would have."""

    norms: dict[str, list[float]] = field(default_factory=dict)
    """The last gradient norms by network, oldest first."""
    counts: dict[str, int] = field(default_factory=dict)
    """Logs in a row that showed a fault, by the fault's name."""


class Watchdog:
    """Reads every line of stats.jsonl as it is made. All workers see the same figures and come to the same end."""

    def __init__(self, config: WatchdogConfig) -> None:
        self.config, self.memory = config, Memory()

    @property
    def suspicious(self) -> bool:
        """Whether the last log showed a fault that patience still covers: no state to come back to later."""
        return any(self.memory.counts.values())

    def examine(self, metrics: Mapping[str, Any]) -> Fault | None:
        """The fault of a run with these figures, if there is one.

        Args:
            metrics: means over a log's steps and all workers, as `loop.Window` makes them.
        """
        fault = _not_finite(metrics)
        if fault or not self.config.enabled:
            return fault
        fault = self._exploded(metrics)
        for name, sign in _SIGNS.items():
            found = sign(metrics, self.config)
            self.memory.counts[name] = self.memory.counts.get(name, 0) + 1 if found else 0
            if found and self.memory.counts[name] >= self.config.patience:
                fault = fault or found
        return fault

    def _exploded(self, metrics: Mapping[str, Any]) -> Fault | None:
        fault = None
        for name in ("encoder", "decoder", "discriminator"):
            norm = metrics.get(f"gradient_norm_{name}")
            if norm is None:
                continue
            earlier = self.memory.norms.setdefault(name, [])
            usual = median(earlier) if len(earlier) >= ENOUGH else math.inf
            if norm > self.config.norm_growth * usual:
                fault = Fault(
                    f"the {name}'s gradient norm is {norm:.3g}, {norm / usual:.0f} times its usual {usual:.3g}",
                    "lower optimizer.learning_rate and optimizer.discriminator_learning_rate",
                )
            self.memory.norms[name] = [*earlier, norm][-MEMORY:]
        return fault


def _not_finite(metrics: Mapping[str, Any]) -> Fault | None:
    numbers = {name: value if isinstance(value, list) else [value] for name, value in metrics.items()}
    wrong = [
        name for name, values in numbers.items() if any(isinstance(v, float) and not math.isfinite(v) for v in values)
    ]
    if not wrong:
        return None
    return Fault(
        f"{', '.join(sorted(wrong))} became NaN or infinite",
        "lower optimizer.learning_rate, set precision float32, or look for damaged images",
    )


def _won(metrics: Mapping[str, Any], config: WatchdogConfig) -> Fault | None:
    if "d_real" not in metrics:
        return None
    generated = max(metrics[name] for name in ("d_recon", "d_sample") if name in metrics)
    if metrics["d_real"] <= 1 - config.won or generated >= config.won:
        return None
    return Fault(
        f"the discriminator has won: mean D(x) {metrics['d_real']:.4f}, mean D of generated images {generated:.2g}",
        "lower optimizer.discriminator_learning_rate, or raise augment, loss.r1_weight or loss.gamma",
    )


def _latents_collapsed(metrics: Mapping[str, Any], config: WatchdogConfig) -> Fault | None:
    if "kl_per_dimension" not in metrics or metrics.get("beta", 1.0) == 0:
        return None
    most = max(metrics["kl_per_dimension"])
    if most >= config.collapsed_kl:
        return None
    return Fault(
        f"the latents carry nothing of the images: at most {most:.2g} nats in a dimension",
        "lower loss.beta or raise loss.kl_warmup_images",
    )


def _latents_escaped(metrics: Mapping[str, Any], config: WatchdogConfig) -> Fault | None:
    if "kl_per_dimension" not in metrics:
        return None
    mean = sum(metrics["kl_per_dimension"]) / len(metrics["kl_per_dimension"])
    if mean <= config.escaped_kl:
        return None
    return Fault(
        f"the latents have left the prior: {mean:.3g} nats a dimension, so that samples come from where nothing was "
        "learned",
        "raise loss.beta or lower optimizer.learning_rate",
    )


def _samples_collapsed(metrics: Mapping[str, Any], config: WatchdogConfig) -> Fault | None:
    if "spread_sample" not in metrics:
        return None
    share = metrics["spread_sample"] / max(metrics["spread_real"], 1e-12)
    if share >= config.min_spread:
        return None
    return Fault(
        f"all samples look alike: a pixel varies over them {share:.2g} times as much as over real images",
        "lower the learning rates, or raise loss.gamma or augment",
    )


_SIGNS: dict[str, Callable[[Mapping[str, Any], WatchdogConfig], Fault | None]] = {
    "won": _won,
    "latents collapsed": _latents_collapsed,
    "latents escaped": _latents_escaped,
    "samples collapsed": _samples_collapsed,
}
