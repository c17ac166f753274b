"""The voting networks of Spiking Emotions' Table I, by the names of its rows."""

from __future__ import annotations

from knarr.train.networks.spiking_emotions import SpikingEmotionsSettings

TABLE_I = {
    "LIF": SpikingEmotionsSettings(neuron="lif"),
    "PLIF": SpikingEmotionsSettings(),
    "PLIF, V_th 0.8": SpikingEmotionsSettings(v_th=0.8),
    "PLIF, V_th 0.4": SpikingEmotionsSettings(v_th=0.4),
    "PLIF, V_th 0.4, max-pool": SpikingEmotionsSettings(v_th=0.4, pool="max"),
    "pureSNN": SpikingEmotionsSettings(v_th=0.4, pure_spike=True),
}
