from jaxdeblur.training import loop


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_line_says_how_much_of_the_time_there_was_no_batch(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(loop.time, "monotonic", clock)
    with loop._Line(60, 0, show=True) as line:
        for step, waited_s, worked_s in ((20, 1.0, 3.0), (40, 0.0, 4.0)):
            for _ in range(2):
                with line.waiting():
                    clock.now += waited_s
                clock.now += worked_s
            pace = line.advance(step, 16, {"loss_total": 0.5})
            line.say(step, {"loss_total": 0.5}, pace)
            clock.now += 50.0  # a validation, which is nobody's waiting
            line.resume()
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "2.0 images/s  25% waiting for input" in first
    assert "2.0 images/s  0% waiting for input" in second


def test_no_time_is_left_where_a_batch_ends_beyond_the_last_step(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(loop.time, "monotonic", clock)
    with loop._Line(10, 0, show=True) as line:
        for step in (6, 9, 12):
            clock.now += 3.0
            line.say(step, {"loss_total": 0.5}, line.advance(step, 3, {"loss_total": 0.5}))
    printed = capsys.readouterr().out.strip().splitlines()
    assert [text.rpartition("  ")[2] for text in printed[1:]] == ["0:01 left", "0:00 left"]
