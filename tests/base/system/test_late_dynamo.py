"""torch._dynamo is not imported by a run that compiles nothing, and is there for one that does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

TRAIN = """
import sys, torch
from base.system.late_dynamo import LateDynamo, put_off_dynamo

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


def test_training_does_not_import_it_and_gives_the_same_weights() -> None:
    run("""
late = train(put_off=True)[1]
assert not is_there()
vars(torch)["_dynamo"]._import()
assert is_there() and not isinstance(sys.modules["torch._dynamo"], LateDynamo)
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
assert train(put_off=True)[1] and not isinstance(torch._dynamo, LateDynamo)
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
