"""A training step on a GPU: time, images/s, TFLOP/s against the device's bfloat16 ceiling, and memory.

    python benchmarks/gpu_train_step.py             every size, batch and mode: 54 rows, 18 of them compile first
    python benchmarks/gpu_train_step.py --quick     64 pixels, batches 32 and 256
    OMP_NUM_THREADS=1 python benchmarks/gpu_train_step.py --device cpu --quick     whether the script itself works

The paper's networks, bfloat16, at 64, 128 and 256 pixels, batch 32 to 1024, in three modes:

eager      as `train_step` is
compile    the forward of each network compiled; its backward then computes all gradients, asked for or not
graphs     the whole step, updates too, captured once as a CUDA graph, each batch copied in and replayed

TFLOP/s count what the eager step does, whatever a mode does beyond it. The ceiling is a product of two large matrices.
What fails or does not fit into memory is recorded with its reason, and the rest goes on. OUT/gpu_train_step.json is
written anew after every row, OUT/gpu_train_step.md at the end.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common.ceiling import flops
from common.measure import conditions
from common.setup import OurStep, Preset

from vaegan.acceleration import Acceleration, make_step
from vaegan.networks import SIZES

MODES: dict[str, Acceleration] = {"eager": "none", "compile": "compile", "graphs": "graphs"}
COLUMNS = {
    "size": "px",
    "batch": "batch",
    "mode": "mode",
    "step_ms": "step, ms",
    "images_per_s": "images/s",
    "tflops": "TFLOP/s",
    "share_of_ceiling": "of the ceiling",
    "peak_gb": "peak memory, GB",
    "first_step_s": "until ready, s",
    "error": "",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write one JSON and one table; 1 when nothing could be measured."""
    arguments = parse(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU on this machine: use one that has it, or --device cpu --quick", file=sys.stderr)
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    ceiling = big_product_tflops(device, side=8192 if device.type == "cuda" else 1024)
    report: dict[str, Any] = {
        "conditions": conditions() | about(device) | {"cudnn.benchmark": arguments.cudnn_benchmark},
        "preset": arguments.preset,
        "precision": "bfloat16",
        "ceiling_tflops": ceiling,
        "rows": [],
    }
    print("\n".join(f"{name}: {value}" for name, value in report["conditions"].items()))
    print(f"ceiling: {ceiling:.2f} TFLOP/s, a product of two square bfloat16 matrices", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for row in measure(arguments, device, ceiling):
        report["rows"].append(row)
        print("  ".join(f"{name} {_text(row[name])}" for name in COLUMNS if row.get(name) is not None), flush=True)
        (arguments.out / "gpu_train_step.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.out / "gpu_train_step.md").write_text(table(report))
    print(f"\n{table(report)}\nwritten: {arguments.out}/gpu_train_step.json and .md")
    return 0 if any(row["error"] is None for row in report["rows"]) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what --quick and the device leave open filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default cuda)")
    parser.add_argument("--quick", action="store_true", help="one size, two batches; on a CPU the smallest, once")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, help="pixels (default 64 128 256)")
    parser.add_argument("--batches", type=int, nargs="+", help="images (default 32 64 128 256 512 1024)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default all")
    parser.add_argument("--preset", default="paper", help="a file of configs/ (default paper)")
    parser.add_argument("--seconds", type=float, help="to time each row (default 2; .5 with --quick)")
    parser.add_argument(
        "--cudnn-benchmark",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let cuDNN try its algorithms on the first step, as training does",
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/bench_gpu")), help="default $OUT")
    arguments = parser.parse_args(argv)
    on_cpu = torch.device(arguments.device).type == "cpu"
    sizes, batches = (64, 128, 256), (32, 64, 128, 256, 512, 1024)
    if arguments.quick:
        sizes, batches = ((32,), (4,)) if on_cpu else ((64,), (32, 256))
    arguments.sizes, arguments.batches = arguments.sizes or sizes, arguments.batches or batches
    arguments.seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    return arguments


def about(device: torch.device) -> dict[str, Any]:
    """The device and the libraries that drive it."""
    if device.type != "cuda":
        return {"device": str(device)}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device memory, GB": round(properties.total_memory / 1e9, 1),
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


# ------------------------------------------------------------------------------------------------------------ measuring
def measure(arguments: argparse.Namespace, device: torch.device, ceiling_tflops: float) -> Iterator[dict[str, Any]]:
    """A row for every size, batch and mode, in that order."""
    preset = Preset.read(arguments.preset)
    for size in arguments.sizes:
        flops_per_image = flops(OurStep(preset, preset.batch(2, size, device), torch.bfloat16, size, device)) / 2
        for batch in arguments.batches:
            for mode in arguments.modes:
                row = {"size": size, "batch": batch, "mode": mode, "gflop_per_image": flops_per_image / 1e9}
                try:
                    row |= measure_one(preset, size, batch, mode, device, arguments.seconds)
                    row["tflops"] = flops_per_image * row["images_per_s"] / 1e12
                    row["share_of_ceiling"] = row["tflops"] / ceiling_tflops
                    row["error"] = None
                except Exception as error:  # a compiler's or a driver's own, of any kind: one row's loss, not the run's
                    row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                clear(device)
                yield row


def measure_one(
    preset: Preset, size: int, batch: int, mode: str, device: torch.device, at_least_s: float
) -> dict[str, Any]:
    """One row's figures; peak memory is that of preparing the mode and of its steps, unknown on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started_s = time.perf_counter()
    ours = OurStep(preset, preset.batch(batch, size, device), torch.bfloat16, size, device)
    step = prepared(ours, mode)
    step()
    synchronize(device)
    ready_s = time.perf_counter() - started_s
    times_s = repeat(step, device, at_least_s)
    middle_s = statistics.median(times_s)
    return {
        "first_step_s": ready_s,
        "steps": len(times_s),
        "step_ms": 1e3 * middle_s,
        "step_ms_range": [1e3 * min(times_s), 1e3 * max(times_s)],
        "images_per_s": batch / middle_s,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def repeat(step: Callable[[], object], device: torch.device, at_least_s: float) -> list[float]:
    """Seconds of each step, the device idle before and after: three to warm up, then three or more."""
    for _ in range(3):
        step()
    times_s: list[float] = []
    while len(times_s) < 3 or sum(times_s) < at_least_s:
        synchronize(device)
        started_s = time.perf_counter()
        step()
        synchronize(device)
        times_s.append(time.perf_counter() - started_s)
    return times_s


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    """Let go of the last row's compiled code and memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def big_product_tflops(device: torch.device, side: int) -> float:
    """TFLOP/s of a product of two square bfloat16 matrices of `side` rows."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / statistics.median(repeat(lambda: torch.mm(a, b), device, at_least_s=0.5)) / 1e12


def prepared(step: OurStep, mode: str) -> Callable[[], object]:
    """The step in one of the modes, as `vaegan.train --acceleration` makes it."""
    accelerated = make_step(
        MODES[mode], step.networks, step.optimizers, step.preset.loss, augment=step.preset.augment, dtype=step.dtype
    )
    return lambda: accelerated(step.batch, step.preset.loss.beta)


# ---------------------------------------------------------------------------------------------------------------- table
def table(report: dict[str, Any]) -> str:
    """The report as Markdown: conditions in one line, a row for each size, batch and mode."""
    lines = [
        f"{', '.join(f'{name} {value}' for name, value in report['conditions'].items())}.",
        "",
        f"`configs/{report['preset']}.yaml`, {report['precision']}; ceiling {report['ceiling_tflops']:.2f} TFLOP/s.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(_text(row.get(name)) for name in COLUMNS) + " |" for row in report["rows"]]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return "" if value is None else str(value).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
