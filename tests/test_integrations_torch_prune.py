"""Masks to and from torch.nn.utils.prune: the same parameter objects, the same masks, nothing of the hook left."""

import copy

import pytest
import torch
from cases import bits_equal, generator, normal
from torch.nn.utils import prune

from dsd_kernels import MaskedSGD
from dsd_kernels.integrations.torch_prune import export_masks, import_masks


def network():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Flatten(), torch.nn.Linear(20, 7))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(p.numel())))
    return net


def pruned_network():
    net = network()
    prune.l1_unstructured(net[0], "weight", amount=0.4)
    prune.random_structured(net[2], "weight", amount=2, dim=0)
    prune.l1_unstructured(net[2], "weight", amount=0.3)  # over the first: a PruningContainer
    prune.l1_unstructured(net[2], "bias", amount=0.5)
    return net


def inputs():
    return normal(2 * 3 * 16, torch.float32).view(2, 3, 4, 4)


@pytest.mark.feature("Frameworks", "torch.nn.utils.prune: import of masks")
def test_import_leaves_a_plain_module_with_the_masked_weights_in_the_same_objects():
    net = pruned_network()
    owned = dict(net.named_parameters())
    expected = {"0.weight": net[0].weight_mask, "2.weight": net[2].weight_mask, "2.bias": net[2].bias_mask}
    output = net(inputs())

    masks = import_masks(net)
    assert not prune.is_pruned(net)
    assert not list(net.buffers())
    assert {name for name, _ in net.named_parameters()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, mask in expected.items():
        parameter = net.get_parameter(name)
        assert parameter is owned[f"{name}_orig"]
        assert masks.pop(parameter).equal(mask.bool())
    assert not masks
    assert torch.equal(net(inputs()), output)


def test_an_optimizer_made_before_pruning_goes_on_with_the_imported_masks():
    net = network()
    optimizer = MaskedSGD(net.parameters(), lr=0.1, momentum=0.9)
    prune.l1_unstructured(net[2], "weight", amount=0.5)
    optimizer.set_masks(import_masks(net))
    for _ in range(3):
        optimizer.zero_grad()
        net(inputs()).square().sum().backward()
        optimizer.step()
    assert [row.n_pruned for row in optimizer.verify().rows] == [70]
    assert optimizer.masks[net[2].weight].sum() == 70


def test_import_selects_where_torch_multiplies():
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[-1.0, torch.nan], [torch.inf, 2.0]])
    prune.custom_from_mask(layer, "weight", torch.tensor([[0, 0], [0, 1]]))
    import_masks(layer)
    assert bits_equal(layer.weight.detach(), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))


@pytest.mark.feature("Frameworks", "torch.nn.utils.prune: export of masks")
def test_export_shows_the_masks_to_torch_and_training_goes_on():
    net = network()
    optimizer = MaskedSGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.prune(0.5)
    weight, output = net[2].weight, net(inputs())
    export_masks(optimizer, net)
    assert prune.is_pruned(net[0])
    assert prune.is_pruned(net[2])
    assert net[2].weight_orig is weight
    assert net[2].weight_mask.bool().equal(optimizer.masks[weight])
    assert torch.equal(net(inputs()), output)
    net(inputs()).square().sum().backward()
    optimizer.step()
    assert torch.equal(net[2].weight_orig.detach() != 0, optimizer.masks[weight])
    prune.remove(net[2], "weight")
    assert net[2].weight is weight


def test_a_round_trip_changes_nothing():
    net = network()
    optimizer = MaskedSGD(net.parameters(), lr=0.1)
    optimizer.prune(0.5)
    before, weights = optimizer.masks, copy.deepcopy(net.state_dict())
    export_masks(optimizer, net)
    masks = import_masks(net)
    assert masks.keys() == before.keys()
    assert all(masks[p].equal(before[p]) for p in before)
    assert all(bits_equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


def test_a_shared_parameter_is_exported_under_every_name_and_imported_once():
    first, second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    second.weight = second.twin = first.weight
    net = torch.nn.Sequential(first, second)
    optimizer = MaskedSGD(net.parameters(), lr=0.1)
    optimizer.prune(0.5)
    export_masks(optimizer, net)
    for mask in (first.weight_mask, second.weight_mask, second.twin_mask):
        assert mask.bool().equal(optimizer.masks[first.weight_orig])
    assert list(import_masks(net)) == [first.weight]
    assert second.weight is second.twin is first.weight


def unequal_masks():
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight
    prune.custom_from_mask(first, "weight", torch.eye(4))
    prune.custom_from_mask(second, "weight", torch.ones(4, 4))
    return torch.nn.Sequential(first, second)


def fractional_mask():
    net = pruned_network()
    net[2].weight_mask[1, 1] = 0.5
    return net


BAD_MODELS = {
    "nothing is pruned": (network, "expected one with modules pruned by torch.nn.utils.prune, there is none"),
    "a mask of other values": (fractional_mask, r"expected a mask of zeros and ones, 2\.weight has other values"),
    "two masks of one parameter": (unequal_masks, r"1\.weight shares its parameter but not its mask"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_that_cannot_be_imported_is_left_alone(case):
    make, text = BAD_MODELS[case]
    net = make()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=f"model: .*{text}"):
        import_masks(net)
    assert all(bits_equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.state_dict().keys() == before.keys()


def test_what_cannot_be_exported_is_refused_and_changes_nothing():
    net, other = network(), network()
    optimizer = MaskedSGD([*net.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(ValueError, match="optimizer: expected one with masks, there is none"):
        export_masks(optimizer, net)
    optimizer.prune(0.5)
    with pytest.raises(ValueError, match="model: expected that of all masked parameters, 2 of 4 are not in it"):
        export_masks(optimizer, net)
    assert not prune.is_pruned(net)
    both = torch.nn.ModuleList([net, other])
    export_masks(optimizer, both)
    with pytest.raises(ValueError, match=r"expected one without torch.nn.utils.prune, 0\.0\.weight is under it"):
        export_masks(optimizer, both)
