/* Included by cuba.c once for every instruction set; the macros are defined there. LANES neurons make a block. */

#define INLINE static inline TARGET __attribute__((always_inline))
#define HALVES (LANES / WIDTH)

/* One step of WIDTH neurons from what arrives; order and rounding: hw_sim/arithmetic.py. What cannot happen in a layer is left
   out: `wrap` of u, `biased` v, `top` where v can reach the clip from below. Returns where they fire. */
INLINE MASK NAME(step)(HALF *u, HALF *v, SUM arriving, HALF unit, HALF keep_u, HALF keep_v, HALF threshold, const float *bias,
    const int wrap, const int biased, const int top)
{
    *u = MUL_ADD(TO_FLOAT(arriving), unit, TRUNCATE(MUL(*u, keep_u)));
    if (wrap) { /* one wrap; +2^23 itself stays */
        const MASK over = ABOVE(*u, SPLAT(8388608.0f)), under = NOT_ABOVE(*u, SPLAT(-8388608.0f));
        *u = ADD_WHERE(over, *u, SPLAT(-16777216.0f));
        *u = ADD_WHERE(under, *u, SPLAT(16777216.0f));
    }
    *v = ADD(TRUNCATE(MUL(*v, keep_v)), *u);
    if (biased) *v = ADD(*v, LOAD(bias));
    if (top) *v = MIN(*v, SPLAT(8388607.0f));
    *v = MAX(*v, SPLAT(-8388607.0f));
    const MASK fires = ABOVE(*v, threshold);
    *v = ZERO_WHERE(fires, *v);
    return fires;
}

/* Neurons of one output pixel and block, from their sums of all steps.
   All halves go through a step together: one alone would wait for its own results. `narrow` sums are int16, others int32,
   [steps][LANES]. `own`: neurons have registers of their own. */
INLINE void NAME(integrate)(const layer_t *l, int pixel, int block, const void *sums, const int narrow, const int wrap,
    const int biased, const int top, const int own)
{
    const HALF keep_u = SPLAT(l->keep_u), keep_v = SPLAT(l->keep_v), threshold = SPLAT(l->threshold), unit = SPLAT(64.0f * l->unit);
    const float *bias = (const float *)l->bias + (size_t)block * LANES;
    const float *registers = own ? (const float *)l->registers + ((size_t)pixel * l->blocks + block) * 3 * LANES : NULL;
    float *state = l->state ? (float *)l->state + ((size_t)pixel * l->blocks + block) * 2 * LANES : NULL;
    const int T = l->steps;
    const size_t first = ((size_t)pixel * T * l->blocks + block) * LANES, stride = (size_t)l->blocks * LANES;
    uint32_t *out = l->out + ((size_t)pixel * l->blocks + block) * T;
    HALF u[HALVES], v[HALVES];
    for (int h = 0; h < HALVES; h++) {
        u[h] = state ? LOAD(state + h * WIDTH) : SPLAT(0.0f);
        v[h] = state ? LOAD(state + LANES + h * WIDTH) : SPLAT(0.0f);
    }
    for (int t = 0; t < T; t++) {
        uint32_t fired = 0;
        UNROLL for (int h = 0; h < HALVES; h++) {
            const SUM a = narrow ? WIDEN((const int16_t *)sums + t * LANES + h * WIDTH)
                                 : SUM_LOAD((const int32_t *)sums + t * LANES + h * WIDTH);
            const float *mine = registers + h * WIDTH;
            const MASK fires = NAME(step)(&u[h], &v[h], a, unit, own ? LOAD(mine) : keep_u, own ? LOAD(mine + LANES) : keep_v,
                own ? LOAD(mine + 2 * LANES) : threshold, bias + h * WIDTH, wrap, biased, top);
            fired |= BITS(fires) << (h * WIDTH);
        }
        if (l->u) {
            for (int h = 0; h < HALVES; h++) {
                SUM_STORE((int32_t *)l->u + first + t * stride + h * WIDTH, TO_INT(u[h]));
                SUM_STORE((int32_t *)l->v + first + t * stride + h * WIDTH, TO_INT(v[h]));
            }
        }
        out[t] = fired;
        l->count[t] += __builtin_popcount(fired);
    }
    if (state) {
        for (int h = 0; h < HALVES; h++) {
            STORE(state + h * WIDTH, u[h]);
            STORE(state + LANES + h * WIDTH, v[h]);
        }
    }
}

