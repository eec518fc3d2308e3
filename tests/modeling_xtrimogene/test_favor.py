"""FAVOR+ equals performer-pytorch's, does not see padding, and its random features belong to the checkpoint."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene import favor_xtrimogene as favor
from xtrimogene.modeling_xtrimogene.favor_xtrimogene import (
    FEATURE_EPS,
    Attend,
    Keys,
    exponents,
    favor_attention,
    key_sums,
    orthogonal_random_features,
)


def random_heads(*sizes, seed=0, dtype=torch.float32):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive(query, key, value, projection):
    """One query and one key at a time, as the equations stand in the specification (stabiliser per cell)."""
    B, A, Q, K = query.shape
    c, m = K**-0.25, len(projection)
    out = torch.zeros(B, A, Q, value.shape[-1], dtype=query.dtype)
    for b in range(B):
        maximum = (c * key[b] @ projection.T).max()
        for a in range(A):
            phi_k = [
                m**-0.5 * ((c * projection @ k - c**2 * (k @ k) / 2 - maximum).exp() + FEATURE_EPS) for k in key[b, a]
            ]
            for i, q in enumerate(query[b, a]):
                dots = c * projection @ q
                phi_q = m**-0.5 * ((dots - c**2 * (q @ q) / 2 - dots.max()).exp() + FEATURE_EPS)
                weights = torch.stack([phi_q @ phi for phi in phi_k])
                out[b, a, i] = weights @ value[b, a] / weights.sum()
    return out


def plain_favor(query, key, value, projection, stabilizer, key_mask=None):
    """The formula over whole tensors, by torch's own gradients; maxima are constants."""
    c, mask = key.shape[-1] ** -0.25, torch.ones_like(key[:, 0, :, 0]) if key_mask is None else key_mask.to(key.dtype)
    q_products, k_products = c * query @ projection.T, c * key @ projection.T
    over = {"head": (2, 3), "cell": (1, 2, 3), "batch": (0, 1, 2, 3)}[stabilizer]
    shift = k_products.detach().masked_fill(mask[:, None, :, None] == 0, -torch.inf).amax(over, keepdim=True)
    phi_k = (k_products - c**2 * key.square().sum(-1, keepdim=True) / 2 - shift).exp() + FEATURE_EPS
    phi_k = phi_k * mask[:, None, :, None]
    shift = q_products.detach().amax(-1, keepdim=True)
    phi_q = (q_products - c**2 * query.square().sum(-1, keepdim=True) / 2 - shift).exp() + FEATURE_EPS
    return phi_q @ (phi_k.mT @ value) / (phi_q @ phi_k.sum(2)[..., None])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 8), (37, 8), (500, 64)])
def test_equals_performer_pytorch(dtype, atol, tokens, head_dim):
    from performer_pytorch import FastAttention

    oracle = FastAttention(head_dim, causal=False).to(dtype)
    query, key, value = (random_heads(2, 3, tokens, head_dim, seed=seed, dtype=dtype) for seed in range(3))
    expected = oracle(query, key, value)
    ours = favor_attention(query, key, value, oracle.projection_matrix, stabilizer="head")
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)
    assert len(oracle.projection_matrix) == int(head_dim * torch.tensor(head_dim).log())


def test_equals_the_equations():
    query, key, value = (random_heads(2, 2, tokens, 4, seed=tokens, dtype=torch.float64) for tokens in (3, 5, 5))
    projection = orthogonal_random_features(7, 4, seed=1).double()
    ours = favor_attention(query, key[:, :, :5], value, projection)
    torch.testing.assert_close(ours, naive(query, key, value, projection), atol=1e-12, rtol=0)


def test_approximates_softmax_attention():
    query, key, value = (0.5 * random_heads(1, 1, 64, 16, seed=seed) for seed in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value)

    def error(num_features):
        projection = orthogonal_random_features(num_features, 16, seed=0)
        return (favor_attention(query, key, value, projection) - exact).square().mean().sqrt()

    assert error(4096) < 0.1 * exact.std()
    assert error(4096) < 0.5 * error(64)


@pytest.mark.parametrize("stabilizer", ["cell", "head", "batch"])
def test_padding_changes_nothing(stabilizer):
    query, key, value = (random_heads(2, 2, 9, 4, seed=seed) for seed in range(3))
    projection = orthogonal_random_features(8, 4, seed=0)
    plain = favor_attention(query, key, value, projection, stabilizer=stabilizer)
    loud = [torch.cat([part, 50 + random_heads(2, 2, 6, 4, seed=9)], dim=2) for part in (key, value)]
    mask = torch.tensor([1] * 9 + [0] * 6).expand(2, -1)
    masked = favor_attention(query, *loud, projection, mask, stabilizer)
    torch.testing.assert_close(masked, plain)
    assert (favor_attention(query, *loud, projection, stabilizer=stabilizer) - plain).abs().max() > 0.1


