"""The summary of a model: real shapes, parameters and multiply-adds by closed forms."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from toy import assert_same

from base.base_model import count_parameters
from base.network.shapes import shape_text
from base.network.summary import summarise_model, table_rows
from base.system.seeding import capture_random_state


def rows_of(model, *inputs, **named):
    return summarise_model(model, lambda: model(*inputs, **named))


def row_of(model, name, *inputs, **named):
    return next(row for row in rows_of(model, *inputs, **named) if row.name == name)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.spare = nn.Linear(2, 2)

    def forward(self, images, flip=False):
        x = self.act(self.body(images))
        x = self.act(x)
        return {"scores": self.scale * self.head(self.act(x.mean((2, 3)))), "maps": [x, x]}


def test_a_row_for_each_layer_in_the_order_of_calls():
    rows = rows_of(Net(), torch.zeros(2, 1, 8, 6), flip=True)
    assert [(row.name, row.type, row.inputs, row.outputs, row.n_calls) for row in rows] == [
        ("", "Net", "2x1x8x6", "{scores: 2x3, maps: (2x4x6x4, 2x4x6x4)}", 1),
        ("body.0", "Conv2d", "2x1x8x6", "2x4x6x4", 1),
        ("body.1", "BatchNorm2d", "2x4x6x4", "2x4x6x4", 1),
        ("body.2", "Dropout", "2x4x6x4", "2x4x6x4", 1),
        ("act", "ReLU", "2x4x6x4", "2x4x6x4", 2),  # both calls of that shape
        ("act", "ReLU", "2x4", "2x4", 1),
        ("head", "Linear", "2x4", "2x3", 1),
        ("spare", "Linear", "not called", "-", 0),
    ]


def test_parameters_are_counted_once_and_add_up():
    model = Net()
    model.head.weight.requires_grad_(False)
    model.body[0].requires_grad_(False)
    model.spare.weight = model.head.weight  # shared
    rows = rows_of(model, torch.zeros(2, 1, 8, 6))
    assert {row.name: (row.n_parameters, row.n_trainable) for row in rows if row.n_parameters} == {
        "": (3, 3),
        "body.0": (40, 0),
        "body.1": (8, 8),
        "head": (15, 3),
        "spare": (2, 2),
    }
    assert sum(row.n_parameters for row in rows) == count_parameters(model)
    assert sum(row.n_trainable for row in rows) == count_parameters(model, trainable_only=True)


def test_the_table_has_a_head_the_layers_and_their_sums():
    model = Net()
    model.head.weight.requires_grad_(False)
    model.body[0].requires_grad_(False)
    table = table_rows(rows_of(model, torch.zeros(2, 1, 8, 6)))
    head = ("layer", "type", "input", "output", "parameters", "trainable", "multiply-adds")
    assert table[0] == head
    assert table[1][0] == "(model)"
    assert table[2] == ("body.0", "Conv2d", "2x1x8x6", "2x4x6x4", "40", "frozen", "1,728")
    assert table[3][4:] == ("8", "yes", "-")
    assert table[5] == ("act (x2)", "ReLU", "2x4x6x4", "2x4x6x4", "-", "-", "-")
    assert table[7][4:] == ("15", "partly", "24")
    assert table[-1] == ("total", "", "", "", "72", "partly", f"{2 * 4 * 9 * 6 * 4 + 2 * 12:,}")


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
        (nn.Linear(5, 7), (5,), 5 * 7),
        # batch x output positions x kernel x channels in (of a group) x channels out
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 9, 8), 2 * (5 * 4) * 9 * 2 * 6),
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 9, 8), (5 * 4) * 9 * 2 * 6),
        (nn.Conv1d(3, 5, 4, dilation=2), (2, 3, 11), 2 * 5 * 4 * 3 * 5),
        (nn.Conv3d(2, 3, (1, 2, 3)), (1, 2, 4, 4, 4), (4 * 3 * 2) * 6 * 2 * 3),
        # each input position meets the whole kernel
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 3), 2 * (5 * 3) * 9 * 4 * 3),
        (nn.ConvTranspose1d(4, 6, 5, 3, 1, 1), (2, 4, 5), 2 * 5 * 5 * 4 * 6),
        (nn.LSTM(8, 6, batch_first=True), (2, 5, 8), 2 * 5 * 4 * 6 * (8 + 6)),
        (nn.LSTM(8, 6, 2, bidirectional=True), (5, 2, 8), 2 * 2 * 5 * 4 * 6 * (8 + 6 + 12 + 6)),
        (nn.GRU(8, 6), (5, 2, 8), 2 * 5 * 3 * 6 * (8 + 6)),
        (nn.RNN(8, 6), (5, 2, 8), 2 * 5 * 6 * (8 + 6)),
        (nn.LSTMCell(8, 6), (2, 8), 2 * 4 * 6 * (8 + 6)),
        (nn.BatchNorm2d(4), (2, 4, 5, 5), 0),
        (nn.MaxPool2d(2), (2, 4, 5, 5), 0),
    ],
)
def test_multiply_adds_are_those_of_the_closed_form(layer, shape, expected, mode):
    with mode():
        (row,) = rows_of(layer, torch.zeros(*shape))
    assert row.multiply_adds == expected


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_attention_counts_its_projections_scores_and_sums(need_weights, mode):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    query, memory = torch.zeros(3, 5, 8), torch.zeros(3, 7, 8)
    with mode():
        row = row_of(attention, "", query, memory, memory, need_weights=need_weights)
        same = row_of(attention, "", query, query, query, need_weights=need_weights)
    projections = 3 * 8 * 8 * (5 + 7 + 7 + 5)
    assert row.multiply_adds == projections + 2 * (3 * 5 * 7 * 8)
    assert row.inputs == "3x5x8, 3x7x8, 3x7x8"
    assert same.multiply_adds == 3 * 8 * 8 * (4 * 5) + 2 * (3 * 5 * 5 * 8)


def test_fused_attention_with_another_width_of_values():
    class Attention(nn.Module):
        def forward(self, query, key, value):
            return F.scaled_dot_product_attention(query, key, value)

    inputs = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 6)
    assert row_of(Attention(), "", *inputs).multiply_adds == 2 * 3 * 5 * 7 * (4 + 6)
    inputs = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 4)
    assert row_of(Attention(), "", *inputs).multiply_adds == 2 * 3 * 5 * 7 * (4 + 4)


def test_what_a_kernel_of_cudnn_does_is_counted_as_well():
    lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, device="meta")

    class Cudnn(nn.Module):
        def forward(self, x):
            hidden = x.new_zeros(4, 2, 6)
            flat = [w for layer in lstm.all_weights for w in layer]
            settings = (2, 6, 0, 2, True, 0.0, False, True, [], None)
            return torch._cudnn_rnn(x, flat, 4, None, hidden, hidden, *settings)[0]

    row = row_of(Cudnn(), "", torch.zeros(2, 5, 8, device="meta"))
    assert row.multiply_adds == 2 * 2 * 5 * 4 * 6 * (8 + 6 + 12 + 6)


def test_what_a_module_computes_itself_is_its_own_and_not_that_of_layers_inside():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

        def forward(self, x):
            return self.inner(x) @ torch.zeros(2, 9)

    rows = rows_of(Mixed(), torch.zeros(3, 4))
    assert [(row.name, row.multiply_adds) for row in rows] == [
        ("", 3 * 2 * 9),
        ("inner.0", 3 * 4 * 4),
        ("inner.1", 3 * 4 * 2),
    ]


def test_calls_of_one_layer_at_one_shape_add_up():
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.spare = nn.GRUCell(4, 3), nn.LazyLinear(2)

        def forward(self, x):
            hidden = self.cell(x)
            for _ in range(4):
                hidden = self.cell(x, hidden)
            return hidden

    first, steps, spare = rows_of(Steps(), torch.zeros(2, 4))
    assert (first.inputs, first.n_calls, first.multiply_adds) == ("2x4", 1, 2 * 9 * (4 + 3))
    assert (steps.inputs, steps.n_calls, steps.multiply_adds) == ("2x4, 2x3", 4, 4 * 2 * 9 * 7)
    assert (spare.inputs, spare.n_parameters) == ("not called", 0)  # and nobody knows how many


def test_under_autocast_and_with_lazy_and_parametrised_layers():
    model = nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.LazyLinear(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = rows_of(model, torch.zeros(5, 4))
    assert row_of(model, "1", torch.zeros(5, 4)).type == "Linear"
    assert sum(row.multiply_adds for row in rows) == 5 * (12 + 6)
    assert sum(row.n_parameters for row in rows) == (12 + 3 + 3) + 8


def test_nothing_of_the_model_or_its_surroundings_is_changed():
    model = Net()
    model.act.eval()  # a frozen layer may have its own mode
    is_graded = []
    model.head.register_forward_hook(lambda *_: is_graded.append(torch.is_grad_enabled()))
    modes = [module.training for module in model.modules()]
    state, streams = copy.deepcopy(model.state_dict()), capture_random_state()
    summarise_model(model, lambda: model(torch.randn(2, 1, 8, 6)))
    assert [module.training for module in model.modules()] == modes
    assert_same(dict(model.state_dict()), dict(state))
    assert_same(capture_random_state(), streams)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()
    assert is_graded == [False]


def test_hooks_are_removed_also_after_an_error_and_an_error_inside_is_survived():
    class Brave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(2, 2)

        def forward(self, x):
            try:
                return self.first(x)
            except RuntimeError:
                return self.second(x)

    model = nn.Sequential(nn.Linear(2, 2), Brave(), nn.Linear(2, 1))
    model.theta = nn.Parameter(torch.zeros(1))
    rows = rows_of(model, torch.zeros(4, 2))
    assert [(row.name, row.outputs, row.multiply_adds) for row in rows] == [
        ("", "4x1", 0),
        ("0", "4x2", 16),
        ("1.first", "-", 0),
        ("1.second", "4x2", 16),
        ("2", "4x1", 8),
    ]
    with pytest.raises(RuntimeError, match="mat1"):
        rows_of(model, torch.zeros(4, 5))
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any(hooks)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_model_is_looked_into_as_well(compiled):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    if compiled:
        model.compile(backend="eager")
        model(torch.zeros(5, 4))
    rows = rows_of(model, torch.zeros(5, 4))
    assert [(row.name, row.multiply_adds) for row in rows] == [("0", 60), ("1", 0)]


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (torch.zeros(2, 3), "2x3"),
        (torch.zeros(()), "scalar"),
        (None, "-"),
        (7, "int"),
        ((torch.zeros(2), {"a": torch.zeros(3, 1)}), "(2, {a: 3x1})"),
        ([torch.zeros(2)] * 7, "(2, 2, 2, ... 7 in all)"),
        (pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)]), "(4x2, 3, -, -)"),
    ],
)
def test_shapes_in_nested_values(thing, text):
    assert shape_text(thing) == text


def test_nested_tensors_have_no_one_shape():
    assert shape_text(torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged)) == "nested"
