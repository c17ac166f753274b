/* Neurons of a block through all time steps; included by cuba_lanes.h.

   Sums come as int32, as int16, or as pairs: int16 of which word 2i is lane i and word 2i + 1 lane LANES / 2 + i, which widen
   faster. Those of tables are not stored at all: the rows to add are looked up here.

   What cannot happen is left out: CALM u never wraps and v never reaches a clip, LOW v may reach the clip below. Which it is
   follows from the largest |sum| of all steps (native_layer.py has the bounds), where states were at rest before. */

/* One step of WIDTH neurons from what arrives; order and rounding: hw_sim/arithmetic.py. Returns where they fire. */
INLINE MASK NAME(step)(HALF *u, HALF *v, SUM arriving, HALF unit, HALF keep_u, HALF keep_v, HALF threshold, const float *bias,
    const int biased, const int care)
{
    *u = MUL_ADD(TO_FLOAT(arriving), unit, TRUNCATE(MUL(*u, keep_u)));
    if (care >= FULL) { /* one wrap; +2^23 itself stays */
        const MASK over = ABOVE(*u, SPLAT(8388608.0f)), under = NOT_ABOVE(*u, SPLAT(-8388608.0f));
        *u = ADD_WHERE(over, *u, SPLAT(-16777216.0f));
        *u = ADD_WHERE(under, *u, SPLAT(16777216.0f));
    }
    *v = ADD(TRUNCATE(MUL(*v, keep_v)), *u);
    if (biased) *v = ADD(*v, LOAD(bias));
    if (care >= FULL) *v = MIN(*v, SPLAT(8388607.0f));
    if (care >= LOW) *v = MAX(*v, SPLAT(-8388607.0f));
    const MASK fires = ABOVE(*v, threshold);
    *v = ZERO_WHERE(fires, *v);
    return fires;
}

/* `many` output pixels from `pixel` on, of one block, or of dense layers blocks from `block` on (1 or 2: a step is a chain of
   results that wait for each other, and two fill the waits). `sums` of a pixel follow those of the one before. Of TABLED sums `rows` and `index` are taken instead,
   and the largest |sum| is raised in `peak`. OWN: neurons have registers of their own. */
