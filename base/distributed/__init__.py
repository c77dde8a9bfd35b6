"""Several processes that train one model: the process group, agreement, reductions.

torchrun starts the processes, and torch.distributed connects them. Without torchrun there is one
process, `World` is alone in it, and nothing here imports torch.distributed.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.distributed.agreement import Agreement as Agreement
    from base.distributed.agreement import Kind as Kind
    from base.distributed.agreement import Message as Message
    from base.distributed.agreement import PeerError as PeerError
    from base.distributed.agreement import RankLostError as RankLostError
    from base.distributed.group import ALONE as ALONE
    from base.distributed.group import World as World
    from base.distributed.group import join_processes as join_processes
else:
    __getattr__, __all__ = lazy_imports(__name__)