/* Largest |sum| so far, anywhere among the lanes of `peaks`. */
INLINE void NAME(peak)(const int32_t *sums, int steps, int32_t *peaks)
{
    SUM peak[HALVES];
    for (int h = 0; h < HALVES; h++) peak[h] = SUM_LOAD(peaks + h * WIDTH);
    for (int t = 0; t < steps; t++)
        UNROLL for (int h = 0; h < HALVES; h++) peak[h] = SUM_MAX(peak[h], SUM_ABS(SUM_LOAD(sums + t * LANES + h * WIDTH)));
    for (int h = 0; h < HALVES; h++) SUM_STORE(peaks + h * WIDTH, peak[h]);
}

/* The same of int16 sums, none of which is -2^15. */
INLINE void NAME(peak_narrow)(const int16_t *sums, int steps, int32_t *peaks)
{
    int16_t found[LANES];
    for (int i = 0; i < ACCS; i++) {
        ACC peak = ACC_ZERO();
        for (int t = 0; t < steps; t++) peak = ACC_MAX(peak, ACC_ABS(ACC_LOAD(sums + t * LANES + i * (LANES / ACCS))));
        ACC_STORE(found + i * (LANES / ACCS), peak);
    }
    for (int i = 0; i < LANES; i++)
        if (found[i] > peaks[i]) peaks[i] = found[i];
}

TARGET __attribute__((noinline)) static void NAME(neurons)(
    const layer_t *l, int pixel, int block, const void *sums, int narrow, int32_t *peaks)
{
#define CASE(n, wrap, biased, top)                                                          \
    case n:                                                                                 \
        NAME(integrate)(l, pixel, block, sums, (n) & 8, wrap, biased, top, 0);              \
        break;
#define CASES(n) \
    CASE(n, 0, 0, 0) CASE(n + 1, 1, 0, 0) CASE(n + 2, 0, 1, 0) CASE(n + 3, 1, 1, 0) CASE(n + 4, 0, 0, 1) CASE(n + 5, 1, 0, 1) \
    CASE(n + 6, 0, 1, 1) CASE(n + 7, 1, 1, 1)
    if (narrow)
        NAME(peak_narrow)(sums, l->steps, peaks);
    else
        NAME(peak)(sums, l->steps, peaks);
    if (l->registers) {
        if (narrow)
            NAME(integrate)(l, pixel, block, sums, 1, 1, 1, 1, 1);
        else
            NAME(integrate)(l, pixel, block, sums, 0, 1, 1, 1, 1);
        return;
    }
    switch (l->may_wrap | l->biased << 1 | l->may_clip << 2 | narrow << 3) {
        CASES(0)
        CASES(8)
    }
#undef CASES
#undef CASE
}

/* Add to 32 bits what 16 hold, times what the plane is worth. */
INLINE void NAME(widen)(int32_t *sum, const int16_t *narrow, int32_t scale)
{
    for (int i = 0; i < LANES; i++) sum[i] += (int32_t)narrow[i] * scale;
}

INLINE void NAME(carry)(int32_t *sum, const ACC *acc, int32_t scale)
{
    int16_t narrow[LANES];
    for (int i = 0; i < ACCS; i++) ACC_STORE(narrow + i * (LANES / ACCS), acc[i]);
    NAME(widen)(sum, narrow, scale);
}

INLINE void NAME(clear)(ACC *acc)
{
    for (int i = 0; i < ACCS; i++) acc[i] = ACC_ZERO();
}

