/* Layers whose spikes come back to them; included by cuba_lanes.h. */

/* A layer whose spikes come back to it a step later, from the sums of what arrives, [blocks][steps][LANES], int16 where `narrow`:
   step after step. Rows of its own weights are in pairs. `room` takes a list of the layer's spikes and its states where none are
   kept. */
TARGET __attribute__((noinline)) static void NAME(looped)(const layer_t *l, int narrow, const int32_t *sums, int32_t *room)
{
    const int T = l->steps, B = l->blocks, own = l->registers != NULL;
    const HALF keep_u = SPLAT(l->keep_u), keep_v = SPLAT(l->keep_v), threshold = SPLAT(l->threshold), unit = SPLAT(64.0f * l->unit);
    uint16_t *events = (uint16_t *)room;
    float *states = l->state ? l->state : (float *)(room + B * 32 + 32);
    SUM most = SUM_ZERO();
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
            const size_t place = ((size_t)b * T + t) * LANES;
            const int16_t *rows = (const int16_t *)l->back + (size_t)b * B * 32 * LANES;
            SUM arriving[HALVES];
            UNROLL for (int h = 0; h < HALVES; h++)
                arriving[h] = narrow ? WIDEN((const int16_t *)sums + place + h * WIDTH) : SUM_LOAD(sums + place + h * WIDTH);
            for (uint32_t at = 0; at < n;) {
                const uint32_t until = n - at > (uint32_t)l->back_flush ? at + (uint32_t)l->back_flush : n;
                ACC acc[ACCS];
                NAME(clear)(acc);
                for (; at < until; at++) NAME(add)(acc, rows + (size_t)events[at] * LANES);
                UNROLL for (int i = 0; i < ACCS; i++) {
                    arriving[i] = SUM_ADD(arriving[i], EVEN(acc[i]));
                    arriving[ACCS + i] = SUM_ADD(arriving[ACCS + i], ODD(acc[i]));
                }
            }
            float *state = states + (size_t)b * 2 * LANES;
            const float *registers = own ? (const float *)l->registers + (size_t)b * 3 * LANES : NULL;
            MASK fires[HALVES];
            UNROLL for (int h = 0; h < HALVES; h++) {
                const int i = h * WIDTH;
                HALF u = LOAD(state + i), v = LOAD(state + LANES + i);
                most = SUM_MAX(most, SUM_ABS(arriving[h]));
                fires[h] = NAME(step)(&u, &v, arriving[h], unit, own ? LOAD(registers + i) : keep_u,
                    own ? LOAD(registers + LANES + i) : keep_v, own ? LOAD(registers + 2 * LANES + i) : threshold,
                    (const float *)l->bias + (size_t)b * LANES + i, 1, FULL);
                STORE(state + i, u);
                STORE(state + LANES + i, v);
                if (!l->u) continue;
                const size_t at = ((size_t)t * B + b) * LANES + i;
                SUM_STORE((int32_t *)l->u + at, TO_INT(u));
                SUM_STORE((int32_t *)l->v + at, TO_INT(v));
            }
            const uint32_t fired = ALL_BITS(fires);
            l->out[(size_t)b * T + t] = fired;
            l->count[t] += __builtin_popcount(fired);
        }
    }
    if (l->fired)
        for (int b = 0; b < B; b++) l->fired[b] = l->out[(size_t)b * T + T - 1];
    int32_t found[WIDTH];
    SUM_STORE(found, most);
    for (int i = 0; i < WIDTH; i++)
        if (found[i] > *l->peak) *l->peak = found[i];
}
