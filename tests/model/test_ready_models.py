"""The ready models keep what they promise, at the smallest and the oddest sizes they take."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

from base.errors import TrainingError
from base.names.registry import find
from base.network.patterns import match_parameters
from base.network.shape_errors import explain_shape_errors
from model.gan import DCGANDiscriminator, DCGANGenerator
from model.model import MLP, DigitsNet, LeNet, MnistModel, SmallCNN
from model.resnet import ResidualBlock, ResNet, ResNet9
from model.transformer import TransformerClassifier
from model.unet import UNet

SIZES = (8, 16, 32, 64)
NORMS = ("batch", "layer", "none")

# name: how it is made, the shape of an input, the shape of an output
CLASSIFIERS = {
    "DigitsNet": (DigitsNet, (1, 8, 8), (10,)),
    "SmallCNN": (SmallCNN, (3, 32, 32), (10,)),
    "SmallCNN, three stages, wide images": (partial(SmallCNN, 1, 4, 4, 3), (1, 7, 18), (4,)),
    "SmallCNN, no stage": (partial(SmallCNN, 2, 3, 4, 0), (2, 5, 4), (3,)),
    "ResNet of 8 layers": (partial(ResNet, 1, width=4, depth=8), (1, 8, 8), (10,)),
    "ResNet of 14 layers": (partial(ResNet, depth=14, width=4), (3, 32, 32), (10,)),
    "ResNet, own stages, high images": (partial(ResNet, 2, 5, blocks=[1, 3]), (2, 17, 9), (5,)),
    "ResNet9": (partial(ResNet9, width=4), (3, 32, 32), (10,)),
    "ResNet9, wide images": (partial(ResNet9, 1, 3, 2), (1, 8, 19), (3,)),
    "TransformerClassifier": (TransformerClassifier, (1, 8, 8), (10,)),
    "TransformerClassifier, wide images": (
        partial(TransformerClassifier, [6, 8], [3, 2], 2, 7, width=12, depth=2, n_heads=3),
        (2, 6, 8),
        (7,),
    ),
}
UNETS = {
    "UNet": (UNet, (1, 16, 16), (1, 16, 16)),
    "UNet, odd sizes": (partial(UNet, 3, 5, 4, 3), (3, 13, 23), (5, 13, 23)),
    "UNet, the smallest image": (partial(UNet, 2, 2, 4, 2), (2, 4, 5), (2, 4, 5)),
    "UNet, not deep": (partial(UNet, 1, 3, 4, 0), (1, 3, 2), (3, 3, 2)),
}
GENERATORS = {
    f"DCGANGenerator of {size}, {norm}": (
        partial(DCGANGenerator, 5, 4, size, 3, norm),
        (5,),
        (3, size, size),
    )
    for size in SIZES
    for norm in NORMS
}
DISCRIMINATORS = {
    f"DCGANDiscriminator of {size}, {norm}": (
        partial(DCGANDiscriminator, 4, size, 3, norm),
        (3, size, size),
        (),
    )
    for size in SIZES
    for norm in NORMS
}
SMALL = {
    "DigitsNet, wide": (partial(DigitsNet, 8, 3, 0.5), (1, 8, 8), (3,)),
    "LeNet": (partial(LeNet, 6), (1, 28, 28), (6,)),
    "MnistModel": (MnistModel, (1, 28, 28), (10,)),
    "MLP": (partial(MLP, 12, [8, 6], 5, 0.2), (3, 4), (5,)),
    "MLP, linear": (partial(MLP, 12, [], 2), (12,), (2,)),
}
READY = {**CLASSIFIERS, **UNETS, **GENERATORS, **DISCRIMINATORS, **SMALL}


@pytest.fixture(params=READY)
def ready(request):
    torch.manual_seed(0)
    make, shape, output_shape = READY[request.param]
    return make, torch.randn(6, *shape), output_shape


NETWORKS = [LeNet, SmallCNN, DigitsNet, ResNet, UNet, DCGANGenerator, DCGANDiscriminator]


@pytest.mark.parametrize("cls", [*NETWORKS, TransformerClassifier])
def test_a_config_can_name_it(cls):
    assert find("model", cls.__name__) is cls


def test_the_output_has_the_promised_shape(ready):
    make, inputs, output_shape = ready
    output = make()(inputs)
    assert output.shape == (6, *output_shape)
    assert output.isfinite().all()


def test_the_backward_pass_reaches_every_parameter(ready):
    make, inputs, _ = ready
    model = make()
    output = model(inputs)
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_file_of_its_weights_makes_another_one_the_same(ready, tmp_path):
    make, inputs, _ = ready
    model, other = make(), make()
    for _ in range(2):
        model(inputs)  # moves running statistics, which are weights too
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.eval()(inputs).equal(model.eval()(inputs))


def test_a_copy_is_equal_and_apart(ready):
    make, inputs, _ = ready
    model = make().eval()
    before = model(inputs)
    other = copy.deepcopy(model)
    assert other(inputs).equal(before)
    for parameter in other.parameters():
        nn.init.constant_(parameter, 0.01)
    assert model(inputs).equal(before)


def test_in_evaluation_a_sample_has_one_output_whatever_is_beside_it(ready):
    make, inputs, _ = ready
    model = make()
    model(inputs)
    model.eval()
    together, again = model(inputs), model(inputs)
    assert together.equal(again)
    alone = torch.cat([model(each[None]) for each in inputs])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_activations_in_place_change_no_number(ready):
    make, inputs, _ = ready
    model = make().eval()  # without dropout
    in_place = copy.deepcopy(model)
    for module in in_place.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
    results = []
    for each in (model, in_place):
        output = each(inputs)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in each.parameters())])
    assert all(ours.equal(theirs) for ours, theirs in zip(*results, strict=True))


IMAGES = torch.zeros(2, 3, 12, 12)
WRONG = {
    "LeNet, size": (lambda: LeNet()(torch.zeros(2, 1, 32, 32)),
     "takes images of shape (batch, 1, 28, 28)"),
    "LeNet, channels": (lambda: LeNet()(torch.zeros(2, 3, 28, 28)), "not (2, 3, 28, 28)"),
    "SmallCNN, channels": (lambda: SmallCNN(1)(IMAGES), "(batch, 1, height, width), not (2, 3, 12"),
    "SmallCNN, rows": (lambda: SmallCNN(3)(IMAGES[:, :, 0]), "not (2, 3, 12)"),
    "ResNet, channels": (
        lambda: ResNet(1, depth=8)(IMAGES),
        "ResNet takes images of shape (batch, 1,",
    ),
    "ResNet, depth": (lambda: ResNet(depth=18), "depth must be 6n + 2 (8, 14, 20, 32, 56), not 18"),
    "ResNet, no depth": (lambda: ResNet(depth=2), "not 2; or set blocks"),
    "ResNet, an empty stage": (lambda: ResNet(blocks=[2, 0]), "such as [2, 2], not [2, 0]"),
    "ResNet, no stage": (lambda: ResNet(blocks=[]), "such as [2, 2], not []"),
    "UNet, size": (
        lambda: UNet(3)(IMAGES[..., :7]),
        "of size 8x8 or more, not 12x7: reduce its depth",
    ),
    "UNet, channels": (lambda: UNet(1)(IMAGES), "UNet takes images of shape (batch, 1, height"),
    "generator, size": (lambda: DCGANGenerator(image_size=28), "8, 16, 32 or 64, not 28"),
    "generator, norm": (lambda: DCGANGenerator(norm="bath"), "batch, layer, none, not 'bath'"),
    "generator, noise": (lambda: DCGANGenerator(9)(torch.zeros(2, 8)), "(batch, 9), not (2, 8)"),
    "generator, images": (lambda: DCGANGenerator(3)(IMAGES), "not (2, 3, 12, 12)"),
    "discriminator, made for": (lambda: DCGANDiscriminator(image_size=4), "64, not 4"),
    "discriminator, size": (lambda: DCGANDiscriminator(channels=3)(IMAGES), "(batch, 3, 8, 8)"),
    "discriminator, norm": (lambda: DCGANDiscriminator(norm="off"), "not 'off'"),
    "transformer, patches": (
        lambda: TransformerClassifier(8, 3),
        "patches of size 3 do not tile images of 8",
    ),
    "transformer, one side": (lambda: TransformerClassifier([8, 9], 2), "do not tile images of [8"),
    "transformer, heads": (lambda: TransformerClassifier(width=30), "a multiple of n_heads, 4"),
    "transformer, size": (lambda: TransformerClassifier([8, 12])(torch.zeros(2, 1, 12, 8)),
     "(batch, 1, 8, 12), not (2, 1, 12, 8)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_size_is_told(case):
    do, text = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        do()


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(LeNet(), (1, 8, 8)), (UNet(), (1, 7, 9)), (DCGANGenerator(), (8,)), (SmallCNN(), (1, 8, 8))],
)
def test_a_wrong_size_ends_a_run_without_a_traceback(model, inputs):
    with pytest.raises(TrainingError, match=type(model).__name__), explain_shape_errors(model):
        model(torch.zeros(2, *inputs))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_layer_order_has_each_parameter_once_and_follows_the_forward_pass(name):
    make, shape, _ = CLASSIFIERS[name]
    model = make()
    layers = [match_parameters(model, pattern) for pattern in model.layer_order]
    places = {each: number for number, names in enumerate(layers) for each in names}
    assert sum(map(len, layers)) == len(places)
    assert places.keys() == dict(model.named_parameters()).keys()

    called = []
    for module_name, module in model.named_modules():
        for parameter, _ in module.named_parameters(module_name, recurse=False):
            module.register_forward_hook(
                lambda *_, place=places[parameter], is_whole=module is model: (
                    None if is_whole else called.append(place)
                )
            )
    model(torch.zeros(2, *shape))
    assert called == sorted(called)
    assert set(called) == set(range(len(layers)))


def test_the_digits_network_has_the_weights_and_outputs_it_always_had():
    def block(n_in, n_out, stride):
        conv = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(n_out), nn.ReLU()]

    torch.manual_seed(3)
    model, images = DigitsNet(width=6, n_classes=4, dropout=0.3), torch.rand(5, 1, 8, 8)
    torch.manual_seed(3)
    by_hand = nn.Sequential(
        *(*block(1, 6, 1), *block(6, 12, 2), *block(12, 12, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(12, 4)),
    )
    ours, theirs = model.state_dict(), by_hand.state_dict()
    assert [*ours][:2] == ["stem.conv.weight", "stem.norm.weight"]
    assert [*ours][-2:] == ["head.weight", "head.bias"]
    assert all(a.equal(b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    torch.manual_seed(4)
    output = model(images)
    torch.manual_seed(4)
    torch.testing.assert_close(output, by_hand(images))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_a_resnet_is_as_deep_and_as_large_as_in_the_paper(depth, millions):  # its table 6
    model = ResNet(3, 10, depth)
    kinds = [nn.Conv2d, nn.Linear]
    assert len(model.find({"type": [kind.__name__ for kind in kinds]})) == depth
    assert round(model.n_parameters() / 1e6, 2) == millions


def test_a_residual_block_whose_last_norm_is_zero_passes_its_input():
    x = torch.rand(2, 3, 5, 6)  # not negative, as what a block before gives
    for block in (ResidualBlock(3, 3), ResidualBlock(3, 5, stride=2)):
        nn.init.ones_(block.norm1.bias)  # else that norm at zero would silence the second too
        nn.init.zeros_(block.get_submodule(ResidualBlock.last_norm).weight)
        output = block(x)
        assert output[:, :3].equal(x[:, :, :: block.stride, :: block.stride])
        assert not output[:, 3:].any()


def test_a_unet_hands_details_past_the_way_down():
    model = UNet(1, 1, 4, 2).eval()
    nn.init.zeros_(model.up[-1].up.weight)  # nothing comes from below
    images = torch.rand(1, 1, 9, 9, requires_grad=True)
    model(images)[0, 0, 4, 4].backward()
    seen = images.grad[0, 0].nonzero()
    assert seen.min() == 0  # four 3x3 convolutions at full size see 9x9 pixels
    assert seen.max() == 8


def test_a_unet_sees_far_through_its_depth():
    model = UNet(1, 1, 4, 2).eval()
    images = torch.rand(1, 1, 33, 33, requires_grad=True)
    model(images)[0, 0, 16, 16].backward()
    assert (images.grad[0, 0].nonzero() - 16).abs().max() > 8


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cls", [DCGANGenerator, DCGANDiscriminator])
def test_dcgan_weights_are_drawn_as_in_the_paper(cls, norm):
    model = cls(width=32, image_size=32, channels=3, norm=norm)
    torch.manual_seed(1)
    model.init_weights()
    n_norms = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            mean, count = 0, module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            mean, count = 1, module.weight.numel()
            n_norms += 1
        else:
            continue
        if module.bias is not None:
            assert not module.bias.any()
        weight = module.weight.detach()
        assert abs(weight.mean() - mean) < 4 * 0.02 / count**0.5
        assert abs(weight.std() / 0.02 - 1) < 4 / (2 * count) ** 0.5
    # 32x32 images are three doublings from 4x4; the layer that sees them has no norm.
    assert n_norms == {"none": 0}.get(norm, 3 if cls is DCGANGenerator else 2)

    first = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    model.init_weights()
    assert all(value.equal(first[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
def test_a_critic_without_batchnorm_scores_each_image_by_itself(norm):
    torch.manual_seed(0)
    critic = DCGANDiscriminator(norm=norm)
    images = torch.randn(4, 1, 8, 8)
    alone = torch.cat([critic(each[None]) for each in images])
    assert torch.allclose(critic(images), alone, atol=1e-6) == (norm != "batch")


def test_generated_images_are_between_minus_one_and_one():
    model = DCGANGenerator(norm="none")
    nn.init.constant_(model.to_image.weight, 100)
    images = model(torch.randn(8, 64))
    assert images.min() >= -1
    assert images.max() <= 1


def test_a_transformer_tells_patches_apart_by_their_position_alone():
    torch.manual_seed(0)
    model = TransformerClassifier([4, 8], 4, width=8, depth=2).eval()
    images = torch.randn(3, 1, 4, 8)
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=3)
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    nn.init.zeros_(model.position)
    torch.testing.assert_close(model(images), model(swapped), rtol=1e-4, atol=1e-5)
