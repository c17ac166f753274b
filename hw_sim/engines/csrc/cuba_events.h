/* Sums of synapses event by event: a row of weights is added for every bit that is set; included by cuba_lanes.h. */

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

/* Sums of rows of 8 bits, int16 [LANES] of `many` blocks (1 or 2), `next` numbers apart: a row of a block is 16 pairs of bytes,
   weight i plus 128 and weight 16 + i. As 16-bit numbers the pairs add up modulo 2^16; the sums of their high bytes, taken apart,
   leave those of the low ones, which 256 rows cannot overflow. */
INLINE void NAME(add_bytes)(const uint8_t *weight, const uint16_t *events, uint32_t n, const int many, int16_t *sums, size_t next)
{
#ifdef BLOCK_PAIRS
    if (many == 2) {
        BLOCK_PAIRS(weight, events, n, sums, sums + next);
        return;
    }
#endif
    ROW both[2 * ROWS], high[2 * ROWS];
    UNROLL for (int i = 0; i < many * ROWS; i++) both[i] = high[i] = ROW_ZERO();
    UNROLL for (uint32_t at = 0; at < n; at++) {
        const uint8_t *row = weight + (size_t)events[at] * LANES * (size_t)many;
        UNROLL for (int i = 0; i < many * ROWS; i++) {
            const ROW pairs = ROW_LOAD(row + i * (LANES / ROWS));
            both[i] = ROW_ADD(both[i], pairs);
            high[i] = ROW_ADD(high[i], ROW_HIGH(pairs));
        }
    }
    UNROLL for (int m = 0; m < many; m++)
        UNROLL for (int i = 0; i < ROWS; i++) {
            const ROW whole = both[m * ROWS + i], upper = high[m * ROWS + i];
            int16_t *to = sums + (size_t)m * next + i * (16 / ROWS);
            ROW_STORE(to, ROW_LOW(whole, upper, (int16_t)(128 * n)));
            ROW_STORE(to + 16, upper);
        }
}

/* Lists: rows of weights of what is set in pixels of rows first..last, pixel after pixel of one step, step after step, from
   items + n on, with 16 bytes to spare; `begin` is [in_h][steps][in_w + 1]. */
TARGET __attribute__((noinline)) static void NAME(list_items)(const layer_t *l, int first, int last, size_t n, uint8_t *items, uint32_t *begin)
{
    const int T = l->steps, W = l->in_w, words = l->groups * l->planes;
    for (int y = first; y < last; y++)
        for (int t = 0; t < T; t++) {
            uint32_t *start = begin + ((size_t)y * T + t) * (W + 1);
            const uint32_t *word = l->in + (size_t)y * W * words * T + t;
            for (int x = 0; x < W; x++) {
                start[x] = (uint32_t)n;
                for (int i = 0; i < words; i++, word += T) {
                    if (i && !*word) continue;
                    const uint64_t row = 0x2020202020202020u * (uint64_t)i;
                    UNROLL for (int b = 0; b < 4; b++) {
                        const unsigned byte = *word >> (8 * b) & 255;
                        const uint64_t rows = bytes_of[byte] + (row + 0x0808080808080808u * (uint64_t)b);
                        memcpy(items + n, &rows, 8);
                        n += (unsigned)__builtin_popcount(byte);
                    }
                }
            }
            start[W] = (uint32_t)n;
        }
}

/* Sums of a row of outputs of a kernel three wide, in pairs: what is set in one column of the window is listed once and added to
   the three outputs that see it. sums: [out_w][steps][LANES]. Returns the largest |sum|. */
