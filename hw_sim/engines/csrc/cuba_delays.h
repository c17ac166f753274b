/* Synapses whose spikes arrive later than the step they were sent in; included by cuba.c.

   Two ways. Where inputs have few delays each, bits are moved in time before the layer sees them: every pair of an input and a
   delay that occurs is an input of its own. Where every synapse has a delay of its own, a spike adds its row of weights to sums
   of as many steps. What arrived in the last steps of the block before is kept in `sent`. */

/* Pairs of an input and a delay. */
typedef struct {
    const int32_t *input, *delay; /* [pairs]; an input is a bit of the words that arrive, 32 * word + bit */
    int32_t pairs, words, planes, history;
    uint32_t *sent;               /* [words][planes][history] of this sample, or NULL */
} shift_t;

/* Words [words][planes][steps] to words [groups][planes][steps] of pairs, groups first..last of them. */
static void move_in_time(const shift_t *m, const uint32_t *in, int steps, int first, int last, uint32_t *out)
{
    const int P = m->planes, H = m->history;
    for (int g = first; g < last; g++)
        for (int p = 0; p < P; p++) {
            uint32_t *to = out + ((size_t)g * P + p) * steps;
            memset(to, 0, sizeof *to * steps);
            for (int k = 0; k < 32 && g * 32 + k < m->pairs; k++) {
                const int input = m->input[g * 32 + k], delay = m->delay[g * 32 + k], bit = input % 32;
                const size_t word = (size_t)(input / 32) * P + p;
                const uint32_t *from = in + word * steps;
                for (int t = delay; t < steps; t++) to[t] |= (from[t - delay] >> bit & 1u) << k;
                if (!m->sent) continue;
                const uint32_t *sent = m->sent + word * H + H - delay;
                for (int t = 0; t < delay && t < steps; t++) to[t] |= (sent[t] >> bit & 1u) << k;
            }
        }
}

/* Keep the last `history` steps of what arrived, words [n][steps]. */
static void keep_sent(uint32_t *sent, const uint32_t *in, int n, int steps, int history)
{
    for (int i = 0; i < n; i++, sent += history, in += steps)
        for (int h = 0; h < history; h++) sent[h] = h + steps < history ? sent[h + steps] : in[h + steps - history];
}

/* Sums [steps][LANES] of one block, from delays of each synapse; `sums` has room for `history` more steps at either end, which
   take what is due before the first step or after the last. */
static void scattered(const layer_t *l, int block, int32_t *sums)
{
    const int T = l->steps, H = l->history, P = l->planes, words = l->in_h * l->in_w * l->groups;
    const int lanes = l->outputs - block * LANES < LANES ? l->outputs - block * LANES : LANES;
    const int16_t *weight = (const int16_t *)l->weight + (size_t)block * words * 32 * LANES;
    const uint16_t *place = l->delays + (size_t)block * words * 32 * LANES;
    memset(sums - (size_t)H * LANES, 0, sizeof *sums * LANES * ((size_t)T + 2 * (size_t)H));
    for (int w = 0; w < words; w++)
        for (int p = 0; p < P; p++) {
            const int32_t scale = worth(l, p);
            for (int t = l->sent ? -H : 0; t < T; t++) {
                uint32_t word = t < 0 ? l->sent[((size_t)w * P + p) * H + (H + t)] : l->in[((size_t)w * P + p) * T + t];
                for (; word; word &= word - 1) {
                    const size_t row = ((size_t)w * 32 + (size_t)__builtin_ctz(word)) * LANES;
                    int32_t *to = sums + (ptrdiff_t)t * LANES;
                    if (scale == 1)
                        for (int i = 0; i < lanes; i++) to[place[row + i]] += weight[row + i];
                    else
                        for (int i = 0; i < lanes; i++) to[place[row + i]] += weight[row + i] * scale;
                }
            }
        }
}
