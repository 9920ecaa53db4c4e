"""A training step of the paper's networks: against the machine's ceiling, a naive step, pythae, and its communication.

    python benchmarks/train_step.py             batch 32, about fifteen minutes on one core
    python benchmarks/train_step.py --quick     batch 4, a narrower dense layer, fewer repeats: under 45 s
    python benchmarks/train_step.py --model     print the tables of docs/scaling.md instead

configs/paper.yaml at 64 pixels, one grey channel, in the precision that `precision: auto` takes here and in float32.

ceiling        the step's own convolutions and matrix products, one by one in their best layout, over the step's time
naive          the same update with a forward pass of all networks for each loss, as one would first write it
pythae         a step of pythae's VAEGAN and its trainer with the same three networks (float32 is what they offer)
communication  two gloo processes on this machine: all-reduces as measured over what latency and bandwidth predict

Contestants take turns, ratios are medians over rounds. Exit status 1 if one falls short of its goal.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from common import communication, scaling
from common.ceiling import Ceiling, big_product_gflops, flops, record
from common.measure import conditions, in_turn, ratios, seconds, spread, verdict
from common.rivals import NaiveStep, PythaeStep
from common.setup import OurStep, Preset

from vaegan.acceleration import keep_freed_memory
from vaegan.recipe import choose_dtype

GOALS = dict(ceiling=0.7, naive=2.0, pythae=3.0)
QUICK_HIDDEN = 128  # of 2048
SAME_GRADIENT = 1e-4  # distance over length, float32: rounding through some twenty layers, in another order


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure, and how often."""

    preset: Preset
    batch: int
    """Images a step, summed over workers."""
    rounds: int
    quick: bool

    @property
    def dtype(self) -> torch.dtype:
        """What training takes on this machine."""
        return choose_dtype("auto", torch.device("cpu"))


def main(argv: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 4, a narrower dense layer, fewer repeats")
    parser.add_argument("--threads", type=int, default=1, help="of the steps that run alone (default 1)")
    parser.add_argument("--batch", type=int, help="images (default 32; 4 with --quick)")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default 5; 2 with --quick)")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="these comparisons")
    parser.add_argument("--model", action="store_true", help="print the tables of docs/scaling.md and end")
    arguments = parser.parse_args(argv)
    if arguments.model:
        print(scaling.tables())
        return 0
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as training does; all contestants share this process
    plan = make_plan(arguments)
    for name, value in conditions().items():
        print(f"{name}: {value}")
    print(f"batch {plan.batch}, {plan.rounds} rounds after a warm-up; times are medians (range)", flush=True)
    met = [COMPARISONS[name](plan) for name in arguments.only]
    return 0 if all(met) else 1


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The paper's preset; with --quick less of what costs the same for any batch."""
    preset = Preset.read("paper")
    if arguments.quick:
        print(
            f"--quick: a batch of 4 instead of 32, and {QUICK_HIDDEN} units in the encoder's dense layer instead of "
            f"{preset.model.hidden}: else the update of\nits weights, which costs the same for any batch, would weigh "
            "eight times as much; float32 and two kinds of naive step left out"
        )
        preset = dataclasses.replace(preset, model=dataclasses.replace(preset.model, hidden=QUICK_HIDDEN))
    return Plan(
        preset,
        batch=arguments.batch or (4 if arguments.quick else 32),
        rounds=arguments.rounds or (2 if arguments.quick else 5),
        quick=arguments.quick,
    )


