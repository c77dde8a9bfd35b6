"""An error of shape in forward names the layer, what it was given and what would fit."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from base import BaseModel
from base.errors import TrainingError
from base.network.new_layers import forbid_new_layers
from base.network.output_sizes import SamePadConv2d
from base.network.shape_errors import explain_shape_errors


class Net(BaseModel):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def told(model, *inputs, error=TrainingError, **named):
    """The text of the error that the model's forward ends in."""
    with pytest.raises(error) as caught, explain_shape_errors(model):
        model(*inputs, **named)
    assert type(caught.value) is error
    return str(caught.value)


def images(*shape):
    return torch.zeros(shape)


IDS = torch.tensor([[1, 5]])


@pytest.mark.parametrize(
    ("layer", "given", "text", "fitting_layer", "fitting_input"),
    [
        (nn.Linear(100, 10), images(2, 7), "must be 100, not 7; what would fit: in_features",
         nn.Linear(7, 10), images(2, 7)),
        (nn.Linear(144, 10), images(2, 4, 6, 6), "must be 144, not 6; what would fit: x.fla",
         nn.Linear(144, 10), images(2, 4, 6, 6).flatten(1)),
        (nn.Linear(100, 10), images(2, 4, 6, 6), "in_features=6, or in_features=144 after",
         nn.Linear(144, 10), images(2, 4, 6, 6).flatten(1)),
        (nn.Conv2d(3, 4, 3), images(2, 1, 8, 8), "dimension 1 must be 3, not 1; what would",
         nn.Conv2d(1, 4, 3), images(2, 1, 8, 8)),
        (nn.Conv2d(3, 4, 3), images(2, 8, 9, 3), "x.movedim(-1, 1) if its channels come last",
         nn.Conv2d(3, 4, 3), images(2, 8, 9, 3).movedim(-1, 1)),
        (nn.Conv2d(1, 4, 3), images(2, 8, 9), "must be 1, not 2; what would fit: x.unsqueeze",
         nn.Conv2d(1, 4, 3), images(2, 8, 9).unsqueeze(1)),
        (nn.Conv1d(1, 4, 3), images(2, 1, 8, 9), "it takes (batch, channel, length)",
         nn.Conv1d(1, 4, 3), images(2, 1, 8)),
        (nn.Conv2d(1, 4, 5, padding=1), images(2, 1, 2, 9), "size 2 is too small, at least 3",
         nn.Conv2d(1, 4, 5, padding=1), images(2, 1, 3, 9)),
        (nn.ConvTranspose2d(1, 4, 2, padding=3), images(2, 1, 2, 9), "2 is too small, at lea",
         nn.ConvTranspose2d(1, 4, 2, padding=3), images(2, 1, 6, 9)),
        (nn.ConvTranspose2d(8, 4, 2), images(2, 3, 2, 9), "what would fit: in_channels=3",
         nn.ConvTranspose2d(3, 4, 2), images(2, 3, 2, 9)),
        (nn.MaxPool2d(3, 2), images(2, 1, 2, 9), "size 2 is too small, at least 3 is needed",
         nn.MaxPool2d(3, 2), images(2, 1, 3, 9)),
        (nn.AvgPool1d(4, ceil_mode=True), images(2, 1, 0), "0 is too small, at least 1 is n",
         nn.AvgPool1d(4, ceil_mode=True), images(2, 1, 1)),
        (nn.LPPool2d(2, 3), images(2, 1, 2, 9), "size 2 is too small, at least 3 is needed",
         nn.LPPool2d(2, 3), images(2, 1, 3, 9)),
        (nn.BatchNorm2d(8), images(2, 4, 6, 6), "dimension 1 must be 8, not 4; what would f",
         nn.BatchNorm2d(4), images(2, 4, 6, 6)),
        (nn.GroupNorm(2, 8), images(2, 4, 6, 6), "what would fit: num_channels=4",
         nn.GroupNorm(2, 4), images(2, 4, 6, 6)),
        (nn.Embedding(5, 4), IDS, "from 0 to 4, but are from 1 to 5; what would fit: num_embe",
         nn.Embedding(6, 4), IDS),
        (nn.LSTM(5, 4), images(2, 3, 7), "dimension 2 must be 5, not 7; what would fit: inp",
         nn.LSTM(7, 4), images(2, 3, 7)),
        (nn.GRUCell(5, 4), images(2, 7), "dimension 1 must be 5, not 7; what would fit: inp",
         nn.GRUCell(7, 4), images(2, 7)),
    ],
)  # fmt: skip
def test_a_layer_is_told_by_name_with_what_it_got_and_what_fits(
    layer, given, text, fitting_layer, fitting_input
):
    told_text = told(Net(body=nn.Sequential(nn.Identity(), layer)), given)
    shape = "x".join(map(str, given.shape))
    assert told_text.startswith(f"body.1: {layer} was given {shape}: ")
    assert text in told_text.splitlines()[0]
    assert re.search(r"\n  \w*(Error): \w", told_text), "torch's own words are lost"
    fitting_layer(fitting_input)  # the advice holds


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.BatchNorm2d(8), (2, 8), "expected 4D input"),
        (nn.BatchNorm2d(8), (1, 8, 1, 1), "more than 1 value per channel"),
        (nn.BatchNorm1d(8), (8,), "expected 2D or 3D input"),
        (nn.Conv2d(1, 1, 5, padding="valid"), (1, 1, 3, 3), "Kernel size can't be greater"),
        (nn.LayerNorm(8), (2, 4), r"expected input with shape \[\*, 8\]"),
        (nn.Unflatten(1, (2, 3)), (2, 7), "Provided sizes"),
        (nn.Conv2d(1, 1, 3, padding=4, padding_mode="reflect"), (1, 1, 3, 3), "Padding size"),
        (SamePadConv2d(1, 1, 9, 2, padding_mode="reflect"), (1, 1, 3, 3), "Padding size"),
        (nn.Embedding(5, 4), None, "index out of range"),
        (nn.PixelShuffle(2), (1, 3, 4, 4), "pixel_shuffle"),
    ],
)
def test_where_torch_says_it_well_the_layer_and_its_input_are_added(layer, shape, words):
    given = torch.tensor([[-1]]) if shape is None else images(*shape)
    text = told(Net(odd=layer), given)
    assert text.startswith(f"odd: {layer} was given {'x'.join(map(str, given.shape))}")
    assert re.search(words, text)
    assert "what would fit" not in text