TARGET __attribute__((noinline)) static int32_t NAME(columns)(
    const layer_t *l, const int16_t *weight, const uint32_t *const *from, const uint16_t *base, int taps, int16_t *sums)
{
    const int T = l->steps, W = l->in_w, pad = l->pad_x, wide = l->out_w;
    const size_t kx = (size_t)l->groups * 32 * l->planes * LANES;
    const int16_t *left = weight + 2 * kx, *middle = weight + kx; /* where the column lies, as seen from the output */
    const int most = taps * l->groups * l->planes * 32;           /* of a column */
    uint16_t list[COLUMN_LIST + 64];
    uint16_t ends[MAX_COLUMNS];
    ACC peak[ACCS];
    NAME(clear)(peak);
    for (int t = 0; t < T; t++) {
        ACC old[ACCS], mid[ACCS], new[ACCS];
        NAME(clear)(old), NAME(clear)(mid);
        for (int x = 0; x < W + pad;) {
            int until = x; /* as many columns as the list holds */
            uint32_t n = 0;
            for (; until < W && until - x < MAX_COLUMNS && n + (uint32_t)most <= COLUMN_LIST; until++) {
                for (int k = 0; k < taps; k++) {
                    const uint32_t *begin = from[k] + (size_t)t * (W + 1) + until;
                    const uint32_t first = begin[0], many = begin[1] - first;
                    SPREAD(list + n, l->items + first, base[k]);
                    if (many > 16)
                        for (uint32_t i = 16; i < many; i += 16) SPREAD(list + n + i, l->items + first + i, base[k]);
                    n += many;
                }
                ends[until - x] = (uint16_t)n;
            }
            const int some = until - x;
            if (until == W) until = W + pad;
            const uint16_t *item = list;
            for (int i = 0; i < until - x; i++) {
                NAME(clear)(new);
                if (i < some)
                    for (const uint16_t *const end = list + ends[i]; item < end; item++) {
                        const size_t row = (size_t)*item * LANES;
                        NAME(add)(old, left + row);
                        NAME(add)(mid, middle + row);
                        NAME(add)(new, weight + row);
                    }
                const int ox = x + i - 2 + pad;
                if (ox >= 0 && ox < wide)
                    for (int a = 0; a < ACCS; a++) {
                        ACC_STORE(sums + ((size_t)ox * T + t) * LANES + a * (LANES / ACCS), old[a]);
                        peak[a] = ACC_MAX(peak[a], ACC_ABS(old[a]));
                    }
                for (int a = 0; a < ACCS; a++) old[a] = mid[a], mid[a] = new[a];
            }
            x = until;
        }
    }
    int32_t largest = 0;
    for (int a = 0; a < ACCS; a++) largest = NAME(raised)(largest, peak[a]);
    return largest;
}

