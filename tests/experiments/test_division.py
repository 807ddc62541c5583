"""How evenly the work of a GPU is divided, by the tables that its kernels read."""

import pytest

from experiments import division
from pallas_kernels.attention.kernel import kernel_for

H100 = kernel_for("hopper", "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(("frames", "busiest"), [(600, 1.15), (2_048, 1.06), (10_000, 1.01)])
def test_a_decoding_step_reads_hardly_more_than_its_keys_and_leaves_few_partial_results(frames, busiest):
    found = division.decoding(H100, frames)
    assert found["tiles"] <= 1.1 and found["busiest"] <= busiest and found["partials_mb"] <= 1, found


@pytest.mark.parametrize("frames", division.TIMESTAMPS)
def test_timestamps_fill_the_waves_of_a_device(frames):
    found = division.timestamps(H100, frames)
    assert found["waves"] >= 0.97 and found["busy"] >= 0.95, found