INLINE void NAME(add)(ACC *acc, const int16_t *row)
{
    for (int i = 0; i < ACCS; i++) acc[i] = ACC_ADD(acc[i], row + i * (LANES / ACCS));
}

/* Payloads [steps][channels][pixels] of one or two bytes into words [pixels][groups][planes][steps], pixels first..last of them. */
TARGET __attribute__((noinline)) static void NAME(pack)(
    const uint8_t *x, int bytes, int steps, int channels, int pixels, int planes, int first, int last, uint32_t *words)
{
    const int groups = (channels + 31) / 32;
    const size_t per_pixel = (size_t)groups * planes * steps;
    for (int from = first; from < last; from += 32) {
        const int many = last - from < 32 ? last - from : 32;
        for (int g = 0; g < groups; g++) {
            const int here = channels - g * 32 < 32 ? channels - g * 32 : 32;
            for (int p = 0; p < planes; p++) {
                uint32_t *word = words + from * per_pixel + ((size_t)g * planes + p) * steps;
                for (int t = 0; t < steps; t++) {
                    uint32_t square[32] = {0};
                    for (int c = 0; c < here; c++) {
                        const uint8_t *row = x + (((size_t)t * channels + g * 32 + c) * pixels + from) * bytes;
                        if (bytes == 1 && many == 32)
                            square[c] = WORD_OF(row, p);
                        else
                            for (int i = 0; i < many; i++) square[c] |= (uint32_t)(row[i * bytes + p / 8] >> p % 8 & 1) << i;
                    }
                    transpose_bits(square);
                    for (int i = 0; i < many; i++) word[i * per_pixel + t] = square[i];
                }
            }
        }
    }
}

/* Words [pixels][groups][steps] into bytes [steps][channels][pixels], pixels first..last of them. */
TARGET __attribute__((noinline)) static void NAME(unpack)(
    const uint32_t *words, int steps, int channels, int pixels, int first, int last, uint8_t *out)
{
    const size_t per_pixel = (size_t)((channels + 31) / 32) * steps;
    if (pixels == 1) {
        for (int t = 0; first < last && t < steps; t++)
            for (int c = 0; c < channels; c += 32) {
                uint8_t row[32];
                BYTES_OF(row, words[(size_t)(c / 32) * steps + t]);
                memcpy(out + (size_t)t * channels + c, row, channels - c < 32 ? channels - c : 32);
            }
        return;
    }
    for (int from = first; from < last; from += 32) {
        const int many = last - from < 32 ? last - from : 32;
        for (int group = 0; group < channels; group += 32)
            for (int t = 0; t < steps; t++) {
                uint32_t square[32] = {0};
                for (int i = 0; i < many; i++) square[i] = words[(from + i) * per_pixel + (size_t)(group / 32) * steps + t];
                transpose_bits(square);
                for (int c = group; c < channels && c < group + 32; c++) {
                    uint8_t row[32], *to = out + ((size_t)t * channels + c) * pixels + from;
                    BYTES_OF(row, square[c - group]);
                    memcpy(to, row, (size_t)many);
                }
            }
    }
}

/* Sums of rows of 8 bits, int16: a row is 16 pairs of bytes, weight i plus 128 and weight 16 + i. As 16-bit numbers the pairs
   add up modulo 2^16; the sums of their high bytes, taken apart, leave those of the low ones, which 256 rows cannot overflow. */
INLINE void NAME(add_bytes)(const uint8_t *weight, const int32_t *events, uint32_t n, int16_t *sums)
{
    ROW both[ROWS], high[ROWS];
    for (int i = 0; i < ROWS; i++) both[i] = high[i] = ROW_ZERO();
    UNROLL for (uint32_t at = 0; at < n; at++) {
        const uint8_t *row = weight + (size_t)(uint32_t)events[at] * LANES;
        for (int i = 0; i < ROWS; i++) {
            const ROW pairs = ROW_LOAD(row + i * (LANES / ROWS));
            both[i] = ROW_ADD(both[i], pairs);
            high[i] = ROW_ADD(high[i], ROW_HIGH(pairs));
        }
    }
    for (int i = 0; i < ROWS; i++) {
        ROW_STORE(sums + i * (16 / ROWS), ROW_LOW(both[i], high[i], (int16_t)(128 * n)));
        ROW_STORE(sums + 16 + i * (16 / ROWS), high[i]);
    }
}

