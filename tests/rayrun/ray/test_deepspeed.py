"""Settings of DeepSpeed: derived from ours, and never overridden behind our back."""

import pytest

from rayrun.ray.deepspeed import DERIVED, refuse_derived, settings


def test_settings_follow_the_batch_arithmetic():
    found = settings(batch_size=96, micro_batch_size=8, workers=3, zero_stage=2, clip_norm=0.5)
    assert found["train_batch_size"] == 96
    assert found["train_micro_batch_size_per_gpu"] == 8
    assert found["gradient_accumulation_steps"] == 4
    assert found["gradient_clipping"] == 0.5
    assert found["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(
    ("offload", "expected"),
    [
        ("none", {"stage": 3}),
        ("optimizer", {"stage": 3, "offload_optimizer": {"device": "cpu"}}),
        (
            "parameters",
            {
                "stage": 3,
                "offload_optimizer": {"device": "cpu"},
                "offload_param": {"device": "cpu"},
            },
        ),
    ],
)
def test_offload_moves_the_optimizer_and_then_the_parameters(offload, expected):
    found = settings(batch_size=8, micro_batch_size=8, workers=1, zero_stage=3, offload=offload)
    assert found["zero_optimization"] == expected


def test_extra_settings_are_merged_key_by_key():
    extra = {"zero_optimization": {"reduce_bucket_size": 1000}, "comms_logger": {"enabled": True}}
    found = settings(batch_size=8, micro_batch_size=8, workers=1, zero_stage=1, extra=extra)
    assert found["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert found["comms_logger"] == {"enabled": True}
    assert extra["zero_optimization"] == {"reduce_bucket_size": 1000}


def nested(path):
    value = 1
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("key", DERIVED)
def test_a_derived_key_is_refused_with_the_setting_that_decides(key):
    with pytest.raises(
        ValueError, match=rf"deepspeed_extra\.{key} is derived from {DERIVED[key][:12]}"
    ):
        refuse_derived(nested(key))


def test_a_key_inside_a_derived_one_is_refused():
    with pytest.raises(
        ValueError, match=r"deepspeed_extra\.optimizer is derived from train\.optimizer; set that"
    ):
        settings(
            batch_size=8,
            micro_batch_size=8,
            workers=1,
            zero_stage=1,
            extra={"optimizer": {"type": "Adam"}},
        )
    with pytest.raises(ValueError, match=r"zero_optimization\.offload_optimizer is derived"):
        refuse_derived({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}})


def test_numbers_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError,
        match=r"batch_size \(10\) must be a multiple of workers × micro_batch_size \(2 × 4 = 8\)",
    ):
        settings(batch_size=10, micro_batch_size=4, workers=2, zero_stage=0)
