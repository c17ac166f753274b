/* Layers in 64 bits, whatever their weights, biases, registers and sums; included by cuba.c. Plain C: only layers whose sums are
   too large for 16 bits and floats come here. Where an integer passes 64 bits it wraps, as numpy's does. */

static int64_t wide_decayed(int64_t x, int64_t keep)
{
    const uint64_t magnitude = x < 0 ? 0 - (uint64_t)x : (uint64_t)x;
    const int64_t kept = (int64_t)(magnitude * (uint64_t)keep) >> 12;
    return x < 0 ? (int64_t)(0 - (uint64_t)kept) : kept;
}

/* One step of a block from its sums; `state` is u and v, `registers` keep_u, keep_v and threshold. Returns the spikes. */
static uint32_t wide_step(const int64_t *sums, const int64_t *registers, const int64_t *bias, int64_t *state)
{
    const int64_t limit = 1 << 23;
    uint32_t fired = 0;
    for (int i = 0; i < LANES; i++) {
        int64_t u = (int64_t)((uint64_t)wide_decayed(state[i], registers[i]) + ((uint64_t)sums[i] << 6));
        u = u > limit ? u - 2 * limit : u <= -limit ? u + 2 * limit : u; /* one wrap; +2^23 itself stays */
        int64_t v = (int64_t)((uint64_t)wide_decayed(state[LANES + i], registers[LANES + i]) + (uint64_t)u + (uint64_t)bias[i]);
        v = v > limit - 1 ? limit - 1 : v < 1 - limit ? 1 - limit : v;
        const int fires = v > registers[2 * LANES + i];
        state[i] = u;
        state[LANES + i] = fires ? 0 : v;
        fired |= (uint32_t)fires << i;
    }
    return fired;
}

/* Add what the bits of a word deliver: rows of weights, `scale` times each. */
static void wide_add(int64_t *sums, uint32_t word, const int32_t *rows, int64_t scale)
{
    for (; word; word &= word - 1) {
        const int32_t *row = rows + (size_t)__builtin_ctz(word) * LANES;
        for (int i = 0; i < LANES; i++) sums[i] += scale * row[i];
    }
}

/* Neurons of one pixel and block in step t, from their sums. */
static void wide_neurons(const layer_t *l, int pixel, int block, int t, int64_t *sums, int64_t *state)
{
    const size_t place = (size_t)pixel * l->blocks + block;
    for (int i = 0; i < LANES; i++) {
        if (!l->dense) { /* Lava's Conv wraps its sums to 24 bits */
            const uint32_t low = (uint32_t)(uint64_t)sums[i] << 8;
            sums[i] = (int32_t)low >> 8;
        }
        const int64_t magnitude = sums[i] < 0 ? -sums[i] : sums[i];
        if (magnitude > *l->peak) *l->peak = magnitude;
    }
    const int64_t *registers = (const int64_t *)l->registers + place * 3 * LANES, *bias = (const int64_t *)l->bias + (size_t)block * LANES;
    const uint32_t fired = wide_step(sums, registers, bias, state);
    l->out[place * l->steps + t] = fired;
    l->count[t] += __builtin_popcount(fired);
    if (!l->u) return;
    const size_t at = (((size_t)pixel * l->steps + t) * l->blocks + block) * LANES;
    memcpy((int64_t *)l->u + at, state, sizeof *state * LANES);
    memcpy((int64_t *)l->v + at, state + LANES, sizeof *state * LANES);
}

/* Sums of one pixel and block in step t from what arrives. */
static void wide_sums(const layer_t *l, int pixel, int block, int t, int64_t *sums)
{
    const int P = l->planes, G = l->groups, T = l->steps;
    const int kh = l->dense ? l->in_h : l->kh, kw = l->dense ? l->in_w : l->kw;
    const int oy = pixel / l->out_w, ox = pixel % l->out_w;
    const int32_t *weight = (const int32_t *)l->weight + (size_t)block * kh * kw * G * 32 * LANES;
    memset(sums, 0, sizeof *sums * LANES);
    for (int ky = 0; ky < kh; ky++) {
        const int y = l->dense ? ky : oy * l->stride_y - l->pad_y + ky * l->dil_y;
        if (y < 0 || y >= l->in_h) continue;
        for (int kx = 0; kx < kw; kx++) {
            const int x = l->dense ? kx : ox * l->stride_x - l->pad_x + kx * l->dil_x;
            if (x < 0 || x >= l->in_w) continue;
            for (int g = 0; g < G; g++)
                for (int p = 0; p < P; p++) {
                    const uint32_t word = l->in[((((size_t)y * l->in_w + x) * G + g) * P + p) * T + t];
                    wide_add(sums, word, weight + (((size_t)ky * kw + kx) * G + g) * 32 * LANES, worth(l, p));
                }
        }
    }
}

/* One row of outputs of one block; a layer with a loop, all of it: `unit` is 0 then. */
static void wide_unit(const layer_t *l, int unit, int64_t *at_rest)
{
    const int B = l->blocks, first = l->back ? 0 : unit / l->out_h, last = l->back ? B : first + 1;
    int64_t sums[LANES];
    if (!l->back) {
        for (int ox = 0; ox < l->out_w; ox++) {
            const int pixel = unit % l->out_h * l->out_w + ox;
            int64_t *state = l->state ? (int64_t *)l->state + ((size_t)pixel * B + first) * 2 * LANES : at_rest;
            if (!l->state) memset(at_rest, 0, sizeof *at_rest * 2 * LANES);
            for (int t = 0; t < l->steps; t++) {
                wide_sums(l, pixel, first, t, sums);
                wide_neurons(l, pixel, first, t, sums, state);
            }
        }
        return;
    }
    int64_t *state = l->state ? l->state : at_rest;
    if (!l->state) memset(at_rest, 0, sizeof *at_rest * 2 * LANES * B);
    for (int t = 0; t < l->steps; t++)
        for (int block = first; block < last; block++) {
            wide_sums(l, 0, block, t, sums);
            for (int b = 0; b < B; b++) {
                const uint32_t before = t ? l->out[(size_t)b * l->steps + t - 1] : l->fired ? l->fired[b] : 0;
                wide_add(sums, before, (const int32_t *)l->back + ((size_t)block * B + b) * 32 * LANES, 1);
            }
            wide_neurons(l, 0, block, t, sums, state + (size_t)block * 2 * LANES);
        }
    if (l->fired)
        for (int b = 0; b < B; b++) l->fired[b] = l->out[(size_t)b * l->steps + l->steps - 1];
}

/* Neurons without synapses, driven by bias mantissas [steps][neurons] of one sample: spikes [steps][neurons], v after each step or
   NULL; `registers` is [blocks][3][LANES], `state` [blocks][u, v][LANES]. */
void knarr_driven(const int16_t *bias, int neurons, int steps, const int64_t *registers, int64_t *state, uint8_t *spikes, int64_t *v)
{
    for (int first = 0; first < neurons; first += LANES, registers += 3 * LANES, state += 2 * LANES) {
        const int many = neurons - first < LANES ? neurons - first : LANES;
        int64_t silence[LANES] = {0}, now[LANES] = {0};
        for (int t = 0; t < steps; t++) {
            const size_t place = (size_t)t * neurons + first;
            for (int i = 0; i < many; i++) now[i] = 64 * (int64_t)bias[place + i];
            const uint32_t fired = wide_step(silence, registers, now, state);
            for (int i = 0; i < many; i++) spikes[place + i] = fired >> i & 1;
            if (v) memcpy(v + place, state + LANES, sizeof *v * many);
        }
    }
}
