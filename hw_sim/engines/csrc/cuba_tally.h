/* What arrives at a layer, counted while it is simulated; included by cuba_lanes.h. What a user pays for are the steps of a sample
   before `paid`; an event whose synapse acts later costs nothing. Only spikes are counted here: one plane. */

/* Neurons of a convolution that some event reaches, per step: windows of `any`, [in_h * in_w][many] words, a bit of which is a step
   of a pixel in which any of its channels has a spike; `row` is room for two rows of pixels. */
TARGET __attribute__((noinline)) static void NAME(touch_windows)(
    const tally_t *c, const uint32_t *any, int steps, int outputs, uint32_t *row, int32_t *touched)
{
    const int many = (steps + 31) / 32;
    const size_t wide = (size_t)c->in_w * many;
    uint32_t *found = row + wide; /* [many][out_w] */
    for (int oy = 0; oy < c->out_h; oy++) {
        memset(row, 0, sizeof *row * wide);
        for (int ky = 0; ky < c->kh; ky++) {
            const int y = oy * c->stride_y - c->pad_y + ky * c->dil_y;
            if (y < 0 || y >= c->in_h) continue;
            const uint32_t *from = any + (size_t)y * wide;
            for (size_t i = 0; i < wide; i++) row[i] |= from[i];
        }
        memset(found, 0, sizeof *found * (size_t)many * c->out_w);
        for (int kx = 0; kx < c->kw; kx++)
            for (int ox = 0; ox < c->out_w; ox++) {
                const int x = ox * c->stride_x - c->pad_x + kx * c->dil_x;
                if (x < 0 || x >= c->in_w) continue;
                for (int k = 0; k < many; k++) found[(size_t)k * c->out_w + ox] |= row[(size_t)x * many + k];
            }
        for (int k = 0; k < many; k++) {
            uint32_t sums[32] = {0};
            WORD_SUMS(found + (size_t)k * c->out_w, c->out_w, sums);
            for (int i = 0; i < 32 && k * 32 + i < steps; i++) touched[k * 32 + i] += (int32_t)sums[i] * outputs;
        }
    }
}

/* Outputs of a layer with delays that some event reaches, per step: for every synapse the spikes of its input, so many steps
   later, as bits [steps / 64]. `trains` has room for those of all inputs. */
TARGET __attribute__((noinline)) static void NAME(touch_delayed)(
    const tally_t *c, const uint32_t *words, int n, int steps, int outputs, uint64_t *trains, int32_t *touched)
{
    const int many = (steps + 63) / 64;
    memset(trains, 0, sizeof *trains * (size_t)n * 32 * many);
    for (int w = 0; w < n; w++)
        for (int t = 0; t < steps; t += 32) {
            uint32_t square[32] = {0};
            for (int i = 0; i < 32 && t + i < steps; i++) square[i] = words[(size_t)w * steps + t + i];
            transpose_bits(square);
            for (int i = 0; i < 32; i++) trains[((size_t)w * 32 + i) * many + t / 64] |= (uint64_t)square[i] << t % 64;
        }
    for (int o = 0; o < outputs; o++) {
        uint64_t met[MAX_TALLIED / 64] = {0};
        for (int i = 0; i < n * 32; i++) {
            const int delay = c->delay[(size_t)o * n * 32 + i];
            if (delay < 0) continue;
            const uint64_t *train = trains + (size_t)i * many;
            for (int k = delay / 64; k < many; k++) {
                const int from = k - delay / 64, shift = delay % 64;
                met[k] |= train[from] << shift | (shift && from ? train[from - 1] >> (64 - shift) : 0);
            }
            if (i % 16 == 15) { /* once every step is met there is nothing to find */
                uint64_t open = steps % 64 ? ~met[many - 1] << (64 - steps % 64) : ~met[many - 1];
                for (int k = 0; k + 1 < many; k++) open |= ~met[k];
                if (!open) break;
            }
        }
        for (int t = 0; t < steps; t++) touched[t] += met[t / 64] >> t % 64 & 1;
    }
}

