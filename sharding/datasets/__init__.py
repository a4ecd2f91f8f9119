"""The datasets that can be sharded: one adapter a file, one line here."""

from sharding.datasets.base import Adapter
from sharding.datasets.crowdhuman import CrowdHuman
from sharding.datasets.cuhk03 import Cuhk03
from sharding.datasets.ecp import EuroCityPersons
from sharding.datasets.luperson import LuPerson
from sharding.datasets.msmt17 import Msmt17

ADAPTERS: dict[str, Adapter] = {
    "crowdhuman": CrowdHuman(),
    "ecp": EuroCityPersons(),
    "msmt17": Msmt17(),
    "cuhk03": Cuhk03(),
    "luperson": LuPerson(),
}
