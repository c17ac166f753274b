/* Included by cuba.c once for every instruction set; the macros are defined there. LANES neurons make a block. */

#define INLINE static inline TARGET __attribute__((always_inline))
#define HALVES (LANES / WIDTH)

/* Neurons of one output pixel and block, from their sums of all steps; order and rounding: hw_sim/arithmetic.py.
   All halves go through a step together: one alone would wait for its own results. `narrow` sums are int16, others int32,
   [steps][LANES]. */
INLINE void NAME(neurons)(const layer_t *l, int pixel, int block, const void *sums, int narrow, int32_t *peaks)
{
    const HALF keep_u = SPLAT(l->keep_u), keep_v = SPLAT(l->keep_v), threshold = SPLAT(l->threshold), unit = SPLAT(64.0f * l->unit);
    const HALF top = SPLAT(8388607.0f), bottom = SPLAT(-8388607.0f);
    const float *bias = l->bias + (size_t)block * LANES;
    const int T = l->steps, may_wrap = l->may_wrap;
    const size_t first = ((size_t)pixel * T * l->blocks + block) * LANES, stride = (size_t)l->blocks * LANES;
    uint32_t *out = l->out + ((size_t)pixel * l->blocks + block) * T;
    HALF u[HALVES], v[HALVES];
    SUM peak[HALVES];
    for (int h = 0; h < HALVES; h++) u[h] = v[h] = SPLAT(0.0f), peak[h] = SUM_LOAD(peaks + h * WIDTH);
    for (int t = 0; t < T; t++) {
        uint32_t fired = 0;
        UNROLL for (int h = 0; h < HALVES; h++) {
            const SUM a = narrow ? WIDEN((const int16_t *)sums + t * LANES + h * WIDTH)
                                 : SUM_LOAD((const int32_t *)sums + t * LANES + h * WIDTH);
            peak[h] = SUM_MAX(peak[h], SUM_ABS(a));
            u[h] = MUL_ADD(TO_FLOAT(a), unit, TRUNCATE(MUL(u[h], keep_u)));
            if (may_wrap) { /* one wrap; +2^23 itself stays */
                const MASK over = ABOVE(u[h], SPLAT(8388608.0f)), under = NOT_ABOVE(u[h], SPLAT(-8388608.0f));
                u[h] = ADD_WHERE(over, u[h], SPLAT(-16777216.0f));
                u[h] = ADD_WHERE(under, u[h], SPLAT(16777216.0f));
            }
            v[h] = ADD(ADD(TRUNCATE(MUL(v[h], keep_v)), u[h]), LOAD(bias + h * WIDTH));
            v[h] = MAX(MIN(v[h], top), bottom);
            const MASK fires = ABOVE(v[h], threshold);
            v[h] = ZERO_WHERE(fires, v[h]);
            fired |= BITS(fires) << (h * WIDTH);
        }
        if (l->u) {
            for (int h = 0; h < HALVES; h++) {
                SUM_STORE(l->u + first + t * stride + h * WIDTH, TO_INT(u[h]));
                SUM_STORE(l->v + first + t * stride + h * WIDTH, TO_INT(v[h]));
            }
        }
        out[t] = fired;
        l->count[t] += __builtin_popcount(fired);
    }
    for (int h = 0; h < HALVES; h++) SUM_STORE(peaks + h * WIDTH, peak[h]);
}

INLINE void NAME(carry)(int32_t *sum, const ACC *acc, int plane)
{
    int16_t narrow[LANES];
    for (int i = 0; i < ACCS; i++) ACC_STORE(narrow + i * (LANES / ACCS), acc[i]);
    for (int i = 0; i < LANES; i++) sum[i] += (int32_t)narrow[i] << plane;
}

INLINE void NAME(clear)(ACC *acc)
{
    for (int i = 0; i < ACCS; i++) acc[i] = ACC_ZERO();
}

INLINE void NAME(add)(ACC *acc, const int16_t *row)
{
    for (int i = 0; i < ACCS; i++) acc[i] = ACC_ADD(acc[i], row + i * (LANES / ACCS));
}

/* Sums of one pixel by tables over the bits of a row of the window. */
INLINE void NAME(by_table)(const layer_t *l, const int16_t *const *rows, const uint8_t *const *index, int taps, int16_t *sums)
{
    for (int t = 0; t < l->steps; t++) {
        ACC acc[ACCS];
        NAME(clear)(acc);
        for (int k = 0; k < taps; k++) NAME(add)(acc, rows[k] + (size_t)index[k][t] * LANES);
        for (int i = 0; i < ACCS; i++) ACC_STORE(sums + t * LANES + i * (LANES / ACCS), acc[i]);
    }
}

/* Sums of one pixel by lists of what is set in each pixel of the window, rows of weights for every plane. */
INLINE void NAME(by_lists)(
    const layer_t *l, const int16_t *weight, const uint32_t *const *begin, const uint16_t *base, int taps, int16_t *sums)
{
    uint16_t list[MAX_LIST + 16];
    for (int t = 0; t < l->steps; t++) {
        int n = 0;
        for (int k = 0; k < taps; k++) {
            const int from = begin[k][t], many = begin[k][t + 1] - from;
            for (int i = 0; i < many; i += 16) SPREAD(list + n + i, l->items + from + i, base[k]);
            n += many;
        }
        ACC acc[ACCS];
        NAME(clear)(acc);
        for (int i = 0; i < n; i++) NAME(add)(acc, weight + (size_t)list[i] * LANES);
        for (int i = 0; i < ACCS; i++) ACC_STORE(sums + t * LANES + i * (LANES / ACCS), acc[i]);
    }
}