/* Bytes 0 or 1 [steps][channels] into words [groups][steps]. */
TARGET __attribute__((noinline)) static void NAME(pack_flat)(const uint8_t *x, int steps, int channels, uint32_t *words)
{
    for (int t = 0; t < steps; t++) {
        const uint8_t *row = x + (size_t)t * channels;
        int c = 0;
        for (; c + 32 <= channels; c += 32) words[(size_t)(c / 32) * steps + t] = WORD_OF(row + c, 0);
        uint32_t word = 0;
        for (int i = c; i < channels; i++) word |= (uint32_t)row[i] << (i - c);
        if (c < channels) words[(size_t)(c / 32) * steps + t] = word;
    }
}

/* Sums of one pixel by tables over the bits of a row of the window. */
INLINE void NAME(by_table)(const layer_t *l, const int16_t *const *rows, const uint8_t *const *index, int taps, int16_t *sums)
{
    for (int t = 0; t < l->steps; t++) {
        ACC acc[ACCS];
        NAME(clear)(acc);
        for (int k = 0; k < taps; k++) NAME(add)(acc, rows[k] + (size_t)index[k][(size_t)t * l->out_w] * LANES);
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
                        NAME(carry)(sums + t * LANES, acc, worth(l, p));
                        NAME(clear)(acc);
                        added = more;
                    }
                    for (; word; word &= word - 1)
                        NAME(add)(acc, rows[k] + (size_t)(g * 32 + __builtin_ctz(word)) * LANES);
                }
            }
            NAME(carry)(sums + t * LANES, acc, worth(l, p));
        }
    }
}

INLINE void NAME(raise)(int64_t *peak, const int32_t *peaks)
{
    for (int i = 0; i < LANES; i++)
        if (peaks[i] > *peak) *peak = peaks[i];
}

#ifdef DOT
#define WIDE 2 /* registers of outputs at a time: with four steps, all sums and what they need stay in registers */
/* Sums of one pixel in `many` steps from t, four channels of one output at a time; `carried`: 16 bits do not hold them all. */
INLINE void NAME(dots)(
    const layer_t *l, const int8_t *const *weight, const uint8_t *const *from, int taps, int t, int first, const int many, const int carried,
    int32_t *sums)
{
    const int Q = l->quads;
    ACC acc[4][WIDE];
    SUM total[4][WIDE];
    for (int m = 0; m < many; m++)
        for (int d = 0; d < WIDE; d++) acc[m][d] = ACC_ZERO(), total[m][d] = SUM_ZERO();
    int used = 0;
    for (int k = 0; k < taps; k++) {
        const int8_t *w = weight[k] + first * (LANES * 4 / HALVES);
        const uint8_t *x = from[k] + (size_t)t * Q * 4;
        for (int q = 0; q < Q; q++) {
            ACC four[4];
            UNROLL for (int m = 0; m < many; m++) four[m] = FOUR(x + ((size_t)m * Q + q) * 4);
            UNROLL for (int d = 0; d < WIDE; d++) {
                const ACC row = HELD(ACC_LOAD(w + (size_t)q * LANES * 4 + d * (LANES * 4 / HALVES)));
                UNROLL for (int m = 0; m < many; m++) acc[m][d] = DOT(acc[m][d], four[m], row);
            }
            if (carried && ++used == l->dot_flush) {
                for (int m = 0; m < many; m++)
                    for (int d = 0; d < WIDE; d++) total[m][d] = SUM_ADD(total[m][d], DOT_SUM(acc[m][d])), acc[m][d] = ACC_ZERO();
                used = 0;
            }
        }
    }
    for (int m = 0; m < many; m++)
        for (int d = 0; d < WIDE; d++)
            SUM_STORE(sums + (t + m) * LANES + (first + d) * WIDTH, carried ? SUM_ADD(total[m][d], DOT_SUM(acc[m][d])) : DOT_SUM(acc[m][d]));
}

