from giblet.config.schema import TelemetryConfig
from giblet.launch.hang import HangWatch
from giblet.training.heartbeat import Beat, Heartbeat, read_beat


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def watch():
    clock = Clock()
    return HangWatch(TelemetryConfig(hang_seconds=10.0, save_hang_seconds=40.0), clock), clock


def beats(**phases):
    return {rank: Beat(phase, 5, 1, 0, count) for rank, (phase, count) in enumerate(phases.values())}


def pass_time(watch, clock, seconds, found):
    for _ in range(int(seconds)):
        clock.now += 1.0
        if (told := watch.late(found)) is not None:
            return told
    return None


def test_no_beat_for_longer_than_allowed_is_a_hang_and_names_the_rank():
    seen, clock = watch()
    found = beats(a=("train", 1), b=("train", 1))
    assert pass_time(seen, clock, 10, found) is None
    for count in range(2, 8):  # rank 0 goes on, rank 1 does not
        told = pass_time(seen, clock, 1, beats(a=("train", count), b=("train", 1)))
        if told:
            break
    assert "rank 1 gave no sign of life for 11 s (10 allowed), phase train, after step 5" in told


def test_reading_and_writing_a_checkpoint_may_take_longer():
    for phase in ("start", "save"):
        seen, clock = watch()
        found = beats(a=(phase, 1))
        assert pass_time(seen, clock, 40, found) is None
        assert pass_time(seen, clock, 5, found) is not None


def test_a_validation_that_moves_is_no_hang():
    seen, clock = watch()
    for count in range(30):
        assert pass_time(seen, clock, 5, beats(a=("validate", count))) is None


def test_time_in_which_the_launcher_stood_still_counts_for_nothing():
    seen, clock = watch()
    found = beats(a=("train", 1))
    pass_time(seen, clock, 5, found)
    clock.now += 3600
    assert pass_time(seen, clock, 4, found) is None
    assert pass_time(seen, clock, 4, found) is not None


def test_a_beat_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "beat"
    assert read_beat(path) is None
    heart = Heartbeat(path)
    assert read_beat(path) == Beat()
    heart.started(3, 120)
    heart.beat("train", 123456)
    heart.beat("save")
    assert read_beat(path) == Beat("save", 123456, 3, 120, 3)
    path.write_bytes(b'{"phase": "tra')
    assert read_beat(path) is None
    Heartbeat().beat("train", 1)  # without a path: nothing
