"""The result of benchmarks/encoder.py in words and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

STRONG = 0.3  # correlation that is worth a word


def page(result: Mapping[str, Any]) -> str:
    """encoder.json's content as Markdown."""
    held_out = result["held_out"]
    parts = [
        "# What the encoder is worth",
        f"Written by `benchmarks/encoder.py` from encoder.json. Dataset {result['data']}; AUROC on its "
        f"{result['split']} split: {held_out['films']} films of {held_out['patients']} patients, "
        f"{held_out['positive']} of them not {result['normal']}. Brackets: 95 % intervals, a bootstrap over patients, "
        "labelled sets and models; differences are paired.",
    ]
    if "anomaly" in result:
        parts += _anomaly(result["anomaly"], result["normal"])
    if "probe" in result:
        parts += _probe(result["probe"])
    for which in ("normal", "all"):
        if models := result.get(f"latents of {which} films"):
            parts += _latents(models, which)
    return "\n\n".join(parts) + "\n"


def _anomaly(found: Mapping[str, Any], normal: str) -> list[str]:
    models = len(found["models"])
    rows = [
        [
            f"**{row['name']}**" if row["name"] in (found["score"], found["judged"]) else row["name"],
            with_interval(row["auroc"], row["interval"]),
            spread(row) if models > 1 else "",
            difference(row),
        ]
        for row in found["rows"]
    ]
    return [
        "## Anomaly detection",
        f"{counted(models, 'model')} ({', '.join(found['models'])}) and every baseline saw the same "
        f"{found['training']['films']} films of class {normal} and no other. AUROC of the other class by how unlike "
        "these a film is; below .5 it is more like them than their own class. Components are counted by the training "
        f"films' variance. The model is judged against {found['judged']}, fixed beforehand, and against the strongest "
        "of the baselines, which these films themselves pick.",
        *lone(models),
        table(["score", "AUROC", "models from, to", f"{found['score']} minus it"], rows),
    ]


def _probe(found: Mapping[str, Any]) -> list[str]:
    counts = found["counts"]
    names = [row["name"] for row in counts[0]["rows"]]
    by_name = [{row["name"]: row for row in each["rows"]} for each in counts]
    head = [f"{each['films']:,} films" for each in counts]
    values = [[name, *(with_interval(rows[name]["auroc"], rows[name]["interval"]) for rows in by_name)]
              for name in names]  # fmt: skip
    differences = [[name, *(difference(rows[name]) for rows in by_name)] for name in names if name != found["subject"]]
    draws = ", ".join(f"{each['draws']} of {each['films']:,}" for each in counts)
    return [
        "## Linear probe with few labels",
        f"{counted(len(found['models']), 'model')} ({', '.join(found['models'])}), trained on "
        f"{found['training']['films']:,} films. Logistic regression, its penalty cross-validated among the labelled "
        f"films alone, patients kept together; labelled sets: {draws}, the same for all features. PCA and scales come "
        f"from all training films, unlabelled. Label input of the encoder: {found['label_input']}.",
        *lone(len(found["models"])),
        table(["features", *head], values),
        f"{found['subject']} minus each:",
        table(["features", *head], differences),
    ]


def _latents(models: Sequence[Mapping[str, Any]], which: str) -> list[str]:
    counts = [
        [
            each["model"],
            f"{each['active']} of {each['latent_dim']}",
            f"{each['informative']} of {each['latent_dim']}",
            f"{each['kl']:.1f}",
            f"{each['kl_sorted'][0]:.2f} to {each['kl_sorted'][-1]:.3f}",
        ]
        for each in models
    ]
    first = models[0]
    facts = list(first["most_used"][0]["correlations"])
    rows = [
        [
            str(row["dimension"]), f"{row['kl']:.2f}", f"{row['variance']:.2f}",
            *(f"{row['correlations'].get(fact, 0):+.2f}" for fact in facts), in_words(row["correlations"]),
        ]
        for row in first["most_used"]
    ]  # fmt: skip
    return [
        f"## Latent dimensions, models of {'normal films only' if which == 'normal' else 'all films'}",
        "Active: the variance of mu over the training films is above .01 (Burda et al. 2016). Nats of KL divergence.",
        table(["model", "active", "above .1 nats", "nats in all", "nats, most and least"], counts),
        f"The most used ones of {first['model']}, in the order of traversal_{which}.png, with correlations over the "
        "training films:",
        table(["dimension", "nats", "variance of mu", *facts, "goes with"], rows),
    ]


def in_words(correlations: Mapping[str, float]) -> str:
    """The facts that a dimension goes with, strongest first."""
    strong = sorted((item for item in correlations.items() if abs(item[1]) >= STRONG), key=lambda item: -abs(item[1]))
    return ", ".join(f"{'more' if r > 0 else 'less'} {name}" for name, r in strong) or "none of these"


def with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def difference(row: Mapping[str, Any]) -> str:
    if "subject_minus" not in row:
        return ""
    value, (low, high) = row["subject_minus"]["value"], row["subject_minus"]["interval"]
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def spread(row: Mapping[str, Any]) -> str:
    low, high = row["range"]
    return "" if low == high else f"{low:.3f}, {high:.3f}"


def lone(models: int) -> list[str]:
    """What an interval can't hold."""
    return ["One model: how much models of other seeds differ is not in the intervals."] if models == 1 else []


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns without content are left out."""
    kept = [k for k in range(len(head)) if any(row[k] for row in rows)]
    lines = [[head[k] for k in kept], ["---"] * len(kept), *([row[k] for k in kept] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