INLINE void NAME(integrate)(const layer_t *l, int pixel, int block, const size_t many, const void *sums, const int16_t *const *rows,
    const uint8_t *const *index, const int taps, const int kind, const int biased, const int care, int32_t *peak)
{
    const HALF keep_u = SPLAT(l->keep_u), keep_v = SPLAT(l->keep_v), threshold = SPLAT(l->threshold), unit = SPLAT(64.0f * l->unit);
    const float *bias = (const float *)l->bias + (size_t)block * LANES;
    const int T = l->steps, wide = l->out_w;
    const size_t place = (size_t)pixel * l->blocks + block;
    const float *own = care == OWN ? (const float *)l->registers + place * 3 * LANES : NULL;
    float *state = l->state ? (float *)l->state + place * 2 * LANES : NULL;
    const size_t across = l->dense ? 1 : l->blocks; /* from one to the next, in blocks */
    const size_t stride = (size_t)l->blocks * LANES, next = l->dense ? LANES : T * stride, next_bias = l->dense ? LANES : 0;
    const size_t first = ((size_t)pixel * T * l->blocks + block) * LANES;
    uint32_t *out = l->out + place * T;
    const int16_t *row0 = rows ? rows[0] : NULL, *row1 = rows && taps == 3 ? rows[1] : NULL, *row2 = rows && taps == 3 ? rows[2] : NULL;
    const uint8_t *at0 = rows ? index[0] : NULL, *at1 = rows && taps == 3 ? index[1] : NULL, *at2 = rows && taps == 3 ? index[2] : NULL;
    HALF u[2 * HALVES], v[2 * HALVES];
    ACC most[ACCS];
    UNROLL for (int i = 0; i < ACCS; i++) most[i] = ACC_ZERO();
    UNROLL for (size_t m = 0; m < many; m++)
        UNROLL for (int h = 0; h < HALVES; h++) {
            u[m * HALVES + h] = state ? LOAD(state + m * across * 2 * LANES + h * WIDTH) : SPLAT(0.0f);
            v[m * HALVES + h] = state ? LOAD(state + m * across * 2 * LANES + LANES + h * WIDTH) : SPLAT(0.0f);
        }
    for (int t = 0; t < T; t++) {
        SUM arriving[2 * HALVES];
        UNROLL for (size_t m = 0; m < many; m++)
            if (kind == WIDE || kind == NARROW) {
                const size_t at = (m * T + t) * LANES;
                UNROLL for (int h = 0; h < HALVES; h++)
                    arriving[m * HALVES + h] = kind == WIDE ? SUM_LOAD((const int32_t *)sums + at + h * WIDTH)
                                                            : WIDEN((const int16_t *)sums + at + h * WIDTH);
            } else {
                UNROLL for (int i = 0; i < ACCS; i++) {
                    const int part = i * (LANES / ACCS);
                    ACC acc;
                    if (kind == PAIRED) {
                        acc = ACC_LOAD((const int16_t *)sums + (m * T + t) * LANES + part);
                    } else if (taps == 3) {
                        acc = ACC_ADD(ACC_LOAD(row0 + (size_t)at0[m] * LANES + part), row1 + (size_t)at1[m] * LANES + part);
                        acc = ACC_ADD(acc, row2 + (size_t)at2[m] * LANES + part);
                    } else {
                        acc = ACC_ZERO();
                        for (int k = 0; k < taps; k++)
                            acc = ACC_ADD(acc, rows[k] + (size_t)index[k][(size_t)t * wide + m] * LANES + part);
                    }
                    if (kind == TABLED) most[i] = ACC_MAX(most[i], ACC_ABS(acc));
                    arriving[m * HALVES + i] = EVEN(acc);
                    arriving[m * HALVES + ACCS + i] = ODD(acc);
                }
            }
        if (kind == TABLED && taps == 3) at0 += wide, at1 += wide, at2 += wide;
        MASK fires[2 * HALVES];
        UNROLL for (size_t m = 0; m < many; m++)
            UNROLL for (int h = 0; h < HALVES; h++) {
                const size_t i = m * HALVES + h;
                const float *mine = care == OWN ? own + m * across * 3 * LANES + h * WIDTH : NULL;
                fires[i] = NAME(step)(&u[i], &v[i], arriving[i], unit, mine ? LOAD(mine) : keep_u, mine ? LOAD(mine + LANES) : keep_v,
                    mine ? LOAD(mine + 2 * LANES) : threshold, bias + m * next_bias + h * WIDTH, biased, care);
            }
        UNROLL for (size_t m = 0; m < many; m++) {
            const uint32_t fired = ALL_BITS(fires + m * HALVES);
            out[m * across * T + t] = fired;
            l->count[t] += __builtin_popcount(fired);
        }
        if (l->u)
            UNROLL for (size_t m = 0; m < many; m++)
                UNROLL for (int h = 0; h < HALVES; h++) {
                    const size_t at = first + m * next + t * stride + h * WIDTH;
                    SUM_STORE((int32_t *)l->u + at, TO_INT(u[m * HALVES + h]));
                    SUM_STORE((int32_t *)l->v + at, TO_INT(v[m * HALVES + h]));
                }
    }
    if (state)
        UNROLL for (size_t m = 0; m < many; m++)
            UNROLL for (int h = 0; h < HALVES; h++) {
                STORE(state + m * across * 2 * LANES + h * WIDTH, u[m * HALVES + h]);
                STORE(state + m * across * 2 * LANES + LANES + h * WIDTH, v[m * HALVES + h]);
            }
    if (kind == TABLED) UNROLL for (int i = 0; i < ACCS; i++) *peak = NAME(raised)(*peak, most[i]);
}

