/* Samples through a chain of layers, by one thread or a team of them that share each sample; included by cuba.c. */

enum { PLAIN, AVX2, AVX512 };
#ifdef X86
#define AT_LEVEL(level, name, ...)                     \
    do {                                               \
        if (level == AVX512) name##_avx512(__VA_ARGS__); \
        if (level == AVX2) name##_avx2(__VA_ARGS__);     \
        if (level == PLAIN) name##_plain(__VA_ARGS__);   \
    } while (0)
#else
#define AT_LEVEL(level, name, ...) name##_plain(__VA_ARGS__)
#endif

#ifdef X86
static int active(const layer_t *l, int level, int pixels)
{
    if (level == AVX512) return activity_avx512(l->in, pixels, l->channels, l->groups, l->planes, l->steps);
    return activity_avx2(l->in, pixels, l->channels, l->groups, l->planes, l->steps);
}
#endif

/* One layer of one sample, from l->in to l->out, and its spikes into `count`. `raw` are the bytes of the network's input where
   they will do. 0 when it was stopped. */
static int run_layer(layer_t *l, int level, const uint8_t *raw, team_t *team, int member, int parity, int32_t *sums)
{
    const int dense = l->dense;
    int dots = 0;
    l->begin = team->begin, l->items = team->items, l->windows = team->windows, l->events = team->events, l->bytes = team->expanded;
#ifdef X86
    const int pixels = l->in_h * l->in_w, first = share(pixels, member, team->members), last = share(pixels, member + 1, team->members);
    if (l->dot && level != PLAIN && active(l, level, pixels) > l->dot_above) {
        expand(l->in, first, last, l->groups, l->planes, l->steps, l->quads, team->expanded);
        dots = 1;
    }
#endif
    if (l->wide || l->delays) {
        /* works on the words */
    } else if (!dots && dense && member == 0) {
#ifdef X86
        if (level == AVX512 && compresses)
            team->most = list_events_compressed(l, team->events, team->begin);
        else if (level == AVX512)
            team->most = list_events_avx512(l, team->events, team->begin);
        if (level == AVX2) team->most = list_events_avx2(l, team->events, team->begin);
#endif
        if (level == PLAIN) team->most = list_events_plain(l, team->events, team->begin);
    } else if (!dots && !dense && l->mode == LISTS) {
        const int top = share(l->in_h, member, team->members), bottom = share(l->in_h, member + 1, team->members);
        const size_t room = (size_t)top * l->in_w * l->channels * l->planes * l->steps + 64 * (size_t)member;
#ifdef X86
        if (level == AVX512 && compresses)
            list_items_compressed(l, top, bottom, room, team->items, team->begin);
        else
#endif
            AT_LEVEL(level, list_items, l, top, bottom, room, team->items, team->begin);
    } else if (!dots && !dense && l->mode == TABLE) {
        const int top = share(l->in_h, member, team->members), bottom = share(l->in_h, member + 1, team->members);
        if (raw)
            windows_of_bytes(l, raw, top, bottom, team->windows);
        else
            windows(l, top, bottom, team->windows);
    }
    if (member == 0) atomic_store(&team->next[parity], 0);
    if (!meet(team, l->stop)) return 0;
    const int in_pairs = dense && l->narrow_weight && !dots; /* of blocks */
    const int units = l->wide && l->back ? 1 : in_pairs ? (l->blocks + 1) / 2 : l->blocks * (dense ? 1 : l->out_h);
    const int narrow = l->planes == 1 && team->most <= (uint32_t)l->flush && dense_words(l) <= CHUNK;
    for (int unit; (unit = atomic_fetch_add(&team->next[parity], 1)) < units;) {
        if (*l->stop) return 0;
        if (l->wide) {
            wide_unit(l, unit, (int64_t *)sums);
            continue;
        }
#ifdef X86
        if (dots && level == AVX512) dotted_avx512(l, unit, sums);
        if (dots && level == AVX2) dotted_avx2(l, unit, sums);
#endif
        if (!dots && dense) AT_LEVEL(level, dense, l, narrow, unit, sums, team->kept);
        if (!dots && !dense) AT_LEVEL(level, conv, l, unit, sums);
    }
    if (l->back && !l->wide) {
        if (!meet(team, l->stop)) return 0;
        if (member == 0) AT_LEVEL(level, looped, l, narrow, team->kept, team->room);
    }
    return meet(team, l->stop);
}

/* Samples 0..samples, as one member of a team: all of them together with the others, or where a team has one member those that no
   other team has taken from `next`. 0, or 2 when `stop` was set meanwhile. */