def test_cells_of_a_batch_do_not_see_each_other_unless_asked():
    query, key, value = (random_heads(3, 2, 9, 4, seed=seed) for seed in range(3))
    key[1] *= 3
    projection = orthogonal_random_features(8, 4, seed=0)
    alone = torch.cat(
        [favor_attention(*(part[i : i + 1] for part in (query, key, value)), projection) for i in range(3)]
    )
    torch.testing.assert_close(favor_attention(query, key, value, projection), alone)
    released = favor_attention(query, key, value, projection, stabilizer="batch")
    assert (released - alone).abs().max() > 1e-4


def written_out(shared, own, positions):
    """Rows `(B, A, P, K)` of shared `(1, A, P, K)` with own `(B, A, C, K)` in their places; P = padding."""
    rows = torch.cat([shared, shared[:, :, :1]], dim=2).expand(len(own), -1, -1, -1)
    return rows.scatter(2, positions[:, None, :, None].expand_as(own), own)[:, :, :-1]


def groups_of(parts, positions):
    """As `FavorAttention.keys` groups shared keys, what each cell replaces of them, and its own."""
    is_own, P = positions < parts[0].shape[2], parts[0].shape[2]
    kept = torch.ones(len(positions), P + 1).scatter(1, positions, 0)[:, :-1] > 0
    shared = [part.double() for part in parts[:2]]
    replaced = [part[0][:, positions.clamp(max=P - 1)].transpose(0, 1) for part in shared]
    return [
        Keys(*shared, torch.ones(1, P), kept),
        Keys(*replaced, -is_own.long(), torch.zeros_like(is_own)),
        Keys(*parts[2:], is_own),
    ]


@pytest.mark.parametrize("stabilizer", ["cell", "head", "batch"])
@pytest.mark.parametrize("own", [0, 1, 6])
@pytest.mark.parametrize("loud", [1.0, 4.0])
def test_shared_rows_equal_the_written_out_ones_with_gradients(own, loud, stabilizer):
    P, positions = 11, torch.tensor([[3, 9, 0, 11, 11, 11], [10, 2, 5, 7, 1, 4]])[:, :own]
    projection = orthogonal_random_features(8, 4, seed=0).double()
    shapes = ((1, 3, P, 4), (1, 3, P, 4), (2, 3, own, 4), (2, 3, own, 4), (1, 3, P, 4))

    def leaves():
        parts = [random_heads(*shape, seed=seed, dtype=torch.float64) for seed, shape in enumerate(shapes)]
        parts[0][:, :, 3] *= loud  # the key with the largest feature is one that a cell replaces
        return [part.requires_grad_() for part in parts]

    fast = leaves()
    fast_out = Attend.apply(fast[4], key_sums(groups_of(fast[:4], positions), projection, stabilizer), projection)
    plain = leaves()
    rows = [written_out(plain[0], plain[2], positions), written_out(plain[1], plain[3], positions)]
    plain_out = plain_favor(plain[4].expand(2, -1, -1, -1), *rows, projection, stabilizer)

    torch.testing.assert_close(fast_out, plain_out, atol=1e-12, rtol=1e-10)
    fast_out.square().sum().backward()
    plain_out.square().sum().backward()
    for name, mine, theirs in zip(("key", "value", "own key", "own value", "query"), fast, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-11, rtol=1e-9, msg=name)