/* Sums of one pixel by lists of what is set in each pixel of the window, rows of weights for every plane. */
INLINE void NAME(by_lists)(
    const layer_t *l, const int16_t *weight, const uint32_t *const *begin, const uint16_t *base, int taps, int16_t *sums)
{
    uint16_t list[MAX_LIST + 16];
    for (int t = 0; t < l->steps; t++) {
        int n = 0;
        for (int k = 0; k < taps; k++) {
            const uint32_t *start = begin[k] + (size_t)t * (l->in_w + 1);
            const int from = (int)start[0], many = (int)(start[1] - start[0]);
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

/* One row of outputs of one block by what is set in the window. */
TARGET __attribute__((noinline)) static void NAME(conv)(const layer_t *l, int unit, void *sums)
{
    const int T = l->steps, P = l->planes, G = l->groups, block = unit / l->out_h, oy = unit % l->out_h;
    const void *from[MAX_TAPS];
    const int16_t *rows[MAX_TAPS];
    uint16_t base[MAX_TAPS];
    const size_t per_tap = l->mode == TABLE ? ((size_t)1 << (l->kw * l->channels)) * LANES
                                            : (size_t)G * 32 * (l->mode == LISTS ? P : 1) * LANES;
    const int16_t *weight = (const int16_t *)l->weight + per_tap * (l->mode == TABLE ? l->kh : l->kh * l->kw) * block;
    if (l->mode == LISTS && fits_columns(l)) {
        int taps = 0;
        for (int ky = 0; ky < l->kh; ky++) {
            const int y = oy * l->stride_y - l->pad_y + ky * l->dil_y;
            if (y < 0 || y >= l->in_h) continue;
            from[taps] = l->begin + (size_t)y * T * (l->in_w + 1);
            base[taps++] = (uint16_t)(ky * 3 * G * 32 * P);
        }
        const int32_t peak = NAME(columns)(l, weight, (const uint32_t *const *)from, base, taps, sums);
        if (peak > *l->peak) *l->peak = peak;
        for (int ox = 0; ox < l->out_w; ox += 2)
            NAME(neurons)(l, oy * l->out_w + ox, block, l->out_w - ox < 2 ? 1 : 2, (int16_t *)sums + (size_t)ox * T * LANES, PAIRED, NULL,
                NULL, 0, peak);
        return;
    }
    const int together = l->mode == TABLE ? 2 : 1; /* pixels */
    for (int ox = 0; ox < l->out_w; ox += together) {
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
                from[taps] = l->mode == LISTS ? (const void *)(l->begin + (size_t)y * T * (l->in_w + 1) + x) : l->in + pixel * G * P * T;
                base[taps] = (uint16_t)((ky * l->kw + kx) * G * 32 * P);
                rows[taps++] = weight + per_tap * (ky * l->kw + kx);
            }
        }
        const int pixel = oy * l->out_w + ox;
        if (l->mode == TABLE) {
            NAME(neurons)(l, pixel, block, l->out_w - ox < 2 ? 1 : 2, NULL, TABLED, rows, (const uint8_t *const *)from, taps, l->bound);
            continue;
        }
        int32_t peak;
        if (l->mode == LISTS) {
            NAME(by_lists)(l, weight, (const uint32_t *const *)from, base, taps, sums);
            peak = NAME(largest_narrow)(sums, (size_t)T * LANES);
        } else {
            NAME(by_words)(l, rows, (const uint32_t *const *)from, taps, sums);
            peak = NAME(largest)(sums, (size_t)T * LANES);
        }
        if (peak > *l->peak) *l->peak = peak;
        NAME(neurons)(l, pixel, block, 1, sums, l->mode == LISTS ? PAIRED : WIDE, NULL, NULL, 0, peak);
    }
}

/* Dense: rows of weights of every step and plane, those of one chunk of inputs after those of another, counted from where the
   chunk begins; `begin` gets chunks * steps * planes + 1 entries. Returns the most of one. */
TARGET __attribute__((noinline)) static uint32_t NAME(list_events)(const layer_t *l, uint16_t *events, uint32_t *begin)
{
    const int T = l->steps, P = l->planes, words = dense_words(l);
    uint32_t n = 0, most = 0;
    for (int c = 0; c < words; c += CHUNK) {
        const int last = c + CHUNK < words ? c + CHUNK : words;
        for (int t = 0; t < T; t++)
            for (int p = 0; p < P; p++) {
                const uint32_t from = *begin++ = n;
                for (int i = c; i < last; i++) {
                    const uint32_t word = l->in[((size_t)i * P + p) * T + t];
                    if (!word) continue;
                    for (int b = 0; b < 4; b++) {
                        const unsigned byte = word >> (8 * b) & 255;
                        SPREAD_EIGHT(events + n, &bytes_of[byte], (i - c) * 32 + 8 * b);
                        n += (uint32_t)__builtin_popcount(byte);
                    }
                }
                most = n - from > most ? n - from : most;
            }
    }
    *begin = n;
    return most;
}

/* Sums of `many` blocks of a layer of one output pixel, one block after the other, int16 where `narrow`; what arrives in every
   step is listed once for all blocks. */
INLINE void NAME(dense_sums)(const layer_t *l, int narrow, int block, const int many, int32_t *sums)
{
    const int T = l->steps, P = l->planes, words = dense_words(l);
    const size_t next = (size_t)T * LANES, per_block = (size_t)words * 32 * LANES;
    const int16_t *weight = (const int16_t *)l->weight + (l->narrow_weight ? 0 : per_block * (size_t)block);
    const uint8_t *bytes = (const uint8_t *)l->weight + per_block * (size_t)block;
    const uint32_t *begin = l->begin;
    if (!narrow) memset(sums, 0, sizeof *sums * next * many);
    for (int c = 0; c < words; c += CHUNK) {
        for (int t = 0; t < T; t++) {
            for (int p = 0; p < P; p++, begin++) {
                uint32_t at = begin[0];
                const uint32_t end = begin[1];
                if (!narrow && at == end) continue;
                do {
                    const uint32_t until = end - at > (uint32_t)l->flush ? at + (uint32_t)l->flush : end;
                    int16_t found[2 * LANES], *to = narrow ? (int16_t *)sums + t * LANES : found;
                    if (l->narrow_weight) {
                        NAME(add_bytes)(bytes, l->events + at, until - at, many, to, narrow ? next : LANES);
                    } else {
                        ACC acc[ACCS];
                        NAME(clear)(acc);
                        for (uint32_t i = at; i < until; i++) NAME(add)(acc, weight + (size_t)l->events[i] * LANES);
                        for (int i = 0; i < ACCS; i++) ACC_STORE(to + i * (LANES / ACCS), acc[i]);
                    }
                    for (int m = 0; !narrow && m < many; m++) NAME(widen)(sums + m * next + t * LANES, found + m * LANES, worth(l, p));
                    at = until;
                } while (at < end);
            }
        }
        bytes += (size_t)CHUNK * 32 * LANES * many, weight += (size_t)CHUNK * 32 * LANES;
    }
}

/* A unit of a layer of one output pixel: one block, or of rows of bytes two. A layer with a loop leaves its sums for `looped`. */
TARGET __attribute__((noinline)) static void NAME(dense)(const layer_t *l, int narrow, int unit, int32_t *sums, int32_t *kept)
{
    const int block = l->narrow_weight ? 2 * unit : unit, many = l->narrow_weight && block + 1 < l->blocks ? 2 : 1;
    const size_t n = (size_t)l->steps * LANES * many;
    if (l->back) sums = narrow ? (int32_t *)((int16_t *)kept + (size_t)block * l->steps * LANES) : kept + (size_t)block * l->steps * LANES;
    if (l->delays) {
        narrow = 0;
        sums += (size_t)l->history * LANES;
        scattered(l, block, sums);
    } else if (many == 2) {
        NAME(dense_sums)(l, narrow, block, 2, sums);
    } else {
        NAME(dense_sums)(l, narrow, block, 1, sums);
    }
    if (l->back) return;
    const int32_t peak = narrow ? NAME(largest_narrow)((const int16_t *)sums, n) : NAME(largest)(sums, n);
    if (peak > *l->peak) *l->peak = peak;
    NAME(neurons)(l, 0, block, many, sums, narrow ? NARROW : WIDE, NULL, NULL, 0, peak);
}