int knarr_run(team_t *team, int member, const stage_t *stages, int n, const uint8_t *inputs, int bytes, int channels, int pixels,
    int planes, int steps, int samples, atomic_int *next, int level, const volatile int32_t *stop)
{
    const int mode = fegetround(), members = team->members;
    const size_t per_sample = (size_t)steps * channels * pixels * bytes;
    const int spikes = bytes == 1 && planes == 1, by_table = spikes && !stages->layer.dense && !stages->layer.wide && !stages->pool && stages->layer.mode == TABLE;
    int32_t *sums = (int32_t *)(team->sums + team->sums_bytes * (size_t)member);
    int failed = 0, parity = 0;
    fesetround(FE_TOWARDZERO);
    for (int s = 0; !failed; s++) {
        if (members == 1) s = atomic_fetch_add(next, 1);
        if (s >= samples) break;
        const uint8_t *sample = inputs + per_sample * s;
        uint32_t *here = team->words[0], *there = team->words[1];
        if (!by_table && spikes && pixels == 1 && member == 0)
            AT_LEVEL(level, pack_flat, sample, steps, channels, here);
        else if (!by_table && (!spikes || pixels > 1))
            AT_LEVEL(level, pack, sample, bytes, steps, channels, pixels, planes, share(pixels, member, members),
                share(pixels, member + 1, members), here);
        if (!meet(team, stop)) failed = 2;
        for (int i = 0; i < n && !failed; i++, parity ^= 1) {
            const stage_t *stage = &stages[i];
            layer_t l = stage->layer;
            const size_t out = (size_t)l.out_h * l.out_w, states = out * steps * l.blocks * LANES;
            int32_t *counts = team->counts + (size_t)parity * members * steps;
            if (stage->tally && member == 0)
                AT_LEVEL(level, tally, &l, stage->tally, here, by_table && i == 0 ? sample : NULL, stage->arriving, s, team->tallied);
            if (stage->pool) {
                const int rows = (stage->map_h + 1) / 2;
                AT_LEVEL(level, pool, here, stage->map_h, stage->map_w, l.groups, steps, share(rows, member, members),
                    share(rows, member + 1, members), team->silence, there);
                uint32_t *swap = here;
                here = there;
                there = swap;
                if (!meet(team, stop)) {
                    failed = 2;
                    break;
                }
            }
            const size_t words = (size_t)(stage->shift.pairs ? stage->shift.words : l.in_h * l.in_w * l.groups) * l.planes;
            uint32_t *sent = stage->layer.sent ? stage->layer.sent + words * (size_t)l.history * s : NULL;
            if (stage->shift.pairs) {
                shift_t shift = stage->shift;
                shift.sent = sent;
                move_in_time(&shift, here, steps, share(l.groups, member, members), share(l.groups, member + 1, members), there);
                if (!meet(team, stop)) {
                    failed = 2;
                    break;
                }
                /* Nobody writes there before all have met once more. */
                if (sent && member == 0) keep_sent(sent, here, (int)words, steps, l.history);
                uint32_t *swap = here;
                here = there;
                there = swap;
            }
            l.in = here, l.out = there, l.sent = sent, l.peak = stage->peak, l.stop = stop;
            l.count = memset(counts + (size_t)member * steps, 0, sizeof *counts * steps);
            const size_t wide = l.wide ? 8 : 4; /* bytes */
            l.u = stage->u ? (char *)stage->u + wide * states * s : NULL;
            l.v = stage->u ? (char *)stage->v + wide * states * s : NULL;
            if (l.state) l.state = (char *)l.state + wide * out * l.blocks * 2 * LANES * s;
            if (l.fired) l.fired += (size_t)l.blocks * s;
            if (!run_layer(&l, level, by_table && i == 0 ? sample : NULL, team, member, parity, sums)) {
                failed = 2;
                break;
            }
            if (member == 0)
                for (int t = 0; t < steps; t++)
                    for (int m = 0; m < members; m++) stage->counts[(size_t)s * steps + t] += counts[(size_t)m * steps + t];
            if (stage->tally && stage->tally->own && member == 0) AT_LEVEL(level, tally_own, &l, stage->tally, s);
            if (sent && l.delays) {
                if (member == 0) keep_sent(sent, here, (int)words, steps, l.history);
                if (!meet(team, stop)) {
                    failed = 2;
                    break;
                }
            }
            if (stage->spikes)
                AT_LEVEL(level, unpack, there, steps, l.outputs, (int)out, share((int)out, member, members),
                    share((int)out, member + 1, members), stage->spikes + (size_t)s * steps * l.outputs * out);
            uint32_t *swap = here;
            here = there;
            there = swap;
        }
        if (!failed && !meet(team, stop)) failed = 2; /* nobody packs the next sample over what another still unpacks */
    }
    fesetround(mode);
    return failed;
}
