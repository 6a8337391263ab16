"""Several ranks on this machine: forks of this process, so that nothing is imported again."""

import os
import socket
import traceback

import torch
import torch.distributed as dist


def on_ranks(world, work, folder, *args, group=False):
    """What `work(*args)` returns on each rank, in rank order; an exception comes back as itself.

    The environment is that of a launcher. group: make the process group (gloo) for `work`, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _child(rank, world, port, work, folder / f"rank{rank}.pt", args, group)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * world, codes
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(world)]


def _child(rank, world, port, work, file, args, group):
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    ranks = {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "RANK": str(rank)}
    os.environ.update(**launcher, **(ranks if world > 1 else {}))
    code = 1
    try:
        if group:
            dist.init_process_group("gloo", rank=rank, world_size=world)
        try:
            result = work(*args)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            traceback.print_exc()
            result = error
        torch.save(result, file)
        code = 0
    finally:
        os._exit(code)
