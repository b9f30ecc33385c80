"""PyTorch with attach
===================

A small net for handwritten digits, each rank on its share of them, and a second run that resumes from a checkpoint::

    mpirun -n 2 python -m mpi4py docs/examples/pytorch_digits.py --epochs 6 --checkpoint digits.pt
    mpirun -n 2 python -m mpi4py docs/examples/pytorch_digits.py --epochs 12 --checkpoint digits.pt --resume

Two lines differ from training in one process: the sampler, which gives each rank its samples, and `attach`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sfb
import sfb.torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=12, help="epochs in all, those before a checkpoint included")
parser.add_argument("--batch", type=int, default=16, help="samples of a rank in a step")
parser.add_argument("--checkpoint", type=Path, help="file to write after every epoch")
parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
parser.add_argument("--plot", metavar="FILE", help="draw the accuracy by epoch")
arguments = parser.parse_args()
if arguments.resume and arguments.checkpoint is None:
    parser.error("--resume needs --checkpoint")

world = MPI.COMM_WORLD
torch.set_num_threads(1)  # for ranks that fill the cores
torch.manual_seed(0)

images, labels = load_digits(return_X_y=True)
x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
held_out = torch.arange(len(x)) % 5 == 0
train = TensorDataset(x[~held_out], y[~held_out])

model = nn.Sequential(
    nn.Linear(64, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
loss_function = nn.CrossEntropyLoss()

begin = 0
if arguments.resume:
    saved = torch.load(arguments.checkpoint)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    begin = saved["epoch"]

sampler = DistributedSampler(train, num_replicas=world.size, rank=world.rank)  # one
loader = DataLoader(train, batch_size=arguments.batch, sampler=sampler)
comm = sfb.Comm(world, reproducible=True)  # the same bits in every run, at some cost; left out, speed decides
handle = sfb.torch.attach(model, optimizer, comm)  # two

accuracies = []
for epoch in range(begin, arguments.epochs):
    sampler.set_epoch(epoch)
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        optimizer.step()
    scheduler.step()

    model.eval()
    with torch.no_grad():
        accuracy = (model(x[held_out]).argmax(dim=1) == y[held_out]).float().mean()
    accuracies.append(float(accuracy))
    if world.rank == 0:
        print(f"epoch {epoch + 1}/{arguments.epochs}  accuracy {accuracy:.4f}", flush=True)
        if arguments.checkpoint is not None:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "scheduler": scheduler.state_dict(), "epoch": epoch + 1}, arguments.checkpoint)

if world.rank == 0:
    print(handle.explain())
    if arguments.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(begin + 1, arguments.epochs + 1), accuracies, "o-")
        axes.set(xlabel="epoch", ylabel="accuracy on samples held out")
        axes.grid(alpha=0.3)
        figure.savefig(arguments.plot, dpi=100)
handle.detach()

# sphinx_gallery_thumbnail_path = "examples/output/pytorch_digits.png"