/* One sample of a layer: `words` [pixels][groups][steps] arrive, or `bytes` [steps][groups * 32 or fewer channels][pixels]. */
TARGET __attribute__((noinline)) static void NAME(tally)(
    const layer_t *l, const tally_t *c, const uint32_t *words, const uint8_t *bytes, int channels, int sample, char *room)
{
    const int T = l->steps, paid = c->paid[sample], groups = (channels + 31) / 32, pixels = c->in_h * c->in_w, n = pixels * groups;
    int32_t *heard = c->heard ? c->heard + (size_t)sample * T : NULL;
    int64_t *reached = c->reached ? c->reached + (size_t)sample * T : NULL;
    int32_t *touched = c->touched ? c->touched + (size_t)sample * T : NULL;
    if (bytes) { /* a first layer that goes by tables never made words of its input */
        const size_t per_step = (size_t)channels * pixels;
        for (int t = 0; t < T; t++) {
            const uint8_t *row = bytes + per_step * t;
            uint32_t sum = 0;
            for (size_t i = 0; i < per_step; i++) sum += row[i];
            if (heard) heard[t] = (int32_t)sum;
            for (int ch = 0; reached && ch < channels; ch++)
                for (int e = 0; e < c->edges; e++) reached[t] += (int64_t)row[(size_t)ch * pixels + c->edge[e]] * c->reach[e];
        }
        uint8_t some[256];
        for (size_t from = 0; from < per_step; from += sizeof some) {
            const size_t many = per_step - from < sizeof some ? per_step - from : sizeof some;
            for (int t = 0; t < paid;) {
                const int last = paid - t < 255 ? paid : t + 255;
                memset(some, 0, sizeof some);
                for (; t < last; t++)
                    for (size_t i = 0; i < many; i++) some[i] += bytes[per_step * t + from + i];
                for (size_t i = 0; i < many; i++) c->sent[(from + i) % pixels * (size_t)groups * 32 + (from + i) / pixels] += some[i];
            }
        }
        if (!touched) return;
        uint32_t *any = (uint32_t *)room;
        const size_t many = ((size_t)T + 31) / 32;
        for (int from = 0; from < pixels; from += 32)
            for (int start = 0; start < T; start += 32) {
                const int some = pixels - from < 32 ? pixels - from : 32;
                uint32_t square[32] = {0}; /* a bit for every pixel in each of 32 steps, then the other way round */
                for (int t = start; t < T && t < start + 32; t++) {
                    uint8_t met[32] = {0};
                    for (int ch = 0; ch < channels; ch++) {
                        const uint8_t *row = bytes + per_step * t + (size_t)ch * pixels + (size_t)from;
                        for (int i = 0; i < some; i++) met[i] |= row[i];
                    }
                    square[t - start] = WORD_OF(met, 0);
                }
                transpose_bits(square);
                for (int i = 0; i < some; i++) any[((size_t)from + i) * many + start / 32] = square[i];
            }
        NAME(touch_windows)(c, any, T, l->outputs, any + (size_t)pixels * many, touched);
        return;
    }
    for (int i = 0; heard && i < n; i++)
        for (int t = 0; t < T; t++) heard[t] += __builtin_popcount(words[(size_t)i * T + t]);
    const int whole = paid - c->history < 0 ? 0 : paid - c->history; /* steps of which every synapse is paid */
    for (int i = 0; i < n; i++) WORD_SUMS(words + (size_t)i * T, whole, c->sent + (size_t)i * 32);
    for (int e = 0; reached && e < c->edges; e++)
        for (int g = 0; g < groups; g++) {
            const uint32_t *word = words + ((size_t)c->edge[e] * groups + g) * T;
            for (int t = 0; t < T; t++) reached[t] += (int64_t)__builtin_popcount(word[t]) * c->reach[e];
        }
    for (int t = whole; t < paid; t++) /* synapses that act before the end, of those with delays */
        for (int i = 0; i < n; i++)
            for (uint32_t word = words[(size_t)i * T + t]; word; word &= word - 1) {
                const size_t at = ((size_t)i * 32 + (size_t)__builtin_ctz(word)) * (size_t)(c->history + 1) + (size_t)(paid - t);
                reached[t] += c->within[2 * at];
                *c->nonzero += c->within[2 * at + 1];
                *c->late += c->within[2 * at] > 0;
            }
    if (touched && c->delay) {
        NAME(touch_delayed)(c, words, n, T, l->outputs, (uint64_t *)room, touched);
    } else if (touched) {
        uint32_t *any = (uint32_t *)room;
        const size_t many = ((size_t)T + 31) / 32;
        for (size_t i = 0; i < (size_t)pixels; i++)
            for (size_t k = 0; k < many; k++) {
                const uint32_t *word = words + i * groups * T + k * 32;
                const int some = T - (int)k * 32 < 32 ? T - (int)k * 32 : 32;
                uint32_t bits = NONZERO_BITS(word, some);
                for (int g = 1; g < groups; g++) bits |= NONZERO_BITS(word + (size_t)g * T, some);
                any[i * many + k] = bits;
            }
        NAME(touch_windows)(c, any, T, l->outputs, any + (size_t)pixels * many, touched);
    }
}

/* Spikes of a layer that come back to it within the sample: all but those of the last step. */
TARGET __attribute__((noinline)) static void NAME(tally_own)(const layer_t *l, const tally_t *c, int sample)
{
    for (int b = 0; b < l->blocks; b++) WORD_SUMS(l->out + (size_t)b * l->steps, c->paid[sample] - 1, c->own + (size_t)b * 32);
}
