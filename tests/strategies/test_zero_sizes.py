"""The sizes ZeRO works with follow from the model; what the user wrote stays."""

from onecurve.strategies.zero_sizes import BUCKET, Size, derive, fill, kept_whole, largest_block, persistence_threshold

H = 4096
EMBEDDING, NORM, MATRIX = 32000 * H, H, H * H
LAYERS = 4


def llama(adapter_rank=0):
    """An embedding, and layers of two norms and seven matrices, each with LoRA's pair where there is a rank."""
    trained = not adapter_rank
    sizes = [Size(EMBEDDING, trained, "")]
    for i in range(LAYERS):
        block = f"model.layers.{i}"
        sizes += [Size(NORM, trained, block)] * 2 + [Size(MATRIX, trained, block)] * 7
        sizes += [Size(adapter_rank * H, True, block)] * (14 if adapter_rank else 0)
    return sizes


def test_vectors_stay_whole_and_matrices_do_not():
    assert persistence_threshold(llama()) == NORM


def test_what_an_adapter_trains_stays_whole():
    assert persistence_threshold(llama(adapter_rank=16)) == 16 * H


def test_a_trained_embedding_beside_an_adapter_does_not():
    sizes = [Size(EMBEDDING, True, ""), *llama(adapter_rank=16)[1:]]
    assert persistence_threshold(sizes) < MATRIX


def test_buckets_are_no_larger_than_what_is_trained():
    assert derive(llama(), 0, on_gpu=True)["reduce_bucket_size"] == BUCKET
    lora = llama(adapter_rank=16)
    assert derive(lora, 0, on_gpu=True)["reduce_bucket_size"] == sum(s.numel for s in lora if s.trained) < BUCKET


def test_a_layer_is_gathered_ahead():
    assert largest_block(llama()) == 2 * NORM + 7 * MATRIX
    assert largest_block([Size(3, True, ""), Size(4, False, "")]) == 7


def test_frozen_weights_are_kept_as_far_as_memory_goes():
    sizes = llama(adapter_rank=16)
    threshold = persistence_threshold(sizes)
    frozen = [i for i, s in enumerate(sizes) if not s.trained]
    small = [i for i in frozen if sizes[i].numel <= threshold]
    assert kept_whole(sizes, 0, threshold) == small
    assert kept_whole(sizes, sum(sizes[i].numel for i in frozen), threshold) == frozen
    some = kept_whole(sizes, 3 * MATRIX, threshold)  # the embedding is larger than that and is passed over
    assert 0 not in some and len(small) < len(some) < len(frozen)
    assert sum(sizes[i].numel for i in some) <= 3 * MATRIX + sum(sizes[i].numel for i in small)
    assert kept_whole(llama(), 10**12, NORM) == []


def test_reuse_reaches_as_far_as_memory_does():
    sizes = llama()
    total = sum(s.numel for s in sizes)
    lives = (0, total // 2, total, 9 * total)
    reach = [derive(sizes, live, on_gpu=False)["stage3_max_reuse_distance"] for live in lives]
    assert reach[0] == 0 < reach[1] < reach[2] == reach[3] == 2 * total


def test_a_number_of_the_users_stays():
    section = {"stage": 3, "reduce_bucket_size": 7, "overlap_comm": "auto", "param_persistence_threshold": 5}
    fill(section, {"reduce_bucket_size": 1, "overlap_comm": True, "stage3_param_persistence_threshold": 9, "x": 2})
    expected = {"stage": 3, "reduce_bucket_size": 7, "overlap_comm": True, "param_persistence_threshold": 5, "x": 2}
    assert section == expected
