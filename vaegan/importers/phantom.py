"""The phantom as a source: made-up films that go through the same checks as real ones."""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np

from cluster.storage import text_sha256
from vaegan.importers.base import Format, ImportConfig, Record, Source
from vaegan.phantom import CLASSES, VERSION, phantom_blocks


def open_phantom(config: ImportConfig) -> Source:
    """Films of `config.phantom` at `config.size`, seeded with `config.seed`."""

    def records() -> Iterator[Record]:
        for images in phantom_blocks(config.phantom, size=config.size, seed=config.seed):
            for i in range(len(images)):
                name = str(images.image_id[i])
                labels = (CLASSES[int(images.labels[i].argmax())],)
                yield Record(name, images.pixels[i], name, labels, str(images.patient_id[i]))

    recipe = dataclasses.asdict(config.phantom) | {"size": config.size, "seed": config.seed, "version": VERSION}
    sha256 = text_sha256(json.dumps(recipe, sort_keys=True))
    num_films = int(np.sum([len(images) for images in phantom_blocks(config.phantom, size=32, seed=config.seed)]))
    return Source(
        kind="phantom",
        task="multiclass",
        classes=CLASSES,
        num_records=num_films,
        records=records,
        fingerprint=sha256,
        inputs={"phantom": sha256},
        notes=["The images are made up (the phantom): good for trying the pipeline, silent about any disease."],
    )


FORMAT = Format("phantom", "nothing: made-up chest films", lambda _: False, open_phantom)
