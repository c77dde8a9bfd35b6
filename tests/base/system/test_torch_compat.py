"""Each workaround of torch does what it is for, and is deleted once torch does not need it.

A test named ``..._is_still_needed`` fails with the first supported torch that needs no workaround.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from base.system.torch_compat import (
    WorkerDeaths,
    WorkerDied,
    begin_momentum,
    call_to_compile,
    keep_freed_memory,
)

ROOT = Path(__file__).resolve().parents[3]

# --- torch._dynamo, imported late -----------------------------------------------------------------

TRAIN = """
import sys, torch
from base.system.torch_compat import _LateDynamo, put_off_dynamo

def is_there():
    return "torch._dynamo.eval_frame" in sys.modules

def train(put_off):
    if put_off:
        put_off_dynamo()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(5, 4)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer, [p.detach().clone() for p in model.parameters()]
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_late_import_is_still_needed() -> None:
    run("""
assert not is_there()
train(put_off=False)
assert is_there(), "an optimizer no longer imports torch._dynamo: delete put_off_dynamo"
""")


def test_training_does_not_import_it_and_gives_the_same_weights() -> None:
    run("""
late = train(put_off=True)[1]
assert not is_there()
vars(torch)["_dynamo"]._import()
assert is_there() and not isinstance(sys.modules["torch._dynamo"], _LateDynamo)
plain = train(put_off=False)[1]
assert all(torch.equal(a, b) for a, b in zip(late, plain))
""")


def test_the_compiler_finds_it_and_leaves_torch_s_marked_methods_alone() -> None:
    run("""
optimizer, _ = train(put_off=True)
held = torch._dynamo
graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph

model = torch.nn.Linear(4, 2)
compiled = torch.compile(model, backend=backend)
x = torch.ones(3, 4)
assert torch.equal(compiled(x), model(x)) and len(graphs) == 1
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo is not held
assert held.config is torch._dynamo.config  # whoever holds the stand-in sees the real one
marked = type(optimizer).zero_grad.__wrapped__
assert "__dynamo_disable" not in vars(marked)
optimizer.zero_grad()
assert vars(marked)["__dynamo_disable"] is not marked
assert train(put_off=True)[1] and not isinstance(torch._dynamo, _LateDynamo)
""")


def test_submodules_and_names_of_it_can_be_imported() -> None:
    run("""
train(put_off=True)
import torch._dynamo.utils
assert torch._dynamo.utils is torch._dynamo.utils and is_there()
""")
    run("""
train(put_off=True)
from torch._dynamo import OptimizedModule
from torch import _dynamo
assert is_there() and _dynamo.OptimizedModule is OptimizedModule
""")


def test_who_looks_through_all_modules_does_not_import_it() -> None:
    run("""
import inspect, warnings
train(put_off=True)
inspect.getmodule(inspect.currentframe())
inspect.stack()
assert [getattr(module, "__warningregistry__", None) for module in list(sys.modules.values())]
assert not is_there()
""")


TORCHVISION = """
from base.system.torch_compat import dynamo_is_imported
if PUT_OFF:
    put_off_dynamo()
import torchvision.datasets, torchvision.models
from torchvision import tv_tensors
from torchvision.ops import roi_align
from torchvision.transforms import v2

image = tv_tensors.Image(torch.arange(192.0).reshape(3, 8, 8))
flip = v2.RandomHorizontalFlip(1.0)
boxes = torch.tensor([[0, 0, 0, 4.0, 4.0]])

def results():
    flipped = flip(image)
    assert type(flipped) is tv_tensors.Image and torch.equal(flipped, image.flip(-1))
    return roi_align(image[None, :1].as_subclass(torch.Tensor), boxes, 2)
"""


def test_torchvision_s_import_still_needs_it() -> None:
    run("PUT_OFF = False" + TORCHVISION + "assert is_there(), 'delete _LateUtils'")


def test_torchvision_s_models_data_and_transforms_do_not_import_it() -> None:
    run(f"""
PUT_OFF = True
{TORCHVISION}
before = results()
torchvision.models.resnet18(num_classes=2)(torch.zeros(2, 3, 32, 32))
assert not is_there() and not dynamo_is_imported()
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False) and is_there()
import torch._dynamo.utils
assert torch._dynamo.utils.is_compile_supported("cpu") == is_compile_supported("cpu")
assert torch.equal(before, results())
""")


