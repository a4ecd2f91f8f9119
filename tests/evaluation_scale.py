"""Time that a search takes at the size of PRW, on random detections: python -m tests.evaluation_scale"""

import time

import numpy as np

from training.evaluation.found import Detections, starts
from training.evaluation.search import Queries, Search

IMAGES, QUERIES, WIDTH = 6112, 2057, 256


def main() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 14, IMAGES)
    total = int(counts.sum())
    embeddings = rng.normal(size=(total, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    corners = rng.uniform(0, 1500, (total, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(40, 300, (total, 2))], 1)
    scores = rng.uniform(0.5, 1, total).astype(np.float32)
    found = Detections(starts(counts), boxes, scores, embeddings)
    own = rng.integers(0, IMAGES, QUERIES)
    places = [
        np.setdiff1d(rng.choice(IMAGES, rng.integers(5, 60), replace=False), [one]) for one in own
    ]
    image = np.concatenate(places)
    everything = np.arange(IMAGES)
    queries = Queries(
        embeddings[:QUERIES],
        lambda query: everything[everything != own[query]],
        np.repeat(np.arange(QUERIES), [len(one) for one in places]),
        image,
        boxes[found.first[image]],
    )
    began = time.process_time()
    result = Search(found, queries, weigh=True).result()
    seconds = time.process_time() - began
    print(
        f"{QUERIES:,} queries, {total:,} detections in {IMAGES:,} images: {seconds:.1f} s of processor time, "
        f"found at {result.recall:.0%} of {result.places.sum():,} places"
    )


if __name__ == "__main__":
    main()
