"""A run that is killed without warning goes on by itself, and ends in the same weights."""

from tests.train.kills import trial


def test_killed_runs_end_in_the_same_weights(tmp_path):
    """In the middle of a save, and at any moment. `python -m tests.train.kills`: 20 times."""
    told = trial(tmp_path, ranks=1, kills=2, seed=0)
    assert any("left step-" in line for line in told), "no kill has hit a save"
