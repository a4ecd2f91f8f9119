"""The datasets that can be sharded: one adapter a file, one line here."""

from sharding.datasets.base import Adapter
from sharding.datasets.crowdhuman import CrowdHuman
from sharding.datasets.cuhk03 import Cuhk03
from sharding.datasets.cuhk_sysu import CuhkSysu
from sharding.datasets.ecp import EuroCityPersons
from sharding.datasets.luperson import LuPerson
from sharding.datasets.luperson_nl import LuPersonNl
from sharding.datasets.msmt17 import Msmt17
from sharding.datasets.posetrack21 import PoseTrack21
from sharding.datasets.prw import Prw

ADAPTERS: dict[str, Adapter] = {
    "crowdhuman": CrowdHuman(),
    "ecp": EuroCityPersons(),
    "msmt17": Msmt17(),
    "cuhk03": Cuhk03(),
    "luperson": LuPerson(),
    "luperson_nl": LuPersonNl(),
    "prw": Prw(),
    "cuhk_sysu": CuhkSysu(),
    "posetrack21": PoseTrack21(),
}