def test_compiled_code_calls_what_torchvision_excludes_as_with_the_real_import() -> None:
    counts = """
graphs = []

def backend(graph, inputs):
    graphs.append([node.op for node in graph.graph.nodes])
    return graph

compiled = torch.compile(lambda x: tv_tensors.wrap(x + 1, like=image) * 2, backend=backend)
found = compiled(torch.ones(3, 8, 8))
assert torch.equal(found, torch.full((3, 8, 8), 4.0)), found
assert graphs == GRAPHS, graphs
results()
"""
    # The wrapped call breaks the graph: x + 1 before it, * 2 after it.
    parts = "['placeholder', 'call_function', 'output'], ['placeholder', 'call_method', 'output']"
    for put_off in (False, True):
        run(f"PUT_OFF = {put_off}{TORCHVISION}GRAPHS = [{parts}]{counts}")


# --- The death of a worker ------------------------------------------------------------------------


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A loop of torch's DataLoader with one worker and torch's own handler of SIGCHLD."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    loop = iter(DataLoader(list(range(100)), num_workers=1))
    next(loop)
    yield loop
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    loop._shutdown_workers()
    signal.signal(signal.SIGCHLD, before)


def wait_and_kill(loop: Any) -> None:
    """Do something else while the worker dies; fail if nothing interrupts it."""
    os.kill(loop._workers[0].pid, signal.SIGKILL)
    for _ in range(100):
        time.sleep(0.01)
    pytest.fail("nothing was raised here")


def test_the_handler_of_worker_deaths_is_still_needed(loop: Any) -> None:
    # Where torch no longer raises it anywhere, delete WorkerDeaths.
    with pytest.raises(RuntimeError, match="is killed by signal"):
        wait_and_kill(loop)


def test_a_death_is_raised_where_a_batch_is_waited_for_and_only_once(loop: Any) -> None:
    deaths = WorkerDeaths()
    deaths.replace_handler()
    with pytest.raises(pytest.fail.Exception, match="nothing was raised"):
        wait_and_kill(loop)
    with pytest.raises(WorkerDied, match="is killed by signal"), deaths.raised():
        pytest.fail("it came before the block, so the block is not entered")
    with deaths.raised():
        pass


def test_a_death_in_the_block_interrupts_it(loop: Any) -> None:
    deaths = WorkerDeaths()
    deaths.replace_handler()
    with pytest.raises(WorkerDied, match="is killed by signal"), deaths.raised():
        wait_and_kill(loop)


# --- The cache of autocast ------------------------------------------------------------------------


def test_the_switch_of_autocasts_cache_is_still_needed() -> None:
    (oldest,) = re.findall(r"^torch>=(\d+)\.(\d+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert tuple(map(int, oldest)) < (2, 11), "every torch has a right cache: delete AUTOCAST_CACHE"


# --- Compiled layers of torch ---------------------------------------------------------------------


def test_a_compiled_network_of_torchs_own_layers_has_a_graph() -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    torch.compile(call_to_compile(network), backend=backend)(torch.randn(4, 3))
    assert len(graphs) == 1


def test_the_call_to_compile_is_still_needed() -> None:
    (oldest,) = re.findall(r"^torch>=(\d+)\.(\d+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert tuple(map(int, oldest)) < (2, 14), "torch enters its own layers: delete call_to_compile"


# --- Freed memory ---------------------------------------------------------------------------------

STEPS = """
import resource, sys
import torch
from base.system.torch_compat import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory(torch.device("cpu"))

def step():
    parts = [torch.zeros(n) for n in (4_000_000, 10_000_000, 2_000_000)]
    return sum(float(part[-1]) for part in parts)

for _ in range(4):  # until the pieces have found their places, whatever was imported before
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_keeping_freed_memory_is_still_needed_and_makes_pages_once() -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", STEPS, how], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("kept") < faults("given back") / 10


def test_other_devices_keep_their_memory_themselves() -> None:
    assert not keep_freed_memory(torch.device("cuda"))


def late(fused: bool, helped: bool = False, **options: Any) -> list[torch.Tensor]:
    """Train two parameters, one of them from the third step on."""
    first, second = (torch.nn.Parameter(torch.arange(3.0) + n) for n in range(2))
    optimizer = torch.optim.SGD([first, second], lr=0.1, momentum=0.9, fused=fused, **options)
    for step in range(5):
        (first.square().sum() + (second.pow(3).sum() if step > 1 else 0)).backward()
        if helped:
            begin_momentum(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return [first.detach(), second.detach()]


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"weight_decay": 0.1, "dampening": 0.5}]
)
def test_the_momentum_of_fused_sgd_may_begin_late(options: dict[str, Any]) -> None:
    torch.testing.assert_close(late(True, helped=True, **options), late(False, **options))


def test_beginning_momentum_is_still_needed() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        late(True)
