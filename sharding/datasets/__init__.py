"""The datasets that can be sharded: one adapter a file, one line here."""

from sharding.datasets.base import Adapter
from sharding.datasets.crowdhuman import CrowdHuman
from sharding.datasets.msmt17 import Msmt17

ADAPTERS: dict[str, Adapter] = {
    "crowdhuman": CrowdHuman(),
    "msmt17": Msmt17(),
}
