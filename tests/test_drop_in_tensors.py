"""Parameters and gradients that are no plain strided memory: sparse, DTensor, meta, fake."""

import pytest
import torch
import torch.distributed as dist
from cases import bits_equal, generator, normal
from torch._subclasses.fake_tensor import FakeTensorMode

from dsd_kernels import MaskedSGD


def train_embedding(optimizer, embedding, steps):
    for step in steps:
        optimizer.zero_grad()
        rows = torch.randint(6, (4,), generator=generator(step))
        embedding(rows).square().sum().backward()
        optimizer.step()


@pytest.mark.feature("Layouts", "sparse gradients, with momentum, with and without masks")
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_sparse_gradients_are_stepped_as_torch_does(momentum, masked):
    ours, theirs = torch.nn.Embedding(6, 4, sparse=True), torch.nn.Embedding(6, 4, sparse=True)
    theirs.load_state_dict(ours.state_dict())
    optimizer = MaskedSGD(ours.parameters(), lr=0.1, momentum=momentum)
    stock = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum)
    keep = normal(24, torch.float32, seed=2).view(6, 4) > 0 if masked else torch.ones(6, 4, dtype=torch.bool)
    if masked:
        optimizer.set_masks({ours.weight: keep})
    for step in range(4):
        with torch.no_grad():
            theirs.weight.copy_(torch.where(keep, theirs.weight, 0.0))
        train_embedding(optimizer, ours, [step])
        train_embedding(stock, theirs, [step])
        assert torch.equal(ours.weight, torch.where(keep, theirs.weight, 0.0))
        if masked and momentum:
            assert not optimizer.state[ours.weight]["momentum_buffer"][~keep].any()
            buffer = stock.state[theirs.weight]["momentum_buffer"].to_dense()
            stock.state[theirs.weight]["momentum_buffer"] = torch.where(keep, buffer, 0.0)
    optimizer.verify()


@pytest.mark.feature("Layouts", "pruning after sparse gradients with momentum")
def test_a_sparse_momentum_is_pruned_with_its_weights():
    embedding = torch.nn.Embedding(6, 4, sparse=True)
    optimizer = MaskedSGD(embedding.parameters(), lr=0.1, momentum=0.9)
    train_embedding(optimizer, embedding, range(2))
    optimizer.prune(0.5)
    optimizer.verify()
    train_embedding(optimizer, embedding, range(2, 4))
    assert optimizer.sparsity().masked == 0.5
    optimizer.verify()


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distributed_parameters(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    return [
        torch.nn.Parameter(distribute_tensor(normal(24, torch.float32, seed=i).view(6, 4), mesh, [Shard(0)]))
        for i in range(2)
    ]


@pytest.mark.feature("Layouts", "DTensor parameters, as torch steps them")
def test_dtensors_are_stepped_as_torch_does(mesh):
    ours, theirs = distributed_parameters(mesh), distributed_parameters(mesh)
    for params, optimizer in (
        (ours, MaskedSGD(ours, lr=0.1, momentum=0.9)),
        (theirs, torch.optim.SGD(theirs, lr=0.1, momentum=0.9, foreach=False)),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            sum((p * p).sum() for p in params).backward()
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert bits_equal(p.to_local().detach(), q.to_local().detach())


@pytest.mark.feature("Layouts", "DTensor parameters that are partial sums: masks and fused", answer="refused")
def test_what_dtensors_cannot_do_is_refused(mesh):
    from torch.distributed.tensor import DTensor, Partial

    p = torch.nn.Parameter(DTensor.from_local(torch.ones(6, 4), mesh, [Partial()]))
    optimizer = MaskedSGD([p], lr=0.1)
    for call in (lambda: optimizer.prune(0.5), lambda: optimizer.set_masks({p: torch.ones(6, 4, dtype=torch.bool)})):
        with pytest.raises(TypeError, match=r"expected a DTensor placed by Shard and Replicate, got .*Partial"):
            call()
    assert optimizer.masks == {}
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"fused=True does not support a DTensor placed by Partial"):
        MaskedSGD([p], lr=0.1, fused=True).step()


@pytest.mark.feature("Layouts", "meta and fake tensors")
def test_tensors_without_memory_are_stepped():
    p = torch.nn.Parameter(torch.ones(3, 4, device="meta"))
    p.grad = torch.ones(3, 4, device="meta")
    optimizer = MaskedSGD([p], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.step()
    with FakeTensorMode():
        layer = torch.nn.Linear(4, 3)
        optimizer = MaskedSGD(layer.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            layer(torch.ones(2, 4)).sum().backward()
            optimizer.step()
