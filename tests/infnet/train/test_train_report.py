from infnet.train.report import even


def test_a_short_window_after_an_evaluation_is_drawn_with_the_next():
    records = [(20, 1.0), (23, 0.5), (40, 0.9), (43, 0.1), (60, 0.8)]
    drawn = even(records)
    assert [step for step, _ in drawn] == [20, 40, 60]
    assert drawn[1][1] == (3 * 0.5 + 17 * 0.9) / 20
    assert drawn[2][1] == (3 * 0.1 + 17 * 0.8) / 20


def test_no_step_is_lost_at_the_end_of_a_curve():
    assert even([(20, 1.0), (22, 0.5)]) == [(20, 1.0), (22, 0.5)]
    assert even([]) == []