INLINE void NAME(by_dots)(
    const layer_t *l, const int8_t *const *weight, const uint8_t *const *from, int taps, const int carried, int32_t *sums)
{
    for (int first = 0; first < HALVES; first += WIDE) {
        int t = 0;
        for (; t + 4 <= l->steps; t += 4) NAME(dots)(l, weight, from, taps, t, first, 4, carried, sums);
        for (; t < l->steps; t++) NAME(dots)(l, weight, from, taps, t, first, 1, carried, sums);
    }
}

/* One row of outputs of one block (a dense layer is one pixel that sees all) by dot products. */
TARGET __attribute__((noinline)) static void NAME(dotted)(const layer_t *l, int unit, int32_t *sums)
{
    const int dense = l->dense;
    const int high = dense ? 1 : l->out_h, wide = dense ? 1 : l->out_w, kh = dense ? l->in_h : l->kh, kw = dense ? l->in_w : l->kw;
    const int block = unit / high, oy = unit % high;
    const size_t per_tap = (size_t)l->quads * 4 * LANES, per_pixel = (size_t)l->steps * l->quads * 4;
    const int8_t *weight[MAX_TAPS], *first = l->dot + per_tap * kh * kw * block;
    const uint8_t *from[MAX_TAPS];
    int32_t peaks[LANES] = {0};
    for (int ox = 0; ox < wide; ox++) {
        int taps = 0;
        for (int ky = 0; ky < kh; ky++) {
            const int y = oy * l->stride_y - l->pad_y + ky * l->dil_y;
            if (y < 0 || y >= l->in_h) continue;
            for (int kx = 0; kx < kw; kx++) {
                const int x = ox * l->stride_x - l->pad_x + kx * l->dil_x;
                if (x < 0 || x >= l->in_w) continue;
                from[taps] = l->bytes + ((size_t)y * l->in_w + x) * per_pixel;
                weight[taps++] = first + per_tap * (ky * kw + kx);
            }
        }
        if (l->dot_flush)
            NAME(by_dots)(l, weight, from, taps, 1, sums);
        else
            NAME(by_dots)(l, weight, from, taps, 0, sums);
        NAME(neurons)(l, oy * wide + ox, block, sums, 0, peaks);
    }
    NAME(raise)(l->peak, peaks);
}
#undef WIDE
#endif

/* One row of outputs of one block by what is set in the window. */
TARGET __attribute__((noinline)) static void NAME(conv)(const layer_t *l, int unit, void *sums)
{
    const int T = l->steps, P = l->planes, G = l->groups, block = unit / l->out_h, oy = unit % l->out_h;
    const void *from[MAX_TAPS];
    const int16_t *rows[MAX_TAPS];
    uint16_t base[MAX_TAPS];
    int32_t peaks[LANES] = {0};
    const size_t per_tap = l->mode == TABLE ? ((size_t)1 << (l->kw * l->channels)) * LANES
                                            : (size_t)G * 32 * (l->mode == LISTS ? P : 1) * LANES;
    const int16_t *weight = (const int16_t *)l->weight + per_tap * (l->mode == TABLE ? l->kh : l->kh * l->kw) * block;
    for (int ox = 0; ox < l->out_w; ox++) {
        int taps = 0;
        for (int ky = 0; ky < l->kh; ky++) {
            const int y = oy * l->stride_y - l->pad_y + ky * l->dil_y;
            if (y < 0 || y >= l->in_h) continue;
            if (l->mode == TABLE) {
                from[taps] = l->windows + (size_t)y * T * l->out_w + ox;
                rows[taps++] = weight + per_tap * ky;
                continue;
            }
            for (int kx = 0; kx < l->kw; kx++) {
                const int x = ox * l->stride_x - l->pad_x + kx * l->dil_x;
                if (x < 0 || x >= l->in_w) continue;
                const size_t pixel = (size_t)y * l->in_w + x;
                from[taps] = l->mode == LISTS ? (const void *)(l->begin + pixel * (T + 1)) : l->in + pixel * G * P * T;
                base[taps] = (uint16_t)((ky * l->kw + kx) * G * 32 * P);
                rows[taps++] = weight + per_tap * (ky * l->kw + kx);
            }
        }
        if (l->mode == TABLE) NAME(by_table)(l, rows, (const uint8_t *const *)from, taps, sums);
        if (l->mode == LISTS) NAME(by_lists)(l, weight, (const uint32_t *const *)from, base, taps, sums);
        if (l->mode == WORDS) NAME(by_words)(l, rows, (const uint32_t *const *)from, taps, sums);
        NAME(neurons)(l, oy * l->out_w + ox, block, sums, l->mode != WORDS, peaks);
    }
    NAME(raise)(l->peak, peaks);
}

