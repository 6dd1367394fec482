"""One member of an all-reduce by PyTorch's gloo: rank, members, megabytes, port. Reduces at each line of input."""

import os
import sys
import time

# Gloo itself talks on standard output.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch
import torch.distributed as dist

rank, members, megabytes, port = map(int, sys.argv[1:])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=members)
values = torch.ones(megabytes * 1_000_000 // 4)
dist.all_reduce(values)
print("ready", file=answers, flush=True)
for _ in sys.stdin:
    values.fill_(1.0)
    begun = time.perf_counter()
    dist.all_reduce(values)
    print(time.perf_counter() - begun, file=answers, flush=True)
