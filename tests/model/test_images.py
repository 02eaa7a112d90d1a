"""Prompts with images, on tiny random checkpoints, against transformers; and that no way through the engine changes their bits."""

from __future__ import annotations

import numpy as np
import pytest
from family_models_hybrid import ROWS as HYBRID
from family_models_vision import ROWS as VISION_ROWS
from family_parity import F32_BOUND, Row, engine, log_softmax, margins, reference, written_once
from image_prompts import IMAGE, Prompt, finish, greedy, prompt, reference_logits, with_images

from lynx_rt import _C, UnsupportedModelError, ValidationError

# Towers of odd sizes, with and without deepstack.
TOWERS = [
    {"depth": 2, "deepstack_visual_indexes": [0, 1]},
    {"depth": 3, "hidden_size": 40, "num_heads": 2, "deepstack_visual_indexes": [2]},
    {"depth": 1, "hidden_size": 72, "num_heads": 1, "intermediate_size": 33, "deepstack_visual_indexes": []},
    {"depth": 2, "patch_size": 3, "temporal_patch_size": 1, "deepstack_visual_indexes": [1]},
    {"depth": 2, "hidden_size": 24, "num_heads": 3, "num_position_embeddings": 9, "deepstack_visual_indexes": [0, 1]},
    {"depth": 1, "deepstack_visual_indexes": [0]},
]
FAMILIES = ("qwen3_vl_moe", "qwen3_vl", "qwen3_5_moe", "qwen3_5")
OF_FAMILY = {name: [r for r in VISION_ROWS + HYBRID if r.model_type == name and r.vision] for name in FAMILIES}


def rows_of(family: str) -> list[Row]:
    given = OF_FAMILY[family]
    return [with_images(given[i % len(given)], **tower) for i, tower in enumerate(TOWERS)]


ROWS = {f"{family}-{i}": row for family in FAMILIES for i, row in enumerate(rows_of(family))}
# Towers of so many blocks that an image of a thousand patches takes several steps beside decode rows.
DEEP = {"qwen3_vl_moe": [0, 39], "qwen3_5_moe": []}
MADE = ROWS | {
    f"deep-{family}": with_images(
        OF_FAMILY[family][0], depth=40, deepstack_visual_indexes=layers, num_position_embeddings=400
    )
    for family, layers in DEEP.items()
}
# Parts of prompts: numbers of tokens of text, and grids of images.
PARTS: list[list[int | tuple[int, int]]] = [
    [5, (4, 6), 7],
    [(2, 2), 1, (6, 2), 3, (4, 4), 1],
    [9],
    [3, (2, 10), 1, (8, 4), 2],  # transformers takes images without text between them for one
]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            made[name] = written_once(tmp_path_factory)(MADE[name])
        return made[name]

    return get


def prompts_of(name: str) -> list[Prompt]:
    return [prompt(seed, parts, ROWS[name].vision) for seed, parts in enumerate(PARTS)]


