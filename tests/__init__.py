"""Tests mirror common/; oracles hold slow twins, bench holds speed and memory."""