/* Dense: rows of weights of every step and plane; `begin` gets steps * planes + 1 entries. Returns the most of one. */
TARGET __attribute__((noinline)) static uint32_t NAME(list_events)(const layer_t *l, int32_t *events, uint32_t *begin)
{
    const int T = l->steps, P = l->planes, many = l->in_h * l->in_w * l->groups;
    uint32_t n = 0, most = 0;
    for (int t = 0; t < T; t++)
        for (int p = 0; p < P; p++) {
            const uint32_t from = begin[t * P + p] = n;
            for (int i = 0; i < many; i++) {
                const uint32_t word = l->in[((size_t)i * P + p) * T + t];
                if (!word) continue;
                for (int b = 0; b < 4; b++) {
                    const unsigned byte = word >> (8 * b) & 255;
                    SPREAD_EIGHT(events + n, &bytes_of[byte], i * 32 + 8 * b);
                    n += __builtin_popcount(byte);
                }
            }
            most = n - from > most ? n - from : most;
        }
    begin[T * P] = n;
    return most;
}

/* Sums of one block of a layer of one output pixel, int16 where `narrow`; what arrives in every step is listed once for all
   blocks. */
TARGET __attribute__((noinline)) static void NAME(dense_sums)(const layer_t *l, int narrow, int block, int32_t *sums)
{
    const int T = l->steps, P = l->planes;
    const size_t per_block = (size_t)l->in_h * l->in_w * l->groups * 32 * LANES;
    const int16_t *weight = (const int16_t *)l->weight + (l->narrow_weight ? 0 : per_block * block);
    const uint8_t *bytes = (const uint8_t *)l->weight + per_block * block;
    if (!narrow) memset(sums, 0, sizeof *sums * T * LANES);
    for (int t = 0; t < T; t++) {
        for (int p = 0; p < P; p++) {
            uint32_t at = l->begin[t * P + p];
            const uint32_t end = l->begin[t * P + p + 1];
            do {
                const uint32_t until = end - at > (uint32_t)l->flush ? at + l->flush : end;
                int16_t found[LANES], *to = narrow ? (int16_t *)sums + t * LANES : found;
                if (l->narrow_weight) {
                    NAME(add_bytes)(bytes, l->events + at, until - at, to);
                } else {
                    ACC acc[ACCS];
                    NAME(clear)(acc);
                    for (uint32_t i = at; i < until; i++) NAME(add)(acc, weight + (size_t)l->events[i] * LANES);
                    for (int i = 0; i < ACCS; i++) ACC_STORE(to + i * (LANES / ACCS), acc[i]);
                }
                if (!narrow) NAME(widen)(sums + t * LANES, found, worth(l, p));
                at = until;
            } while (at < end);
        }
    }
}

