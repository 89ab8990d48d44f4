"""The released order of SVRNN's weights, and FlowNet2-s."""

import functools

import jax
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model
from jaxdeblur.checkpoint import load_model
from jaxdeblur.cli import main
from jaxdeblur.interop import from_caffe, from_torch
from jaxdeblur.interop.files import load_arrays
from jaxdeblur.interop.svrnn import small_flownet_s_table


def seeded():
    arrays, facts = load_case("svrnn_flow", "case_a")
    return arrays, seeded_state_dict(facts)


@functools.cache
def jit_window():
    return jax.jit(functools.partial(create_model("svrnn").apply, method="restore_window"))


@pytest.mark.slow
def test_released_weights_give_what_they_give_on_transposed_pictures():
    """The other way to read the release: its blocks of weights put right, and pictures handed over transposed."""
    arrays, released = seeded()
    window = np.stack([arrays["image1"], arrays["image2"]], axis=1)[:, :, :, :64]

    put_right = dict(released)
    for name in ("conv_rnnw2", "conv_rnnw3", "conv_rnnw4"):
        for part in ("weight", "bias"):
            blocks = np.split(released[f"{name}.{part}"], 4)
            put_right[f"{name}.{part}"] = np.concatenate([blocks[i] for i in (0, 2, 1, 3)])
    transposed = jit_window()(from_torch("svrnn", put_right), window.swapaxes(2, 3))

    switched_off = {"rnn2_1.weight": np.zeros((24, 24)), "rnn2_1.bias": np.zeros(24)}
    old = {"conv1.bias": released["conv1.bias"].reshape(1, 1, 1, -1)}  # as files of old have it
    upright = jit_window()(from_caffe("svrnn", {**released, **switched_off, **old}), window)

    expected = np.asarray(transposed.restored).swapaxes(1, 2)
    np.testing.assert_allclose(upright.restored, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for found, flow in zip(upright.flows_cur_to_next, transposed.flows_cur_to_next, strict=True):
        expected = np.asarray(flow).swapaxes(1, 2)[..., ::-1]  # its first number is the vertical one
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    first, other = upright.recurred[0], transposed.recurred[0]
    for ours, theirs in enumerate((2, 3, 0, 1)):  # left to right here is top to bottom there
        block, its = (np.split(np.asarray(r.weights), 4, axis=-1) for r in (first, other))
        np.testing.assert_allclose(block[ours], its[theirs].swapaxes(1, 2), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_small_flownet_s_is_the_flow_network_inside():
    """Its layers make the same flows, five times smaller at a quarter, than those of SVRNN with pixels of their own."""
    arrays, weights = seeded()
    inside = {name: weights[name] for name in small_flownet_s_table({})}
    assert sum(array.size for array in inside.values()) == 5_462_674
    model = create_model("flownet2s_small")
    frames = arrays["image1"], arrays["image2"]
    mean = np.mean(np.stack(frames), axis=(0, 1, 2, 3))  # which this network subtracts and the other does not
    levels = jax.jit(functools.partial(model.apply, method="levels"))(from_torch("flownet2s_small", inside), *frames)
    window = np.stack([frame - mean for frame in frames], axis=1)
    outputs = jit_window()(from_torch("svrnn", weights), window)
    for level, flow in zip(levels, outputs.flows_cur_to_next, strict=True):
        np.testing.assert_allclose(level, flow, rtol=0, atol=2e-5 * np.abs(flow).max())

    # Caffe's sees blue first.
    from_blue = from_caffe("flownet2s_small", inside)
    flow_of_bgr = jax.jit(model.apply)(from_blue, *(frame[..., ::-1] for frame in frames))
    flow = jax.jit(model.apply)(from_torch("flownet2s_small", inside), *frames)
    np.testing.assert_allclose(flow_of_bgr, flow, rtol=0, atol=2e-5 * np.abs(flow).max())


@pytest.mark.slow
def test_converts_from_a_file(tmp_path, capsys):
    _, weights = seeded()
    np.savez(tmp_path / "svrnn.npz", **{name: array.astype(np.float32) for name, array in weights.items()})
    assert main(["convert", "svrnn", str(tmp_path / "svrnn.npz"), str(tmp_path / "out")]) == 0
    (tmp_path / "svrnn.pth").touch()
    assert main(["convert", "svrnn", str(tmp_path / "svrnn.pth"), str(tmp_path / "other")]) != 0
    assert "svrnn was released for Caffe: save its layers' blobs with numpy.savez" in capsys.readouterr().err
    model, variables = load_model(tmp_path / "out")
    assert model == create_model("svrnn")
    jax.tree.map(np.testing.assert_array_equal, variables, from_caffe("svrnn", weights))


def test_wrong_files_say_what_is_wrong(tmp_path, capsys):
    _, weights = seeded()
    del weights["conv1.bias"]
    weights["conv_rnnw2.weight"] = weights["conv_rnnw2.weight"][:80]
    with pytest.raises(ValueError, match=r"1 missing: conv1.bias\n1 of another shape: conv_rnnw2.weight"):
        from_caffe("svrnn", weights)
    for name, shape in (("conv_rnnw2.bias", (81,)), ("conv_rnne_2.weight", (48, 90, 5, 5)), ("conv1.weight", ())):
        with pytest.raises(ValueError, match=rf"1 of another shape: {name} \(expected floats"):
            from_caffe("svrnn", {**seeded()[1], name: np.zeros(shape)})
    with pytest.raises(ValueError, match="no Caffe weights are known for 'mtu2'; choose from svrnn, flownet2s_small"):
        from_caffe("mtu2", weights)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a.npz is no .npz file of arrays, or is damaged"):
        load_arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match=r"b.npz is no .npz file of arrays"):
        load_arrays(tmp_path / "b.npz")