/* Sums of one pixel by its bits, carried into 32 before 16 could overflow. */
INLINE void NAME(by_words)(
    const layer_t *l, const int16_t *const *rows, const uint32_t *const *words, int taps, int32_t *sums)
{
    const int T = l->steps, P = l->planes, G = l->groups;
    memset(sums, 0, sizeof *sums * T * LANES);
    for (int t = 0; t < T; t++) {
        for (int p = 0; p < P; p++) {
            ACC acc[ACCS];
            NAME(clear)(acc);
            int added = 0;
            for (int k = 0; k < taps; k++) {
                for (int g = 0; g < G; g++) {
                    uint32_t word = words[k][(size_t)(g * P + p) * T + t];
                    const int more = __builtin_popcount(word);
                    if ((added += more) > l->flush) {
                        NAME(carry)(sums + t * LANES, acc, p);
                        NAME(clear)(acc);
                        added = more;
                    }
                    for (; word; word &= word - 1)
                        NAME(add)(acc, rows[k] + (size_t)(g * 32 + __builtin_ctz(word)) * LANES);
                }
            }
            NAME(carry)(sums + t * LANES, acc, p);
        }
    }
}

TARGET __attribute__((noinline)) static void NAME(conv)(const layer_t *l, void *scratch)
{
    const int T = l->steps, P = l->planes, G = l->groups;
    const void *from[MAX_TAPS];
    const int16_t *rows[MAX_TAPS];
    uint16_t base[MAX_TAPS];
    int32_t peaks[LANES] = {0};
    const size_t per_tap = l->mode == TABLE ? ((size_t)1 << (l->kw * l->channels)) * LANES
                                            : (size_t)G * 32 * (l->mode == LISTS ? P : 1) * LANES;
    const size_t per_block = per_tap * (l->mode == TABLE ? l->kh : l->kh * l->kw);
    for (int block = 0; block < l->blocks; block++) {
        const int16_t *weight = l->weight + per_block * block;
        for (int oy = l->row0; oy < l->row1; oy++) {
            for (int ox = 0; ox < l->out_w; ox++) {
                int taps = 0;
                for (int ky = 0; ky < l->kh; ky++) {
                    const int y = oy * l->stride_y - l->pad_y + ky * l->dil_y;
                    if (y < 0 || y >= l->in_h) continue;
                    if (l->mode == TABLE) {
                        from[taps] = l->windows + ((size_t)y * l->out_w + ox) * T;
                        rows[taps++] = weight + per_tap * ky;
                        continue;
                    }
                    for (int kx = 0; kx < l->kw; kx++) {
                        const int x = ox * l->stride_x - l->pad_x + kx * l->dil_x;
                        if (x < 0 || x >= l->in_w) continue;
                        const size_t pixel = (size_t)y * l->in_w + x;
                        from[taps] = l->mode == LISTS ? (const void *)(l->begin + pixel * T) : l->in + pixel * G * P * T;
                        base[taps] = (uint16_t)((ky * l->kw + kx) * G * 32 * P);
                        rows[taps++] = weight + per_tap * (ky * l->kw + kx);
                    }
                }
                if (l->mode == TABLE) NAME(by_table)(l, rows, (const uint8_t *const *)from, taps, scratch);
                if (l->mode == LISTS) NAME(by_lists)(l, weight, (const uint32_t *const *)from, base, taps, scratch);
                if (l->mode == WORDS) NAME(by_words)(l, rows, (const uint32_t *const *)from, taps, scratch);
                if (l->mode == WORDS)
                    NAME(neurons)(l, oy * l->out_w + ox, block, scratch, 0, peaks);
                else
                    NAME(neurons)(l, oy * l->out_w + ox, block, scratch, 1, peaks);
            }
        }
    }
    for (int i = 0; i < LANES; i++)
        if (peaks[i] > *l->peak) *l->peak = peaks[i];
}

/* One output pixel: what arrives in every step is listed once for all blocks, row0..row1 of them. */
TARGET __attribute__((noinline)) static void NAME(dense)(const layer_t *l, int32_t *sums)
{
    const int T = l->steps, P = l->planes;
    const size_t per_block = (size_t)l->in_h * l->in_w * l->groups * 32 * LANES;
    int32_t peaks[LANES] = {0};
    for (int block = l->row0; block < l->row1; block++) {
        const int16_t *weight = l->weight + per_block * block;
        memset(sums, 0, sizeof *sums * T * LANES);
        for (int t = 0; t < T; t++) {
            for (int p = 0; p < P; p++) {
                uint32_t at = l->begin[t * P + p];
                const uint32_t end = l->begin[t * P + p + 1];
                while (at < end) {
                    const uint32_t until = end - at > (uint32_t)l->flush ? at + l->flush : end;
                    ACC acc[ACCS];
                    NAME(clear)(acc);
                    for (; at < until; at++) NAME(add)(acc, weight + (size_t)l->events[at] * LANES);
                    NAME(carry)(sums + t * LANES, acc, p);
                }
            }
        }
        NAME(neurons)(l, 0, block, sums, 0, peaks);
    }
    for (int i = 0; i < LANES; i++)
        if (peaks[i] > *l->peak) *l->peak = peaks[i];
}