class Skip(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 1)

    def forward(self, x):
        y = self.narrow(x)
        return y + self.wide(x)  # of two sizes


def test_between_layers_the_module_the_line_its_tensors_and_the_last_layer_are_told():
    lines = told(Net(block=Skip()), images(2, 1, 8, 8)).split("\n  ")
    assert lines[0] == "block: Skip was given 2x1x8x8"
    place = r"in network/test_shape_errors.py:\d+: return y \+ self.wide\(x\)  # of two sizes "
    assert re.fullmatch(place + r"\(x: 2x1x8x8, y: 2x4x6x6\)", lines[1])
    assert lines[2] == "the layer before was block.wide, which returned 2x4x8x8"
    assert lines[3].startswith("RuntimeError: The size of tensor a (6) must match the size of")


def test_the_line_of_your_forward_is_told_for_a_layer_and_none_where_there_is_none():
    assert "test_shape_errors.py:" in told(Net(head=nn.Linear(4, 3)), images(2, 5))
    text = told(nn.Sequential(nn.Linear(5, 4), nn.Linear(3, 2)), images(2, 5))
    assert text.startswith("1: Linear(in_features=3, ")
    assert [line.split()[0] for line in text.splitlines()] == ["1:", "the", "RuntimeError:"]


def test_unpacking_a_shape_is_told_of_the_model_itself():
    class Unpack(BaseModel):
        def forward(self, x):
            batch, channels, height, width = x.shape
            return x.view(batch, channels, height * width)

    text = told(Unpack(), x=images(2, 7))
    assert text.startswith("(model): Unpack() was given x: 2x7\n  in network/test_shape_errors.py:")


@pytest.mark.parametrize("after", [nn.Linear(4, 2), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)])
def test_a_layer_after_one_that_gives_a_tuple_is_told(after):
    lines = told(Net(rnn=nn.GRU(3, 4), head=after), images(5, 2, 3)).splitlines()
    assert lines[0] == f"head: {after!r} was given (5x2x4, 1x2x4)"
    assert "  the layer before was rnn, which returned (5x2x4, 1x2x4)" in lines


def test_a_layer_that_takes_more_than_one_input_is_told():
    text = told(Net(mix=nn.MultiheadAttention(4, 1)), images(2, 3, 4))
    assert text.startswith("mix: MultiheadAttention was given 2x3x4\n")
    assert "missing 2 required positional arguments: 'key' and 'value'" in text


def test_attention_told_by_its_assertions():
    text = told(nn.TransformerEncoderLayer(8, 2, 16), images(2, 4, 6))
    assert text.startswith("self_attn: MultiheadAttention was given 2x4x6, 2x4x6, 2x4x6: dimensi")
    assert "embed_dim=6" in text