@pytest.mark.parametrize("name", ROWS)
def test_transformers_parity(name, path_of):
    """Logits of every position within 1e-4 of the largest, and 32 greedy tokens, equal wherever the reference is decided; in one batch, in
    chunks that cut images, alone and from the caches: the same bits."""
    path, prompts = path_of(name), prompts_of(name)
    model = reference(ROWS[name], path)
    e = engine(path, dtype="float32")
    batch = greedy(e, prompts)
    decided = steps = 0
    for p, generated in zip(prompts, batch):
        tokens = [t for t, _ in generated]
        whole = p.then(tokens)
        ref, ours = reference_logits(model, whole), e.forward(whole.ids, 0, p.images)
        bound = F32_BOUND * np.abs(ref).max(1)
        diff = np.abs(ours - ref).max(1)
        worst = int(np.argmax(diff / bound))
        assert diff[worst] <= bound[worst], f"row {worst}: off by {diff[worst]:.3g}, bound {bound[worst]:.3g}"
        rows = slice(len(p.ids) - 1, len(whole.ids) - 1)
        logprobs = log_softmax(ours[rows].astype(np.float64))[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose([lp for _, lp in generated], logprobs, rtol=1e-6, atol=2e-6)
        may = ref[rows].copy()
        may[:, IMAGE] = -np.inf
        sure = margins(may) > 2 * bound[rows]
        assert (may.argmax(1) == tokens)[sure].all()
        decided, steps = decided + int(sure.sum()), steps + len(tokens)
        np.testing.assert_array_equal(e.forward(whole.ids, 3, p.images), ours)
    assert decided > 0.9 * steps
    assert greedy(e, prompts) == batch  # from the prefix cache
    few = engine(
        path,
        dtype="float32",
        max_num_batched_tokens=5,
        max_num_seqs=4,
        block_size=8,
        enable_prefix_caching=False,
        num_threads=2,
    )
    for p, expected in zip(prompts, batch):
        assert greedy(few, [p]) == [expected]
    few.check_integrity()


MOE, HYBRID_MOE = "qwen3_vl_moe-0", "qwen3_5_moe-0"


@pytest.mark.parametrize("name", [MOE, HYBRID_MOE])
def test_second_request_does_not_run_the_tower(name, path_of):
    """Neither for another prompt with the image, nor, whose pages are cached, for the same."""
    e = engine(path_of(name), dtype="float32", block_size=4)
    first = prompt(1, [3, (4, 6), 7], ROWS[name].vision)
    alone = greedy(e, [first])[0]
    assert e.stats()["images_encoded"] == 1
    other = Prompt([7, *first.ids], [first.images[0] | {"position": 4}])
    got = greedy(e, [other])[0]
    s = e.stats()
    assert (s["images"], s["images_encoded"], s["images_cached"]) == (2, 1, 1)
    assert s["encoder_seconds"] > 0 and s["encoder_cache_bytes"] > 0
    assert greedy(engine(path_of(name), dtype="float32"), [other])[0] == got
    assert greedy(e, [first])[0] == alone
    s = e.stats()
    assert s["images_encoded"] == 1 and s["cached_prompt_tokens"] > 0
    e.check_integrity()


@pytest.mark.parametrize("name", [MOE, HYBRID_MOE])
def test_same_tokens_with_other_images_share_no_page_behind_them(name, path_of):
    e = engine(path_of(name), dtype="float32", block_size=4)
    first, second = (prompt(1, [6, (4, 6), 9], ROWS[name].vision) for _ in range(2))
    rng = np.random.default_rng(5)
    patches = rng.standard_normal(first.images[0]["patches"].shape).astype(np.float32)
    second.images[0] |= {"patches": patches, "digest": b"another"}
    assert first.ids == second.ids
    a, b = greedy(e, [first])[0], greedy(e, [second])[0]
    assert a != b
    if name == MOE:  # where layers have states, a prefix ends where a snapshot was taken
        assert e.stats()["cached_prompt_tokens"] == 4  # the page before the image
    assert greedy(engine(path_of(name), dtype="float32"), [second])[0] == b
    # The other way round: an image further on, with equal tokens around.
    shifted = Prompt(first.ids, first.images)
    assert greedy(e, [shifted])[0] == a


@pytest.mark.parametrize("name", ["deep-qwen3_vl_moe", "deep-qwen3_5_moe"])
@pytest.mark.parametrize("mixed", [True, False])
def test_decoding_goes_on_while_the_tower_runs(name, mixed, path_of):
    """Requests that decode get a token in every step; a large image takes several steps; all as alone."""
    path = path_of(name)
    tower = MADE[name].vision
    large = prompt(3, [4, (56, 52), 5], tower)  # 2912 patches in 40 blocks: 11 blocks are a step's share
    options = {"dtype": "float32", "max_num_seqs": 4}
    text = prompt(4, [8], tower)
    want = greedy(engine(path, **options), [text], 24), greedy(engine(path, **options), [large], 4)
    e = engine(path, enable_mixed_chunk=mixed, **options)

    def add(p: Prompt, count: int) -> int:
        params = _C.SamplingParams()
        params.temperature, params.max_tokens, params.ignore_eos, params.logprobs = 0.0, count, True, 0
        params.bad_words = [[IMAGE]]
        return e.add_request(p.ids, params, None, p.images)

    first = add(text, 24)
    out = {first: []}
    for _ in range(3):
        for o in e.step():
            out[first] += [(t, lp[0][1]) for t, lp in zip(o.token_ids, o.logprobs)]
    second = add(large, 4)
    out[second] = []
    waited = 0
    while e.has_unfinished():
        outputs = e.step()
        for o in outputs:
            out[o.request_id] += [(t, lp[0][1]) for t, lp in zip(o.token_ids, o.logprobs)]
        waited += {o.request_id for o in outputs} == {first} and not out[second]
    assert waited >= 1
    assert [out[first]] == want[0] and [out[second]] == want[1]
    e.check_integrity()


def test_an_answer_begins_before_the_images_of_other_requests_are_done(path_of):
    e = engine(path_of("deep-qwen3_vl_moe"), dtype="float32", max_num_seqs=4)
    params = _C.SamplingParams()
    params.temperature, params.max_tokens, params.ignore_eos = 0.0, 2, True
    ids = []
    for seed in range(3):
        p = prompt(seed, [4, (56, 52), 5], MADE["deep-qwen3_vl_moe"].vision)
        ids.append(e.add_request(p.ids, params, None, p.images))
    begun = [o.request_id for o in e.step() if o.token_ids]
    assert begun == ids[:1] and e.stats()["images_encoded"] == 1
    while e.has_unfinished():
        e.step()
    assert e.stats()["images_encoded"] == 3


def test_preemption_keeps_the_image(path_of):
    path = path_of(MOE)
    prompts = [prompt(seed, [5, (4, 6), 4], ROWS[MOE].vision) for seed in range(4)]
    free = engine(path, dtype="float32", block_size=8)
    batch = greedy(free, prompts, 40)
    scarce = engine(path, dtype="float32", block_size=8, enable_prefix_caching=False, max_model_len=56,
                    kv_cache_memory_bytes=100 * free.model_info()["kv_bytes_per_token"])  # fmt: skip
    assert greedy(scarce, prompts, 40) == batch
    s = scarce.stats()
    assert s["preemptions"] > 0 and s["images_encoded"] == 4 and s["images_cached"] > 0
    scarce.check_integrity()


def test_small_encoder_cache(path_of):
    """Room for one image at a time: outputs make place for others, and are made again where they are needed again."""
    path, vision = path_of(MOE), ROWS[MOE].vision
    columns = (1 + len(vision["deepstack_visual_indexes"])) * 48
    one = 6 * columns * 4  # bytes of a grid of 4 x 6
    prompts = [prompt(seed, [2, (4, 6), 3, (6, 4), 1], vision) for seed in range(3)]
    batch = greedy(engine(path, dtype="float32"), prompts)
    for size, encoded in ((one, 12), (one * 7, 6)):
        e = engine(path, dtype="float32", encoder_cache_memory_bytes=size, enable_prefix_caching=False)
        assert greedy(e, prompts) == batch
        assert greedy(e, prompts) == batch
        s = e.stats()
        assert s["images_encoded"] == encoded and s["encoder_cache_bytes"] <= size
        e.check_integrity()
    e = engine(path, dtype="float32", encoder_cache_memory_bytes=one - 1)
    with pytest.raises(ValidationError, match=f"6 tokens needs {one} bytes .*encoder_cache_memory_bytes={one}"):
        greedy(e, prompts)
    assert not e.has_unfinished()


def test_abort_in_the_middle_of_the_tower(path_of):
    path, tower = path_of("deep-qwen3_vl_moe"), MADE["deep-qwen3_vl_moe"].vision
    e = engine(path, dtype="float32", max_num_seqs=4)
    params = _C.SamplingParams()
    params.max_tokens, params.ignore_eos = 40, True
    e.add_request([1, 2, 3], params)
    e.step()
    large, small = prompt(3, [4, (56, 52), 5], tower), prompt(4, [2, (4, 4), 3], tower)
    aborted = e.add_request(large.ids, params, None, large.images)
    e.step()
    assert e.abort(aborted)
    e.check_integrity()
    assert greedy(e, [small], 6) == greedy(engine(path, dtype="float32"), [small], 6)
    e.check_integrity()


def test_selection_does_not_touch_images(path_of):
    """The tower has no experts, and prompts are computed under the model's own routing; an exact request is as without selection."""
    path, prompts = path_of(MOE), prompts_of(MOE)
    batch = greedy(engine(path, dtype="float32"), prompts)
    e = engine(path, dtype="float32", expert_selection="lynx:alpha=2,theta=1.5")
    got = greedy(e, prompts, exact=(1,))
    assert got[1] == batch[1]
    assert [g[0] for g in got] == [b[0] for b in batch]


def test_mistakes(path_of):
    e = engine(path_of(MOE), dtype="float32")
    params = _C.SamplingParams()
    good = prompt(1, [3, (4, 6), 2], ROWS[MOE].vision)
    [image] = good.images

    def add(ids=good.ids, **changed):
        e.add_request(ids, params, None, [image | changed])

    add()
    nan = image["patches"].copy()
    nan[3, 2] = np.nan
    for changed, text in (
        ({"position": 2}, "got .* at position 2"),
        ({"position": -1}, "position: expected room for 6 tokens from 0 .* to 11"),
        ({"position": 6}, "position: expected room"),
        ({"grid_height": 3}, "multiples of 2, got 3 x 6"),
        ({"grid_width": 0}, "multiples of 2, got 4 x 0"),
        ({"grid_height": 2}, "patches: expected 2 \\* 6"),
        ({"patches": nan}, "finite"),
        ({"digest": b""}, "digest"),
        ({"digest": "text"}, "digest: expected bytes"),
        ({"patches": image["patches"].astype(np.float64)}, "float32"),
    ):
        with pytest.raises(ValidationError, match=text) as error:
            add(**changed)
        assert error.value.field == "images", changed
    with pytest.raises(ValidationError, match="placeholder 95 at position 0 without an image") as error:
        e.add_request([IMAGE, 4], params)
    assert error.value.field == "prompt_token_ids"
    with pytest.raises(ValidationError, match="placeholder 95 at position 11 without an image"):
        add([*good.ids, IMAGE])
    with pytest.raises(ValidationError, match="expected 6 image tokens 95 from position 3 on, got 7 at position 8"):
        add([*good.ids[:8], 7, *good.ids[9:]])
    with pytest.raises(ValidationError, match="image 1: position: expected room for 6 tokens from 9"):
        e.add_request(good.ids, params, None, [image, image])
    with pytest.raises(ValidationError, match="position"):
        e.add_request(good.ids, params, None, [{k: v for k, v in image.items() if k != "position"}])
    with pytest.raises(ValidationError, match="without an image"):
        e.forward(good.ids)
    finish(e, [1])
    e.check_integrity()


def test_models_that_read_text_alone(path_of, tmp_path_factory):
    text = written_once(tmp_path_factory)(next(r for r in HYBRID if r.model_type == "qwen3_5_moe_text"))
    e = engine(text, dtype="float32")
    assert e.model_info()["image_token_id"] == -1
    [image] = prompt(1, [(4, 6)], ROWS[MOE].vision).images
    with pytest.raises(UnsupportedModelError, match="reads text alone"):
        e.add_request([1, 2], _C.SamplingParams(), None, [image])
    with pytest.raises(ValidationError, match="encoder_cache_memory_bytes"):
        engine(text, encoder_cache_memory_bytes=1000)


@pytest.mark.parametrize("row", [f"{family}-0" for family in FAMILIES])
def test_language_model_only(path_of, row):
    """The tower is not loaded; text is answered as with it, and images are refused."""
    whole, alone = (
        engine(path_of(row), dtype="float32"),
        engine(path_of(row), dtype="float32", language_model_only=True),
    )
    assert alone.model_info()["image_token_id"] == -1
    assert alone.model_info()["weight_bytes"] < whole.model_info()["weight_bytes"]
    np.testing.assert_array_equal(alone.forward([5, 1, 7]), whole.forward([5, 1, 7]))
    [image] = prompt(1, [(4, 6)], ROWS[row].vision).images
    with pytest.raises(UnsupportedModelError, match="reads text alone"):
        alone.add_request([1, 2], _C.SamplingParams(), None, [image])
    with pytest.raises(ValidationError, match="encoder_cache_memory_bytes: expected 0"):
        engine(path_of(row), language_model_only=True, encoder_cache_memory_bytes=1000)