/* Largest |sum| of int32 sums [n]. */
INLINE int32_t NAME(largest)(const int32_t *sums, size_t n)
{
    SUM most = SUM_ZERO();
    int32_t found[WIDTH], largest = 0;
    for (size_t i = 0; i < n; i += WIDTH) most = SUM_MAX(most, SUM_ABS(SUM_LOAD(sums + i)));
    SUM_STORE(found, most);
    for (int i = 0; i < WIDTH; i++) largest = found[i] > largest ? found[i] : largest;
    return largest;
}

/* The same of int16 sums, none of which is -2^15. */
INLINE int32_t NAME(largest_narrow)(const int16_t *sums, size_t n)
{
    ACC most = ACC_ZERO();
    for (size_t i = 0; i < n; i += LANES / ACCS) most = ACC_MAX(most, ACC_ABS(ACC_LOAD(sums + i)));
    return NAME(raised)(0, most);
}

/* One or two pixels of one block, or of a dense layer blocks, whose largest |sum| is `peak` (TABLED: a bound of it). Two at once where there are registers for it. */
TARGET __attribute__((noinline)) static void NAME(neurons)(const layer_t *l, int pixel, int block, int many, const void *sums, int kind,
    const int16_t *const *rows, const uint8_t *const *index, int taps, int32_t peak)
{
    if (l->state) peak = l->bound;
    const int care = l->registers ? OWN : peak <= l->calm_below ? CALM : peak <= l->low_below ? LOW : FULL;
    int32_t found = 0;
    const int pairs = many == 2 && kind != WIDE && care <= LOW;
#define RUN(some, at, kind, taps, care, biased)                                                                            \
    NAME(integrate)(l, l->dense ? pixel : pixel + (at), l->dense ? block + (at) : block, some, (const char *)sums + (at) * (size_t)l->steps * LANES * ((kind) == WIDE ? 4 : 2), rows, \
        index, taps, kind, biased, care, &found)
#define CALMER(some, at, kind, taps)                              \
    case CALM * 2: RUN(some, at, kind, taps, CALM, 0); break;     \
    case CALM * 2 + 1: RUN(some, at, kind, taps, CALM, 1); break; \
    case LOW * 2: RUN(some, at, kind, taps, LOW, 0); break;       \
    case LOW * 2 + 1: RUN(some, at, kind, taps, LOW, 1); break;
#define CASE(at, kind, taps)                             \
    switch (care * 2 + (l->biased != 0)) {               \
        CALMER(1, at, kind, taps)                        \
    case FULL * 2:                                       \
    case FULL * 2 + 1: RUN(1, at, kind, taps, FULL, 1); break; \
    default: RUN(1, at, kind, taps, OWN, 1);             \
    }
#define PAIR(kind, taps) \
    switch (care * 2 + (l->biased != 0)) { CALMER(2, 0, kind, taps) }
    if (pairs && TWO_PIXELS) {
        if (kind == NARROW) {
            PAIR(NARROW, 0)
        } else if (kind == PAIRED) {
            PAIR(PAIRED, 0)
        } else if (taps == 3) {
            PAIR(TABLED, 3)
        } else {
            PAIR(TABLED, taps)
        }
        many = 0;
    }
    for (int m = 0; m < many; m++) {
        const uint8_t *moved[MAX_TAPS];
        if (kind == TABLED) {
            for (int k = 0; k < taps; k++) moved[k] = index[k] + m;
        }
        const uint8_t *const *index = moved;
        if (kind == WIDE) {
            CASE(m, WIDE, 0)
        } else if (kind == NARROW) {
            CASE(m, NARROW, 0)
        } else if (kind == PAIRED) {
            CASE(m, PAIRED, 0)
        } else if (taps == 3) {
            CASE(m, TABLED, 3)
        } else {
            CASE(m, TABLED, taps)
        }
    }
#undef PAIR
#undef CASE
#undef CALMER
#undef RUN
    if (kind == TABLED && found > *l->peak) *l->peak = found;
}
