"""A teacher and a student: functions that return torch modules."""

import norse.torch as snn
import torch
from torch import nn


def teacher(input_shape, classes):
    steps, sensors = input_shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(steps * sensors, 32), nn.ReLU(), nn.Linear(32, classes)
    )


def student(input_shape, classes, dt_s, hidden=32):
    lif = snn.LIFBoxParameters(tau_mem_inv=torch.tensor(200.0), v_th=torch.tensor(0.1))
    readout = snn.LIBoxParameters(tau_mem_inv=torch.tensor(100.0))
    return snn.SequentialState(
        nn.Linear(*input_shape, hidden),
        snn.LIFBoxCell(lif, dt=dt_s),
        nn.Linear(hidden, classes, bias=False),
        snn.LIBoxCell(readout, dt=dt_s),
    )