/* One block of a layer of one output pixel. A layer with a loop leaves its sums for `looped`. */
TARGET __attribute__((noinline)) static void NAME(dense)(const layer_t *l, int narrow, int block, int32_t *sums, int32_t *kept)
{
    int32_t peaks[LANES] = {0};
    if (l->back) {
        NAME(dense_sums)(l, 0, block, kept + (size_t)block * l->steps * LANES);
        return;
    }
    if (l->delays) {
        narrow = 0;
        sums += (size_t)l->history * LANES;
        scattered(l, block, sums);
    } else {
        NAME(dense_sums)(l, narrow, block, sums);
    }
    NAME(neurons)(l, 0, block, sums, narrow, peaks);
    NAME(raise)(l->peak, peaks);
}

/* A layer whose spikes come back to it a step later, from the sums of what arrives, [blocks][steps][LANES]: step after step.
   `room` takes a list of the layer's spikes and its states where none are kept. */
TARGET __attribute__((noinline)) static void NAME(looped)(const layer_t *l, int32_t *sums, int32_t *room)
{
    const int T = l->steps, B = l->blocks, own = l->registers != NULL;
    const HALF keep_u = SPLAT(l->keep_u), keep_v = SPLAT(l->keep_v), threshold = SPLAT(l->threshold), unit = SPLAT(64.0f * l->unit);
    int32_t peaks[LANES] = {0}, *events = room;
    float *states = l->state ? l->state : (float *)(room + B * 32 + 32);
    if (!l->state) memset(states, 0, sizeof *states * 2 * LANES * B);
    for (int t = 0; t < T; t++) {
        uint32_t n = 0;
        for (int b = 0; b < B; b++) {
            const uint32_t before = t ? l->out[(size_t)b * T + t - 1] : l->fired ? l->fired[b] : 0;
            for (int i = 0; before && i < 4; i++) {
                const unsigned byte = before >> (8 * i) & 255;
                SPREAD_EIGHT(events + n, &bytes_of[byte], b * 32 + 8 * i);
                n += (uint32_t)__builtin_popcount(byte);
            }
        }
        for (int b = 0; b < B; b++) {
            int32_t *sum = sums + ((size_t)b * T + t) * LANES;
            const int16_t *rows = (const int16_t *)l->back + (size_t)b * B * 32 * LANES;
            for (uint32_t at = 0; at < n;) {
                const uint32_t until = n - at > (uint32_t)l->back_flush ? at + (uint32_t)l->back_flush : n;
                ACC acc[ACCS];
                NAME(clear)(acc);
                for (; at < until; at++) NAME(add)(acc, rows + (size_t)events[at] * LANES);
                NAME(carry)(sum, acc, 1);
            }
            NAME(peak)(sum, 1, peaks);
            float *state = states + (size_t)b * 2 * LANES;
            const float *registers = own ? (const float *)l->registers + (size_t)b * 3 * LANES : NULL;
            uint32_t fired = 0;
            for (int h = 0; h < HALVES; h++) {
                const int i = h * WIDTH;
                HALF u = LOAD(state + i), v = LOAD(state + LANES + i);
                const MASK fires = NAME(step)(&u, &v, SUM_LOAD(sum + i), unit, own ? LOAD(registers + i) : keep_u,
                    own ? LOAD(registers + LANES + i) : keep_v, own ? LOAD(registers + 2 * LANES + i) : threshold,
                    (const float *)l->bias + (size_t)b * LANES + i, 1, 1, 1);
                fired |= BITS(fires) << i;
                STORE(state + i, u);
                STORE(state + LANES + i, v);
                if (!l->u) continue;
                const size_t place = ((size_t)t * B + b) * LANES + i;
                SUM_STORE((int32_t *)l->u + place, TO_INT(u));
                SUM_STORE((int32_t *)l->v + place, TO_INT(v));
            }
            l->out[(size_t)b * T + t] = fired;
            l->count[t] += __builtin_popcount(fired);
        }
    }
    if (l->fired)
        for (int b = 0; b < B; b++) l->fired[b] = l->out[(size_t)b * T + T - 1];
    NAME(raise)(l->peak, peaks);
}
