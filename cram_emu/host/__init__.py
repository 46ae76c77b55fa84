"""The host: memory under a limit, and the manager that decides where its cold pages go."""

from cram_emu.host.memcg import Memcg, MemcgStats
from cram_emu.host.memory import ManagedMemory, Place
from cram_emu.host.nodes import Driver, Node, NodeStats
from cram_emu.host.zswap import PoolClass, Zswap, ZswapStats

__all__ = [
    "Driver",
    "ManagedMemory",
    "Memcg",
    "MemcgStats",
    "Node",
    "NodeStats",
    "Place",
    "PoolClass",
    "Zswap",
    "ZswapStats",
]