def test_shared_rows_are_exact_in_float32_where_a_replaced_one_ruled():
    P, positions = 40, torch.tensor([[3, 9]])
    projection = orthogonal_random_features(16, 32, seed=0)
    shapes = [(1, 2, P, 32), (1, 2, P, 32), (1, 2, 2, 32), (1, 2, 2, 32)]
    parts = [random_heads(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    parts[0][:, :, 3] = projection[0] * 32**0.25  # where exp(c u P - c^2 u^2 / 2) is largest
    products, half = exponents(parts[0], projection)
    features = products - half
    others = torch.cat([features[:, :, :3], features[:, :, 4:]], dim=2)
    assert features[:, :, 3].max() - others.max() > 10  # what is left of a difference in float32 has three digits
    query = random_heads(1, 2, 6, 32, seed=9)
    written = [written_out(shared, own, positions).double() for shared, own in zip(parts[:2], parts[2:], strict=True)]
    expected = favor_attention(query.double(), *written, projection.double())
    ours = Attend.apply(query, key_sums(groups_of(parts, positions), projection, "cell"), projection)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stabilizer", ["cell", "head", "batch"])
def test_chunks_change_nothing(monkeypatch, stabilizer):
    parts = [random_heads(2, 3, 50, 8, seed=seed, dtype=torch.float64).requires_grad_() for seed in range(3)]
    mask = torch.arange(50) < torch.tensor([[50], [33]])
    projection = orthogonal_random_features(16, 8, seed=0).double()

    def results():
        out = favor_attention(*parts, projection, mask, stabilizer)
        return [out, *torch.autograd.grad(out.square().sum(), parts)]

    whole = results()
    monkeypatch.setattr(favor, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(favor, "MIN_CHUNK_ROWS", 7)
    assert len(favor.chunks(parts[0], 16)) == 8
    plain = plain_favor(*parts, projection, stabilizer, mask)
    plain = [plain, *torch.autograd.grad(plain.square().sum(), parts)]
    for one, other, written in zip(whole, results(), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(one, written, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_tokens_by_features_is_kept_for_the_backward_pass(dtype):
    parts = [random_heads(1, 2, 3000, 8, seed=seed, dtype=dtype).requires_grad_() for seed in range(3)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part.shape) or part, lambda part: part):
        favor_attention(*parts, orthogonal_random_features(64, 8, seed=0))
    assert kept
    assert not [shape for shape in kept if 64 in shape and 3000 in shape]


def test_random_features_are_orthogonal_in_blocks_and_follow_the_seed():
    features = orthogonal_random_features(10, 4, seed=3)
    directions = torch.nn.functional.normalize(features, dim=1)
    for block in directions.split(4):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), atol=1e-5, rtol=0)
    assert features.norm(dim=1).std() > 0.1  # norms of Gaussian vectors, not one constant
    assert torch.equal(features, orthogonal_random_features(10, 4, seed=3))
    assert not torch.equal(features, orthogonal_random_features(10, 4, seed=4))
    with torch.device("meta"):
        assert torch.equal(features, orthogonal_random_features(10, 4, seed=3))


def test_bfloat16_is_computed_in_float32():
    query, key, value = (random_heads(1, 2, 50, 16, seed=seed) for seed in range(3))
    projection = orthogonal_random_features(44, 16, seed=0)
    exact = favor_attention(query, key, value, projection)
    half = favor_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), projection)
    assert half.dtype is torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact, dim=-1).min() > 0.999


def values_and_gradients(parts, projection, way):
    out = favor_attention(*parts, projection, way=way)
    return [out, *torch.autograd.grad(out.square().sum(), parts)]


def test_compiled_chunks_give_the_same(monkeypatch):
    compilers = []

    def eager(function):
        compilers.append(function.__name__)
        return torch.compile(function, dynamic=True, fullgraph=True, backend="eager")

    monkeypatch.setattr(favor, "compiled", eager)
    monkeypatch.setattr(favor, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(favor, "MIN_CHUNK_ROWS", 30)  # chunks of two sizes
    parts = [random_heads(1, 2, 50, 8, seed=seed).requires_grad_() for seed in range(3)]
    projection = orthogonal_random_features(16, 8, seed=0)
    expected, found = (values_and_gradients(parts, projection, way) for way in (favor.PLAIN, favor.Way(True)))
    assert set(compilers) == {"key_features", "query_features", "key_features_again"}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_products_in_bfloat16_are_added_up_in_float32():
    parts = [random_heads(1, 2, 4000, 16, seed=seed).requires_grad_() for seed in range(3)]
    projection = orthogonal_random_features(44, 16, seed=0)
    exact, half = (values_and_gradients(parts, projection, favor.Way(is_half=is_half)) for is_half in (False, True))
    for one, other in zip(half, exact, strict=True):
        assert one.dtype is torch.float32
        assert 1e-6 < (one - other).norm() / other.norm() < 1e-2  # that of a product, however many there are
    doubles = [part.detach().double() for part in parts]
    plain, same = (favor_attention(*doubles, projection.double(), way=favor.Way(is_half=is_half)) for is_half in (0, 1))
    assert torch.equal(plain, same)  # differences are taken in float64


def test_the_configuration_says_how_the_decoder_computes(tiny_config):
    from xtrimogene import XTrimoGeneForPreTraining

    model = XTrimoGeneForPreTraining(tiny_config(favor_backend="compiled", favor_products="bfloat16"))
    ways = {layer.self_attn.way for layer in model.model.decoder.layers}
    assert ways == {favor.Way(is_compiled=True, is_half=True)}
