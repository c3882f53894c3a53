"""Vectors in the files of serving programs, as their readers take them."""

import base64
import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from frenet.methods.serving_layouts import save_served, served, usage
from frenet.methods.steering_vector import Advised, SteeringVector, load_vector

DIRECTION = torch.tensor([3.0, 0.0, -4.0])
# The stream is 8 long, so that dose 0.5 adds 4: 0.8 times the direction, whose norm is 5.
SCALE = 0.8
VECTOR = SteeringVector(
    {0: torch.ones(3), 2: DIRECTION, 3: torch.zeros(3)}, "by hand", "model", "data",
    norms={0: 2.0, 2: 8.0}, advised=Advised(2, 0.5),
)  # fmt: skip
SUFFIXES = {"llama.cpp": ".gguf", "easysteer": ".gguf", "hotwire": ".pt", "vllm-lens": ".json"}
layouts = pytest.mark.parametrize("layout", SUFFIXES)


def written(tmp_path, layout, **how):
    what = served(VECTOR, **how)
    return what, save_served(what, tmp_path / f"v{SUFFIXES[layout]}", layout)


def test_a_dose_is_a_scale_of_the_direction():
    what = served(VECTOR)
    assert (what.block, what.dose, what.scale) == (2, 0.5, SCALE)
    assert served(VECTOR, dose=-1.0).scale == pytest.approx(-1.6)
    assert served(VECTOR, block=0, dose=1.0).scale == pytest.approx(2 / 3**0.5)
    about = what.about()
    assert about["layers"] == {"2": "0-based index of the decoder layer"}
    assert (about["scale"], about["dose"], about["stream_norm"]) == (SCALE, 0.5, 8.0)
    assert about["operation"] == "h <- h + scale * vector"


def test_llama_cpp_gets_every_direction_and_the_flags_of_one_block(tmp_path):
    """Layer l of the flags is the 0-based block l, and tensor direction.l."""
    what, (path,) = written(tmp_path, "llama.cpp")
    again = load_vector(path)
    assert again.blocks == (2, 3)
    assert torch.equal(again.at(2), DIRECTION)
    assert (again.advised, again.norms) == (VECTOR.advised, VECTOR.norms)
    fields = GGUFReader(path).fields
    assert fields["frenet.operation"].contents() == "h <- h + scale * vector"
    assert fields["frenet.layers"].contents().startswith("direction.l belongs to decoder layer l")
    now, older = usage(what, path, "llama.cpp")
    assert f"{path}:0.8 --control-vector-layer-range 2 2" in now
    assert older.endswith(f"--control-vector-scaled {path} 0.8 --control-vector-layer-range 2 2")


def test_easysteer_gets_one_direction_and_a_spec(tmp_path):
    _, (path, spec) = written(tmp_path, "easysteer", block=0, dose=1.0, position="generated")
    reader = GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == {"direction.0"}
    np.testing.assert_array_equal(reader.tensors[0].data, np.ones(3, np.float32))
    about = json.loads(reader.fields["frenet.about"].contents())
    assert (about["layers"], about["position"]) == ({"0": about["layers"]["0"]}, "generated")
    (vector,) = json.loads(spec.read_text())["vectors"]
    assert (vector["source"], vector["algorithm"], vector["layers"]) == (str(path), "direct", [0])
    assert vector["scale"] == pytest.approx(2 / 3**0.5)
    assert vector["normalize"] is False
    assert vector["apply"] == {"prompt_positions": [-1], "generation": "all"}


def test_hotwire_gets_one_vector_whose_name_is_that_of_the_file(tmp_path):
    what, (path,) = written(tmp_path, "hotwire")
    found = torch.load(path, weights_only=True)
    first = next(value for value in found.values() if isinstance(value, torch.Tensor))
    assert torch.equal(first, DIRECTION)
    assert json.loads(found["about"])["dose"] == 0.5
    request = usage(what, path, "hotwire")[-1].removeprefix("vllm_xargs: ")
    spec = json.loads(json.loads(request)["hotwire"])
    assert spec == {"id": "v", "layer": 2, "scale": SCALE}


def test_vllm_lens_gets_activations_of_one_layer(tmp_path):
    _, (path,) = written(tmp_path, "vllm-lens")
    (vector,) = json.loads(path.read_text())
    data = base64.b64decode(vector["activations"]["data"])
    rows = np.frombuffer(data, vector["activations"]["dtype"])
    np.testing.assert_array_equal(rows.reshape(vector["activations"]["shape"]), DIRECTION[None])
    assert (vector["layer_indices"], vector["scale"], vector["norm_match"]) == ([2], SCALE, False)


