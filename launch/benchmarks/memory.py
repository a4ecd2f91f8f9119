"""Memory of a worker as it meets the largest images. Workers import this module, so it imports little."""

from pathlib import Path

from launch.benchmarks.bench import Bench
from launch.benchmarks.measure import Row, exactly, peak_bytes
from launch.benchmarks.releases import HUGE_NAMES
from sharding.cluster import Cluster
from sharding.prepare import DECODE_BYTES
from sharding.writer import ShardJob, ShardResult, TooLarge, write_shard

MOST_MB = 600


def memory_rows(bench: Bench, cluster: Cluster) -> list[Row]:
    """Of its one worker: after a shard of crops and one of scenes, then with each of HUGE_NAMES."""
    huge = {_name(job): job for job in bench.huge().jobs()}
    usual = [next(bench.crops().jobs()), next(bench.scenes("full").jobs())]
    jobs = [*usual, *(huge[name] for name in HUGE_NAMES)]
    done = [next(cluster.map(_write_and_weigh, [job])) for job in jobs]
    needs = [result.needed for result, _ in done if isinstance(result, TooLarge)]
    names = ("usual", *HUGE_NAMES)
    return [
        *(
            Row(f"peak memory of a worker, {name}", exactly(peak / 1e6), "MB", MOST_MB, "lower")
            for name, (_, peak) in zip(names, done[1:], strict=True)
        ),
        Row("asked for instead of taken", exactly(sum(needs) / 1e6), "MB", DECODE_BYTES / 1e6),
    ]


def _name(job: ShardJob) -> str:
    return Path(job.shard.samples[0].source.origin).stem


def _write_and_weigh(job: ShardJob) -> tuple[ShardResult | TooLarge, int]:
    return write_shard(job), peak_bytes()
