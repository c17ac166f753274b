/* Samples through a chain of layers, by one thread or a team of them that share each sample; included by cuba.c. */

/* A layer of a network, and where what is recorded of it goes: [samples][steps]... or NULL. */
typedef struct {
    layer_t layer;   /* its pointers to inputs, lists and outputs are filled in here; states, `fired`, `sent` are [samples]... */
    shift_t shift;   /* before the layer; no pairs: no delays, or those of `layer.delays` */
    int32_t pool;    /* 2x2 sum pooling of what arrives, map_h * map_w pixels of it */
    int32_t map_h, map_w;
    int32_t outputs; /* channels that exist */
    uint8_t *spikes; /* [samples][steps][outputs][pixels] */
    int32_t *counts; /* [samples][steps] */
    void *u, *v;     /* [samples][pixels][steps][blocks * LANES], int32 or where `wide` int64 */
    int64_t *peak;   /* of this thread */
} stage_t;

/* What the threads of a team work on together. */
typedef struct {
    uint32_t *words[2], *silence, *begin;
    uint8_t *items, *windows, *bytes;
    int32_t *events, *counts; /* counts: [2][members][steps], of two layers in turn */
    int32_t *kept, *room;     /* loops: sums, and see `looped`; or 64-bit states */
    size_t sums;              /* bytes of sums that a member needs */
    uint32_t most;            /* events of one step and plane */
    int members;
    atomic_int arrived, phase, next[2]; /* next: unit of a layer that nobody has taken */
} team_t;

/* Sizes of the structures, which the caller's view of them must have. */
int knarr_sizes(void) { return (int)(sizeof(layer_t) << 16 | sizeof(stage_t)); }

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

void knarr_team_free(team_t *team)
{
    if (!team) return;
    free(team->words[0]), free(team->words[1]), free(team->silence), free(team->begin), free(team->items), free(team->windows);
    free(team->bytes), free(team->events), free(team->counts), free(team->kept), free(team->room), free(team);
}

/* Room for the largest layer of a chain; NULL where there is none. `words` of input come first. */
team_t *knarr_team(const stage_t *stages, int n, size_t words, int steps, int members)
{
    size_t items = 0, begins = 0, tables = 0, events = 0, bytes = 0, kept = 0, room = 0, sums = sizeof(int32_t) * LANES * (size_t)steps;
    for (int i = 0; i < n; i++) {
        const layer_t *l = &stages[i].layer;
        const size_t in = (size_t)l->in_h * l->in_w, arriving = in * l->groups * l->planes * steps;
        words = most(words, most(arriving, (size_t)l->out_h * l->out_w * l->blocks * steps));
        if (l->dot) bytes = most(bytes, in * steps * l->quads * 4);
        sums = most(sums, sizeof(int32_t) * LANES * ((size_t)steps + 2 * (size_t)l->history));
        if (l->wide) sums = most(sums, sizeof(int64_t) * 2 * LANES * l->blocks);
        if (l->back && !l->wide) {
            kept = most(kept, (size_t)l->blocks * steps * LANES);
            room = most(room, (size_t)l->blocks * 3 * LANES + 32);
        }
        if (l->wide) continue;
        if (l->dense) {
            events = most(events, in * l->channels * l->planes * steps + 32);
            begins = most(begins, (size_t)steps * l->planes + 1);
        } else if (l->mode == LISTS) {
            items = most(items, in * l->channels * l->planes * steps + 32 * ((size_t)members + 1));
            begins = most(begins, in * (steps + 1));
        } else if (l->mode == TABLE) {
            tables = most(tables, (size_t)l->in_h * l->out_w * steps);
        }
    }
    team_t *team = calloc(1, sizeof *team);
    if (!team) return NULL;
    team->members = members;
    team->words[0] = malloc(words * 4), team->words[1] = malloc(words * 4), team->silence = calloc(steps, 4);
    team->begin = malloc(begins * 4 + 4), team->items = malloc(items + 1), team->windows = malloc(tables + 1);
    team->kept = malloc(kept * 4 + 4), team->room = malloc(room * 4 + 4), team->sums = sums;
    team->bytes = malloc(bytes + 1), team->events = malloc(events * 4 + 4), team->counts = malloc(sizeof(int32_t) * 2 * members * steps);
    if (team->words[0] && team->words[1] && team->silence && team->begin && team->items && team->windows && team->bytes && team->events
        && team->counts && team->kept && team->room)
        return team;
    knarr_team_free(team);
    return NULL;
}