@pytest.mark.parametrize(
    ("layout", "how", "words"),
    [
        ("llama.cpp", {"block": 0, "dose": 1.0}, "no direction for block 0; pass a later one"),
        ("llama.cpp", {"position": "generated"}, "cannot say --position generated"),
        ("hotwire", {"position": "generated"}, "pass --position all, or --layout easysteer"),
        ("vllm-lens", {"position": "generated"}, "adds a vector at every token"),
        ("hotwire", {"block": 3, "dose": 1.0}, "block 3 is zero"),
        ("hotwire", {"block": 0}, "no advised dose for block 0"),
        ("hotwire", {"block": 7}, "no direction for block 7"),
        ("hotwire", {"dose": float("nan")}, "is not finite"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path, layout, how, words):
    with pytest.raises(ValueError, match=words):
        written(tmp_path, layout, **how)
    assert not list(tmp_path.iterdir())


def test_several_blocks_without_advice_have_no_dose(tmp_path):
    bare = SteeringVector({1: DIRECTION, 2: DIRECTION}, "by hand", norms={1: 1.0})
    with pytest.raises(ValueError, match=r"several blocks \(1, 2\); pass one"):
        served(bare, dose=1.0)
    with pytest.raises(ValueError, match="the norm of the stream after block 2 is not known"):
        served(bare, block=2, dose=1.0)
    with pytest.raises(ValueError, match=r"does not end in \.pt"):
        save_served(served(bare, block=1, dose=1.0), tmp_path / "v.json", "hotwire")


def test_the_reader_of_hotwire_takes_the_file(tmp_path):
    """Of the package hotwire-vllm, which installs without a GPU and without vLLM."""
    state = pytest.importorskip("hotwire._state", reason="hotwire-vllm is not installed")
    what, (path,) = written(tmp_path, "hotwire")
    steer = state.SteerState(4, 3, 8, torch.device("cpu"), torch.float32, 2)
    steer.load_store(str(path))
    (entry,) = state.parse_spec(json.dumps({"id": "v", "layer": 2, "scale": what.scale}))
    slot = steer.slot_for(entry["id"], entry["layer"], entry["scale"])
    added = steer.bank.scales[slot] * steer.bank.bank[slot]
    torch.testing.assert_close(added, SCALE * DIRECTION)


def test_the_reader_of_vllm_lens_takes_the_file(tmp_path):
    """Its types import neither vLLM nor CUDA, but the package requires both."""
    types = pytest.importorskip("vllm_lens._helpers.types", reason="vllm-lens is not installed")
    _, (path,) = written(tmp_path, "vllm-lens")
    (given,) = json.loads(path.read_text())
    vector = types.SteeringVector.model_validate(given)
    assert vector.layer_index_map == {2: 0}
    torch.testing.assert_close(vector.scale * vector.activations[0], SCALE * DIRECTION)


def test_the_readers_of_easysteer_take_both_files(tmp_path):
    """Of its fork of vLLM, which requires CUDA: run where its sources are on the path."""
    api = pytest.importorskip("vllm.steer_vectors.api", reason="EasySteer is not installed")
    loading = pytest.importorskip(
        "vllm.steer_vectors.algorithms.loading", reason="EasySteer is not installed"
    )
    what, (path, spec) = written(tmp_path, "easysteer")
    found = loading.read_gguf_directions(str(path), "cpu", torch.float32)
    assert set(found) == {2}
    (vector,) = api.SteeringSpec.model_validate_json(spec.read_text()).vectors
    assert (vector.source, vector.layers) == (str(path), [2])
    torch.testing.assert_close(vector.scale * found[2], SCALE * DIRECTION)
    assert vector.scale == what.scale


@layouts
def test_every_layout_has_a_line_that_says_how_it_is_used(tmp_path, layout):
    what, paths = written(tmp_path, layout)
    lines = usage(what, paths[0], layout)
    assert all("\n" not in line for line in lines)
    assert any("v." in line or '"id' in line for line in lines)
    with pytest.raises(ValueError, match="rename it"):
        usage(what, tmp_path / "a,b.gguf", "llama.cpp")
