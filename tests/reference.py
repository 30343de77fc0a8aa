"""Every scheme's formula as plain loops over i and j, from the papers; nothing here is fast or shared with the package.

Each scheme gives `score(p, layer, head, i, j, q, k, n)`: s_ij before the softmax, from one head's query and key
vectors, where p is the module that holds the positional weights of all layers, layer the attention with those of its
own, and n the sequence's length (largest position plus one). APE schemes give `embed(p, x, i)`; shaw gives `value`.
"""

import cmath
import math

import torch
from torch.nn import functional as F
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def content(q, k):
    return q @ k / math.sqrt(len(q))


def none_score(p, layer, head, i, j, q, k, n):
    return content(q, k)


def sinusoidal_embed(p, x, i):
    out = x.clone()
    width = len(x)
    for t in range(width // 2):
        out[2 * t] += math.sin(i / 10000 ** (2 * t / width))
        out[2 * t + 1] += math.cos(i / 10000 ** (2 * t / width))
    return out


def learned_embed(p, x, i):
    return x + p.embeddings.weight[i]


def shaw_row(p, i, j):
    k = p.options.max_distance
    return max(-k, min(k, j - i)) + k


def shaw_score(p, layer, head, i, j, q, k, n):
    return q @ (k + layer.position.relative_keys.weight[shaw_row(p, i, j)]) / math.sqrt(len(q))


def shaw_value(p, layer, i, j, v):
    return v + layer.position.relative_values.weight[shaw_row(p, i, j)] if p.options.relative_values else v


def relative_key_score(p, layer, head, i, j, q, k, n):
    a = layer.position.distance_embeddings.weight[i - j + p.config.max_position_embeddings - 1]
    return (q @ k + q @ a) / math.sqrt(len(q))


def relative_key_query_score(p, layer, head, i, j, q, k, n):
    a = layer.position.distance_embeddings.weight[i - j + p.config.max_position_embeddings - 1]
    return (q @ k + q @ a + k @ a) / math.sqrt(len(q))


def transformer_xl_score(p, layer, head, i, j, q, k, n):
    width, d = p.config.hidden_size, len(q)
    angles = [(i - j) / 10000 ** (2 * t / width) for t in range(width // 2)]
    r = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=q.dtype)
    r = (layer.position.relative @ r)[head * d : (head + 1) * d]
    u, v = layer.position.content_bias[head], layer.position.position_bias[head]
    return ((q + u) @ k + (q + v) @ r) / math.sqrt(d)


def t5_bucket(distance, num_buckets, max_distance):
    half, exact, n = num_buckets // 2, num_buckets // 4, abs(distance)
    if n >= exact:
        # The nudge keeps exact powers, such as 16 = 8 * 16^(1/4), on their side of the floor.
        n = min(half - 1, exact + int(math.log(n / exact) / math.log(max_distance / exact) * (half - exact) + 1e-6))
    return n + (half if distance > 0 else 0)


def absolute_embed(p, x, i):
    return x + p.absolute.weight[i] if p.options.absolute_embeddings else x


t5_embed = deberta_embed = absolute_embed


def t5_score(p, layer, head, i, j, q, k, n):
    row = t5_bucket(j - i, p.options.num_buckets, p.options.max_distance)
    return content(q, k) + p.bias.weight[row, head]


def tupe_score(p, layer, head, i, j, q, k, n):
    d = len(q)

    def projected(linear, row):
        x = F.layer_norm(p.embeddings.weight[row], (p.config.hidden_size,), p.norm.weight, p.norm.bias, p.norm.eps)
        return (linear.weight @ x)[head * d : (head + 1) * d]

    if p.options.untie_cls and 0 in (i, j):  # instead of all that the two positions would have
        row = 0 if i == 0 else 1
        return (q @ k + projected(p.query, row) @ projected(p.key, row)) / math.sqrt(2 * d)
    score = (q @ k + projected(p.query, i + 1) @ projected(p.key, j + 1)) / math.sqrt(2 * d)
    if p.options.relative_bias:
        score = score + p.bias.weight[t5_bucket(j - i, p.options.num_buckets, p.options.max_distance), head]
    return score


def deberta_row(p, i, j):
    r, buckets = i - j, p.options.position_buckets
    reach = buckets or p.options.max_relative_positions
    middle = buckets // 2
    if buckets and abs(r) > middle:
        ratio = math.log(abs(r) / middle) / math.log((p.options.max_relative_positions - 1) / middle)
        r = (middle + math.ceil((middle - 1) * ratio - 1e-6)) * (1 if r > 0 else -1)
    return max(0, min(2 * reach - 1, r + reach))


def deberta_score(p, layer, head, i, j, q, k, n):
    d, row = len(q), p.embeddings.weight[deberta_row(p, i, j)]
    size = len(row)
    if p.options.norm_rel_ebd:
        row = F.layer_norm(row, (size,), p.norm.weight, p.norm.bias, p.norm.eps)
    score = q @ k
    if "c2p" in p.options.pos_att_type:
        key = layer.key if p.options.share_att_key else layer.position.key_projection
        score = score + q @ F.linear(row, key.weight, key.bias)[head * d : (head + 1) * d]
    if "p2c" in p.options.pos_att_type:
        query = layer.query if p.options.share_att_key else layer.position.query_projection
        score = score + k @ F.linear(row, query.weight, query.bias)[head * d : (head + 1) * d]
    return score / math.sqrt(d * (1 + len(p.options.pos_att_type)))


def alibi_slope(head, heads):
    below = 2 ** int(math.log2(heads))
    power = (head + 1) / below if head < below else (2 * (head - below) + 1) / (2 * below)
    return 2 ** (-8 * power)


def alibi_score(p, layer, head, i, j, q, k, n):
    heads, form = p.config.num_attention_heads, p.options.form
    if form == "learned":
        a, b = p.slopes[:, head]
        slope = 1 / (1 + (-(b if j > i else a)).exp())
    elif form == "one_sided":
        sees = j <= i if head < heads // 2 else j >= i
        if not sees:
            return content(q, k) - 10_000
        slope = alibi_slope(head % (heads // 2), heads // 2)
    else:
        slope = alibi_slope(head, heads)
    return content(q, k) - slope * abs(i - j)


def kerple_score(p, layer, head, i, j, q, k, n):
    r1, r2, distance = abs(float(p.r1[head])), abs(float(p.r2[head])), abs(i - j)
    if p.options.kernel == "log":
        return content(q, k) - r1 * math.log(1 + r2 * distance)
    while r2 > 2:
        r2 = abs(4 - r2)
    return content(q, k) - r1 * distance**r2


def fire_score(p, layer, head, i, j, q, k, n):
    c, threshold = abs(float(p.rate)), math.exp(float(p.log_threshold))

    def psi(x):
        return math.log(c * x + 1)

    farthest = i if j <= i or p.config.is_decoder else n - 1 - i
    x = psi(abs(i - j)) / (psi(max(threshold, farthest)) + 1e-6) * (1 if j <= i else -1)
    units = zip(p.hidden.tolist(), p.hidden_bias.tolist(), p.output[head].tolist(), strict=True)
    return content(q, k) + sum(out * max(0, weight * x + bias) for weight, bias, out in units)


def rotary_turn(p, x, i, n, scaled=False):
    """(x_{2t} + i x_{2t+1}) e^{i m th_t}, on the pairs and the part of the head that the settings name.

    `scaled`: times the scaling's factor, as the queries and keys of a softmax are.
    """
    rope = p.config.rope_parameters
    size = len(x) if rope["rope_type"] == "proportional" else int(len(x) * rope.get("partial_rotary_factor", 1.0))
    if rope["rope_type"] == "default":
        frequencies, factor = [rope["rope_theta"] ** (-2 * t / size) for t in range(size // 2)], 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](p.config, seq_len=n)
    out = x.clone()
    for t in range(size // 2):
        first, second = (t, t + size // 2) if p.options.pairing == "halves" else (2 * t, 2 * t + 1)
        turned = complex(x[first], x[second]) * cmath.exp(1j * i * float(frequencies[t])) * (factor if scaled else 1)
        out[first], out[second] = turned.real, turned.imag
    return out


def rotary_score(p, layer, head, i, j, q, k, n):
    return content(rotary_turn(p, q, i, n, scaled=True), rotary_turn(p, k, j, n, scaled=True))


def feature_map(attn, x):
    """phi of one head's query or key: elu + 1, or FAVOR+'s positive random features."""
    if attn.config.feature_map == "elu":
        return torch.stack([t + 1 if t > 0 else t.exp() for t in x])
    w, x = attn.features.projection, x / len(x) ** 0.25
    features = torch.stack([(row @ x - x @ x / 2).exp() for row in w]) / math.sqrt(len(w))
    return features + 1e-6 * features.max()


def linear_weights(p, attn, i, q, keys, n):
    """What each value counts in eq. 19, for the query at i and the pairs (j, k_j) that it sees."""
    turn = rotary_turn if p.config.position_embedding_type == "rotary" else lambda p, x, i, n: x
    q, keys = feature_map(attn, q), [(j, feature_map(attn, k)) for j, k in keys]
    below = sum(q @ k for _, k in keys)
    return torch.stack([turn(p, q, i, n) @ turn(p, k, j, n) / below for j, k in keys])


SCORES = {name.removesuffix("_score"): f for name, f in list(globals().items()) if name.endswith("_score")}
EMBEDS = {name.removesuffix("_embed"): f for name, f in list(globals().items()) if name.endswith("_embed")}


@torch.no_grad()
def encode(model, input_ids, position_ids):
    """(B, L) ids and positions -> the last hidden states (B, L, D), each sequence and each pair on its own."""
    return torch.stack([encode_one(model, ids, at.tolist()) for ids, at in zip(input_ids, position_ids, strict=True)])


def encode_one(model, ids, at):
    p, scheme, n = model.position, model.config.position_embedding_type, max(at) + 1
    embeddings, size = model.embeddings, model.config.hidden_size
    words = embeddings.word_embeddings.weight[ids]
    if model.config.scale_embedding:
        words = words * math.sqrt(words.shape[-1])
    x = words + embeddings.token_type_embeddings.weight[0]
    if scheme in EMBEDS:
        x = torch.stack([EMBEDS[scheme](p, row, i) for row, i in zip(x, at, strict=True)])
    x = model.embedding_projection(model.embedding_norm(x))
    heads, d = model.config.num_attention_heads, size // model.config.num_attention_heads
    for layer in model.layers:
        attn = layer.attention
        q, k, v = attn.query(x), attn.key(x), attn.value(x)
        out = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            score = SCORES.get(scheme, none_score)
            for a, i in enumerate(at):
                seen = list(enumerate(at))[: a + 1] if model.config.is_decoder else list(enumerate(at))
                if model.config.attention_type == "linear":
                    pairs = [(j, k[b, part]) for b, j in seen]
                    weights = linear_weights(p, attn, i, q[a, part], pairs, n)
                else:
                    row = [score(p, attn, head, i, j, q[a, part], k[b, part], n) for b, j in seen]
                    weights = torch.stack(row).softmax(0)
                for b, j in seen:
                    value = v[b, part]
                    if scheme == "shaw":
                        value = shaw_value(p, attn, i, j, value)
                    if scheme == "rotary" and p.options.rotary_value:
                        value = rotary_turn(p, value, j, n)
                    out[a, part] += weights[b] * value
        x = layer.attention_norm(x + attn.output(out))
        x = layer.output_norm(x + layer.output(torch.stack([hidden(layer, model.config, row) for row in x])))
    return x


def hidden(layer, config, x):
    """What the feed-forward's second layer gets of one token: act(x W), or act(x W) * x V of a gated one."""
    act, size = {"gelu": F.gelu, "silu": F.silu}[config.hidden_act], config.intermediate_size
    if config.feed_forward_type == "dense":
        return act(F.linear(x, layer.intermediate.weight, layer.intermediate.bias))
    w, v = layer.intermediate.weight[:size], layer.intermediate.weight[size:]
    return act(w @ x) * (v @ x)