def test_through_checkpointed_layers_lazy_layers_and_in_inference_and_autocast():
    class Checkpointed(Net):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    model = Checkpointed(body=nn.LazyLinear(3), head=nn.Linear(4, 2))
    for context in (nullcontext(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            assert told(model, images(2, 5)).startswith("head: Linear(in_features=4, ")
    lazy = told(Net(body=nn.LazyConv2d(3, 3)), images(2, 4))
    assert "it takes (batch, channel, height, width)" in lazy


class Fails(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected all tensors to be on the same device, but found cpu and cuda:0"),
        RuntimeError("mat1 and mat2 must have the same dtype, but got Double and Float"),
        RuntimeError("CUDA error: device-side assert triggered"),
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8 GiB; "
            "if reserved memory is large try PYTORCH_ALLOC_CONF=expandable_segments:True"
        ),
        ValueError("invalid literal for int() with base 10: 'a'"),
        IndexError("list index out of range"),
        AssertionError(),
        KeyError("size"),
        TypeError("unsupported operand type(s) for +: 'int' and 'str'"),
        AttributeError("'Net' object has no attribute 'sizes'"),
        TrainingError("the size of it"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not_about_shapes_passes_unchanged(error):
    model = Net(stem=nn.Linear(2, 2), body=Fails(error))
    with pytest.raises(type(error)) as caught, explain_shape_errors(model):
        model(images(2, 2))
    assert caught.value is error


def test_a_wrong_type_or_device_passes_unchanged_although_a_layer_raises_it():
    told(Net(head=nn.Linear(2, 2)), images(2, 2).double(), error=RuntimeError)
    told(Net(head=SamePadConv2d(1, 1, 5)), images(1, 1, 1, 1).double(), error=RuntimeError)
    told(Net(head=nn.Linear(2, 2)), images(2, 2).to("meta"), error=RuntimeError)
    bag = nn.EmbeddingBag(2, 2, device="meta")  # indices elsewhere cannot always be read
    text = told(Net(head=bag), IDS.to("meta", torch.int16), error=RuntimeError)
    assert "long or int" in text


def test_errors_outside_of_the_model_pass_unchanged():
    model, loss = Net(head=nn.Linear(2, 3)), nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="mat1") as caught, explain_shape_errors(model):
        loss(model(images(5, 2)))
    assert type(caught.value) is RuntimeError


def test_an_error_that_the_model_catches_is_none():
    class Brave(Net):
        def forward(self, x):
            try:
                return self.first(x)
            except RuntimeError:
                return self.second(x)

    model = Brave(first=nn.Linear(3, 3), second=nn.Linear(2, 2))
    with explain_shape_errors(model):
        assert model(images(4, 2)).shape == (4, 2)
    assert told(model, images(4, 5)).startswith("second: Linear(in_features=2")


def test_nothing_is_left_behind():
    model = Net(head=nn.Linear(2, 3))
    with explain_shape_errors(model):
        model(images(5, 2))
        assert torch_module._global_forward_hooks
        assert not model.head._forward_hooks  # which would change how torch computes some layers
    assert not torch_module._global_forward_hooks
    told(model, images(5, 4))
    assert not torch_module._global_forward_hooks


@pytest.mark.parametrize("outer", [forbid_new_layers, explain_shape_errors])
def test_with_the_guard_against_layers_made_in_forward(outer):
    class Late(Net):
        def forward(self, x):
            return nn.Linear(7, 2)(self.head(x))

    inner = ({forbid_new_layers, explain_shape_errors} - {outer}).pop()

    def text_of(model, x):
        with pytest.raises(TrainingError) as caught, outer(model), inner(model):
            model(x)
        return str(caught.value)

    late = text_of(Late(head=nn.Linear(2, 3)), images(5, 2))
    assert late.startswith(
        "Linear(in_features=7, out_features=2, bias=True) is created in Late.forw"
    )
    assert text_of(Net(head=nn.Linear(2, 3)), images(5, 4)).startswith("head: Linear(in_features=2")


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_model_is_left_alone(whole):
    model = Net(head=nn.Linear(2, 3))
    compiled = model if whole else model.head
    compiled.compile(backend="eager")
    with explain_shape_errors(model):
        assert model(images(5, 2)).shape == (5, 3)
        assert not torch_module._global_forward_hooks
    with pytest.raises(RuntimeError, match=r"linear|mat1"), explain_shape_errors(model):
        model(images(5, 4))
    wrapped = torch.compile(Net(head=nn.Linear(2, 3)), backend="eager")
    with explain_shape_errors(wrapped):
        assert not torch_module._global_forward_hooks