def name_of(dtype: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------------------- ceiling
def compare_ceiling(plan: Plan) -> bool:
    """Whether a step takes little longer than its convolutions and matrix products alone, in each precision."""
    dtypes = [plan.dtype] if plan.quick else dict.fromkeys([plan.dtype, torch.float32])
    met = [ceiling_at(dtype, plan) for dtype in dtypes]
    return all(met)


def ceiling_at(dtype: torch.dtype, plan: Plan) -> bool:
    """The same in one precision."""
    step = OurStep(plan.preset, plan.preset.batch(plan.batch), dtype)
    calls, work = record(step)
    ceiling = Ceiling(calls)
    step_s, alone_s = [], []
    for _ in range(plan.rounds):
        step_s.append(seconds(step))
        alone_s.append(ceiling.measure())
    last = step.gradients()
    update_s = [seconds(lambda: step.optimizers.step(last)) for _ in range(plan.rounds)]

    print(f"\nceiling, {name_of(dtype)}: {sum(ceiling.counts)} convolutions and matrix products, ", end="")
    print(f"{work / 1e9:.0f} GFLOP a step")
    for name, times in {"step": step_s, "its operations alone": alone_s}.items():
        rate = work / statistics.median(times) / 1e9
        print(f"  {name:24} {spread(times, 1e3, 0):>28} ms {rate:8.0f} GFLOP/s")
    print(f"  {'the update in it':24} {spread(update_s, 1e3, 0):>28} ms")
    side = 1024 if plan.quick else 2048
    print(f"  {f'product of {side} x {side}':24} {'':31} {big_product_gflops(dtype, side):8.0f} GFLOP/s")
    for name, count, call_s, rate in ceiling.slowest(3 if plan.quick else 12):
        print(f"    {count} x {call_s * 1e3:6.1f} ms {rate:6.0f} GFLOP/s  {name}")
    return verdict(f"ceiling_{name_of(dtype)}", statistics.median(ratios(alone_s, step_s)), GOALS["ceiling"])


# -------------------------------------------------------------------------------------------------------------- rivals
def compare_rivals(plan: Plan) -> bool:
    """Whether a step beats the naive one in the same precision, and pythae's in the precision that each would take."""
    if not same_gradients(plan):
        return False
    contestants = make_contestants(plan)
    work = {name: flops(step) / 1e9 for name, step in contestants.items()}  # and so each has warmed up
    times = in_turn(contestants, plan.rounds)
    print(f"\n{'rivals':46} {'ms':>28} {'images/s':>9} {'GFLOP':>6}   times ours")
    for name, each in times.items():
        rate, ratio = plan.batch / statistics.median(each), statistics.median(ratios(each, times["ours"]))
        print(f"  {name:44} {spread(each, 1e3, 0):>28} {rate:9.2f} {work[name]:6.0f} {ratio:12.2f}")
    met = [verdict("naive", statistics.median(ratios(times["naive"], times["ours"])), GOALS["naive"])]
    if "pythae" in times:
        if "ours, float32" in times:
            same = statistics.median(ratios(times["pythae"], times["ours, float32"]))
            print(
                f"pythae over ours, both float32: {same:.2f}; the line below is against ours in {name_of(plan.dtype)}"
            )
        met.append(verdict("pythae", statistics.median(ratios(times["pythae"], times["ours"])), GOALS["pythae"]))
    return all(met)


def same_gradients(plan: Plan) -> bool:
    """Whether the naive step's gradients are ours, in float32, before either is timed."""
    batch = plan.preset.batch(2)
    ours = OurStep(plan.preset, batch, torch.float32).gradients()
    apart = {}
    for name, naive in NaiveStep(plan.preset, batch, torch.float32)().items():
        whole = torch.cat([gradient.reshape(-1) for gradient in naive])
        apart[name] = float(
            (torch.cat([gradient.reshape(-1) for gradient in ours[name]]) - whole).norm() / whole.norm()
        )
    each = ", ".join(f"{name} {distance:.1e}" for name, distance in apart.items())
    print(f"\ngradients of the naive step and ours, distance over length: {each} (allowed: {SAME_GRADIENT:g})")
    if max(apart.values()) > SAME_GRADIENT:
        print("error: the naive step computes something else, its time says nothing", file=sys.stderr)
        return False
    return True


def make_contestants(plan: Plan) -> dict[str, Callable[[], object]]:
    """Steps on the same images by what is printed of them; each with weights of its own."""
    preset, batch, dtype = plan.preset, plan.preset.batch(plan.batch), plan.dtype
    contestants: dict[str, Callable[[], object]] = {
        "ours": OurStep(preset, batch, dtype),
        "naive": NaiveStep(preset, batch, dtype),
    }
    if not plan.quick:
        contestants |= {
            "naive, fakes detached for the discriminator": NaiveStep(preset, batch, dtype, detach_fakes=True),
            "ours, float32": OurStep(preset, batch, torch.float32),
            "naive, float32, contiguous": NaiveStep(preset, batch, torch.float32, channels_last=False),
        }
    if importlib.util.find_spec("pythae") is None:
        print("pythae is left out, as it isn't installed: pip install -e '.[bench]' brings it")
        return contestants
    return contestants | {"pythae": PythaeStep(preset, batch)}


# ------------------------------------------------------------------------------------------------------- communication
def compare_communication(plan: Plan) -> bool:
    """Whether latency and bandwidth, fitted to all-reduces alone, predict those of a step."""
    seen = communication.measure(plan.preset, plan.batch, plan.dtype, plan.rounds)
    print(f"\ncommunication: 2 workers of one thread, {plan.batch // 2} images each, gloo, load {seen.load}")
    sent_s = [sum(times) for times in seen.sent_s]
    rows = {
        "step as it is": (seen.step_s, "gradients travel during the next network's backward pass"),
        "  held up in it": (seen.held_s, f"share {_share(seen.held_s, seen.step_s)}; with waiting for each other"),
        "step, nothing overlapping": (seen.waited_step_s, ""),
        "  its all-reduces": (sent_s, f"share {_share(sent_s, seen.waited_step_s)}; without waiting for each other"),
        "all gradients in one": (seen.flat_s, "nothing else going on"),
        "network after network": (seen.split_s, f"{_share(seen.split_s, seen.flat_s)} of it"),
    }
    for name, (times, remark) in rows.items():
        print(f"  {name:26} {spread(times, 1e3, 1):>28} ms  {remark}")

    link = communication.fit_link(seen.ping_s, workers=2)
    pings = ", ".join(f"{size / 2**20:.3g} MiB {1e3 * ping_s:.2f} ms" for size, ping_s in seen.ping_s.items())
    print(f"  all-reduces alone: {pings}")
    print(f"  fitted: {1e6 * link.latency_s:.0f} us and {link.bytes_per_s / 1e9:.2f} GB/s")
    predicted_s = [communication.ring_s(size, 2, link) for size in seen.calls]
    quickest_s = [min(times) for times in zip(*seen.sent_s, strict=True)]  # others' load on few cores comes in bursts
    for kind, small in {"gradients": False, "batch moments": True}.items():
        which = [i for i, size in enumerate(seen.calls) if (size < communication.SMALL_BYTES) == small]
        print(
            f"  {kind}: {sum(seen.calls[i] for i in which) / 1e6:.2f} MB in {len(which)} all-reduces, "
            f"predicted {1e3 * sum(predicted_s[i] for i in which):.1f} ms, "
            f"in the step {1e3 * sum(quickest_s[i] for i in which):.1f} ms (the quickest of each)"
        )
    return verdict("communication_model", sum(quickest_s) / sum(predicted_s), 0.5, 2.0)


def _share(part_s: Sequence[float], whole_s: Sequence[float]) -> str:
    return f"{statistics.median(ratios(part_s, whole_s)):.1%}"


COMPARISONS = {"ceiling": compare_ceiling, "rivals": compare_rivals, "communication": compare_communication}

if __name__ == "__main__":
    sys.exit(main())