/* Wait for all; 0 when `stop` is set instead. */
static int meet(team_t *team, const volatile int32_t *stop)
{
    if (team->members == 1) return !*stop;
    const int phase = atomic_load(&team->phase);
    if (atomic_fetch_add(&team->arrived, 1) == team->members - 1) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->phase, phase + 1);
        return !*stop;
    }
    for (int spins = 0; atomic_load(&team->phase) == phase; spins++) {
        if (*stop) return 0;
        if (spins > 2000) sched_yield(); /* the other one may need this core */
    }
    return !*stop;
}

/* A member's share of n things. */
static int share(int n, int member, int members) { return (int)((int64_t)n * member / members); }

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

/* One layer of one sample, from l->in to l->out, and its spikes into `count`. `raw` are the bytes of the network's input where
   they will do. 0 when it was stopped. */
static int run_layer(layer_t *l, int level, const uint8_t *raw, team_t *team, int member, int parity, int32_t *sums)
{
    const int dense = l->dense;
    const int pixels = l->in_h * l->in_w, first = share(pixels, member, team->members), last = share(pixels, member + 1, team->members);
    int dots = 0;
    l->begin = team->begin, l->items = team->items, l->windows = team->windows, l->events = team->events, l->bytes = team->bytes;
#ifdef X86
    if (l->dot && level != PLAIN && activity(l->in, pixels, l->channels, l->groups, l->planes, l->steps) > l->dot_above) {
        expand(l->in, first, last, l->groups, l->planes, l->steps, l->quads, team->bytes);
        dots = 1;
    }
#endif
    if (l->wide || l->delays) {
        /* works on the words */
    } else if (!dots && dense && member == 0) {
#ifdef X86
        if (level == AVX512) team->most = list_events_avx512(l, team->events, team->begin);
        if (level == AVX2) team->most = list_events_avx2(l, team->events, team->begin);
#endif
        if (level == PLAIN) team->most = list_events_plain(l, team->events, team->begin);
    } else if (!dots && !dense && l->mode == LISTS) {
        const size_t room = (size_t)first * l->channels * l->planes * l->steps + 32 * (size_t)member;
        list_items(l->in, first, last, l->groups, l->planes, l->steps, room, team->items, team->begin);
    } else if (!dots && !dense && l->mode == TABLE) {
        const int top = share(l->in_h, member, team->members), bottom = share(l->in_h, member + 1, team->members);
        if (raw)
            windows_of_bytes(l, raw, top, bottom, team->windows);
        else
            windows(l, top, bottom, team->windows);
    }
    if (member == 0) atomic_store(&team->next[parity], 0);
    if (!meet(team, l->stop)) return 0;
    const int units = l->wide && l->back ? 1 : l->blocks * (dense ? 1 : l->out_h), narrow = l->planes == 1 && team->most <= (uint32_t)l->flush;
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
        if (member == 0) AT_LEVEL(level, looped, l, team->kept, team->room);
    }
    return meet(team, l->stop);
}

/* Samples from..to, as one member of a team; 0, or 1 when memory ran out, or 2 when `stop` was set meanwhile. */
int knarr_run(team_t *team, int member, const stage_t *stages, int n, const uint8_t *inputs, int bytes, int channels, int pixels,
    int planes, int steps, int from, int to, int level, const volatile int32_t *stop)
{
    const int mode = fegetround(), members = team->members;
    const size_t per_sample = (size_t)steps * channels * pixels * bytes;
    const int spikes = bytes == 1 && planes == 1, by_table = spikes && !stages->layer.dense && !stages->layer.wide && !stages->pool && stages->layer.mode == TABLE;
    int32_t *sums = malloc(team->sums);
    int failed = !sums;
    if (failed) *(volatile int32_t *)stop = 1;
    fesetround(FE_TOWARDZERO);
    for (int s = from, parity = 0; s < to && !failed; s++) {
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
            if (stage->pool) {
                const int rows = (stage->map_h + 1) / 2;
                pool(here, stage->map_h, stage->map_w, l.groups, steps, share(rows, member, members), share(rows, member + 1, members),
                    team->silence, there);
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
            if (sent && l.delays) {
                if (member == 0) keep_sent(sent, here, (int)words, steps, l.history);
                if (!meet(team, stop)) {
                    failed = 2;
                    break;
                }
            }
            if (stage->spikes)
                AT_LEVEL(level, unpack, there, steps, stage->outputs, (int)out, share((int)out, member, members),
                    share((int)out, member + 1, members), stage->spikes + (size_t)s * steps * stage->outputs * out);
            uint32_t *swap = here;
            here = there;
            there = swap;
        }
        if (!failed && !meet(team, stop)) failed = 2; /* nobody packs the next sample over what another still unpacks */
    }
    fesetround(mode);
    free(sums);
    return failed;
}
