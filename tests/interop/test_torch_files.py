import pickle
import sys
import types

import numpy as np
import pytest

from jaxdeblur.interop.files import load_torch_file


class RunsCode:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "jaxdeblur\[convert\]"'):
        load_torch_file(tmp_path / "weights.pth")


def stand_in(load):
    """As much of PyTorch as opening a file takes, so that our part is tested where it is not installed."""

    class Tensor(np.ndarray):
        def is_floating_point(self):
            return self.dtype.kind == "f"

        def float(self):
            return self.astype(np.float32)

        def detach(self):
            return self

        def numpy(self):
            return np.asarray(self)

    module = types.SimpleNamespace(load=load, is_tensor=lambda value: isinstance(value, Tensor))
    return module, lambda value: np.asarray(value).view(Tensor)


def test_only_restricted_unpickling_is_ever_asked_for(tmp_path, monkeypatch):
    calls = []
    module, tensor = stand_in(lambda file, **options: calls.append(options) or {"a": tensor(np.ones(2))})
    monkeypatch.setitem(sys.modules, "torch", module)
    (tmp_path / "weights.pth").write_bytes(b"")
    assert load_torch_file(tmp_path / "weights.pth")["a"].dtype == np.float32
    assert calls == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (pickle.UnpicklingError("Unsupported global"), "could run code"),
        (KeyError(101), "no PyTorch checkpoint"),
    ],
)
def test_whatever_fails_inside_names_the_file(tmp_path, monkeypatch, error, message):
    def load(file, **options):
        raise error

    monkeypatch.setitem(sys.modules, "torch", stand_in(load)[0])
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"weights\.pth .*{message}"):
        load_torch_file(tmp_path / "weights.pth")


@pytest.mark.parametrize("wrap", [("state_dict",), ("params",), ("params", "state_dict"), ()])
def test_wrapping_is_taken_off(tmp_path, wrap):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: convert)")
    content = {"a.weight": torch.ones(2, 3), "a.steps": torch.zeros((), dtype=torch.int64)}
    content["b.bias"] = torch.full((2,), 1.5, dtype=torch.bfloat16)
    for key in wrap:
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "weights.pth")
    arrays = load_torch_file(tmp_path / "weights.pth")
    assert {key: (value.dtype, value.shape) for key, value in arrays.items()} == {
        "a.weight": (np.float32, (2, 3)),
        "a.steps": (np.int64, ()),
        "b.bias": (np.float32, (2,)),
    }
    np.testing.assert_array_equal(arrays["b.bias"], [1.5, 1.5])


def test_files_that_hold_something_else_are_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: convert)")
    path = tmp_path / "weights.pth"

    torch.save({"state_dict": RunsCode()}, path)
    with pytest.raises(ValueError, match=r"weights\.pth was not loaded: .*could run code"):
        load_torch_file(path)
    assert capsys.readouterr().out == ""

    whole = {"a.weight": torch.ones(100)}
    torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_torch_file(path)

    for content in (b"", b"hello there"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no PyTorch checkpoint"):
            load_torch_file(path)

    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"holds \[1, 2\] where a state_dict"):
        load_torch_file(path)

    torch.save({"a.weight": torch.ones(1), "epoch": 3}, path)
    with pytest.raises(ValueError, match="no tensors: epoch"):
        load_torch_file(path)


def test_a_missing_file_is_named(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed (extra: convert)")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_torch_file(tmp_path / "nowhere.pth")
