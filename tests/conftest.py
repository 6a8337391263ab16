"""Shared by all tests: one thread a process keeps parallel workers from fighting over two cores."""

import torch

torch.set_num_threads(1)
