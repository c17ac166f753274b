/* Sums of synapses as dot products of four channels at a time; included by cuba_lanes.h. */

/* Of all pixels and channels, how many are not 0, per mille; every eighth pixel is looked at. */
TARGET __attribute__((noinline)) static int NAME(activity)(const uint32_t *words, int pixels, int channels, int groups, int planes, int steps)
{
    uint64_t set = 0, seen = 0;
    for (int i = 0; i < pixels; i += 8) {
        for (int g = 0; g < groups; g++) {
            const uint32_t *word = words + ((size_t)i * groups + g) * planes * steps;
            for (int t = 0; t < steps; t++) {
                uint32_t any = 0;
                for (int p = 0; p < planes; p++) any |= word[(size_t)p * steps + t];
                set += (uint64_t)__builtin_popcount(any);
            }
        }
        seen += (uint64_t)channels * steps;
    }
    return (int)(set * 1000 / seen);
}

#define OUTPUTS 2 /* registers of outputs at a time: with four steps, all sums and what they need stay in registers */
/* Sums of one pixel in `many` steps from t, four channels of one output at a time; `carried`: 16 bits do not hold them all. */
INLINE void NAME(dots)(
    const layer_t *l, const int8_t *const *weight, const uint8_t *const *from, int taps, int t, int first, const int many, const int carried,
    int32_t *sums)
{
    const int Q = l->quads;
    ACC acc[4][OUTPUTS];
    SUM total[4][OUTPUTS];
    for (int m = 0; m < many; m++)
        for (int d = 0; d < OUTPUTS; d++) acc[m][d] = ACC_ZERO(), total[m][d] = SUM_ZERO();
    int used = 0;
    for (int k = 0; k < taps; k++) {
        const int8_t *w = weight[k] + first * (LANES * 4 / HALVES);
        const uint8_t *x = from[k] + (size_t)t * Q * 4;
        for (int q = 0; q < Q; q++) {
            ACC four[4];
            UNROLL for (int m = 0; m < many; m++) four[m] = FOUR(x + ((size_t)m * Q + q) * 4);
            UNROLL for (int d = 0; d < OUTPUTS; d++) {
                const ACC row = HELD(ACC_LOAD(w + (size_t)q * LANES * 4 + d * (LANES * 4 / HALVES)));
                UNROLL for (int m = 0; m < many; m++) acc[m][d] = DOT(acc[m][d], four[m], row);
            }
            if (carried && ++used == l->dot_flush) {
                for (int m = 0; m < many; m++)
                    for (int d = 0; d < OUTPUTS; d++) total[m][d] = SUM_ADD(total[m][d], DOT_SUM(acc[m][d])), acc[m][d] = ACC_ZERO();
                used = 0;
            }
        }
    }
    for (int m = 0; m < many; m++)
        for (int d = 0; d < OUTPUTS; d++)
            SUM_STORE(sums + (t + m) * LANES + (first + d) * WIDTH, carried ? SUM_ADD(total[m][d], DOT_SUM(acc[m][d])) : DOT_SUM(acc[m][d]));
}

INLINE void NAME(by_dots)(
    const layer_t *l, const int8_t *const *weight, const uint8_t *const *from, int taps, const int carried, int32_t *sums)
{
    for (int first = 0; first < HALVES; first += OUTPUTS) {
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
        const int32_t peak = NAME(largest)(sums, (size_t)l->steps * LANES);
        if (peak > *l->peak) *l->peak = peak;
        NAME(neurons)(l, oy * wide + ox, block, 1, sums, WIDE, NULL, NULL, 0, peak);
    }
}
#undef OUTPUTS
