"""Several ranks on this machine, forked from a clean server that has imported everything once.

Forks of the test process itself would inherit the locks and threads of every test before (DALI's,
TensorBoard's), and crash on them.
"""

import importlib.util
import inspect
import multiprocessing
import os
import socket
import traceback

import torch
import torch.distributed as dist


def on_ranks(world, work, folder, *args, group=False):
    """What `work(*args)` returns on each rank, in rank order; an exception comes back as itself.

    The environment is that of a launcher. group: make the process group (gloo) for `work`, too.
    """
    if "<locals>" in work.__qualname__:  # cannot be named to a server, and needs no second rank
        folder.mkdir(parents=True, exist_ok=True)
        return [_forked(work, folder / "rank0.pt", _free_port())]
    ranks = started(world, work, folder, *args, group=group)
    for process in ranks:
        process.join()
    codes = [process.exitcode for process in ranks]
    assert codes == [0] * world, codes
    return results(world, folder)


def started(world, work, folder, *args, group=False):
    """The processes of `on_ranks`, at work; see `results`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    # by file: the name of its module may be that of the host's own package `tests`
    named = (inspect.getfile(work), work.__name__)
    server = multiprocessing.get_context("forkserver")
    late = ["torch.utils.tensorboard", "pytest"]  # else each rank would import them
    server.set_forkserver_preload(
        ["ressl_plugin.train.pretrain", "ressl_plugin.method.ressl", *late]
    )
    ranks = [
        server.Process(
            target=_child, args=(r, world, port, named, folder / f"rank{r}.pt", args, group)
        )
        for r in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def results(world, folder):
    """What each rank's work has returned; None of one that did not get as far."""
    files = [folder / f"rank{r}.pt" for r in range(world)]
    return [torch.load(f, weights_only=False) if f.exists() else None for f in files]


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _forked(work, file, port):
    pid = os.fork()
    if pid == 0:
        # not its own: active_children() would name those of the tests before
        multiprocessing.process._children.clear()
        _child(0, 1, port, work, file, (), False)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return torch.load(file, weights_only=False)


def _function(file, name):
    spec = importlib.util.spec_from_file_location("work_of_a_rank", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _child(rank, world, port, work, file, args, group):
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    ranks = {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "RANK": str(rank)}
    os.environ.update(**launcher, **(ranks if world > 1 else {}))
    torch.set_num_threads(1)
    code = 1
    try:
        if group:
            dist.init_process_group("gloo", rank=rank, world_size=world)
        try:
            work = _function(*work) if isinstance(work, tuple) else work
            result = work(*args)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            traceback.print_exc()
            result = error
        torch.save(result, file)
        code = 0
    finally:
        os._exit(code)
